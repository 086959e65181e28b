//! The store's open file. `snapshot` reads it; `apply` writes it, on the writer thread only. After a disk error the writer
//! reopens the store ([`Store::reopen`], [`Store::fall_back`]), and readers begin again in a new snapshot.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::RwLock;
use redb::WriteTransaction;

use crate::cache::backend::FileSystem;
use crate::cache::change::Change;
use crate::cache::leases::Leases;
use crate::cache::notices::Feed;
use crate::cache::open::{LockedFile, OpenDatabase, StoreLocation};
use crate::cache::opening::{OpenedStore, Opening};
use crate::cache::pending_file::PendingFile;
use crate::cache::snapshot::Shared;
use crate::cache::superseded::Superseded;

pub(crate) use crate::cache::cursor::{ListCursor, ListSource};
pub(crate) use crate::cache::error::StoreError;
pub(crate) use crate::cache::open::Condition;
pub(crate) use crate::cache::snapshot::{Covered, Lookup, Snapshot};
pub(crate) use crate::cache::walk::Walk;

#[derive(Debug)]
pub(crate) struct Store {
    place: StoreLocation,
    shared: Arc<Shared>,
    feed: Feed,
    /// The opening at the start, if that has not ended yet.
    opening: Opening,
    pending_file: Arc<PendingFile>,
}

/// Longest wait for the disk at the start. A store that is opened later is served from then on.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
const HANGING_DISK: &str = "the disk has not answered since the start";

impl Store {
    /// Opens `dir/hublet.redb`, creating it if it is missing. A damaged store, or one of another format, is renamed (the
    /// log has its new path) and replaced by an empty one. If the disk can't be written, the store is served read-only; if
    /// it can't be read either, or the disk hangs, an empty one is served. [`Store::condition`] reports which.
    ///
    /// # Errors
    /// Another process has the store.
    pub(crate) fn open(dir: &Path, page_cache: usize) -> Result<Self, StoreError> {
        Self::open_at(StoreLocation::new(dir, page_cache, Arc::new(FileSystem)))
    }

    /// As [`Store::open`], at a location that the caller chose.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(super) fn open_at(place: StoreLocation) -> Result<Self, StoreError> {
        let pending_file = Arc::new(PendingFile::new(&place));
        let opening = Opening::begin(place.clone(), Arc::clone(&pending_file))?;
        let opened = match opening.wait(OPEN_TIMEOUT) {
            Some(opened) => opened?,
            None => {
                tracing::error!(
                    "the disk of the store has not answered within {OPEN_TIMEOUT:?}: hublet starts without what is stored"
                );
                OpenedStore {
                    database: StoreLocation::unreadable(HANGING_DISK, None)?,
                    pending: None,
                }
            }
        };
        let shared = Shared {
            opened: ArcSwapOption::from_pointee(opened.database),
            generation: tokio::sync::watch::Sender::new(0),
            leases: Leases::default(),
            superseded: Arc::default(),
            revocations: RwLock::default(),
        };
        let store = Self {
            place,
            shared: Arc::new(shared),
            feed: Feed::default(),
            opening,
            pending_file,
        };
        store.apply_pending(opened.pending);
        Ok(store)
    }

    /// Applies to reads what an earlier process has left, if that is known.
    fn apply_pending(&self, pending: Option<Vec<Change>>) {
        if let Some(changes) = pending {
            self.shared.apply_pending(changes);
            self.pending_file.set_read();
        }
    }

    /// Begins a write transaction. For the writer.
    pub(super) fn begin_write(&self) -> Result<WriteTransaction, StoreError> {
        let opened = self.shared.opened.load();
        opened.as_ref().ok_or(StoreError::Closed)?.begin_write()
    }

    /// The access that the store allows now.
    pub(crate) fn condition(&self) -> Condition {
        let opened = self.shared.opened.load();
        match opened.as_ref() {
            Some(opened) => opened.condition.clone(),
            None => Condition::Unreadable(StoreError::Closed.to_string()),
        }
    }

    /// The generation of the store, which grows each time it is reopened: a read that failed before may succeed then.
    pub(super) fn generations(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.generation.subscribe()
    }

    /// The store that was not open in time at the start, once.
    ///
    /// # Errors
    /// It is still being opened, or could not be.
    pub(super) fn late_opening(&self) -> Result<Option<OpenedStore>, StoreError> {
        self.opening.take_late(&self.place)
    }

    /// Reopens the store for writing. A `late` one is served at once, and is enough if it is writable. For the writer.
    ///
    /// # Errors
    /// It still can't be written; its condition does not change.
    pub(super) fn reopen(&self, late: Option<OpenedStore>) -> Result<(), StoreError> {
        if let Some(late) = late {
            let is_writable = late.database.condition == Condition::Writable;
            self.apply_pending(late.pending);
            self.publish_database(late.database);
            if is_writable {
                return Ok(());
            }
        }
        self.place.has_room()?;
        self.replace_database(|held| self.place.writable(held))
    }

    /// True if a read or write of the disk has failed since the store was opened.
    pub(super) fn has_failed(&self) -> bool {
        self.shared
            .opened
            .load()
            .as_ref()
            .is_some_and(|opened| opened.backend.has_failed())
    }

    /// After a disk error: reopens the store read-only, with what was written last. For the writer.
    ///
    /// # Errors
    /// Another process has opened it.
    pub(super) fn fall_back(&self, problem: &str) -> Result<(), StoreError> {
        self.replace_database(|held| self.place.read_only(held, problem))
    }

    /// Renames a damaged store and creates an empty one. For the writer.
    ///
    /// # Errors
    /// It can't be renamed, or the new one can't be created.
    pub(super) fn replace_damaged(&self, error: &StoreError) -> Result<(), StoreError> {
        let path = self.place.path.clone();
        self.place
            .set_aside(error)
            .map_err(|source| StoreError::Directory { path, source })?;
        self.replace_database(|_| self.place.writable(None))
    }

    /// Replaces the open database. The old one is cut off from the file first, since two databases must not use one file.
    fn replace_database(
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
                self.publish_database(again);
                return Err(error);
            }
        };
        self.publish_database(opened);
        Ok(())
    }

    /// Makes `opened` the database that new snapshots read, with what an earlier process has left beside it.
    fn publish_database(&self, opened: OpenDatabase) {
        if self.pending_file.is_unread() {
            self.apply_pending(self.pending_file.read_beside(&opened.condition));
        }
        self.shared.opened.store(Some(Arc::new(opened)));
        self.shared
            .generation
            .send_modify(|generation| *generation += 1);
    }

    /// Closes the file, so that another process may open it. Reads in snapshots that are still held fail from here on. Must
    /// not be called during a write transaction, which would keep the file open until it ends.
    pub(super) fn close(&self) {
        self.opening.cancel();
        let Some(opened) = self.shared.opened.swap(None) else {
            return;
        };
        if let Err(error) = opened.close() {
            tracing::warn!(%error, "the store was not closed cleanly: the next start repairs it");
        }
        if let Some((file, _)) = &opened.file {
            file.unlock();
        }
    }

    /// Size on disk in bytes: only allocated blocks, since the file is sparse.
    pub(crate) fn size(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(&self.place.path).map_or(0, |m| m.blocks() * 512)
    }

    pub(super) fn feed(&self) -> &Feed {
        &self.feed
    }

    pub(super) fn superseded(&self) -> &Arc<Superseded> {
        &self.shared.superseded
    }

    pub(super) fn pending_file(&self) -> &PendingFile {
        &self.pending_file
    }

    /// Revocations that an earlier process could not write.
    pub(super) fn revocations(&self) -> Vec<Change> {
        self.shared.revocations.read().clone()
    }

    /// Forgets them, once they are in the tables.
    pub(super) fn forget_revocations(&self) {
        *self.shared.revocations.write() = Vec::new();
    }

    pub(super) fn place(&self) -> &StoreLocation {
        &self.place
    }

    pub(super) fn generation(&self) -> u64 {
        self.shared.generation()
    }

    /// Switches to `opened`, whose file has replaced this one's (compaction). Reads of the old file go on, but can't write.
    pub(super) fn superseded_by(&self, opened: OpenDatabase) {
        if let Some(old) = &*self.shared.opened.load() {
            old.backend.seal();
        }
        self.publish_database(opened);
        self.end_old_snapshots(Duration::ZERO);
    }

    /// A snapshot to read from.
    ///
    /// # Errors
    /// redb's, or the store is closed.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.shared.snapshot()
    }

    /// As [`Store::snapshot`], for a reader that doesn't wait for the writer: what it may lack counts as unknown.
    ///
    /// # Errors
    /// As [`Store::snapshot`].
    pub(super) fn snapshot_behind(&self) -> Result<Snapshot, StoreError> {
        self.shared.snapshot_behind()
    }

    /// Ends the snapshots that walks have held for longer than `age`; those walks continue in new snapshots.
    pub(super) fn end_old_snapshots(&self, age: Duration) {
        self.shared.leases.end_older_than(age);
    }
}
