//! Counters and durations of requests, in slots that are allocated once.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hublet_wire::request::Verb;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use super::histogram::{Bounds, DurationHistogram, RequestBounds, StreamBounds};
use super::registry::{HistogramValues, Registry, Unit};

/// Origin of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Cloud,
    Store,
    /// hublet itself: a refusal.
    Hublet,
}

impl Source {
    const ALL: [Self; 3] = [Self::Cloud, Self::Store, Self::Hublet];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Store => "store",
            Self::Hublet => "hublet",
        }
    }
}

/// The verbs of requests as metrics and logs name them: Kubernetes' verbs, and two of our own.
const VERBS: [(Verb, &str); 10] = [
    (Verb::Get, "get"),
    (Verb::List, "list"),
    (Verb::Watch, "watch"),
    (Verb::NonResource, "nonresource"),
    (Verb::Create, "create"),
    (Verb::Update, "update"),
    (Verb::Patch, "patch"),
    (Verb::Delete, "delete"),
    (Verb::DeleteCollection, "deletecollection"),
    (Verb::Other, "other"),
];

fn verb_index(verb: Verb) -> usize {
    verb as usize - 1
}

pub(super) fn verb_label(verb: Verb) -> &'static str {
    VERBS[verb_index(verb)].1
}

/// Status codes with a slot of their own; all others are counted by class.
const CODES: [u16; 25] = [
    0, 101, 200, 201, 202, 204, 304, 307, 400, 401, 403, 404, 405, 406, 409, 410, 413, 415, 422,
    429, 500, 501, 502, 503, 504,
];
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];
const CODE_SLOTS: usize = CODES.len() + CLASSES.len();

fn code_index(code: u16) -> usize {
    CODES.binary_search(&code).unwrap_or_else(|_| {
        let class = usize::from(code / 100);
        CODES.len() + if class < CLASSES.len() { class } else { 0 }
    })
}

/// `none` if the caller disconnected before there was a response.
fn code_label(index: usize) -> String {
    match CODES.get(index) {
        Some(0) => "none".to_owned(),
        Some(code) => code.to_string(),
        None => CLASSES[index - CODES.len()].to_owned(),
    }
}

/// Tells requests that end with their response from those that last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lifetime {
    Response,
    /// Watches and upgraded connections.
    Stream,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct FinishedRequest {
    pub(super) verb: Verb,
    pub(super) source: Source,
    pub(super) code: u16,
    pub(super) lifetime: Lifetime,
    pub(super) duration: Duration,
}

/// Slots of one verb and source.
#[derive(Debug, Default)]
struct Slot {
    codes: [AtomicU64; CODE_SLOTS],
    responses: DurationHistogram<RequestBounds>,
    streams: DurationHistogram<StreamBounds>,
}

impl Slot {
    /// The labels of the status codes that have occurred, with their counts.
    fn counted_codes(&self) -> impl Iterator<Item = (String, u64)> {
        let counts = self.codes.iter().map(|count| count.load(Relaxed));
        let occurred = counts.enumerate().filter(|(_, count)| *count > 0);
        occurred.map(|(index, count)| (code_label(index), count))
    }
}

#[derive(Debug, Default)]
pub(super) struct RequestMetrics {
    slots: [[Slot; Source::ALL.len()]; VERBS.len()],
}

impl RequestMetrics {
    pub(super) fn observe(&self, request: &FinishedRequest) {
        let slot = &self.slots[verb_index(request.verb)][request.source as usize];
        slot.codes[code_index(request.code)].fetch_add(1, Relaxed);
        match request.lifetime {
            Lifetime::Response => slot.responses.observe(request.duration),
            Lifetime::Stream => slot.streams.observe(request.duration),
        }
    }

    /// Slots with their labels, for an encoder.
    fn labeled_slots(&self) -> impl Iterator<Item = ([(&'static str, &'static str); 2], &Slot)> {
        VERBS
            .iter()
            .zip(&self.slots)
            .flat_map(|((_, verb), slots)| {
                Source::ALL
                    .iter()
                    .zip(slots)
                    .map(|(source, slot)| ([("verb", *verb), ("source", source.as_str())], slot))
            })
    }
}

pub(super) fn register(metrics: &Arc<RequestMetrics>, registry: &mut Registry) {
    registry.register(
        "requests",
        "Requests by verb, source and status code of the response",
        RequestCounters(Arc::clone(metrics)),
    );
    registry.register_with_unit(
        "request_duration",
        "Time from a request's headers to the end of its response, except for watches and upgrades",
        Unit::Seconds,
        Durations(Arc::clone(metrics), |slot| {
            histogram_values(&slot.responses)
        }),
    );
    registry.register_with_unit(
        "stream_duration",
        "Time from a request's headers to the end of its watch or upgraded connection",
        Unit::Seconds,
        Durations(Arc::clone(metrics), |slot| histogram_values(&slot.streams)),
    );
}

fn histogram_values<B: Bounds>(histogram: &DurationHistogram<B>) -> HistogramValues {
    histogram.values()
}

#[derive(Debug)]
struct RequestCounters(Arc<RequestMetrics>);

impl EncodeMetric for RequestCounters {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for ([verb, source], slot) in self.0.labeled_slots() {
            for (code, count) in slot.counted_codes() {
                let labels = [verb, source, ("code", code.as_str())];
                encoder
                    .encode_family(&labels)?
                    .encode_counter::<NoLabelSet, _, u64>(&count, None)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Counter
    }
}

#[derive(Debug)]
struct Durations(Arc<RequestMetrics>, fn(&Slot) -> HistogramValues);

impl EncodeMetric for Durations {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (labels, slot) in self.0.labeled_slots() {
            let values = (self.1)(slot);
            if values.count() > 0 {
                values.encode(encoder.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::super::registry::{Instrumented, encode_metrics};
    use super::*;

    #[derive(Default)]
    struct Stage(Arc<RequestMetrics>);

    impl Instrumented for Stage {
        fn register_metrics(&self, registry: &mut Registry) {
            register(&self.0, registry);
        }
    }

    #[test]
    fn every_verb_has_the_slot_of_its_discriminant() {
        for (index, (verb, _)) in VERBS.iter().enumerate() {
            assert_eq!(verb_index(*verb), index);
        }
    }

    #[test]
    fn codes_have_slots_of_their_own_or_that_of_their_class() {
        for (code, label) in [
            (0, "none"),
            (101, "101"),
            (200, "200"),
            (206, "2xx"),
            (418, "4xx"),
            (504, "504"),
            (599, "5xx"),
            (999, "other"),
        ] {
            assert_eq!(code_label(code_index(code)), label);
        }
        assert!(CODES.is_sorted());
    }

    #[test]
    fn requests_and_streams_are_counted_apart() {
        let stage = Stage::default();
        let mut request = FinishedRequest {
            verb: Verb::List,
            source: Source::Store,
            code: 200,
            lifetime: Lifetime::Response,
            duration: Duration::from_millis(2),
        };
        stage.0.observe(&request);
        request.verb = Verb::Watch;
        request.lifetime = Lifetime::Stream;
        request.duration = Duration::from_secs(45);
        stage.0.observe(&request);
        let text = encode_metrics(&[&stage]);
        for line in [
            "hublet_requests_total{verb=\"list\",source=\"store\",code=\"200\"} 1\n",
            "hublet_requests_total{verb=\"watch\",source=\"store\",code=\"200\"} 1\n",
            "hublet_request_duration_seconds_bucket{le=\"0.0025\",verb=\"list\",source=\"store\"} 1\n",
            "hublet_stream_duration_seconds_sum{verb=\"watch\",source=\"store\"} 45.0\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("request_duration_seconds_count{verb=\"watch\""));
        assert!(!text.contains("verb=\"get\""), "no slot without requests");
    }
}
