//! Opens the store. In: its directory. Out: a writable database, or a read-only or empty one and the reason. A store is
//! renamed and replaced only if its contents are damaged, never because of a disk error.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;
use redb::{
    Database, ReadTransaction, ReadableDatabase, Table, TableDefinition, TableError,
    WriteTransaction,
};

use crate::cache::backend::{Access, Backend, FileOpener, StorageFile};
use crate::cache::error::StoreError;
use crate::cache::record::FORMAT;
use crate::cache::tables::{
    ABSENT, BytesTable, COLLECTIONS, CREDENTIALS, DOCUMENTS, ENCODINGS, GRANTS, MEMBERS, MENTIONED,
    META, OBJECTS,
};

/// Beginning of the names of everything of the store.
pub(super) const FILE: &str = "hublet.redb";
/// Bytes that a disk must take before the store is opened to be written again.
const SPACE_NEEDED: usize = 1 << 20;

/// The access that an open store allows: reads and writes, or reads alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It is read and written.
    Writable,
    /// It is served as it was last written, for this reason.
    ReadOnly(String),
    /// It can't be read either, for this reason: an empty store is served.
    Unreadable(String),
}

impl Condition {
    /// The reason that it isn't written.
    pub(crate) fn problem(&self) -> Option<&str> {
        match self {
            Self::Writable => None,
            Self::ReadOnly(problem) | Self::Unreadable(problem) => Some(problem),
        }
    }
}

/// The file, which is locked, and how it was opened.
pub(super) type LockedFile = (Arc<dyn StorageFile>, Access);

#[derive(Debug)]
pub(super) struct OpenDatabase {
    /// `None` once it is closed, even if somebody still holds this.
    db: RwLock<Option<Database>>,
    pub(super) backend: Backend,
    pub(super) file: Option<LockedFile>,
    pub(super) condition: Condition,
}

impl OpenDatabase {
    fn new(db: Database, backend: Backend, file: Option<LockedFile>, condition: Condition) -> Self {
        Self {
            db: RwLock::new(Some(db)),
            backend,
            file,
            condition,
        }
    }

    pub(super) fn begin_read(&self) -> Result<ReadTransaction, StoreError> {
        Ok(self
            .db
            .read()
            .as_ref()
            .ok_or(StoreError::Closed)?
            .begin_read()?)
    }

    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        Ok(self
            .db
            .read()
            .as_ref()
            .ok_or(StoreError::Closed)?
            .begin_write()?)
    }

    /// Closes the database in an orderly way, and cuts it off its file.
    ///
    /// # Errors
    /// redb's.
    pub(super) fn close(&self) -> Result<(), StoreError> {
        let closed = self.db.write().take().map_or(Ok(()), Database::close);
        self.backend.cut();
        Ok(closed?)
    }
}

/// The place of the store.
#[derive(Debug, Clone)]
pub(super) struct StoreLocation {
    pub(super) path: PathBuf,
    /// redb's page cache in bytes.
    pub(super) page_cache: usize,
    pub(super) opener: Arc<dyn FileOpener>,
}

impl StoreLocation {
    /// In this directory, which is made 0700 where it isn't there. A directory that exists keeps its mode: it may be
    /// shared, and the file is 0600 in any case.
    pub(super) fn new(dir: &Path, page_cache: usize, opener: Arc<dyn FileOpener>) -> Self {
        Self {
            path: dir.join(FILE),
            page_cache,
            opener,
        }
    }

    /// A file beside the store's.
    pub(super) fn beside(&self, extension: &str) -> PathBuf {
        self.path.with_extension(format!("redb.{extension}"))
    }

    /// Checks that the disk has room, since a failed attempt to reopen the store for writing interrupts its readers.
    ///
    /// # Errors
    /// It has none.
    pub(super) fn has_room(&self) -> Result<(), StoreError> {
        let path = self.beside("room");
        let opened = self.opener.open(&path, Access::Write);
        let written = opened.and_then(|file| fill_and_sync(&*file));
        let _ = std::fs::remove_file(&path);
        match written {
            // A directory without write permission does not mean that the file can't be written.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            written => written.map_err(|error| self.directory_error(error)),
        }
    }

    pub(super) fn directory_error(&self, source: io::Error) -> StoreError {
        StoreError::Directory {
            path: self.path.clone(),
            source,
        }
    }

    /// Opens the store as well as it can be.
    ///
    /// # Errors
    /// Another process has it.
    pub(super) fn open(&self) -> Result<OpenDatabase, StoreError> {
        for left_over in ["room", "new"] {
            let _ = std::fs::remove_file(self.beside(left_over));
        }
        match self.writable_or_replaced() {
            Err(error @ StoreError::InUse(_)) => Err(error),
            Err(error) => {
                tracing::error!(%error, "the store can't be written: stored data is still served, new responses are not stored");
                self.read_only(None, &error.to_string())
            }
            opened => opened,
        }
    }

    /// Opens it to be written. A damaged one is set aside first.
    fn writable_or_replaced(&self) -> Result<OpenDatabase, StoreError> {
        let damage = match self.writable(None) {
            Err(error) if error.is_corruption() => error,
            opened => return opened,
        };
        match self.set_aside(&damage) {
            Ok(()) => self.writable(None),
            Err(unmoved) => {
                tracing::error!(error = %unmoved, "the damaged store can't be set aside; hublet runs without it");
                Self::unreadable(&damage.to_string(), None)
            }
        }
    }

    /// Opens it to be written; over `held`, where that is the file, since the lock belongs to it.
    pub(super) fn writable(&self, held: Option<&LockedFile>) -> Result<OpenDatabase, StoreError> {
        let file = self.file(held)?;
        let len = file.len().map_err(|error| self.directory_error(error))?;
        let backend = Backend::writing(Arc::clone(&file));
        let db = self.database(&backend).inspect_err(|_| {
            backend.cut();
            if len == 0 {
                // A new file that a full disk left incomplete is not a store.
                let _ = file.set_len(0);
            }
        })?;
        Ok(OpenDatabase::new(
            db,
            backend,
            Some((file, Access::Write)),
            Condition::Writable,
        ))
    }

    /// The file, open to be written and locked.
    fn file(&self, held: Option<&LockedFile>) -> Result<Arc<dyn StorageFile>, StoreError> {
        if let Some((file, Access::Write)) = held
            && is_in_place(&**file, &self.path)
        {
            return Ok(Arc::clone(file));
        }
        if let Some(dir) = self.path.parent() {
            make_dir(dir).map_err(|source| StoreError::Directory {
                path: dir.to_owned(),
                source,
            })?;
        }
        let file = self.open_file(Access::Write)?;
        if let Some((held, _)) = held {
            held.unlock();
        }
        self.lock(&*file)?;
        Ok(file)
    }

    fn open_file(&self, access: Access) -> Result<Arc<dyn StorageFile>, StoreError> {
        let opened = self.opener.open(&self.path, access);
        opened.map_err(|error| self.directory_error(error))
    }

    fn lock(&self, file: &dyn StorageFile) -> Result<(), StoreError> {
        match file.lock() {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::InUse(self.path.clone())),
            Err(error) => Err(self.directory_error(error)),
        }
    }

    /// Opens it to be read, with what redb must write for it in memory; an empty one where that can't be done.
    ///
    /// # Errors
    /// Another process has it, or (never seen) redb can't open an empty database in memory.
    pub(super) fn read_only(
        &self,
        held: Option<&LockedFile>,
        problem: &str,
    ) -> Result<OpenDatabase, StoreError> {
        match self.open_read_only(held, problem) {
            Ok(opened) => Ok(opened),
            Err(error @ StoreError::InUse(_)) => Err(error),
            Err(error) => {
                tracing::error!(%error, "the store can't be read: while the cloud is away, no request can be answered from it");
                Self::unreadable(problem, held.cloned())
            }
        }
    }

    fn open_read_only(
        &self,
        held: Option<&LockedFile>,
        problem: &str,
    ) -> Result<OpenDatabase, StoreError> {
        let file = match held {
            Some(held) => held.clone(),
            None => {
                let file = self.open_file(Access::Read)?;
                self.lock(&*file)?;
                (file, Access::Read)
            }
        };
        let backend = Backend::reading(Some(Arc::clone(&file.0)))
            .map_err(|error| self.directory_error(error))?;
        let db = self.database(&backend)?;
        let condition = Condition::ReadOnly(problem.to_owned());
        Ok(OpenDatabase::new(db, backend, Some(file), condition))
    }

    /// An empty one in memory, for a file that can't be read.
    ///
    /// # Errors
    /// redb can't open it (never seen).
    pub(super) fn unreadable(
        problem: &str,
        file: Option<LockedFile>,
    ) -> Result<OpenDatabase, StoreError> {
        let backend = Backend::reading(None).map_err(redb::Error::Io)?;
        let db = Database::builder()
            .set_cache_size(0)
            .create_with_backend(backend.clone())?;
        prepare(&db)?;
        Ok(OpenDatabase::new(
            db,
            backend,
            file,
            Condition::Unreadable(problem.to_owned()),
        ))
    }

    /// Opens the database with every table.
    fn database(&self, backend: &Backend) -> Result<Database, StoreError> {
        let db = Database::builder()
            .set_cache_size(self.page_cache)
            .create_with_backend(backend.clone())?;
        prepare(&db)?;
        Ok(db)
    }

    /// Renames the file to an unused name that holds the time.
    pub(super) fn set_aside(&self, error: &StoreError) -> io::Result<()> {
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_secs());
        let aside = (0_u32..)
            .map(|n| self.beside(&format!("aside-{seconds}-{n}")))
            .find(|path| !path.exists())
            .expect("a directory holds fewer than 2^32 files");
        std::fs::rename(&self.path, &aside)?;
        tracing::error!(%error, aside = %aside.display(), "the store is damaged: it was set aside, and an empty one is used");
        Ok(())
    }
}

/// Writes [`SPACE_NEEDED`] bytes.
fn fill_and_sync(file: &dyn StorageFile) -> io::Result<()> {
    let block = [0x5a; 64 << 10];
    (0..SPACE_NEEDED / block.len())
        .try_for_each(|n| file.write((n * block.len()) as u64, &block))?;
    file.sync()
}

/// True if the open file is the one at `path`.
pub(super) fn is_in_place(file: &dyn StorageFile, path: &Path) -> bool {
    let (open, there) = (file.identity(), identity(path));
    matches!((open, there), (Ok(open), Ok(there)) if open == there)
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes the creation or rename of a file durable.
pub(super) fn sync_directory(of: &Path) -> io::Result<()> {
    match of.parent() {
        Some(directory) => std::fs::File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

/// Makes the directory, 0700, where it isn't there.
fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    if let Ok(metadata) = dir.metadata()
        && metadata.is_dir()
    {
        // Anyone may rename what is in it: the file is looked at, but can be taken away.
        let mode = metadata.permissions().mode();
        if mode & 0o022 != 0 && mode & 0o1000 == 0 {
            tracing::warn!(
                "other users can write to the store's directory {}",
                dir.display()
            );
        }
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// Makes every table, so that reads never meet a missing one; writes nothing where all are there.
fn prepare(db: &Database) -> Result<(), StoreError> {
    let txn = db.begin_read()?;
    match read_format(&txn)? {
        Some(format) if format != u64::from(FORMAT) => return Err(StoreError::Format(format)),
        Some(_) if has_tables(&txn)? => return Ok(()),
        _ => {}
    }
    drop(txn);
    create_tables(db)
}

fn read_format(txn: &ReadTransaction) -> Result<Option<u64>, StoreError> {
    match txn.open_table(META) {
        Ok(meta) => Ok(redb::ReadableTable::get(&meta, "format")?.map(|v| v.value())),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn create_tables(db: &Database) -> Result<(), StoreError> {
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    write_meta(&mut txn.open_table(META)?)?;
    for table in [OBJECTS, COLLECTIONS, DOCUMENTS, CREDENTIALS] {
        txn.open_table(table)?;
    }
    txn.open_table(ABSENT)?;
    txn.open_table(MEMBERS)?;
    txn.open_table(ENCODINGS)?;
    txn.open_table(GRANTS)?;
    // Earlier versions granted rights on weaker evidence: those rights are dropped.
    txn.delete_table(TableDefinition::<&[u8], u64>::new("grants"))?;
    txn.delete_table(BytesTable::new("credentials"))?;
    txn.commit()?;
    Ok(())
}

fn write_meta(meta: &mut Table<'_, &'static str, u64>) -> Result<(), StoreError> {
    let is_new = meta.insert("format", u64::from(FORMAT))?.is_none();
    if is_new {
        meta.insert(MENTIONED, 0)?;
    }
    Ok(())
}

fn has_tables(txn: &ReadTransaction) -> Result<bool, StoreError> {
    let mut opened: Vec<Result<(), TableError>> = Vec::new();
    for table in [OBJECTS, COLLECTIONS, DOCUMENTS, CREDENTIALS] {
        opened.push(txn.open_table(table).map(drop));
    }
    opened.push(txn.open_table(ABSENT).map(drop));
    opened.push(txn.open_table(MEMBERS).map(drop));
    opened.push(txn.open_table(ENCODINGS).map(drop));
    opened.push(txn.open_table(GRANTS).map(drop));
    for table in opened {
        match table {
            Ok(()) => {}
            Err(TableError::TableDoesNotExist(_)) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}
