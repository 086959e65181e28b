//! The connections of the admin port. Their number is limited, and a new one always finds room.
//!
//! An unprivileged process could otherwise shut out the probe of whoever restarts hublet when its health
//! is not known, by connections on which it says nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use tokio::task::AbortHandle;

/// Most open connections: probes, a scraper, an operator.
pub(super) const MAX_CONNECTIONS: usize = 64;

/// The open connections.
#[derive(Debug, Default)]
pub(super) struct Connections {
    open: Vec<(LastUse, AbortHandle)>,
    uses: Arc<AtomicU64>,
}

/// The moment of a connection's last request, or of its start, as a count of all such events.
#[derive(Debug, Clone)]
pub(super) struct LastUse {
    at: Arc<AtomicU64>,
    uses: Arc<AtomicU64>,
}

impl LastUse {
    pub(super) fn note(&self) {
        self.at.store(self.uses.fetch_add(1, Relaxed), Relaxed);
    }
}

impl Connections {
    /// Closes the least recently used connection if there is no room for another; true if it did.
    pub(super) fn make_room(&mut self) -> bool {
        self.open.retain(|(_, task)| !task.is_finished());
        let is_full = self.open.len() >= MAX_CONNECTIONS;
        if is_full {
            self.close_least_recently_used();
        }
        is_full
    }

    /// Adds a connection.
    pub(super) fn spawn<F>(&mut self, serve: impl FnOnce(LastUse) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let last_use = LastUse {
            at: Arc::default(),
            uses: Arc::clone(&self.uses),
        };
        last_use.note();
        let task = tokio::spawn(serve(last_use.clone()));
        self.open.push((last_use, task.abort_handle()));
    }

    fn close_least_recently_used(&mut self) {
        let uses = self.open.iter().enumerate();
        let oldest = uses.min_by_key(|(_, (last_use, _))| last_use.at.load(Relaxed));
        if let Some((index, _)) = oldest {
            self.open.swap_remove(index).1.abort();
        }
    }
}
