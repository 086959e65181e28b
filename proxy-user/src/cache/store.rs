//! The store's file, open. Reads: `snapshot`; writes: `apply`, on the one writer thread. After an error of the disk the
//! writer opens the store anew ([`Store::reopen`], [`Store::fall_back`]); what reads then begins again in a new snapshot.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use redb::WriteTransaction;

use crate::cache::backend::FileSystem;
use crate::cache::leases::Leases;
use crate::cache::notices::Feed;
use crate::cache::open::{LockedFile, OpenDatabase, StoreLocation};
use crate::cache::snapshot::Shared;

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
            leases: Leases::default(),
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
        self.replace_database(|held| self.place.writable(held))
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
        self.replace_database(|held| self.place.read_only(held, problem))
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
        self.replace_database(|_| self.place.writable(None))
    }

    /// Puts another database in place of this one, which is cut off first: two must not use one file.
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

    /// Another database takes this one's place.
    fn publish_database(&self, opened: OpenDatabase) {
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
        self.publish_database(opened);
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
