//! Counting: metrics with enum labels in fixed slots, and the last callers. In: events from every stage. Out: the text
//! of `/metrics`, and lines for `hublet status`.

mod callers;
mod traffic;

pub(crate) use callers::Callers;
pub(crate) use traffic::{Totals, Traffic};

use std::sync::atomic::AtomicI64;

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use hublet_wire::request::Verb;

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Source {
    Cloud,
    Store,
    /// hublet itself: a refusal.
    Hublet,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    verb: &'static str,
    source: Source,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

/// The process's metrics (names and units: `docs/metrics.md`).
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Mutex<Registry>,
    requests: [[Counter; 3]; 10],
    /// Requests being answered now.
    pub in_flight: Gauge,
    /// Upgraded connections (exec, port-forward) that are open now.
    pub upgrades: Gauge,
    /// Bytes under way to and from clients now, and the most that there may be.
    pub bytes_under_way: Gauge,
    /// See [`Metrics::bytes_under_way`].
    pub bytes_under_way_limit: Gauge,
    /// Bytes of bodies received from the cloud.
    pub cloud_bytes: Counter,
    /// Connections to the cloud that were opened.
    pub cloud_connects: Counter,
    /// Copies of answers that were given up because the writer was behind.
    pub copies_given_up: Gauge,
    /// Batches that could not be written to the store.
    pub store_failures: Gauge,
    /// 1 while the store can be written.
    pub store_writable: Gauge,
    /// Bytes of the store on disk.
    pub store_bytes: Gauge,
    /// Things that went from the store to make room.
    pub store_evicted: Gauge,
    state: Family<StateLabels, Gauge<i64, AtomicI64>>,
    transitions: Family<StateLabels, Counter>,
    /// The last callers.
    pub callers: Callers,
}

const VERBS: [Verb; 10] = [
    Verb::Get,
    Verb::List,
    Verb::Watch,
    Verb::NonResource,
    Verb::Create,
    Verb::Update,
    Verb::Patch,
    Verb::Delete,
    Verb::DeleteCollection,
    Verb::Other,
];

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("hublet");
        let family = Family::<RequestLabels, Counter>::default();
        registry.register(
            "requests",
            "Requests answered, by verb and source of the answer",
            family.clone(),
        );
        let label = |verb: Verb| {
            if verb == Verb::NonResource {
                "document"
            } else {
                verb.as_str()
            }
        };
        let slot = |verb, source| {
            family
                .get_or_create(&RequestLabels {
                    verb: label(verb),
                    source,
                })
                .clone()
        };
        let requests =
            VERBS.map(|v| [Source::Cloud, Source::Store, Source::Hublet].map(|s| slot(v, s)));
        let bytes = Family::<DirectionLabels, Counter>::default();
        registry.register(
            "client_bytes",
            "Bytes on clients' connections, TLS included",
            bytes.clone(),
        );
        let direction = |direction| bytes.get_or_create(&DirectionLabels { direction }).clone();
        let totals = Totals {
            up: direction("up"),
            down: direction("down"),
        };
        let callers = Callers::new(totals);
        let metrics = Self {
            requests,
            in_flight: Gauge::default(),
            upgrades: Gauge::default(),
            bytes_under_way: Gauge::default(),
            bytes_under_way_limit: Gauge::default(),
            cloud_bytes: Counter::default(),
            cloud_connects: Counter::default(),
            copies_given_up: Gauge::default(),
            store_failures: Gauge::default(),
            store_writable: Gauge::default(),
            store_bytes: Gauge::default(),
            store_evicted: Gauge::default(),
            state: Family::default(),
            transitions: Family::default(),
            callers,
            registry: Mutex::new(Registry::default()),
        };
        metrics.register(&mut registry);
        *metrics.registry.lock() = registry;
        metrics
    }
}

impl Metrics {
    fn register(&self, to: &mut Registry) {
        to.register(
            "requests_in_flight",
            "Requests being answered now",
            self.in_flight.clone(),
        );
        to.register(
            "upgrades_open",
            "Upgraded connections open now",
            self.upgrades.clone(),
        );
        to.register(
            "bytes_under_way",
            "Bytes of answers and requests that are held for clients now",
            self.bytes_under_way.clone(),
        );
        to.register(
            "bytes_under_way_limit",
            "Most bytes that may be (--max-bytes-under-way)",
            self.bytes_under_way_limit.clone(),
        );
        to.register(
            "cloud_bytes",
            "Bytes of bodies received from the cloud",
            self.cloud_bytes.clone(),
        );
        to.register(
            "cloud_connects",
            "Connections opened to the cloud",
            self.cloud_connects.clone(),
        );
        to.register(
            "store_copies_given_up",
            "Copies of answers given up since the start: the writer was behind",
            self.copies_given_up.clone(),
        );
        to.register(
            "store_failures",
            "Batches that could not be written since the start",
            self.store_failures.clone(),
        );
        to.register(
            "store_writable",
            "1 while the store can be written",
            self.store_writable.clone(),
        );
        to.register(
            "store_bytes",
            "Bytes of the store on disk",
            self.store_bytes.clone(),
        );
        to.register(
            "store_evicted",
            "Objects, collections and documents that went to make room since the start",
            self.store_evicted.clone(),
        );
        to.register(
            "cloud_state",
            "1 for the state that the cloud is in",
            self.state.clone(),
        );
        to.register(
            "cloud_transitions",
            "Changes of the cloud's state",
            self.transitions.clone(),
        );
    }

    pub(crate) fn answered(&self, verb: Verb, source: Source) {
        self.requests[verb as usize - 1][source as usize].inc();
    }

    /// The cloud's state has changed.
    pub(crate) fn cloud_state(&self, from: &'static str, to: &'static str) {
        self.state
            .get_or_create(&StateLabels { state: from })
            .set(0);
        self.state.get_or_create(&StateLabels { state: to }).set(1);
        self.transitions
            .get_or_create(&StateLabels { state: to })
            .inc();
    }

    /// The OpenMetrics text of `/metrics`.
    pub(crate) fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a String can't fail.
        let _ = encode(&mut text, &self.registry.lock());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_show_by_verb_and_source() {
        let metrics = Metrics::default();
        metrics.answered(Verb::Get, Source::Store);
        metrics.cloud_state("connected", "suspect");
        let text = metrics.render();
        assert!(
            text.contains("hublet_requests_total{verb=\"get\",source=\"Store\"} 1"),
            "{text}"
        );
        assert!(
            text.contains("hublet_cloud_state{state=\"suspect\"} 1"),
            "{text}"
        );
        assert!(text.ends_with("# EOF\n"));
    }
}
