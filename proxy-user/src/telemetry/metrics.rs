//! Counters that stages increment while they work. Names and units: `docs/metrics.md`.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;

use super::callers::{Callers, ClientBytes};
use super::registry::{Instrumented, Registry};
use super::requests::{self, RequestMetrics};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Arc<RequestMetrics>,
    client_bytes: Family<DirectionLabels, Counter>,
    /// Bytes of bodies received from the cloud.
    pub cloud_bytes: Counter,
    /// Connections opened to the cloud.
    pub cloud_connects: Counter,
    cloud_state: Family<StateLabels, Gauge<i64, AtomicI64>>,
    cloud_transitions: Family<StateLabels, Counter>,
    pub callers: Callers,
}

fn counter_of(client_bytes: &Family<DirectionLabels, Counter>, direction: &'static str) -> Counter {
    client_bytes
        .get_or_create(&DirectionLabels { direction })
        .clone()
}

impl Default for Metrics {
    fn default() -> Self {
        let client_bytes = Family::<DirectionLabels, Counter>::default();
        let callers = Callers::new(ClientBytes {
            up: counter_of(&client_bytes, "up"),
            down: counter_of(&client_bytes, "down"),
        });
        Self {
            requests: Arc::default(),
            client_bytes,
            cloud_bytes: Counter::default(),
            cloud_connects: Counter::default(),
            cloud_state: Family::default(),
            cloud_transitions: Family::default(),
            callers,
        }
    }
}

impl Metrics {
    pub(super) fn requests(&self) -> &Arc<RequestMetrics> {
        &self.requests
    }

    pub(crate) fn cloud_state(&self, from: &'static str, to: &'static str) {
        self.cloud_state
            .get_or_create(&StateLabels { state: from })
            .set(0);
        self.cloud_state
            .get_or_create(&StateLabels { state: to })
            .set(1);
        self.cloud_transitions
            .get_or_create(&StateLabels { state: to })
            .inc();
    }
}

impl Instrumented for Metrics {
    fn register_metrics(&self, registry: &mut Registry) {
        requests::register(&self.requests, registry);
        registry.register(
            "client_bytes",
            "Bytes on client connections, TLS included",
            self.client_bytes.clone(),
        );
        registry.register(
            "cloud_bytes",
            "Bytes of bodies received from the cloud",
            self.cloud_bytes.clone(),
        );
        registry.register(
            "cloud_connects",
            "Connections opened to the cloud",
            self.cloud_connects.clone(),
        );
        registry.register(
            "cloud_state",
            "1 for the current state of the cloud",
            self.cloud_state.clone(),
        );
        registry.register(
            "cloud_transitions",
            "Transitions into each state of the cloud",
            self.cloud_transitions.clone(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::encode_metrics;
    use super::*;

    #[test]
    fn one_state_of_the_cloud_is_1_and_changes_are_counted() {
        let metrics = Metrics::default();
        metrics.cloud_state("connected", "suspect");
        metrics.cloud_state("suspect", "connected");
        let text = encode_metrics(&[&metrics]);
        for line in [
            "hublet_cloud_state{state=\"suspect\"} 0\n",
            "hublet_cloud_state{state=\"connected\"} 1\n",
            "hublet_cloud_transitions_total{state=\"connected\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
