//! The store: redb tables, and the reads. In: keys. Out: copies of what is stored, or snapshots to stream from. How it is
//! opened: `open`. Writes: `apply`, on the one writer thread.
//!
//! Reads run on redb snapshots and never wait for the writer. After an error of the disk the writer opens the store
//! anew (`Store::reopen`, `Store::fall_back`); what reads then begins again in a new snapshot.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use redb::{ReadTransaction, TableDefinition, WriteTransaction};

use crate::cache::backend::FileSystem;
use crate::cache::cursor::{Members, SnapshotLeases, behind};
use crate::cache::feed::Feed;
use crate::cache::grant_rows::{CredentialKey, CredentialRow, GrantKey, Verdict};
use crate::cache::keys::{self, CollectionKey, ObjectKey};
use crate::cache::open::{LockedFile, OpenDatabase, StoreLocation};
use crate::cache::record::{Collection, Record, ResponseRecord};

pub(crate) use crate::cache::cursor::{ListCursor, ListSource, Walk};
pub(crate) use crate::cache::error::StoreError;
pub(crate) use crate::cache::open::Condition;

/// A table of bytes by bytes.
pub(crate) type BytesTable = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Object key → [`Record`].
pub(crate) const OBJECTS: BytesTable = TableDefinition::new("objects");
/// Object key → (when the cloud observed 404 or the deletion was seen, resourceVersion of the deletion or 0).
pub(crate) const ABSENT: TableDefinition<'static, &[u8], (u64, u64)> =
    TableDefinition::new("absent");
/// Collection key → [`Collection`] in JSON.
pub(crate) const COLLECTIONS: BytesTable = TableDefinition::new("collections");
/// Collection key + NUL + object key → nothing; for collections with selectors only.
pub(crate) const MEMBERS: TableDefinition<'static, &[u8], ()> = TableDefinition::new("members");
/// `group/resource/` + NUL + encoding + apiVersion → how many objects are stored so.
pub(crate) const ENCODINGS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("forms");
/// Path and query + newline + content type → [`Document`].
pub(crate) const DOCUMENTS: BytesTable = TableDefinition::new("documents");
/// Account, right → the cloud's last word on it.
pub(crate) const GRANTS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("allowed");
/// SHA-256 of a bearer token → when it last proved itself, then the account.
pub(crate) const CREDENTIALS: BytesTable = TableDefinition::new("accepted");
/// Schema version and such.
pub(crate) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: a fingerprint of the uid of the cluster's kube-system namespace.
pub(crate) const CLUSTER: &str = "cluster";

/// What the store knows of one object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<T> {
    Found(T),
    /// The cloud said that it isn't, at this time.
    Absent(u64),
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Store {
    place: StoreLocation,
    shared: Arc<Shared>,
    feed: Feed,
}

/// Snapshots that readers hold.
#[derive(Debug)]
pub(super) struct Shared {
    /// `None` once it is closed.
    opened: ArcSwapOption<OpenDatabase>,
    /// How often it has been opened.
    generation: tokio::sync::watch::Sender<u64>,
    /// Walks that hold a snapshot.
    pub(super) leases: SnapshotLeases,
}

impl Store {
    /// Opens `dir/hublet.redb`, making it where it isn't there. A store that can't be read, or of another format, is set
    /// aside beside it (its path is in the log) and an empty one is begun. Where the disk can't be written, it is served
    /// as it is; where it can't be read, an empty one is: [`Store::condition`] says so.
    ///
    /// # Errors
    /// Another process has the store.
    pub(crate) fn open(dir: &Path, page_cache: usize) -> Result<Self, StoreError> {
        Self::open_at(StoreLocation::new(dir, page_cache, Arc::new(FileSystem)))
    }

    /// As [`Store::open`], at a place of the caller's.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(super) fn open_at(place: StoreLocation) -> Result<Self, StoreError> {
        let opened = place.open()?;
        let shared = Shared {
            opened: ArcSwapOption::from_pointee(opened),
            generation: tokio::sync::watch::Sender::new(0),
            leases: SnapshotLeases::default(),
        };
        Ok(Self {
            place,
            shared: Arc::new(shared),
            feed: Feed::default(),
        })
    }

    /// Begins to write, for the writer.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        let opened = self.shared.opened.load();
        opened.as_ref().ok_or(StoreError::Closed)?.begin_write()
    }

    /// The access that it allows now.
    pub(crate) fn condition(&self) -> Condition {
        let opened = self.shared.opened.load();
        let closed = || Condition::Unreadable(StoreError::Closed.to_string());
        opened
            .as_ref()
            .map_or_else(closed, |opened| opened.condition.clone())
    }

    /// Tells how often the store has been opened: when that changes, what failed may go well.
    pub(super) fn generations(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// Opens it anew to be written. For the writer.
    ///
    /// # Errors
    /// It still can't be written; it goes on as it was.
    pub(super) fn reopen(&self) -> Result<(), StoreError> {
        self.place.has_room()?;
        self.replace(|held| self.place.writable(held))
    }

    /// The disk has failed since it was opened.
    pub(super) fn has_failed(&self) -> bool {
        self.shared
            .opened
            .load()
            .as_ref()
            .is_some_and(|opened| opened.backend.has_failed())
    }

    /// After an error of the disk: serves what was written last. For the writer.
    ///
    /// # Errors
    /// Another process has taken it.
    pub(super) fn fall_back(&self, problem: &str) -> Result<(), StoreError> {
        self.replace(|held| self.place.read_only(held, problem))
    }

    /// Sets a damaged store aside and begins an empty one. For the writer.
    ///
    /// # Errors
    /// It can't be moved, or the new one can't be made.
    pub(super) fn begin_anew(&self, error: &StoreError) -> Result<(), StoreError> {
        let path = self.place.path.clone();
        self.place
            .set_aside(error)
            .map_err(|source| StoreError::Directory { path, source })?;
        self.replace(|_| self.place.writable(None))
    }

    /// Puts another database in place of this one, which is cut off first: two must not use one file.
    fn replace(
        &self,
        open: impl FnOnce(Option<&LockedFile>) -> Result<OpenDatabase, StoreError>,
    ) -> Result<(), StoreError> {
        let old = self.shared.opened.load_full().ok_or(StoreError::Closed)?;
        old.backend.cut();
        let opened = match open(old.file.as_ref()) {
            Ok(opened) => opened,
            Err(error) => {
                let problem = old
                    .condition
                    .problem()
                    .map_or_else(|| error.to_string(), str::to_owned);
                let again = self.place.read_only(old.file.as_ref(), &problem)?;
                self.put(again);
                return Err(error);
            }
        };
        self.put(opened);
        Ok(())
    }

    /// Another database takes this one's place.
    fn put(&self, opened: OpenDatabase) {
        self.shared.opened.store(Some(Arc::new(opened)));
        self.shared
            .generation
            .send_modify(|generation| *generation += 1);
    }

    /// Closes the file: from here on another process may open it. Snapshots that are still held read nothing more. Not
    /// to be called while a write is under way, which would keep the file open until its end.
    pub(super) fn close(&self) {
        let Some(opened) = self.shared.opened.swap(None) else {
            return;
        };
        if let Err(error) = opened.close() {
            tracing::warn!(%error, "the store could not be closed well: the next start repairs it");
        }
        if let Some((file, _)) = &opened.file {
            file.unlock();
        }
    }

    /// Bytes on disk: what is allocated to the file, which has holes.
    pub(crate) fn size(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&self.place.path).map_or(0, |m| m.blocks() * 512)
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }

    pub(super) fn place(&self) -> &StoreLocation {
        &self.place
    }

    pub(super) fn generation(&self) -> u64 {
        self.shared.generation()
    }

    /// Another file has taken the place of this one's: what is read of it goes on.
    pub(super) fn superseded_by(&self, opened: OpenDatabase) {
        if let Some(old) = &*self.shared.opened.load() {
            old.backend.seal();
        }
        self.put(opened);
        self.end_old_snapshots(std::time::Duration::ZERO);
    }

    /// A snapshot to read from.
    ///
    /// # Errors
    /// redb's, or the store is closed.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.shared.snapshot()
    }

    /// Ends the snapshots of walks that have had theirs for longer than this; they go on in new ones.
    pub(super) fn end_old_snapshots(&self, age: std::time::Duration) {
        self.shared.leases.end_older_than(age);
    }
}

impl Shared {
    pub(super) fn snapshot(self: &Arc<Self>) -> Result<Snapshot, StoreError> {
        let opened = self.opened.load_full().ok_or(StoreError::Closed)?;
        Ok(Snapshot {
            txn: opened.begin_read()?,
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
    /// Open as long as it is read.
    _opened: Arc<OpenDatabase>,
    shared: Arc<Shared>,
}

impl Snapshot {
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
            let record = Record::read(value.value()).ok_or(StoreError::Damaged)?;
            return Ok(Lookup::Found(read(record)));
        }
        let absent = self.txn.open_table(ABSENT)?.get(key)?.map(|v| v.value().0);
        Ok(absent.map_or(Lookup::Unknown, Lookup::Absent))
    }

    /// What is known of a collection.
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
        })))
    }

    /// A walk over a list that outlives this snapshot.
    pub(crate) fn list_cursor(&self, listed: ListSource) -> ListCursor {
        ListCursor::new(Arc::clone(&self.shared), listed)
    }

    /// An object, or something under a collection without selectors, is newer than this resourceVersion, or was found gone
    /// after this time.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn has_changed_since(
        &self,
        prefix: &[u8],
        version: u64,
        at: u64,
    ) -> Result<bool, StoreError> {
        let end = if prefix.ends_with(b"/") {
            keys::end_of(prefix)
        } else {
            [prefix, &[0]].concat()
        };
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
            if row?.1.value().0 > at {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Something under a collection without selectors has gone since this resourceVersion without being called absent:
    /// a later list lacked it, or it left a selection.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub(crate) fn has_lost_since(&self, scope: &[u8], version: u64) -> Result<bool, StoreError> {
        let own = self.collection(CollectionKey::new(scope))?;
        let all = self.collection(CollectionKey::new(keys::resource_of(scope)))?;
        let incomplete = own.as_ref().is_some_and(|own| !own.is_whole());
        Ok(incomplete
            || [own, all]
                .into_iter()
                .flatten()
                .any(|list| list.unnamed > version))
    }

    /// A whole collection, with or without selectors, has this object in it.
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

    /// When an object under a prefix was last found gone, beyond what `covered` (resourceVersion, time) covers.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn last_deletion_beyond(
        &self,
        prefix: &[u8],
        covered: (u64, u64),
    ) -> Result<Option<u64>, StoreError> {
        let (end, mut last) = (keys::end_of(prefix), None);
        for row in self.txn.open_table(ABSENT)?.range(prefix..end.as_slice())? {
            last = last.max(beyond(row?.1.value(), covered));
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
        covered: (u64, u64),
    ) -> Result<Option<u64>, StoreError> {
        let start = collection.member_prefix();
        let end = keys::end_of(&start);
        let (absent, mut last) = (self.txn.open_table(ABSENT)?, None);
        for row in self
            .txn
            .open_table(MEMBERS)?
            .range(start.as_slice()..end.as_slice())?
        {
            let gone = absent.get(&row?.0.value()[start.len()..])?;
            last = last.max(gone.and_then(|gone| beyond(gone.value(), covered)));
        }
        Ok(last)
    }

    /// Each member of a collection with selectors is stored, or known to be gone.
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
            if objects.get(key)?.is_none() && absent.get(key)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// All grants, which are few.
    pub(crate) fn grants(&self) -> Result<Vec<(GrantKey, Verdict)>, StoreError> {
        let mut grants = Vec::new();
        for row in self.txn.open_table(GRANTS)?.range::<&[u8]>(..)? {
            let (key, value) = row?;
            if let Ok(key) = key.value().try_into() {
                grants.push((GrantKey(key), Verdict::from_stored(value.value())));
            }
        }
        Ok(grants)
    }

    /// All credentials, which are few.
    pub(crate) fn credentials(&self) -> Result<Vec<(CredentialKey, CredentialRow)>, StoreError> {
        let mut credentials = Vec::new();
        for row in self.txn.open_table(CREDENTIALS)?.range::<&[u8]>(..)? {
            let (key, value) = row?;
            let decoded = CredentialRow::decode(value.value());
            if let (Ok(key), Some(credential)) = (key.value().try_into(), decoded) {
                credentials.push((CredentialKey(key), credential));
            }
        }
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

/// When something was found gone (time, resourceVersion), where that is beyond what is covered (resourceVersion, time).
fn beyond((at, since): (u64, u64), (version, until): (u64, u64)) -> Option<u64> {
    (at > until || since > version).then_some(at)
}
