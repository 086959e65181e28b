//! Applies changes to the store, in resourceVersion order. In: [`Change`]s, one transaction for each batch. Out: the tables
//! of `store`. Runs on the writer thread only. `order` decides which copy of an object replaces which.

mod order;

use std::collections::HashMap;
use std::time::Duration;

use hublet_wire::meta::{ResourceVersion, Timestamp};
use redb::{ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use crate::cache::change::{Change, Evicted, Extent, Membership, Observation};
use crate::cache::continuity::{Continuity, Write};
use crate::cache::exchange::variant_scope;
use crate::cache::grant_rows::{CredentialKey, CredentialRow, GrantKey, Verdict};
use crate::cache::keys::{self, CollectionKey, CollectionKeyBuf, ObjectKey, ObjectKeyBuf};
use crate::cache::record::{Absence, Collection, Record, ResponseRecord};
use crate::cache::store::{Store, StoreError};
use crate::cache::tables::{
    ABSENT, COLLECTIONS, CREDENTIALS, DOCUMENTS, ENCODINGS, GRANTS, MEMBERS, MENTIONED, META,
    OBJECTS,
};

/// Most absences stored; beyond it a tenth is evicted.
const MAX_ABSENT: u64 = 50_000;
/// Most documents stored; beyond it a tenth is evicted.
const MAX_DOCUMENTS: u64 = 2_048;
/// Most collections stored; beyond it a tenth is evicted, with their members.
const MAX_COLLECTIONS: u64 = 8_192;

/// One batch's changes to the counts of objects by encoding and apiVersion.
type EncodingDeltas = HashMap<Vec<u8>, i64>;

/// Applies a batch in one transaction, which is on disk when this returns; false if nothing of it was new.
///
/// # Errors
/// redb's: nothing of the batch is stored then.
pub(crate) fn apply(
    store: &Store,
    changes: &[Change],
    continuity: &mut Continuity,
) -> Result<bool, StoreError> {
    continuity.begin();
    let mut txn = store.begin_write()?;
    // After a kill at any instant, the next start must not need to scan the whole file.
    txn.set_quick_repair(true);
    let mut batch = Batch::open_tables(&txn, continuity)?;
    for change in changes {
        batch.apply_change(change)?;
    }
    batch.sweep_events()?;
    batch.write_mention()?;
    // Responses to repeated requests mostly hold nothing new: they must not cost a flush to disk.
    let changed = batch.write_encoding_counts(&txn)?;
    if changed {
        txn.commit()?;
        continuity.committed();
    } else {
        txn.abort()?
    }
    Ok(changed)
}

/// The keys of a tenth of the rows (key, time), to be evicted. Rows of one collection, by name or by selector, form a share.
/// The oldest rows of the largest shares are evicted, so that many requests for one collection evict rows of that collection
/// and not of others.
fn tenth_to_evict(rows: Vec<(Vec<u8>, Timestamp)>) -> Vec<Vec<u8>> {
    let tenth = (rows.len() / 10).max(1);
    let mut shares = RowsByCollection::new();
    for (key, at) in rows {
        let share = shares.entry(share_of(&key).to_vec()).or_default();
        share.push((at, key));
    }
    let cap = largest_cap(&shares, tenth);
    let mut due = Vec::new();
    for mut share in shares.into_values() {
        share.sort_unstable();
        share.truncate(share.len().saturating_sub(cap));
        due.append(&mut share);
    }
    due.sort_unstable();
    due.truncate(tenth);
    due.into_iter().map(|(_, key)| key).collect()
}

/// Rows by the collection that they belong to.
type RowsByCollection = HashMap<Vec<u8>, Vec<(Timestamp, Vec<u8>)>>;

/// The beginning of a row's key that names its collection.
fn share_of(key: &[u8]) -> &[u8] {
    let selection = key.iter().position(|b| matches!(b, b'?' | b'\n'));
    let end = selection.or_else(|| Some(key.iter().rposition(|b| *b == b'/')? + 1));
    &key[..end.unwrap_or(key.len())]
}

/// The largest size to which shares can be cut so that at least this many rows are evicted.
fn largest_cap(shares: &RowsByCollection, rows: usize) -> usize {
    let largest = shares.values().map(Vec::len).max().unwrap_or(0);
    let (mut cap, mut too_high) = (0, largest + 1);
    while cap + 1 < too_high {
        let middle = cap.midpoint(too_high);
        if rows_beyond(shares, middle) >= rows {
            cap = middle
        } else {
            too_high = middle
        }
    }
    cap
}

fn rows_beyond(shares: &RowsByCollection, cap: usize) -> usize {
    let shares = shares.values();
    shares.map(|share| share.len().saturating_sub(cap)).sum()
}

struct Batch<'t> {
    objects: Table<'t, &'static [u8], &'static [u8]>,
    absent: Table<'t, &'static [u8], (u64, u64)>,
    collections: Table<'t, &'static [u8], &'static [u8]>,
    members: Table<'t, &'static [u8], ()>,
    documents: Table<'t, &'static [u8], &'static [u8]>,
    grants: Table<'t, &'static [u8], u64>,
    credentials: Table<'t, &'static [u8], &'static [u8]>,
    meta: Table<'t, &'static str, u64>,
    continuity: &'t mut Continuity,
    forms: EncodingDeltas,
    /// True if an object of this batch mentions hublet's domain.
    mentioned: bool,
    /// True if there is something to commit.
    changed: bool,
}

fn form_key(key: ObjectKey<'_>, record: &Record<'_>) -> Vec<u8> {
    [
        key.resource(),
        &[0, record.encoding as u8],
        record.api_version.as_bytes(),
    ]
    .concat()
}

/// True if the batch has to be committed for this change. The other changes depend on the rows that are stored already.
fn always_changes_store(change: &Change) -> bool {
    matches!(
        change,
        Change::Invalidate { .. }
            | Change::PutGrant { .. }
            | Change::DeleteGrant { .. }
            | Change::PutCredential { .. }
            | Change::DeleteCredential { .. }
            | Change::DeleteAllRights
            | Change::Evict(_)
    )
}

impl<'t> Batch<'t> {
    fn open_tables(
        txn: &'t WriteTransaction,
        continuity: &'t mut Continuity,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            objects: txn.open_table(OBJECTS)?,
            absent: txn.open_table(ABSENT)?,
            collections: txn.open_table(COLLECTIONS)?,
            members: txn.open_table(MEMBERS)?,
            documents: txn.open_table(DOCUMENTS)?,
            grants: txn.open_table(GRANTS)?,
            credentials: txn.open_table(CREDENTIALS)?,
            meta: txn.open_table(META)?,
            continuity,
            forms: HashMap::new(),
            mentioned: false,
            changed: false,
        })
    }

    fn apply_change(&mut self, change: &Change) -> Result<(), StoreError> {
        self.changed |= always_changes_store(change);
        match change {
            Change::Upsert {
                key,
                record,
                observed,
            } => self.upsert_object(key.as_key(), record, *observed),
            Change::Delete {
                key,
                version,
                observed,
            } => self.record_absence(key.as_key(), *version, *observed),
            Change::Invalidate { key, version } => self.invalidate_object(key.as_key(), *version),
            Change::Outdate {
                key,
                version,
                observed,
            } => self.outdate_object(key.as_key(), *version, *observed),
            Change::Supersede { key, extent } => self.supersede(key, *extent),
            Change::ReplaceCollection {
                collection,
                record,
                members,
                observed,
            } => self.replace_collection(collection.as_key(), record, members, *observed),
            Change::AdvanceCollection { .. } => self.advance_collection(change),
            Change::PutResponse { key, value } => self.put_response(key, value),
            Change::PutGrant { key, verdict } => self.put_grant(key, *verdict),
            Change::DeleteGrant { key } => self.delete_grant(key),
            Change::PutCredential { key, row } => self.put_credential(key, row),
            Change::DeleteCredential { key } => self.delete_credential(key),
            Change::DeleteAllRights => self.delete_all_rights(),
            Change::Evict(evicted) => self.apply_eviction(evicted),
        }
    }

    /// Stores a response, unless it is older than the stored one or the same within a minute.
    fn put_response(&mut self, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
        let incoming = ResponseRecord::read(value);
        if let (Some(old), Some(new)) = (self.documents.get(key)?, incoming)
            && ResponseRecord::read(old.value()).is_some_and(|old| self.is_known(&old, &new))
        {
            return Ok(());
        }
        self.changed = true;
        self.documents.insert(key, value)?;
        if self.documents.len()? > MAX_DOCUMENTS {
            self.evict_documents()
        } else {
            Ok(())
        }
    }

    /// True if `new` was requested before `old`, even if it arrived later, or has the same body and is less than a minute
    /// newer.
    fn is_known(&self, old: &ResponseRecord<'_>, new: &ResponseRecord<'_>) -> bool {
        let stored_at = self.continuity.past(old.at);
        let is_older = self.continuity.past(new.at) < stored_at;
        is_older || (old.body == new.body && new.at < stored_at + Duration::from_secs(60))
    }

    fn put_grant(&mut self, key: &GrantKey, verdict: Verdict) -> Result<(), StoreError> {
        self.grants.insert(key.0.as_slice(), verdict.stored())?;
        Ok(())
    }

    fn delete_grant(&mut self, key: &GrantKey) -> Result<(), StoreError> {
        self.grants.remove(key.0.as_slice())?;
        Ok(())
    }

    fn put_credential(
        &mut self,
        key: &CredentialKey,
        row: &CredentialRow,
    ) -> Result<(), StoreError> {
        let row = row.encode();
        self.credentials.insert(key.0.as_slice(), row.as_slice())?;
        Ok(())
    }

    fn delete_credential(&mut self, key: &CredentialKey) -> Result<(), StoreError> {
        self.credentials.remove(key.0.as_slice())?;
        Ok(())
    }

    fn delete_all_rights(&mut self) -> Result<(), StoreError> {
        self.grants.retain(|_, _| false)?;
        self.credentials.retain(|_, _| false)?;
        Ok(())
    }

    fn apply_eviction(&mut self, evicted: &Evicted) -> Result<(), StoreError> {
        match evicted {
            Evicted::Object(key) => self.remove_object(key.as_key()).map(|_| ()),
            Evicted::Response(key) => {
                self.documents.remove(key.as_slice())?;
                Ok(())
            }
            Evicted::Collection(key) => self.drop_collection(key.as_key()),
        }
    }

    /// Removes an object; returns its resourceVersion and the time at which it was stored.
    fn remove_object(
        &mut self,
        key: ObjectKey<'_>,
    ) -> Result<Option<(ResourceVersion, Timestamp)>, StoreError> {
        self.changed = true;
        let Some(value) = self.objects.remove(key.as_bytes())? else {
            return Ok(None);
        };
        let Some(record) = Record::read(value.value()) else {
            return Ok(None);
        };
        *self.forms.entry(form_key(key, &record)).or_default() -= 1;
        Ok(Some((record.version, record.stored_at)))
    }

    /// Remembers for good that some object mentions hublet's domain.
    fn write_mention(&mut self) -> Result<(), StoreError> {
        let is_first = self.mentioned && self.meta.get(MENTIONED)?.is_none_or(|v| v.value() == 0);
        if is_first {
            self.meta.insert(MENTIONED, 1)?;
            self.changed = true;
        }
        Ok(())
    }

    fn evict_absent(&mut self) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for row in self.absent.iter()? {
            let (key, value) = row?;
            let absence = Absence::from_row(value.value());
            rows.push((key.value().to_vec(), self.continuity.past(absence.at)));
        }
        for key in tenth_to_evict(rows) {
            self.absent.remove(key.as_slice())?;
        }
        Ok(())
    }

    fn evict_documents(&mut self) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for row in self.documents.iter()? {
            let (key, value) = row?;
            let at = ResponseRecord::read(value.value())
                .map_or(Timestamp::EPOCH, |d| self.continuity.past(d.at));
            rows.push((key.value().to_vec(), at));
        }
        for key in tenth_to_evict(rows) {
            self.documents.remove(key.as_slice())?;
        }
        Ok(())
    }

    fn evict_collections(&mut self) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for row in self.collections.iter()? {
            let (key, value) = row?;
            let collection = serde_json::from_slice::<Collection>(value.value());
            rows.push((
                key.value().to_vec(),
                collection.map_or(Timestamp::EPOCH, |c| self.continuity.past(c.at)),
            ));
        }
        tenth_to_evict(rows)
            .iter()
            .try_for_each(|key| self.drop_collection(CollectionKey::new(key)))
    }

    fn drop_collection(&mut self, key: CollectionKey<'_>) -> Result<(), StoreError> {
        self.changed = true;
        self.collections.remove(key.as_bytes())?;
        self.replace_members(key, &[])
    }

    /// Makes what is stored of an object, or of those of a collection, unknown.
    fn supersede(&mut self, scope: &[u8], extent: Extent) -> Result<(), StoreError> {
        if extent == Extent::Copies {
            for key in self.objects_in(scope)? {
                self.remove_object(key.as_key())?;
            }
        }
        if extent >= Extent::Lists {
            self.mark_incomplete(scope)?;
            self.drop_variants(scope)?;
        }
        self.end_absences(scope)
    }

    /// Removes the Tables and other variants that may show objects of this scope.
    fn drop_variants(&mut self, scope: &[u8]) -> Result<(), StoreError> {
        let resource = keys::resource_of(scope);
        let end = keys::end_of_scope(resource);
        let mut dropped = Vec::new();
        for row in self.documents.range(resource..end.as_slice())? {
            let (key, _) = row?;
            if variant_scope(key.value()).is_some_and(|of| keys::overlap(of, scope)) {
                dropped.push(key.value().to_vec());
            }
        }
        for key in dropped {
            self.changed = true;
            self.documents.remove(key.as_slice())?;
        }
        Ok(())
    }

    fn objects_in(&self, scope: &[u8]) -> Result<Vec<ObjectKeyBuf>, StoreError> {
        let end = keys::end_of_scope(scope);
        let rows = self.objects.range(scope..end.as_slice())?;
        rows.map(|row| Ok(ObjectKey::new(row?.0.value()).to_buf()))
            .collect()
    }

    /// The lists that may hold objects of this scope, with and without selectors, are not whole any more.
    fn mark_incomplete(&mut self, scope: &[u8]) -> Result<(), StoreError> {
        let mut lists = Vec::new();
        for row in self.collections.iter()? {
            let (key, value) = row?;
            let is_touched = keys::overlap(keys::without_selectors(key.value()), scope);
            let list = serde_json::from_slice::<Collection>(value.value());
            if let (true, Ok(list)) = (is_touched, list) {
                lists.push((CollectionKey::new(key.value()).to_buf(), list));
            }
        }
        for (key, mut list) in lists.into_iter().filter(|(_, list)| list.complete) {
            list.complete = false;
            self.put_collection(key.as_key(), &list)?;
        }
        Ok(())
    }

    fn invalidate_object(
        &mut self,
        key: ObjectKey<'_>,
        version: ResourceVersion,
    ) -> Result<(), StoreError> {
        // A stored copy of this version or a later one shows the object after it left the selection: it exists.
        if self
            .read_stored(key)?
            .is_none_or(|stored| stored.version >= version)
        {
            return Ok(());
        }
        self.remove_object(key)?;
        let write = Write {
            version,
            at: Timestamp::EPOCH,
        };
        for scope in key.collections() {
            if let Some(list) = self.read_collection(scope)? {
                self.mark_unclear(scope, list, write)?;
            }
        }
        Ok(())
    }

    /// Makes an object unknown after a write of which only the resourceVersion is known, unless a watch has shown it
    /// already.
    fn outdate_object(
        &mut self,
        key: ObjectKey<'_>,
        version: ResourceVersion,
        observed: Observation,
    ) -> Result<(), StoreError> {
        if self.is_stored_since(key, version, observed)? {
            return Ok(());
        }
        let write = Write {
            version,
            at: observed.not_after,
        };
        if self.continuity.is_from_before_write(key, version, observed) {
            return Ok(());
        }
        self.continuity.remember_write(key, write);
        self.remove_object(key)?;
        self.absent.remove(key.as_bytes())?;
        self.drop_variants(key.as_bytes())?;
        for (scope, list) in self.lists_that_may_hold(key)? {
            self.mark_unclear(scope.as_key(), list, write)?;
        }
        Ok(())
    }

    /// Makes a list that may hold an object of this version, which isn't stored, incomplete until it is listed again or
    /// its watch has reached the version.
    fn mark_unclear(
        &mut self,
        scope: CollectionKey<'_>,
        mut list: Collection,
        write: Write,
    ) -> Result<(), StoreError> {
        // A list whose watch had already passed this version lacks an object that the watch reported.
        list.complete &= list.version < write.version;
        list.unclear = list.unclear.max(write.version);
        list.written_at = list.written_at.max(write.at);
        self.put_collection(scope, &list)
    }

    /// The lists, with and without selectors, that may hold the object.
    fn lists_that_may_hold(
        &self,
        object: ObjectKey<'_>,
    ) -> Result<Vec<(CollectionKeyBuf, Collection)>, StoreError> {
        let resource = object.resource();
        let end = keys::end_of(resource);
        let mut lists = Vec::new();
        for row in self.collections.range(resource..end.as_slice())? {
            let (key, value) = row?;
            let key = CollectionKey::new(key.value());
            let list = serde_json::from_slice::<Collection>(value.value());
            if let (true, Ok(list)) = (key.may_hold(object), list) {
                lists.push((key.to_buf(), list));
            }
        }
        Ok(lists)
    }

    fn read_collection(&self, key: CollectionKey<'_>) -> Result<Option<Collection>, StoreError> {
        Ok(self
            .collections
            .get(key.as_bytes())?
            .and_then(|v| serde_json::from_slice(v.value()).ok()))
    }

    fn put_collection(
        &mut self,
        key: CollectionKey<'_>,
        collection: &Collection,
    ) -> Result<(), StoreError> {
        self.changed = true;
        let value = serde_json::to_vec(collection).map_err(|_| StoreError::Damaged)?;
        self.collections.insert(key.as_bytes(), value.as_slice())?;
        Ok(())
    }

    fn replace_members(
        &mut self,
        collection: CollectionKey<'_>,
        members: &[ObjectKeyBuf],
    ) -> Result<(), StoreError> {
        let start = collection.member_prefix();
        let end = keys::end_of(&start);
        self.members
            .retain_in(start.as_slice()..end.as_slice(), |_, ()| false)?;
        for member in members {
            let row = collection.member_row(member.as_key());
            self.members.insert(row.as_slice(), ())?;
        }
        Ok(())
    }

    fn advance_collection(&mut self, change: &Change) -> Result<(), StoreError> {
        let Change::AdvanceCollection {
            collection,
            from,
            version,
            at,
            member,
            departs,
        } = change
        else {
            return Ok(());
        };
        let collection = collection.as_key();
        let Some(mut record) = self.read_collection(collection)? else {
            return Ok(());
        };
        // A watch that started after the list's resourceVersion leaves a gap: the list isn't advanced.
        if record.version < *from || record.version > *version {
            return Ok(());
        }
        record.followed_from.get_or_insert(record.version);
        (record.version, record.at) = (*version, *at);
        if *departs {
            record.departed = *version;
        }
        self.put_collection(collection, &record)?;
        if let Some(Membership { key, joins }) = member {
            let row = collection.member_row(key.as_key());
            if *joins {
                self.members.insert(row.as_slice(), ())?;
            } else {
                self.members.remove(row.as_slice())?;
            }
        }
        Ok(())
    }

    /// Writes the counts by encoding and apiVersion; true if there is anything to commit.
    fn write_encoding_counts(self, txn: &WriteTransaction) -> Result<bool, StoreError> {
        let mut forms = txn.open_table(ENCODINGS)?;
        for (key, delta) in self.forms.iter().filter(|(_, delta)| **delta != 0) {
            let count = forms
                .get(key.as_slice())?
                .map_or(0, |v| v.value())
                .saturating_add_signed(*delta);
            if count == 0 {
                forms.remove(key.as_slice())?;
            } else {
                forms.insert(key.as_slice(), count)?;
            }
        }
        Ok(self.changed)
    }
}
