//! Brings what was observed into the store, in resourceVersion order. In: [`Op`]s, a batch to a transaction. Out: the
//! tables of `store`. Runs on the writer thread only.

use std::collections::HashMap;

use redb::{ReadableTable, ReadableTableMetadata, Table, WriteTransaction};

use super::key;
use super::op::Op;
use super::record::{Collection, Document, NewRecord, Record};
use super::steering;
use super::store::{
    ABSENT, COLLECTIONS, CREDENTIALS, DOCUMENTS, FORMS, GRANTS, MEMBERS, META, OBJECTS, Store, StoreError,
    WISHES,
};
use crate::local::negotiate::Encoding;

/// Most absences remembered; beyond it the oldest tenth goes.
const MAX_ABSENT: u64 = 50_000;
/// Most documents kept; beyond it the oldest tenth goes.
const MAX_DOCUMENTS: u64 = 2_048;
/// Most collections kept; beyond it the oldest tenth goes, and their members.
const MAX_COLLECTIONS: u64 = 8_192;

/// What one batch does to the count of objects by form.
type FormDeltas = HashMap<Vec<u8>, i64>;

/// Applies a batch in one transaction, on disk when this returns; false where nothing of it was new.
///
/// # Errors
/// redb's: nothing of the batch is stored then.
pub fn apply(store: &Store, ops: &[Op]) -> Result<bool, StoreError> {
    let mut txn = store.begin_write()?;
    // A kill at any instant must not cost the next start a scan of the whole file.
    txn.set_quick_repair(true);
    let mut batch = Batch::open(&txn)?;
    for op in ops {
        batch.one(op)?;
    }
    // What is asked again and again mostly says nothing new: that must not cost a flush.
    let changed = batch.finish(&txn)?;
    if changed {
        txn.commit()?
    } else {
        txn.abort()?
    }
    Ok(changed)
}

/// The time up to which a tenth of them lies.
fn oldest_tenth(mut times: Vec<u64>) -> u64 {
    let tenth = times.len() / 10;
    if times.is_empty() { 0 } else { *times.select_nth_unstable(tenth).1 }
}

struct Batch<'t> {
    objects: Table<'t, &'static [u8], &'static [u8]>,
    absent: Table<'t, &'static [u8], (u64, u64)>,
    collections: Table<'t, &'static [u8], &'static [u8]>,
    members: Table<'t, &'static [u8], ()>,
    documents: Table<'t, &'static [u8], &'static [u8]>,
    grants: Table<'t, &'static [u8], u64>,
    credentials: Table<'t, &'static [u8], &'static [u8]>,
    forms: FormDeltas,
    /// A pod or a namespace says something about steering.
    wishes: bool,
    /// Something is to be committed.
    changed: bool,
}

/// `group/resource/` of an object's or collection's key.
fn resource_of(key: &[u8]) -> &[u8] {
    let mut slashes = key.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(i, _)| i);
    let end = slashes.nth(1).map_or(key.len(), |i| i + 1);
    &key[..end]
}

fn form_key(key: &[u8], record: &Record<'_>) -> Vec<u8> {
    [resource_of(key), &[0, record.encoding as u8], record.api_version.as_bytes()].concat()
}

impl<'t> Batch<'t> {
    fn open(txn: &'t WriteTransaction) -> Result<Self, StoreError> {
        Ok(Self {
            objects: txn.open_table(OBJECTS)?,
            absent: txn.open_table(ABSENT)?,
            collections: txn.open_table(COLLECTIONS)?,
            members: txn.open_table(MEMBERS)?,
            documents: txn.open_table(DOCUMENTS)?,
            grants: txn.open_table(GRANTS)?,
            credentials: txn.open_table(CREDENTIALS)?,
            forms: HashMap::new(),
            wishes: false,
            changed: false,
        })
    }

    fn one(&mut self, op: &Op) -> Result<(), StoreError> {
        self.changed |=
            !matches!(op, Op::Upsert { .. } | Op::Gone { .. } | Op::Document { .. } | Op::Complete { .. });
        match op {
            Op::Upsert { key, record, asked } => self.upsert(key, record, *asked),
            Op::Gone { key, version, asked, at } => self.gone(key, *version, *asked, *at),
            Op::Forget { key, version } => self.forget(key, *version),
            Op::Complete { collection, record, members } => self.complete(collection, record, members),
            Op::Advance { collection, from, version, at, member } => {
                self.advance(collection, (*from, *version, *at), member.as_ref())
            }
            Op::Document { key, value } => {
                let fresh =
                    |old: Document<'_>, new: Document<'_>| old.body == new.body && new.at < old.at + 60_000;
                let old = self.documents.get(key.as_slice())?;
                if old.is_some_and(|old| {
                    Document::read(old.value())
                        .zip(Document::read(value))
                        .is_some_and(|(old, new)| fresh(old, new))
                }) {
                    return Ok(());
                }
                self.changed = true;
                self.documents.insert(key.as_slice(), value.as_slice())?;
                if self.documents.len()? > MAX_DOCUMENTS { self.evict_documents() } else { Ok(()) }
            }
            Op::Grant { key, at } => {
                self.grants.insert(key.as_slice(), *at)?;
                Ok(())
            }
            Op::Revoke { key } => {
                self.grants.remove(key.as_slice())?;
                Ok(())
            }
            Op::Credential { digest, value } if value.is_empty() => {
                self.credentials.remove(digest.as_slice())?;
                Ok(())
            }
            Op::Credential { digest, value } => {
                self.credentials.insert(digest.as_slice(), value.as_slice())?;
                Ok(())
            }
        }
    }

    fn upsert(&mut self, key: &[u8], new: &NewRecord, asked: u64) -> Result<(), StoreError> {
        let incoming = Record::read(&new.value).ok_or(StoreError::Damaged)?;
        let gone = self.absent.get(key)?.map(|v| v.value());
        if let Some(gone) = gone {
            // Deleted since: by resourceVersion where the deletion had one, else by when the question was asked.
            if if gone.1 > 0 { new.version <= gone.1 } else { asked < gone.0 } {
                return Ok(());
            }
            self.absent.remove(key)?;
            self.changed = true;
        }
        let old = self.objects.get(key)?.and_then(|v| {
            Record::read(v.value()).map(|r| (r.version, r.encoding, r.stored_at, form_key(key, &r)))
        });
        if let Some((version, encoding, stored_at, form)) = old {
            let same = version == new.version;
            // At one version JSON stays: every client takes it. And an age is not worth a write each time.
            let worse = encoding == Encoding::Json && incoming.encoding == Encoding::Protobuf;
            let fresh = encoding == incoming.encoding && incoming.stored_at < stored_at + 10_000;
            if version > new.version || (same && (worse || fresh)) {
                return Ok(());
            }
            *self.forms.entry(form).or_default() -= 1;
        }
        self.changed = true;
        *self.forms.entry(form_key(key, &incoming)).or_default() += 1;
        self.objects.insert(key, new.value.as_slice())?;
        self.wishes |= steering::mentions(key, &new.value);
        Ok(())
    }

    /// Takes an object out; its resourceVersion and when it was stored.
    fn take(&mut self, key: &[u8]) -> Result<Option<(u64, u64)>, StoreError> {
        self.changed = true;
        let Some(value) = self.objects.remove(key)? else { return Ok(None) };
        let Some(record) = Record::read(value.value()) else { return Ok(None) };
        *self.forms.entry(form_key(key, &record)).or_default() -= 1;
        Ok(Some((record.version, record.stored_at)))
    }

    fn stored(&self, key: &[u8]) -> Result<Option<(u64, u64)>, StoreError> {
        let value = self.objects.get(key)?;
        Ok(value.and_then(|v| Record::read(v.value()).map(|r| (r.version, r.stored_at))))
    }

    fn gone(&mut self, key: &[u8], version: u64, asked: u64, at: u64) -> Result<(), StoreError> {
        if let Some((stored, stored_at)) = self.stored(key)? {
            // Seen again since: a later version, or (where the deletion has none) after the question was asked.
            if if version > 0 { stored > version } else { stored_at > asked } {
                return Ok(());
            }
        }
        let again = self.absent.get(key)?.map(|v| v.value());
        if again.is_some_and(|(before, known)| at < before + 10_000 && version <= known) {
            return Ok(());
        }
        let known = self.take(key)?.map_or(0, |(version, _)| version);
        self.changed = true;
        self.absent.insert(key, (at, version.max(known)))?;
        if self.absent.len()? > MAX_ABSENT {
            self.evict_absent()?;
        }
        Ok(())
    }

    fn evict_absent(&mut self) -> Result<(), StoreError> {
        let mut times = Vec::new();
        for row in self.absent.iter()? {
            times.push(row?.1.value().0);
        }
        let limit = oldest_tenth(times);
        self.absent.retain(|_, (at, _)| at > limit)?;
        Ok(())
    }

    fn evict_documents(&mut self) -> Result<(), StoreError> {
        let at = |value: &[u8]| Document::read(value).map_or(0, |d| d.at);
        let mut times = Vec::new();
        for row in self.documents.iter()? {
            times.push(at(row?.1.value()));
        }
        let limit = oldest_tenth(times);
        self.documents.retain(|_, value| at(value) > limit)?;
        Ok(())
    }

    fn evict_collections(&mut self) -> Result<(), StoreError> {
        let at = |value: &[u8]| serde_json::from_slice::<Collection>(value).map_or(0, |c| c.at);
        let mut times = Vec::new();
        for row in self.collections.iter()? {
            times.push(at(row?.1.value()));
        }
        let limit = oldest_tenth(times);
        let mut gone = Vec::new();
        for row in self.collections.iter()? {
            let (key, value) = row?;
            if at(value.value()) <= limit {
                gone.push(key.value().to_vec());
            }
        }
        for key in gone {
            self.collections.remove(key.as_slice())?;
            self.replace_members(&key, &[])?;
        }
        Ok(())
    }

    fn forget(&mut self, key: &[u8], version: u64) -> Result<(), StoreError> {
        if self.stored(key)?.is_none_or(|(stored, _)| stored > version) {
            return Ok(());
        }
        self.take(key)?;
        // Lists without selectors that it stood in are incomplete until they come again.
        let resource = resource_of(key).to_vec();
        let mut scopes = vec![resource.clone()];
        let rest = &key[resource.len()..];
        if let Some(at) = rest.iter().position(|b| *b == b'/') {
            scopes.push(key[..=resource.len() + at].to_vec());
        }
        for scope in scopes {
            if let Some(mut collection) = self.collection(&scope)? {
                collection.complete = false;
                self.put_collection(&scope, &collection)?;
            }
        }
        Ok(())
    }

    fn collection(&self, key: &[u8]) -> Result<Option<Collection>, StoreError> {
        Ok(self.collections.get(key)?.and_then(|v| serde_json::from_slice(v.value()).ok()))
    }

    fn put_collection(&mut self, key: &[u8], collection: &Collection) -> Result<(), StoreError> {
        self.changed = true;
        let value = serde_json::to_vec(collection).map_err(|_| StoreError::Damaged)?;
        self.collections.insert(key, value.as_slice())?;
        Ok(())
    }

    fn complete(
        &mut self,
        collection: &[u8],
        new: &Collection,
        members: &[Vec<u8>],
    ) -> Result<(), StoreError> {
        let old = self.collection(collection)?.filter(|old| old.complete);
        // Known to be newer; or the same again, whose age is not worth a write each time.
        if old.is_some_and(|old| {
            old.version > new.version || (old.version == new.version && new.at < old.at + 10_000)
        }) {
            return Ok(());
        }
        let prefix = key::without_selectors(collection);
        if prefix.len() < collection.len() {
            self.replace_members(collection, members)?;
        } else {
            let mut listed: Vec<&[u8]> = members.iter().map(Vec::as_slice).collect();
            listed.sort_unstable();
            let end = key::end_of(prefix);
            let mut missing = Vec::new();
            for row in self.objects.range(prefix..end.as_slice())? {
                let (key, value) = row?;
                let older = Record::read(value.value()).is_none_or(|r| r.version <= new.version);
                if older && listed.binary_search(&key.value()).is_err() {
                    missing.push(key.value().to_vec());
                }
            }
            for key in missing {
                self.take(&key)?;
            }
        }
        self.put_collection(collection, new)?;
        if self.collections.len()? > MAX_COLLECTIONS { self.evict_collections() } else { Ok(()) }
    }

    fn replace_members(&mut self, collection: &[u8], members: &[Vec<u8>]) -> Result<(), StoreError> {
        let start = [collection, &[0]].concat();
        let end = key::end_of(&start);
        self.members.retain_in(start.as_slice()..end.as_slice(), |_, ()| false)?;
        for member in members {
            self.members.insert([&start, member.as_slice()].concat().as_slice(), ())?;
        }
        Ok(())
    }

    fn advance(
        &mut self,
        collection: &[u8],
        (from, version, at): (u64, u64, u64),
        member: Option<&(Vec<u8>, bool)>,
    ) -> Result<(), StoreError> {
        let Some(mut record) = self.collection(collection)? else { return Ok(()) };
        // A watch that started behind what the list knows leaves a gap: the list stays where it is.
        if record.version < from || record.version > version {
            return Ok(());
        }
        (record.version, record.at) = (version, at);
        self.put_collection(collection, &record)?;
        if let Some((key, joins)) = member {
            let row = [collection, &[0], key.as_slice()].concat();
            if *joins {
                self.members.insert(row.as_slice(), ())?;
            } else {
                self.members.remove(row.as_slice())?;
            }
        }
        Ok(())
    }

    /// Writes the counts by form; whether there is anything to commit.
    fn finish(self, txn: &WriteTransaction) -> Result<bool, StoreError> {
        let mut forms = txn.open_table(FORMS)?;
        for (key, delta) in self.forms.iter().filter(|(_, delta)| **delta != 0) {
            let count = forms.get(key.as_slice())?.map_or(0, |v| v.value()).saturating_add_signed(*delta);
            if count == 0 {
                forms.remove(key.as_slice())?;
            } else {
                forms.insert(key.as_slice(), count)?;
            }
        }
        if self.wishes {
            txn.open_table(META)?.insert(WISHES, 1)?;
        }
        Ok(self.changed)
    }
}
