//! Bytes on clients' connections, as TCP carries them: TLS and HTTP included. In: what was read and written. Out: sums
//! by caller and for all, live.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::metrics::counter::Counter;

/// Bytes of all callers, for `/metrics`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Totals {
    /// From clients.
    pub up: Counter,
    /// To clients.
    pub down: Counter,
}

/// Bytes of one caller.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    up: AtomicU64,
    down: AtomicU64,
    all: Totals,
}

impl Traffic {
    pub(super) fn new(all: Totals) -> Self {
        Self {
            all,
            ..Self::default()
        }
    }

    /// So many bytes came from the client.
    pub(crate) fn add_received(&self, bytes: u64) {
        self.up.fetch_add(bytes, Relaxed);
        self.all.up.inc_by(bytes);
    }

    /// So many bytes went to the client's socket.
    pub(crate) fn add_sent(&self, bytes: u64) {
        self.down.fetch_add(bytes, Relaxed);
        self.all.down.inc_by(bytes);
    }

    /// Up and down, so far.
    pub(crate) fn bytes(&self) -> (u64, u64) {
        (self.up.load(Relaxed), self.down.load(Relaxed))
    }
}
