//! The opening of the store at the start, on a thread of its own: a disk that hangs must not keep hublet from forwarding.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::cache::change::Change;
use crate::cache::error::StoreError;
use crate::cache::open::{OpenDatabase, StoreLocation};
use crate::cache::pending_file::PendingFile;

type Opened = Result<OpenedStore, StoreError>;

/// The database, and the changes that an earlier process has left beside it.
#[derive(Debug)]
pub(super) struct OpenedStore {
    pub database: OpenDatabase,
    /// `None` if neither can be read.
    pub pending: Option<Vec<Change>>,
}

/// An opening that has not ended; empty once its result was taken.
#[derive(Debug, Default)]
pub(super) struct Opening(Mutex<Option<Running>>);

#[derive(Debug)]
struct Running {
    opened: Receiver<Opened>,
    thread: JoinHandle<()>,
}

impl Opening {
    /// Opens the store, and reads the file of pending changes with it.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub(super) fn begin(
        place: StoreLocation,
        pending_file: Arc<PendingFile>,
    ) -> Result<Self, StoreError> {
        let (sender, opened) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("hublet-open".into())
            .spawn(move || {
                let opened = place.open().map(|database| {
                    let pending = pending_file.read_beside(&database.condition);
                    pending_file.reserve();
                    OpenedStore { database, pending }
                });
                // Dropped, and so closed, if the store has been closed meanwhile.
                let _ = sender.send(opened);
            })
            .map_err(redb::Error::Io)?;
        Ok(Self(Mutex::new(Some(Running { opened, thread }))))
    }

    /// Waits for its end; `None` where that doesn't come within `limit`.
    pub(super) fn wait(&self, limit: Duration) -> Option<Opened> {
        let mut opening = self.0.lock();
        match opening.as_ref()?.opened.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => {
                *opening = None;
                None
            }
            Ok(opened) => {
                // The next thread takes over the memory of its stack.
                if let Some(running) = opening.take() {
                    let _ = running.thread.join();
                }
                Some(opened)
            }
        }
    }

    /// Closes the store again, once it is open.
    pub(super) fn cancel(&self) {
        *self.0.lock() = None;
    }

    /// The result of an opening that has taken longer than its start has waited, once.
    ///
    /// # Errors
    /// It goes on, or has failed.
    pub(super) fn take_late(
        &self,
        place: &StoreLocation,
    ) -> Result<Option<OpenedStore>, StoreError> {
        let mut opening = self.0.lock();
        let received = opening.as_ref().map(|running| running.opened.try_recv());
        match received {
            Some(Err(TryRecvError::Empty)) => {
                Err(place.directory_error(std::io::ErrorKind::TimedOut.into()))
            }
            None | Some(Err(TryRecvError::Disconnected)) => Ok(None),
            Some(Ok(opened)) => {
                *opening = None;
                opened.map(Some)
            }
        }
    }
}
