//! The stages behind the proxy, and what the whole of them reports.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::authz::caller::Client;
use crate::budget::{Budget, Flow};
use crate::cache::Cache;
use crate::cloud::forward::Cloud;
use crate::local::Local;
use crate::telemetry::{Metrics, Traffic};

use super::connection::Connection;

/// Most upgraded connections (exec, attach, port-forward, watches by WebSocket) that are open at once.
const MAX_UPGRADES: usize = 256;
/// Most responses that are fetched for the store after their caller had one from the store.
const MAX_BACKGROUND_FETCHES: usize = 32;

/// The stages that a request passes after its route is known, and the limits that all requests share.
#[derive(Debug)]
pub(crate) struct Stages {
    pub cache: Arc<Cache>,
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
    /// A connection has been accepted and speaks a protocol that is served here; its bytes are to be counted there.
    pub(crate) fn record_connection(&self, connection: &Connection) -> Arc<Traffic> {
        self.metrics
            .callers
            .accepted(connection, self.cache.clock.now())
    }

    /// The flow of a new connection's bytes.
    pub(crate) fn open_flow(&self, client: Client) -> Arc<Flow> {
        self.budget.flow(client)
    }

    /// What is not ready yet; nothing when all is.
    pub(crate) fn waiting_for(&self) -> Option<&'static str> {
        (!self.cloud.health.is_known()).then_some("the first probe of the cloud has not ended")
    }

    /// The text of `/metrics`.
    pub(crate) fn render_metrics(&self) -> String {
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, n: u64| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set(
            &self.metrics.copies_given_up,
            self.cache.ingest().given_up(),
        );
        set(&self.metrics.store_failures, self.cache.ingest().failures());
        set(
            &self.metrics.store_writable,
            self.cache.is_writable().into(),
        );
        set(&self.metrics.store_bytes, self.cache.size());
        set(&self.metrics.store_evicted, self.cache.ingest().evicted());
        set(
            &self.metrics.in_flight,
            self.limits.requests_in_flight() as u64,
        );
        set(&self.metrics.upgrades, self.limits.open_upgrades() as u64);
        let (under_way, limit) = self.budget.figures();
        set(&self.metrics.bytes_under_way, under_way as u64);
        set(&self.metrics.bytes_under_way_limit, limit as u64);
        self.metrics.render()
    }

    /// Cloud state, store figures and the last callers, for `hublet status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let server = self.cloud.pool.dialer().server();
        serde_json::json!({
            "cloud": {
                "state": self.cloud.health.state(),
                "server": format!("https://{}:{}", server.host, server.port),
                "connections": self.cloud.pool.open_connections(),
                "latencySeconds": self.cloud.health.latency().as_secs_f64(),
                "patienceSeconds": self.cloud.health.fallback_timeout().as_secs_f64(),
            },
            "store": self.cache.status(),
            "callers": self.metrics.callers.list(),
        })
    }

    /// Ends all watches, forwarded and held open, so that a drain can finish; clients watch again elsewhere.
    pub(crate) fn end_streams(&self) {
        self.local.end_streams();
    }

    /// Commits what is pending and closes the store.
    pub(crate) async fn close(&self) {
        self.cloud.pool.close_all();
        self.cache.close().await;
    }
}
