//! The stages behind the proxy, and their metrics.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::error::Elapsed;

use crate::authz::authorizer::Authorizer;
use crate::budget::{Budget, Flow};
use crate::cache::Cache;
use crate::cache::not_stored::NotStored;
use crate::caller::Client;
use crate::cloud::forward::Cloud;
use crate::local::Local;
use crate::telemetry::registry::{
    Instrumented, LabeledValues, Registry, ValueKind, register_counter, register_gauge,
};
use crate::telemetry::{Caller, Metrics};

use super::connection::Connection;

/// Most upgraded connections (exec, attach, port-forward, watches by WebSocket) that are open at once.
const MAX_UPGRADES: usize = 256;
/// Most responses that are fetched for the store after their caller had one from the store.
const MAX_BACKGROUND_FETCHES: usize = 32;

/// The stages that a request passes after its route is known, and the limits that all requests share.
#[derive(Debug)]
pub(crate) struct Stages {
    pub cache: Arc<Cache>,
    pub authorizer: Arc<Authorizer>,
    pub cloud: Cloud,
    pub local: Local,
    pub metrics: Arc<Metrics>,
    pub budget: Arc<Budget>,
    pub limits: Limits,
}

/// Limits over all requests of the process.
#[derive(Debug)]
pub(crate) struct Limits {
    max_requests: usize,
    pub(super) in_flight: Arc<Semaphore>,
    pub(super) upgrades: Arc<Semaphore>,
    pub(super) background_fetches: Arc<Semaphore>,
}

/// Requests in progress in `/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestsStatus {
    /// Streams included.
    pub(crate) in_flight: usize,
    pub(crate) max_in_flight: usize,
    pub(crate) open_upgrades: usize,
    /// Bytes of responses and requests that are held for clients.
    pub(crate) bytes_under_way: usize,
    pub(crate) max_bytes_under_way: usize,
}

impl Limits {
    /// `max_requests`: most requests in flight, streams included.
    pub(crate) fn new(max_requests: usize) -> Self {
        Self {
            max_requests,
            in_flight: Arc::new(Semaphore::new(max_requests)),
            upgrades: Arc::new(Semaphore::new(MAX_UPGRADES)),
            background_fetches: Arc::new(Semaphore::new(MAX_BACKGROUND_FETCHES)),
        }
    }

    fn requests_in_flight(&self) -> usize {
        self.max_requests
            .saturating_sub(self.in_flight.available_permits())
    }

    fn open_upgrades(&self) -> usize {
        MAX_UPGRADES.saturating_sub(self.upgrades.available_permits())
    }
}

impl Stages {
    /// Records a connection whose protocol is known. Its bytes are counted for the caller that is returned.
    pub(crate) fn record_connection(&self, connection: &Connection) -> Arc<Caller> {
        self.metrics.callers.accepted(
            connection.process.as_ref(),
            connection.remote,
            connection.port,
            self.cache.clock.now(),
        )
    }

    /// The flow of a new connection's bytes.
    pub(crate) fn open_flow(&self, client: Client) -> Arc<Flow> {
        self.budget.open_flow(client)
    }

    /// The part that is not ready yet, for `/readyz`.
    pub(crate) fn waiting_for(&self) -> Option<&'static str> {
        (!self.cloud.health.is_known()).then_some("the first probe of the cloud has not ended")
    }

    pub(crate) fn status(&self) -> RequestsStatus {
        let memory = self.budget.usage();
        RequestsStatus {
            in_flight: self.limits.requests_in_flight(),
            max_in_flight: self.limits.max_requests,
            open_upgrades: self.limits.open_upgrades(),
            bytes_under_way: memory.bytes,
            max_bytes_under_way: memory.limit,
        }
    }

    /// Ends all watches, forwarded and held open, so that a drain can finish; clients watch again elsewhere.
    pub(crate) fn end_streams(&self) {
        self.local.end_streams();
    }

    /// Answers all requests that wait for the cloud without it: from the store, or by an error.
    pub(crate) fn answer_without_cloud(&self) {
        self.cloud.health.end();
    }

    /// Commits what is pending and closes the store.
    ///
    /// # Errors
    /// The disk didn't finish that within `limit`: the file is in use until this process ends.
    pub(crate) async fn close_within(&self, limit: Duration) -> Result<(), Elapsed> {
        self.cloud.pool.close_all();
        self.cache.close_within(limit).await
    }
}

impl Instrumented for Stages {
    fn register_metrics(&self, registry: &mut Registry) {
        self.metrics.register_metrics(registry);
        let memory = self.budget.usage();
        for (name, help, value) in [
            (
                "requests_in_flight",
                "Requests being answered now",
                self.limits.requests_in_flight(),
            ),
            (
                "upgrades_open",
                "Upgraded connections open now",
                self.limits.open_upgrades(),
            ),
            (
                "bytes_under_way",
                "Bytes of responses and requests that are held for clients now",
                memory.bytes,
            ),
            (
                "bytes_under_way_limit",
                "Most bytes that may be held for clients (--max-bytes-under-way)",
                memory.limit,
            ),
        ] {
            register_gauge(registry, name, help, value);
        }
        register_store(&self.cache, registry);
    }
}

// Long because it is a table of metrics.
fn register_store(cache: &Cache, registry: &mut Registry) {
    register_gauge(
        registry,
        "store_writable",
        "1 while the store can be written",
        cache.is_writable().into(),
    );
    let bytes = usize::try_from(cache.size()).unwrap_or(usize::MAX);
    register_gauge(registry, "store_bytes", "Bytes of the store on disk", bytes);
    let ingest = cache.ingest();
    for (name, help, value) in [
        (
            "store_copies_given_up",
            "Responses that the store stopped copying: the writer was behind, or the disk failed",
            ingest.given_up(),
        ),
        (
            "store_failures",
            "Batches that could not be written",
            ingest.failures(),
        ),
        (
            "store_evicted",
            "Objects, collections and documents evicted to make room",
            ingest.evicted(),
        ),
        (
            "store_unwritten_merged",
            "Times that too many objects had a later state than the disk: all of their resources counted as changed",
            cache.unwritten_merges(),
        ),
        (
            "store_pending_overflows",
            "Times that the changes which the disk did not take did not fit in hublet.redb.pending",
            cache.pending_overflows(),
        ),
    ] {
        register_counter(registry, name, help, value);
    }
    register_not_stored(cache, registry);
}

fn register_not_stored(cache: &Cache, registry: &mut Registry) {
    let counts = cache.not_stored();
    registry.register(
        "not_stored",
        "Responses, or parts of them, that were not stored, by reason",
        LabeledValues {
            label: "reason",
            kind: ValueKind::Counter,
            values: NotStored::ALL
                .map(|reason| (reason.as_str().into(), counts.get(reason)))
                .to_vec(),
        },
    );
}
