//! Messages to the writer, and the counters of both ends of its queue.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use hublet_wire::meta::Timestamp;
use tokio::sync::OwnedSemaphorePermit;

use crate::cache::change::Change;
use crate::cache::exchange::Exchange;
use crate::cache::not_stored::{NotStored, NotStoredCounts};

/// One copied response, for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CaptureId(pub(super) u64);

/// A message to the writer.
#[derive(Debug)]
pub(super) enum Message {
    Begin {
        id: CaptureId,
        exchange: Box<Exchange>,
    },
    Data {
        id: CaptureId,
        bytes: Bytes,
        /// Room in the queue.
        permit: OwnedSemaphorePermit,
        /// Ordering against 404s uses this time, so the delayed writer must not take it.
        received_at: Timestamp,
    },
    End {
        id: CaptureId,
        received_at: Timestamp,
    },
    Abort(CaptureId),
    Changes(Vec<Change>),
    /// A read found that the disk has failed.
    DiskFailed,
    /// Writes a file beside the store: a disk that hangs shows only in a write.
    TestDisk,
}

/// Figures of the writer and of those who send to it, since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) given_up: AtomicU64,
    pub(super) not_stored: NotStoredCounts,
    pub(super) failures: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) evicted: AtomicU64,
    /// The disk accepts no writes, and the limit of changes kept for it is reached.
    pub(super) full: AtomicBool,
}

impl Counters {
    /// Counts copies that ended before their responses did.
    pub(super) fn count_abandoned(&self, reason: NotStored, copies: u64) {
        self.given_up.fetch_add(copies, Ordering::Relaxed);
        self.not_stored.add(reason, copies);
    }
}
