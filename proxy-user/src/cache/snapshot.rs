//! Reads of the store. In: keys. Out: copies of what is stored, or walks to stream from. They run on redb's snapshots and
//! never wait for the writer.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use parking_lot::RwLock;
use redb::ReadTransaction;

use crate::cache::change::Change;
use crate::cache::error::StoreError;
use crate::cache::grant_rows::{CredentialKey, CredentialRow, GrantKey, Verdict};
use crate::cache::keys::{self, CollectionKey, ObjectKey};
use crate::cache::leases::Leases;
use crate::cache::open::OpenDatabase;
use crate::cache::record::{Absence, Collection, Record, ResponseRecord};
use crate::cache::superseded::{Fate, Moment, Superseded};
use crate::cache::tables::{
    ABSENT, COLLECTIONS, CREDENTIALS, DOCUMENTS, ENCODINGS, GRANTS, MEMBERS, MENTIONED, META,
    OBJECTS,
};
use crate::cache::walk::{Members, Walk, behind};

/// The result of looking an object up.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<T> {
    Found(T),
    /// The API server answered 404, or reported the deletion, at this time.
    Absent(Timestamp),
    Unknown,
}

/// The deletions that a reader has already seen: those up to a resourceVersion and a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Covered {
    /// The resourceVersion.
    pub version: ResourceVersion,
    /// The time.
    pub until: Timestamp,
}

/// Snapshots that readers hold.
#[derive(Debug)]
pub(super) struct Shared {
    /// `None` once it is closed.
    pub(super) opened: ArcSwapOption<OpenDatabase>,
    /// Counts the openings.
    pub(super) generation: tokio::sync::watch::Sender<u64>,
    /// Walks that hold a snapshot.
    pub(super) leases: Leases,
    pub(super) superseded: Arc<Superseded>,
    /// Revocations of an earlier process that are not in the tables yet.
    pub(super) revocations: RwLock<Vec<Change>>,
}

impl Shared {
    pub(super) fn snapshot(self: &Arc<Self>) -> Result<Snapshot, StoreError> {
        self.snapshot_after(self.superseded.moment())
    }

    pub(super) fn snapshot_behind(self: &Arc<Self>) -> Result<Snapshot, StoreError> {
        self.snapshot_after(self.superseded.moment_behind())
    }

    /// Applies to reads the changes that an earlier process could not write to the tables.
    pub(super) fn apply_pending(&self, changes: Vec<Change>) {
        let (revocations, others): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(Change::is_revocation);
        for (key, extent) in others.iter().filter_map(Change::superseded) {
            self.superseded.add(key, extent, Fate::Dropped);
        }
        *self.revocations.write() = revocations;
    }

    fn snapshot_after(self: &Arc<Self>, moment: Moment) -> Result<Snapshot, StoreError> {
        let opened = self.opened.load_full().ok_or(StoreError::Closed)?;
        Ok(Snapshot {
            txn: opened.begin_read()?,
            moment,
            _opened: opened,
            shared: Arc::clone(self),
        })
    }

    pub(super) fn generation(&self) -> u64 {
        *self.generation.borrow()
    }
}

/// One consistent view of the store.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(super) txn: ReadTransaction,
    /// The moment before it was begun.
    moment: Moment,
    /// Open as long as it is read.
    _opened: Arc<OpenDatabase>,
    pub(super) shared: Arc<Shared>,
}

impl Snapshot {
    /// True if an object that mentions hublet's domain may have been stored. Where none was, a walk over all objects in
    /// search of one would only push everything else out of the page cache.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn has_mention(&self) -> Result<bool, StoreError> {
        let mentioned = self.txn.open_table(META)?.get(MENTIONED)?;
        Ok(mentioned.is_none_or(|mentioned| mentioned.value() != 0))
    }

    /// One object; `read` copies out of the page what it needs.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub(crate) fn object<T>(
        &self,
        key: ObjectKey<'_>,
        read: impl FnOnce(Record<'_>) -> T,
    ) -> Result<Lookup<T>, StoreError> {
        let key = key.as_bytes();
        if let Some(value) = self.txn.open_table(OBJECTS)?.get(key)? {
            if !self.shared.superseded.copy_counts(key, self.moment) {
                return Ok(Lookup::Unknown);
            }
            let record = Record::read(value.value()).ok_or(StoreError::Damaged)?;
            return Ok(Lookup::Found(read(record)));
        }
        let absent = self.txn.open_table(ABSENT)?.get(key)?;
        let absent = absent.map(|v| Absence::from_row(v.value()).at);
        let still_absent = absent.filter(|_| self.absence_counts(key));
        Ok(still_absent.map_or(Lookup::Unknown, Lookup::Absent))
    }

    /// False if the object may exist though it is stored as absent.
    fn absence_counts(&self, object: &[u8]) -> bool {
        self.shared.superseded.absence_counts(object, self.moment)
    }

    /// False if a client has written an object of this list, or the object of this key, and the store doesn't have it yet.
    pub(crate) fn is_up_to_date(&self, scope: &[u8]) -> bool {
        let superseded = &self.shared.superseded;
        match keys::without_selectors(scope) {
            prefix @ [.., b'/'] => superseded.list_counts(prefix, self.moment),
            object => superseded.copy_counts(object, self.moment),
        }
    }

    /// The state of a collection, if it is stored.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub(crate) fn collection(
        &self,
        key: CollectionKey<'_>,
    ) -> Result<Option<Collection>, StoreError> {
        let value = self.txn.open_table(COLLECTIONS)?.get(key.as_bytes())?;
        value
            .map(|v| serde_json::from_slice(v.value()).map_err(|_| StoreError::Damaged))
            .transpose()
    }

    /// The forms (encoding byte, apiVersion) in which objects of a resource (`group/resource/`) are stored.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn forms(&self, resource: &[u8]) -> Result<Vec<(u8, String)>, StoreError> {
        let start = [resource, &[0]].concat();
        let end = keys::end_of(&start);
        let mut forms = Vec::new();
        for row in self
            .txn
            .open_table(ENCODINGS)?
            .range(start.as_slice()..end.as_slice())?
        {
            let (key, count) = row?;
            let form = &key.value()[start.len()..];
            if let (true, Some((encoding, version))) = (count.value() > 0, form.split_first()) {
                forms.push((*encoding, String::from_utf8_lossy(version).into_owned()));
            }
        }
        Ok(forms)
    }

    /// The documents stored under a path and query: content type and key.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn documents(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let start = format!("{path}\n").into_bytes();
        let end = keys::end_of(&start);
        let mut types = Vec::new();
        for row in self
            .txn
            .open_table(DOCUMENTS)?
            .range(start.as_slice()..end.as_slice())?
        {
            types.push(String::from_utf8_lossy(&row?.0.value()[start.len()..]).into_owned());
        }
        Ok(types)
    }

    /// One document.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub(crate) fn document<T>(
        &self,
        key: &[u8],
        read: impl FnOnce(ResponseRecord<'_>) -> T,
    ) -> Result<Option<T>, StoreError> {
        let value = self.txn.open_table(DOCUMENTS)?.get(key)?;
        value
            .map(|v| {
                ResponseRecord::read(v.value())
                    .map(read)
                    .ok_or(StoreError::Damaged)
            })
            .transpose()
    }

    /// All objects under a prefix, in order.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn walk(&self, prefix: &[u8]) -> Result<Walk, StoreError> {
        self.walk_behind(prefix, &[])
    }

    /// As [`Snapshot::walk`], behind the key `last` where that isn't empty.
    pub(super) fn walk_behind(&self, prefix: &[u8], last: &[u8]) -> Result<Walk, StoreError> {
        let end = keys::end_of(prefix);
        let objects = self.txn.open_table(OBJECTS)?;
        Ok(Walk::Range(Box::new(
            objects.range_owned::<&[u8]>(behind(prefix, last, &end))?,
        )))
    }

    /// The members of a collection with selectors, in order.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn members_cursor(&self, collection: CollectionKey<'_>) -> Result<Walk, StoreError> {
        self.walk_members_behind(collection, &[])
    }

    /// As [`Snapshot::members_cursor`], behind the object `last` where that isn't empty.
    pub(super) fn walk_members_behind(
        &self,
        collection: CollectionKey<'_>,
        last: &[u8],
    ) -> Result<Walk, StoreError> {
        let start = collection.member_prefix();
        let end = keys::end_of(&start);
        let last = if last.is_empty() {
            Vec::new()
        } else {
            [&start, last].concat()
        };
        Ok(Walk::Members(Box::new(Members {
            rows: self
                .txn
                .open_table(MEMBERS)?
                .range_owned::<&[u8]>(behind(&start, &last, &end))?,
            skip: start.len(),
            objects: self.txn.open_table(OBJECTS)?,
            absent: self.txn.open_table(ABSENT)?,
            superseded: Arc::clone(&self.shared.superseded),
            moment: self.moment,
        })))
    }

    /// True if the object at `prefix`, or one of the collection without selectors, is newer than `version`, was found
    /// absent after `at`, or has changed in a way that is not on disk yet.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn has_changed_since(
        &self,
        prefix: &[u8],
        version: ResourceVersion,
        at: Timestamp,
    ) -> Result<bool, StoreError> {
        if self.shared.superseded.touches(prefix) || !self.is_up_to_date(prefix) {
            return Ok(true);
        }
        let end = keys::end_of_scope(prefix);
        for row in self
            .txn
            .open_table(OBJECTS)?
            .range(prefix..end.as_slice())?
        {
            if Record::read(row?.1.value()).is_none_or(|r| r.version > version) {
                return Ok(true);
            }
        }
        for row in self.txn.open_table(ABSENT)?.range(prefix..end.as_slice())? {
            if Absence::from_row(row?.1.value()).at > at {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// True if an object of a collection without selectors was removed after `version` without an absence being stored: a
    /// later list lacked it, or it left a selection.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub(crate) fn has_lost_since(
        &self,
        scope: &[u8],
        version: ResourceVersion,
    ) -> Result<bool, StoreError> {
        let own = self.collection(CollectionKey::new(scope))?;
        let all = self.collection(CollectionKey::new(keys::resource_of(scope)))?;
        let incomplete = own.as_ref().is_some_and(|own| !own.is_whole());
        Ok(incomplete
            || [own, all]
                .into_iter()
                .flatten()
                .any(|list| list.unnamed > version))
    }

    /// True if a complete collection, with or without selectors, contains the object.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn holds(
        &self,
        collection: CollectionKey<'_>,
        object: ObjectKey<'_>,
    ) -> Result<bool, StoreError> {
        if !collection.has_selectors() {
            let objects = self.txn.open_table(OBJECTS)?;
            return Ok(objects.get(object.as_bytes())?.is_some());
        }
        let row = collection.member_row(object);
        Ok(self.txn.open_table(MEMBERS)?.get(row.as_slice())?.is_some())
    }

    /// The time of the last absence under a prefix that isn't covered.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn last_deletion_beyond(
        &self,
        prefix: &[u8],
        covered: Covered,
    ) -> Result<Option<Timestamp>, StoreError> {
        let (end, mut last) = (keys::end_of(prefix), None);
        for row in self.txn.open_table(ABSENT)?.range(prefix..end.as_slice())? {
            let absence = Absence::from_row(row?.1.value());
            last = last.max(covered.beyond(absence));
        }
        Ok(last)
    }

    /// As [`Snapshot::last_deletion_beyond`], of the members of a collection with selectors.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn last_member_deletion_beyond(
        &self,
        collection: CollectionKey<'_>,
        covered: Covered,
    ) -> Result<Option<Timestamp>, StoreError> {
        let start = collection.member_prefix();
        let end = keys::end_of(&start);
        let (absent, mut last) = (self.txn.open_table(ABSENT)?, None);
        for row in self
            .txn
            .open_table(MEMBERS)?
            .range(start.as_slice()..end.as_slice())?
        {
            let Some(gone) = absent.get(&row?.0.value()[start.len()..])? else {
                continue;
            };
            last = last.max(covered.beyond(Absence::from_row(gone.value())));
        }
        Ok(last)
    }

    /// True if each member of a collection with selectors is stored, or known to be absent.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn has_all_members(
        &self,
        collection: CollectionKey<'_>,
    ) -> Result<bool, StoreError> {
        let start = collection.member_prefix();
        let end = keys::end_of(&start);
        let objects = self.txn.open_table(OBJECTS)?;
        let absent = self.txn.open_table(ABSENT)?;
        for row in self
            .txn
            .open_table(MEMBERS)?
            .range(start.as_slice()..end.as_slice())?
        {
            let (row, ()) = row.map(|(k, _)| (k, ()))?;
            let key = &row.value()[start.len()..];
            let is_absent = absent.get(key)?.is_some() && self.absence_counts(key);
            if objects.get(key)?.is_none() && !is_absent {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All grants, which are few, as an earlier process has revoked them even where it could not write that.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn grants(&self) -> Result<Vec<(GrantKey, Verdict)>, StoreError> {
        let revocations = self.shared.revocations.read();
        let mut grants = Vec::new();
        for row in self.txn.open_table(GRANTS)?.range::<&[u8]>(..)? {
            let (key, value) = row?;
            let Ok(key) = key.value().try_into().map(GrantKey) else {
                continue;
            };
            let revoked = revocations.iter().find(|change| change.revokes_grant(&key));
            let verdict = match revoked {
                None => Verdict::from_stored(value.value()),
                Some(Change::PutGrant { verdict, .. }) => *verdict,
                Some(_) => continue,
            };
            grants.push((key, verdict));
        }
        Ok(grants)
    }

    /// All credentials, which are few, less those that an earlier process revoked and could not write.
    pub(crate) fn credentials(&self) -> Result<Vec<(CredentialKey, CredentialRow)>, StoreError> {
        let revocations = self.shared.revocations.read();
        let mut credentials = Vec::new();
        for row in self.txn.open_table(CREDENTIALS)?.range::<&[u8]>(..)? {
            let (key, value) = row?;
            let decoded = CredentialRow::decode(value.value());
            if let (Ok(key), Some(credential)) = (key.value().try_into(), decoded) {
                credentials.push((CredentialKey(key), credential));
            }
        }
        credentials.retain(|(key, _)| {
            !revocations
                .iter()
                .any(|revoked| revoked.revokes_credential(key))
        });
        Ok(credentials)
    }

    /// Rows of objects, absences, collections and documents, for `hublet status`.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn counts(&self) -> Result<[u64; 4], StoreError> {
        use redb::ReadableTableMetadata;
        Ok([
            self.txn.open_table(OBJECTS)?.len()?,
            self.txn.open_table(ABSENT)?.len()?,
            self.txn.open_table(COLLECTIONS)?.len()?,
            self.txn.open_table(DOCUMENTS)?.len()?,
        ])
    }
}

impl Covered {
    /// The time of an absence that is not covered.
    fn beyond(self, absence: Absence) -> Option<Timestamp> {
        (absence.at > self.until || absence.version > self.version).then_some(absence.at)
    }
}
