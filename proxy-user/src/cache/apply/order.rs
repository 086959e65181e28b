//! The order of copies of an object. Within one etcd resourceVersions order everything. If a response that is certainly
//! later contradicts them, the cluster was replaced or its etcd restored from a backup, and the later response counts
//! (`continuity`).

use std::time::Duration;

use redb::ReadableTable;

use super::{Batch, MAX_ABSENT, MAX_COLLECTIONS, form_key};
use crate::cache::change::{Observation, ObservedBy};
use crate::cache::continuity::{KUBE_SYSTEM, Stored, fingerprint};
use crate::cache::exchange::{EVENT_TTL, is_event, may_use_other_etcd};
use crate::cache::keys::{self, CollectionKey, CollectionKeyBuf, ObjectKey, ObjectKeyBuf};
use crate::cache::notices::mentions_domain;
use crate::cache::record::{Absence, Collection, NewRecord, Record, ResponseRecord};
use crate::cache::store::StoreError;
use crate::cache::tables::CLUSTER;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};

use super::ReadableTableMetadata;

/// Age of a stored response from which on an unchanged one is written again: a newer time alone is not worth a write.
const MIN_REWRITE_AGE: Duration = Duration::from_secs(10);

/// True if the object was seen again after it was absent: in a later version or, for a 404, which has no version, after
/// the request was sent.
fn is_seen_since(stored: &Stored, version: ResourceVersion, observed: Observation) -> bool {
    if version == ResourceVersion::UNSET {
        stored.at > observed.requested_at
    } else {
        stored.version > version && stored.at >= observed.not_before
    }
}

/// The latest version of the object that an absence shows to be deleted.
fn deleted_version(
    stored: Option<&Stored>,
    version: ResourceVersion,
    observed: Observation,
) -> ResourceVersion {
    match (version, stored) {
        (ResourceVersion::UNSET, Some(stored)) if observed.is_consistent() => stored.version,
        // A 404 from a watch cache may only mean that the cache lags: it shows no version to be deleted.
        (version, _) => version,
    }
}

impl Batch<'_> {
    pub(super) fn upsert_object(
        &mut self,
        key: ObjectKey<'_>,
        new: &NewRecord,
        observed: Observation,
    ) -> Result<(), StoreError> {
        let incoming = Record::read(&new.value).ok_or(StoreError::Damaged)?;
        if key == KUBE_SYSTEM {
            self.check_cluster(incoming.uid, observed)?;
        }
        let stored = self.read_stored(key)?;
        if stored.is_none()
            && (self
                .continuity
                .is_from_before_write(key, new.version, observed)
                || self.is_unlisted(key, new.version, observed)?)
        {
            return Ok(());
        }
        let gone = self.read_absence(key)?;
        if let Some(gone) = gone {
            if !self.is_back(key, gone, new.version, observed) {
                return Ok(());
            }
            self.absent.remove(key.as_bytes())?;
            self.changed = true;
        }
        if let Some(old) = stored
            && !self.is_replacement(key, &old, &incoming, observed)?
        {
            return Ok(());
        }
        self.changed = true;
        self.continuity.forget_write(key);
        self.mentioned |= mentions_domain(&new.value);
        *self.forms.entry(form_key(key, &incoming)).or_default() += 1;
        let replaced = self.objects.insert(key.as_bytes(), new.value.as_slice())?;
        if let Some(form) =
            replaced.and_then(|v| Record::read(v.value()).map(|r| form_key(key, &r)))
        {
            *self.forms.entry(form).or_default() -= 1;
        }
        Ok(())
    }

    /// True if a complete list of this version or a later one lacks the object: the response is from an API server that lags.
    fn is_unlisted(
        &self,
        key: ObjectKey<'_>,
        version: ResourceVersion,
        observed: Observation,
    ) -> Result<bool, StoreError> {
        if observed.is_consistent() {
            return Ok(false);
        }
        for scope in key.collections() {
            if let Some(list) = self.read_collection(scope)?
                && list.is_whole()
                && version <= list.version
                && !observed.overrules(self.continuity.past(list.at))
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if an object that was stored as absent exists: it was created again, or was never deleted.
    fn is_back(
        &mut self,
        key: ObjectKey<'_>,
        gone: Absence,
        version: ResourceVersion,
        observed: Observation,
    ) -> bool {
        let (at, since_version) = (self.continuity.past(gone.at), gone.version);
        if since_version == ResourceVersion::UNSET {
            return observed.requested_at >= at;
        }
        if version > since_version {
            self.continuity.clear_contradiction(key.as_bytes());
            return true;
        }
        observed.overrules(at)
            && (observed.source == ObservedBy::Read
                || self.continuity.confirm_contradiction(key.as_bytes()))
    }

    fn is_replacement(
        &mut self,
        key: ObjectKey<'_>,
        old: &Stored,
        new: &Record<'_>,
        observed: Observation,
    ) -> Result<bool, StoreError> {
        if new.version > old.version {
            self.continuity.clear_contradiction(key.as_bytes());
            return Ok(true);
        }
        let other = new.uid != old.uid && !new.uid.is_empty() && !old.uid.is_empty();
        if new.version == old.version && !other {
            self.continuity.clear_contradiction(key.as_bytes());
            // Of two copies of one version, JSON is kept: every client accepts it. A newer time alone isn't worth a write.
            let json = new.encoding == Encoding::Json;
            let fresh = json == old.is_json && new.stored_at < old.at + MIN_REWRITE_AGE;
            return Ok(!(old.is_json && !json || fresh));
        }
        if !observed.overrules(old.at) {
            return Ok(false);
        }
        let is_proof = other && observed.source == ObservedBy::Read;
        if !is_proof && !self.continuity.confirm_contradiction(key.as_bytes()) {
            return Ok(false);
        }
        let tells_of_cluster = other && !may_use_other_etcd(key.resource());
        if tells_of_cluster
            && let Some(since) = self
                .continuity
                .record_replacement(key, observed.requested_at)
        {
            self.discard_old_cluster(since)?;
        }
        self.rewind_resource(key.resource(), new.version, observed)?;
        Ok(true)
    }

    /// The etcd of this resource was restored from a backup: stored lists may show a state that the restore has undone.
    fn rewind_resource(
        &mut self,
        resource: &[u8],
        version: ResourceVersion,
        observed: Observation,
    ) -> Result<(), StoreError> {
        let end = keys::end_of(resource);
        let mut ahead = Vec::new();
        for row in self.collections.range(resource..end.as_slice())? {
            let (key, value) = row?;
            let collection: Option<Collection> = serde_json::from_slice(value.value()).ok();
            ahead.extend(
                collection
                    .filter(|c| c.version > version)
                    .map(|c| (CollectionKey::new(key.value()).to_buf(), c)),
            );
        }
        for (key, mut collection) in ahead {
            collection.complete = false;
            self.put_collection(key.as_key(), &collection)?;
        }
        let continuity = &self.continuity;
        self.absent.retain_in(resource..end.as_slice(), |_, row| {
            let absence = Absence::from_row(row);
            absence.version <= version || continuity.past(absence.at) >= observed.requested_at
        })?;
        self.changed = true;
        Ok(())
    }

    /// Compares the uid of the kube-system namespace, which never changes in a cluster, with the stored one.
    fn check_cluster(&mut self, uid: &str, observed: Observation) -> Result<(), StoreError> {
        let stored = self.read_stored(KUBE_SYSTEM)?;
        let marked = self.meta.get(CLUSTER)?.map(|v| v.value());
        let known = marked.or_else(|| stored.as_ref().map(|s| fingerprint(&s.uid)));
        let seen = fingerprint(uid);
        if known == Some(seen) && marked.is_some() {
            return Ok(());
        }
        if known.is_some_and(|known| known != seen) {
            if stored.is_some_and(|stored| observed.requested_at < stored.at) {
                return Ok(());
            }
            self.discard_old_cluster(self.continuity.since(observed.requested_at))?;
        }
        self.changed = true;
        self.meta.insert(CLUSTER, seen)?;
        Ok(())
    }

    /// Another cluster has answered since that time: removes everything older, and all grants and credentials.
    fn discard_old_cluster(&mut self, since: Timestamp) -> Result<(), StoreError> {
        tracing::warn!(
            "responses come from another cluster than the stored data: the old data is discarded"
        );
        (self.changed, self.continuity.cluster_replaced) = (true, true);
        let continuity = &self.continuity;
        let is_new = |at: Timestamp| continuity.past(at) > since;
        self.absent
            .retain(|_, row| is_new(Absence::from_row(row).at))?;
        self.documents
            .retain(|_, value| ResponseRecord::read(value).is_some_and(|d| is_new(d.at)))?;
        self.delete_all_rights()?;
        for key in self.objects_until(since)? {
            self.remove_object(key.as_key())?;
        }
        for key in self.collections_until(since)? {
            self.drop_collection(key.as_key())?;
        }
        Ok(())
    }

    /// Objects that were stored up to this time, except those that the new cluster has replaced.
    fn objects_until(&self, time: Timestamp) -> Result<Vec<ObjectKeyBuf>, StoreError> {
        let mut keys = Vec::new();
        for row in self.objects.iter()? {
            let (key, value) = row?;
            let key = ObjectKey::new(key.value()).to_buf();
            let stored_at = Record::read(value.value()).map(|record| record.stored_at);
            let is_old = stored_at.is_none_or(|at| self.continuity.past(at) <= time);
            if is_old && !self.continuity.is_replacement(&key) {
                keys.push(key);
            }
        }
        Ok(keys)
    }

    /// Collections that were confirmed up to this time.
    fn collections_until(&self, time: Timestamp) -> Result<Vec<CollectionKeyBuf>, StoreError> {
        let mut keys = Vec::new();
        for row in self.collections.iter()? {
            let (key, value) = row?;
            let collection = serde_json::from_slice::<Collection>(value.value());
            if collection.map_or(true, |c| self.continuity.past(c.at) <= time) {
                keys.push(CollectionKey::new(key.value()).to_buf());
            }
        }
        Ok(keys)
    }

    pub(super) fn read_stored(&self, key: ObjectKey<'_>) -> Result<Option<Stored>, StoreError> {
        let value = self.objects.get(key.as_bytes())?;
        let record = value.as_ref().and_then(|v| Record::read(v.value()));
        Ok(record.map(|r| Stored::of(&r, self.continuity.past(r.stored_at))))
    }

    fn read_absence(&self, key: ObjectKey<'_>) -> Result<Option<Absence>, StoreError> {
        let row = self.absent.get(key.as_bytes())?;
        Ok(row.map(|row| Absence::from_row(row.value())))
    }

    /// Removes the absences in a scope; in all if it is empty. Lists older than a removed absence may lack the object, and
    /// become incomplete.
    pub(super) fn end_absences(&mut self, scope: &[u8]) -> Result<(), StoreError> {
        let end = keys::end_of_scope(scope);
        let mut ended = Vec::new();
        for row in self
            .absent
            .extract_from_if(scope..end.as_slice(), |_, _| true)?
        {
            let (object, value) = row?;
            ended.push((object.value().to_vec(), Absence::from_row(value.value()).at));
        }
        for (object, at) in ended {
            self.changed = true;
            for scope in ObjectKey::new(&object).collections() {
                if let Some(list) = self
                    .read_collection(scope)?
                    .filter(|list| list.complete && list.at < at)
                {
                    self.put_collection(
                        scope,
                        &Collection {
                            complete: false,
                            ..list
                        },
                    )?;
                }
            }
        }
        Ok(())
    }

    /// True if the object is stored, or known to be absent, as it was at this version or later.
    pub(super) fn is_stored_since(
        &self,
        key: ObjectKey<'_>,
        version: ResourceVersion,
        observed: Observation,
    ) -> Result<bool, StoreError> {
        if let Some(stored) = self.read_stored(key)? {
            let is_same = stored.version == version;
            return Ok(is_same || (stored.version > version && !observed.overrules(stored.at)));
        }
        let absence = self.read_absence(key)?;
        Ok(absence.is_some_and(|absence| {
            absence.version >= version && !observed.overrules(self.continuity.past(absence.at))
        }))
    }

    pub(super) fn record_absence(
        &mut self,
        key: ObjectKey<'_>,
        version: ResourceVersion,
        observed: Observation,
    ) -> Result<(), StoreError> {
        let stored = self.read_stored(key)?;
        if let Some(stored) = &stored
            && is_seen_since(stored, version, observed)
        {
            return Ok(());
        }
        if stored.is_none() && self.continuity.is_from_before_write(key, version, observed) {
            return Ok(());
        }
        self.continuity.forget_write(key);
        let before = self.read_absence(key)?;
        let known = before.map_or(ResourceVersion::UNSET, |before| before.version);
        let since_version = known.max(deleted_version(stored.as_ref(), version, observed));
        let age = before.map(|before| self.continuity.past(before.at) + MIN_REWRITE_AGE);
        if age.is_some_and(|fresh| observed.not_after < fresh) && since_version <= known {
            return Ok(());
        }
        self.remove_object(key)?;
        self.changed = true;
        let absence = Absence {
            at: observed.not_after,
            version: since_version,
        };
        self.absent.insert(key.as_bytes(), absence.to_row())?;
        if self.absent.len()? > MAX_ABSENT {
            self.evict_absent()
        } else {
            Ok(())
        }
    }

    pub(super) fn replace_collection(
        &mut self,
        collection: CollectionKey<'_>,
        new: &Collection,
        members: &[ObjectKeyBuf],
        observed: Observation,
    ) -> Result<(), StoreError> {
        let before = self.read_collection(collection)?;
        let old = before.as_ref().filter(|before| before.is_whole());
        if let Some(old) = old
            && !self.is_newer_list(collection, old, new, observed)?
        {
            return Ok(());
        }
        let mut listed: Vec<_> = members.iter().map(ObjectKeyBuf::as_key).collect();
        listed.sort_unstable();
        let lacks_objects = if collection.has_selectors() {
            let lacks_members = self.has_other_members(collection, &listed)?;
            self.replace_members(collection, members)?;
            lacks_members
        } else {
            self.drop_unlisted(collection, new.version, observed, &listed)?
        };
        let follows = old.filter(|old| old.version <= new.version);
        let mut new = new.following(follows, lacks_objects);
        if let Some(before) = &before
            && self.may_lack_write(&new, before, observed)
        {
            (new.unclear, new.written_at) = (before.unclear, before.written_at);
        }
        let writes = self
            .continuity
            .writes_after(collection, new.version, observed);
        if let Some(write) = writes {
            new.unclear = new.unclear.max(write.version);
            new.written_at = new.written_at.max(write.at);
        }
        self.put_collection(collection, &new)?;
        if self.collections.len()? > MAX_COLLECTIONS {
            self.evict_collections()
        } else {
            Ok(())
        }
    }

    /// True if the list may predate a client's write that the list `before` it did not show.
    fn may_lack_write(&self, new: &Collection, before: &Collection, observed: Observation) -> bool {
        new.version < before.unclear
            && observed.not_before < self.continuity.past(before.written_at)
    }

    /// True if a list replaces the stored one: it is newer, or confirms that etcd was restored.
    fn is_newer_list(
        &mut self,
        collection: CollectionKey<'_>,
        old: &Collection,
        new: &Collection,
        observed: Observation,
    ) -> Result<bool, StoreError> {
        let at = self.continuity.past(old.at);
        if old.version <= new.version {
            self.continuity.clear_contradiction(collection.as_bytes());
            // The same list again: a newer time alone isn't worth a write.
            return Ok(old.version != new.version || new.at >= at + MIN_REWRITE_AGE);
        }
        let overrules = observed.is_consistent() && observed.overrules(at);
        if !overrules || !self.continuity.confirm_contradiction(collection.as_bytes()) {
            return Ok(false);
        }
        self.rewind_resource(collection.resource(), new.version, observed)?;
        Ok(true)
    }

    /// Removes the stored objects that a complete list lacks, without storing absences for them; true if there were any.
    fn drop_unlisted(
        &mut self,
        collection: CollectionKey<'_>,
        version: ResourceVersion,
        observed: Observation,
        listed: &[ObjectKey<'_>],
    ) -> Result<bool, StoreError> {
        let prefix = collection.as_bytes();
        let end = keys::end_of(prefix);
        let mut missing = Vec::new();
        for row in self.objects.range(prefix..end.as_slice())? {
            let (key, value) = row?;
            // Stored before a consistent list was requested, and not in it: deleted, whatever its version.
            let older = Record::read(value.value()).is_none_or(|r| {
                r.version <= version
                    || (observed.is_consistent()
                        && self.continuity.past(r.stored_at) < observed.not_before)
            });
            let key = ObjectKey::new(key.value());
            if older && listed.binary_search(&key).is_err() {
                missing.push(key.to_buf());
            }
        }
        for key in &missing {
            self.remove_object(key.as_key())?;
        }
        Ok(!missing.is_empty())
    }

    fn has_other_members(
        &self,
        collection: CollectionKey<'_>,
        listed: &[ObjectKey<'_>],
    ) -> Result<bool, StoreError> {
        let start = collection.member_prefix();
        let end = keys::end_of(&start);
        for row in self.members.range(start.as_slice()..end.as_slice())? {
            let row = row?.0;
            let member = ObjectKey::new(&row.value()[start.len()..]);
            if listed.binary_search(&member).is_err() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes, from time to time, Events that the API server has dropped as well.
    pub(super) fn sweep_events(&mut self) -> Result<(), StoreError> {
        let Some(now) = self.continuity.sweep() else {
            return Ok(());
        };
        for events in [b"/events/".as_slice(), b"events.k8s.io/events/"] {
            debug_assert!(is_event(events));
            let end = keys::end_of(events);
            let mut old = Vec::new();
            for row in self.objects.range(events..end.as_slice())? {
                let (key, value) = row?;
                let at = Record::read(value.value())
                    .map_or(Timestamp::EPOCH, |r| self.continuity.past(r.stored_at));
                if at + EVENT_TTL <= now {
                    old.push(ObjectKey::new(key.value()).to_buf());
                }
            }
            for key in old {
                self.remove_object(key.as_key())?;
            }
        }
        Ok(())
    }
}
