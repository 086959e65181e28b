//! The file: redb tables, opening (with recovery, and setting a damaged store aside), and the reads. In: keys. Out:
//! copies of what is stored, or snapshots to stream from. Writes: `apply`, on the one writer thread.
//!
//! Reads run on redb snapshots and never wait for the writer.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use redb::{
    Database, DatabaseError, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable,
    TableDefinition, WriteTransaction,
};

use super::key;
use super::record::{Collection, Document, FORMAT, Record};

/// A table of bytes by bytes.
pub type Bytes2 = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Object key → [`Record`].
pub const OBJECTS: Bytes2 = TableDefinition::new("objects");
/// Object key → (when the cloud said 404 or the deletion was seen, resourceVersion of the deletion or 0).
pub const ABSENT: TableDefinition<'static, &[u8], (u64, u64)> = TableDefinition::new("absent");
/// Collection key → [`Collection`] in JSON.
pub const COLLECTIONS: Bytes2 = TableDefinition::new("collections");
/// Collection key + NUL + object key → nothing; for collections with selectors only.
pub const MEMBERS: TableDefinition<'static, &[u8], ()> = TableDefinition::new("members");
/// `group/resource/` + NUL + encoding + apiVersion → how many objects are stored so.
pub const FORMS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("forms");
/// Path and query + newline + content type → [`Document`].
pub const DOCUMENTS: Bytes2 = TableDefinition::new("documents");
/// Account, right → the cloud's last word on it.
pub const GRANTS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("allowed");
/// SHA-256 of a bearer token → when it last proved itself, then the account.
pub const CREDENTIALS: Bytes2 = TableDefinition::new("accepted");
/// Schema version and such.
pub const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: a pod or namespace has said something about steering, ever.
pub const WISHES: &str = "wishes";

/// In [`META`]: a fingerprint of the uid of the cluster's kube-system namespace.
pub const CLUSTER: &str = "cluster";

/// A row of a small table: key and value.
type Row = (Vec<u8>, Vec<u8>);

/// Why the store could not be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The directory.
    #[error("can't prepare the store's directory {path}: {source}; check --disk-cache-path and its owner")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Another process has it.
    #[error("the store {0} is in use by another process; is a hublet running already?")]
    InUse(PathBuf),
    /// A hand-over, or the end.
    #[error("the store is closed: hublet is stopping")]
    Closed,
    /// redb failed.
    #[error("the store failed: {0}; is the disk full or failing?")]
    Redb(Box<redb::Error>),
    /// A value that isn't ours.
    #[error("a stored value is damaged; it will be replaced by what the cloud says next")]
    Damaged,
}

impl<E: Into<redb::Error>> From<E> for StoreError {
    fn from(error: E) -> Self {
        Self::Redb(Box::new(error.into()))
    }
}

/// What the store knows of one object.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// It is there.
    Found(T),
    /// The cloud said that it isn't, at this time.
    Absent(u64),
    /// Nothing is known.
    Unknown,
}

/// The open store.
#[derive(Debug)]
pub struct Store {
    /// `None` once it is closed, whoever still holds a reference to the store.
    db: RwLock<Option<Database>>,
    path: PathBuf,
}

impl Store {
    /// Opens `dir/hublet.redb`, making it where it isn't there. A store that can't be read, or of another format, is set
    /// aside beside it (its path is in the log) and an empty one is begun.
    ///
    /// # Errors
    /// The directory can't be made or written, or another process has the store.
    pub fn open(dir: &Path, page_cache: usize) -> Result<Self, StoreError> {
        let directory = |source| StoreError::Directory { path: dir.to_owned(), source };
        private_dir(dir).map_err(directory)?;
        let path = dir.join("hublet.redb");
        match Self::open_file(&path, page_cache) {
            Ok(db) => Ok(Self { db: RwLock::new(Some(db)), path }),
            Err(StoreError::InUse(path)) => Err(StoreError::InUse(path)),
            Err(error) if path.exists() => {
                let aside = aside(&path);
                tracing::error!(%error, aside = %aside.display(), "the store can't be used: set aside, beginning anew");
                std::fs::rename(&path, &aside).map_err(directory)?;
                Ok(Self { db: RwLock::new(Some(Self::open_file(&path, page_cache)?)), path })
            }
            Err(error) => Err(error),
        }
    }

    fn open_file(path: &Path, page_cache: usize) -> Result<Database, StoreError> {
        private_file(path).map_err(|source| StoreError::Directory { path: path.to_owned(), source })?;
        let mut builder = Database::builder();
        builder.set_cache_size(page_cache);
        let db = match builder.create(path) {
            Ok(db) => db,
            Err(DatabaseError::DatabaseAlreadyOpen) => return Err(StoreError::InUse(path.to_owned())),
            Err(error) => return Err(error.into()),
        };
        let txn = db.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            let format = meta.get("format")?.map(|v| v.value());
            if format.is_some_and(|f| f != u64::from(FORMAT)) {
                return Err(StoreError::Damaged);
            }
            meta.insert("format", u64::from(FORMAT))?;
            // Every table exists from here on, so that reads never meet a missing one.
            txn.open_table(OBJECTS)?;
            txn.open_table(ABSENT)?;
            txn.open_table(COLLECTIONS)?;
            txn.open_table(MEMBERS)?;
            txn.open_table(FORMS)?;
            txn.open_table(DOCUMENTS)?;
            txn.open_table(GRANTS)?;
            txn.open_table(CREDENTIALS)?;
            // What earlier versions believed of callers, they believed too easily.
            txn.delete_table(TableDefinition::<&[u8], u64>::new("grants"))?;
            txn.delete_table(Bytes2::new("credentials"))?;
        }
        txn.commit()?;
        Ok(db)
    }

    /// Begins to write, for the writer.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        Ok(self.db.read().as_ref().ok_or(StoreError::Closed)?.begin_write()?)
    }

    /// Closes the file: from here on another process may open it. Snapshots that are still held read nothing more. Not
    /// to be called while a write is under way, which would keep the file open until its end.
    pub(super) fn close(&self) {
        let db = self.db.write().take();
        if let Some(Err(error)) = db.map(Database::close) {
            tracing::warn!(%error, "the store could not be closed well: the next start repairs it");
        }
    }

    /// Bytes on disk.
    pub fn size(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |m| m.len())
    }

    /// A snapshot to read from.
    ///
    /// # Errors
    /// redb's, or the store is closed.
    pub fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Ok(Snapshot { txn: self.db.read().as_ref().ok_or(StoreError::Closed)?.begin_read()? })
    }
}

/// Makes the directory 0700, however it was before.
fn private_dir(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
}

/// Makes the file 0600 before anything is in it.
fn private_file(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let file = std::fs::OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
}

/// A free name beside `path` that tells when.
fn aside(path: &Path) -> PathBuf {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let name = |n: u32| path.with_extension(format!("redb.aside-{seconds}-{n}"));
    (0..).map(name).find(|p| !p.exists()).unwrap_or_else(|| name(0))
}

/// One consistent view of the store.
#[derive(Debug)]
pub struct Snapshot {
    txn: ReadTransaction,
}

impl Snapshot {
    /// One object; `read` copies out of the page what it needs.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub fn object<T>(&self, key: &[u8], read: impl FnOnce(Record<'_>) -> T) -> Result<Lookup<T>, StoreError> {
        if let Some(value) = self.txn.open_table(OBJECTS)?.get(key)? {
            let record = Record::read(value.value()).ok_or(StoreError::Damaged)?;
            return Ok(Lookup::Found(read(record)));
        }
        let absent = self.txn.open_table(ABSENT)?.get(key)?.map(|v| v.value().0);
        Ok(absent.map_or(Lookup::Unknown, Lookup::Absent))
    }

    /// Has any pod or namespace ever said something about steering? Otherwise nobody needs to look for it.
    ///
    /// # Errors
    /// redb's.
    pub fn has_wishes(&self) -> Result<bool, StoreError> {
        Ok(self.txn.open_table(META)?.get(WISHES)?.is_some())
    }

    /// What is known of a collection.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub fn collection(&self, key: &[u8]) -> Result<Option<Collection>, StoreError> {
        let value = self.txn.open_table(COLLECTIONS)?.get(key)?;
        value.map(|v| serde_json::from_slice(v.value()).map_err(|_| StoreError::Damaged)).transpose()
    }

    /// The forms (encoding byte, apiVersion) in which objects of a resource (`group/resource/`) are stored.
    ///
    /// # Errors
    /// redb's.
    pub fn forms(&self, resource: &[u8]) -> Result<Vec<(u8, String)>, StoreError> {
        let start = [resource, &[0]].concat();
        let end = key::end_of(&start);
        let mut forms = Vec::new();
        for row in self.txn.open_table(FORMS)?.range(start.as_slice()..end.as_slice())? {
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
    pub fn documents(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let start = format!("{path}\n").into_bytes();
        let end = key::end_of(&start);
        let mut types = Vec::new();
        for row in self.txn.open_table(DOCUMENTS)?.range(start.as_slice()..end.as_slice())? {
            types.push(String::from_utf8_lossy(&row?.0.value()[start.len()..]).into_owned());
        }
        Ok(types)
    }

    /// One document.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub fn document<T>(
        &self,
        key: &[u8],
        read: impl FnOnce(Document<'_>) -> T,
    ) -> Result<Option<T>, StoreError> {
        let value = self.txn.open_table(DOCUMENTS)?.get(key)?;
        value.map(|v| Document::read(v.value()).map(read).ok_or(StoreError::Damaged)).transpose()
    }

    /// All objects under a prefix, in order: a walk that owns its snapshot.
    ///
    /// # Errors
    /// redb's.
    pub fn walk(&self, prefix: &[u8]) -> Result<Walk, StoreError> {
        let end = key::end_of(prefix);
        Ok(Walk::Range(self.txn.open_table(OBJECTS)?.range_owned(prefix..end.as_slice())?))
    }

    /// The members of a collection with selectors, in order.
    ///
    /// # Errors
    /// redb's.
    pub fn walk_members(&self, collection: &[u8]) -> Result<Walk, StoreError> {
        let start = [collection, &[0]].concat();
        let end = key::end_of(&start);
        let members = self.txn.open_table(MEMBERS)?.range_owned(start.as_slice()..end.as_slice())?;
        Ok(Walk::Members { members, skip: start.len(), objects: self.txn.open_table(OBJECTS)? })
    }

    /// Something under a prefix is newer than this resourceVersion, or was found gone after this time.
    ///
    /// # Errors
    /// redb's.
    pub fn changed_since(&self, prefix: &[u8], version: u64, at: u64) -> Result<bool, StoreError> {
        let end = key::end_of(prefix);
        for row in self.txn.open_table(OBJECTS)?.range(prefix..end.as_slice())? {
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

    /// When an object under a prefix was last found gone, beyond what `covered` (resourceVersion, time) covers.
    ///
    /// # Errors
    /// redb's.
    pub fn gone_beyond(&self, prefix: &[u8], covered: (u64, u64)) -> Result<Option<u64>, StoreError> {
        let (end, mut last) = (key::end_of(prefix), None);
        for row in self.txn.open_table(ABSENT)?.range(prefix..end.as_slice())? {
            last = last.max(beyond(row?.1.value(), covered));
        }
        Ok(last)
    }

    /// As [`Snapshot::gone_beyond`], of the members of a collection with selectors.
    ///
    /// # Errors
    /// redb's.
    pub fn members_gone_beyond(
        &self,
        collection: &[u8],
        covered: (u64, u64),
    ) -> Result<Option<u64>, StoreError> {
        let start = [collection, &[0]].concat();
        let end = key::end_of(&start);
        let (absent, mut last) = (self.txn.open_table(ABSENT)?, None);
        for row in self.txn.open_table(MEMBERS)?.range(start.as_slice()..end.as_slice())? {
            let gone = absent.get(&row?.0.value()[start.len()..])?;
            last = last.max(gone.and_then(|gone| beyond(gone.value(), covered)));
        }
        Ok(last)
    }

    /// Each member of a collection with selectors is stored, or known to be gone.
    ///
    /// # Errors
    /// redb's.
    pub fn members_known(&self, collection: &[u8]) -> Result<bool, StoreError> {
        let start = [collection, &[0]].concat();
        let end = key::end_of(&start);
        let objects = self.txn.open_table(OBJECTS)?;
        let absent = self.txn.open_table(ABSENT)?;
        for row in self.txn.open_table(MEMBERS)?.range(start.as_slice()..end.as_slice())? {
            let (row, ()) = row.map(|(k, _)| (k, ()))?;
            let key = &row.value()[start.len()..];
            if objects.get(key)?.is_none() && absent.get(key)?.is_none() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Every row of a small table, for what is kept in memory.
    pub(super) fn grants(&self) -> Result<Vec<(Vec<u8>, u64)>, StoreError> {
        let rows = self.txn.open_table(GRANTS)?.range::<&[u8]>(..)?;
        rows.map(|row| row.map(|(k, v)| (k.value().to_vec(), v.value())).map_err(StoreError::from)).collect()
    }

    /// As [`Snapshot::grants`].
    pub(super) fn credentials(&self) -> Result<Vec<Row>, StoreError> {
        let rows = self.txn.open_table(CREDENTIALS)?.range::<&[u8]>(..)?;
        rows.map(|row| row.map(|(k, v)| (k.value().to_vec(), v.value().to_vec())).map_err(StoreError::from))
            .collect()
    }

    /// Rows of objects, absences, collections and documents, for `hublet status`.
    ///
    /// # Errors
    /// redb's.
    pub fn counts(&self) -> Result<[u64; 4], StoreError> {
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

/// A walk over stored objects in key order; holds its snapshot open until dropped.
pub enum Walk {
    /// Everything under a prefix.
    Range(redb::OwnedRange<&'static [u8], &'static [u8]>),
    /// The members of a collection with selectors.
    Members {
        /// Their rows.
        members: redb::OwnedRange<&'static [u8], ()>,
        /// Where the object's key begins in a member's.
        skip: usize,
        /// The objects.
        objects: ReadOnlyTable<&'static [u8], &'static [u8]>,
    },
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Walk")
    }
}

impl Walk {
    /// Hands the next object to `read`; `None` at the end.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub fn next<T>(&mut self, read: impl FnOnce(Record<'_>) -> T) -> Result<Option<T>, StoreError> {
        match self {
            Self::Range(range) => {
                let Some(row) = range.next() else { return Ok(None) };
                let (_, value) = row?;
                Record::read(value.value()).map(|r| Some(read(r))).ok_or(StoreError::Damaged)
            }
            Self::Members { members, skip, objects } => loop {
                let Some(row) = members.next() else { return Ok(None) };
                // A member that is gone since is left out; one that is merely unknown was found by `members_known`.
                let Some(value) = objects.get(&row?.0.value()[*skip..])? else { continue };
                return Record::read(value.value()).map(|r| Some(read(r))).ok_or(StoreError::Damaged);
            },
        }
    }
}
