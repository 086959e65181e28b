//! The store and its writer. One copy of each object is kept, the newest, whichever client requested it. In: responses of
//! the API server ([`Cache::capture`]) and changes to grants. Out: snapshots to answer requests from.

pub(crate) mod apply;
mod backend;
pub(crate) mod capture;
pub(crate) mod change;
mod compact;
pub(crate) mod continuity;
pub(crate) mod cursor;
pub(crate) mod decode;
pub(crate) mod error;
pub(crate) mod evict;
pub(crate) mod exchange;
pub(crate) mod feed;
pub(crate) mod grant_rows;
pub(crate) mod keys;
mod leases;
mod message;
pub(crate) mod not_stored;
mod notices;
mod open;
mod opening;
pub(crate) mod paginate;
mod pending_file;
mod queue;
pub(crate) mod record;
pub(crate) mod selector;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod store;
pub(crate) mod superseded;
mod sync;
mod tables;
pub(crate) mod variants;
mod walk;
mod write_retry;
mod writer;

#[cfg(test)]
mod continuity_tests;
#[cfg(test)]
mod disk_failure_tests;
#[cfg(test)]
mod disk_hang_tests;
#[cfg(test)]
mod evict_tests;
#[cfg(test)]
mod failing_disk;
#[cfg(test)]
mod ingest_tests;
#[cfg(test)]
mod outdated_tests;
#[cfg(test)]
mod power_loss_tests;
#[cfg(test)]
mod queue_model_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::error::Elapsed;
use tokio::time::timeout;

use crate::clock::Clock;
use crate::config::CacheConfig;
use capture::{Capture, Ingest};
use change::Change;
use change::Extent;
use evict::{LastRequested, SizeBudget};
use exchange::Exchange;
use grant_rows::ClusterGeneration;
use not_stored::NotStoredCounts;
use store::{Condition, Snapshot, Store, StoreError};

/// Longest wait of a read for responses that are captured and not yet written.
const READ_YOUR_WRITES: Duration = Duration::from_millis(250);
/// Longest wait, after a read failed because of the disk, for the store to be reopened.
const REOPEN: Duration = Duration::from_secs(1);

/// Store and writer.
#[derive(Debug)]
pub(crate) struct Cache {
    store: Arc<Store>,
    ingest: Ingest,
    opened_in: Duration,
    /// Size limit of the file, in bytes.
    max_bytes: u64,
    last_requested: Arc<LastRequested>,
    cluster: ClusterGeneration,
    /// The clock that ages are computed from.
    pub clock: Clock,
}

impl Cache {
    /// Opens the store and starts the writer.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(crate) fn open(config: &CacheConfig, clock: Clock) -> Result<Self, StoreError> {
        let began = Instant::now();
        Self::over(
            Store::open(&config.dir, config.page_cache)?,
            config.max_bytes,
            clock,
            began,
        )
    }

    fn over(
        store: Store,
        max_bytes: u64,
        clock: Clock,
        began: Instant,
    ) -> Result<Self, StoreError> {
        let store = Arc::new(store);
        let last_requested = Arc::new(LastRequested::default());
        let budget = SizeBudget::new(max_bytes, Arc::clone(&last_requested));
        let cluster = ClusterGeneration::default();
        let ingest = Ingest::start(Arc::clone(&store), clock.clone(), cluster.clone(), budget)?;
        Ok(Self {
            store,
            ingest,
            opened_in: began.elapsed(),
            max_bytes,
            last_requested,
            cluster,
            clock,
        })
    }

    /// The generation of the cluster; grants of an earlier generation are void.
    pub(crate) fn cluster_generation(&self) -> ClusterGeneration {
        self.cluster.clone()
    }

    /// The number of times that the store has been reopened since the start.
    pub(crate) fn generation(&self) -> u64 {
        self.store.generation()
    }

    /// Called after a read has failed. If the cause was the disk, waits up to [`REOPEN`] until the store is reopened; true
    /// if it was, so that the read can be repeated. `since` is the generation before the read.
    pub(crate) async fn wait_until_reopened(&self, since: u64) -> bool {
        if self.store.generation() == since {
            if !self.store.has_failed() {
                return false;
            }
            self.ingest.report_disk_failure();
        }
        let mut generations = self.store.generations();
        timeout(REOPEN, generations.wait_for(|now| *now != since))
            .await
            .is_ok_and(|r| r.is_ok())
    }

    /// Waits until the store can be read; without end once it is closed.
    pub(crate) async fn wait_until_readable(&self) {
        let mut generations = self.store.generations();
        let _ = generations.wait_for(|_| self.is_readable()).await;
    }

    /// True if the store can be read.
    pub(crate) fn is_readable(&self) -> bool {
        !matches!(self.store.condition(), Condition::Unreadable(_))
    }

    /// Notes that a client's request was answered from the store, for the order of eviction.
    pub(crate) fn note_request(&self, scope: &[u8]) {
        self.last_requested.note(scope, self.clock.now());
    }

    /// True if the store can be written.
    pub(crate) fn is_writable(&self) -> bool {
        self.store.condition() == Condition::Writable
    }

    /// Size of the store on disk, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.store.size()
    }

    /// A snapshot that includes all responses captured so far. Waits for the writer only if it is behind; if it stays behind,
    /// the latest responses are missing, every absence is unknown, and so is what writes have changed meanwhile.
    ///
    /// # Errors
    /// redb's.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        if !self.ingest.is_behind() {
            return self.store.snapshot();
        }
        // A writer that can't keep up (a failing disk) must not make readers hang: then they read what is stored.
        let flushed = Box::pin(timeout(READ_YOUR_WRITES, self.ingest.flush())).await;
        match flushed {
            Ok(()) => self.store.snapshot(),
            Err(_) => self.store.snapshot_behind(),
        }
    }

    /// A snapshot of what is on disk; the latest captured responses may be missing.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn stored(&self) -> Result<Snapshot, StoreError> {
        self.store.snapshot()
    }

    /// Begins to copy a response of the API server into the store.
    pub(crate) fn capture(&self, exchange: Exchange) -> Option<Capture> {
        self.ingest.capture(exchange)
    }

    /// Forgets that an object, or objects of a collection, did not exist: a write may have created them since.
    pub(crate) fn clear_absence(&self, key: &[u8]) {
        self.supersede(key, Extent::Absences);
    }

    /// Forgets what is stored of an object, or of those of a collection: a client knows of a later state that can't be
    /// stored.
    pub(crate) fn supersede(&self, key: &[u8], extent: Extent) {
        let change = Change::Supersede {
            key: key.to_vec(),
            extent,
        };
        let superseded = self.store.superseded();
        superseded.begin_write(key, extent);
        if !self.ingest.submit(vec![change]) {
            superseded.add_refused(key, extent, self.ingest.accepted());
            superseded.end_write(key);
        }
    }

    /// Waits until everything captured is on disk.
    #[cfg(test)]
    pub(crate) async fn settle(&self) {
        self.ingest.flush().await;
    }

    /// Writes what is pending, ends the writer and closes the store, even if somebody still holds it or a snapshot.
    /// Fails if the disk doesn't finish that within `limit`; then the file is in use until this process ends.
    pub(crate) async fn close_within(&self, limit: Duration) -> Result<(), Elapsed> {
        timeout(limit, self.ingest.close()).await
    }

    /// As [`Cache::close_within`], however long it takes.
    #[cfg(test)]
    pub(crate) async fn close(&self) {
        self.ingest.close().await;
    }

    /// Fails if the disk doesn't finish what is pending, and a test file, within `limit`.
    pub(crate) async fn test_disk(&self, limit: Duration) -> Result<(), Elapsed> {
        timeout(limit, self.ingest.test_disk()).await
    }

    /// Times since the start that too many objects had a later state than the disk, so that all of their resources counted
    /// as changed.
    pub(crate) fn unwritten_merges(&self) -> u64 {
        self.store.superseded().merges()
    }

    /// Times since the start that the file of pending changes was too small for them.
    pub(crate) fn pending_overflows(&self) -> u64 {
        self.store.pending_file().overflows()
    }

    /// Responses that were not stored, by reason.
    pub(crate) fn not_stored(&self) -> &NotStoredCounts {
        self.ingest.not_stored()
    }

    /// Subscribes to changes of keys with one of `prefixes`.
    pub(crate) fn subscribe(&self, prefixes: &'static [&'static [u8]]) -> feed::Subscription {
        feed::Subscription::new(&self.store, prefixes)
    }

    /// The writer's counters: captures aborted, batches failed, objects evicted.
    pub(crate) fn ingest(&self) -> &Ingest {
        &self.ingest
    }
}
