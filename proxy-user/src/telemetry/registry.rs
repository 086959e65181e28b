//! Exposition of all metrics as OpenMetrics text.
//!
//! A registry is made for each scrape: live counters are registered by reference, values that other
//! stages keep (sizes, tables, eBPF maps) are read then, and nothing has to be kept up to date twice.

use std::borrow::Cow;
use std::fmt;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
pub(crate) use prometheus_client::registry::{Registry, Unit};

const PREFIX: &str = "hublet";

/// A stage that has metrics.
pub(crate) trait Instrumented {
    fn register_metrics(&self, registry: &mut Registry);
}

/// The OpenMetrics text of these stages, complete with `# EOF`.
pub(crate) fn encode_metrics(stages: &[&dyn Instrumented]) -> String {
    let mut registry = Registry::with_prefix(PREFIX);
    for stage in stages {
        stage.register_metrics(&mut registry);
    }
    let mut text = String::with_capacity(16 << 10);
    // Writing to a String can't fail.
    let _ = encode(&mut text, &registry);
    text
}

pub(crate) fn register_gauge(registry: &mut Registry, name: &str, help: &str, value: usize) {
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    registry.register(name, help, ConstGauge::new(value));
}

pub(crate) fn register_counter(registry: &mut Registry, name: &str, help: &str, value: u64) {
    registry.register(name, help, ConstCounter::new(value));
}

/// Values of one metric, told apart by one label whose values come from a fixed set.
#[derive(Debug)]
pub(crate) struct LabeledValues {
    pub(crate) label: &'static str,
    pub(crate) kind: ValueKind,
    pub(crate) values: Vec<(Cow<'static, str>, u64)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum ValueKind {
    Counter,
    Gauge,
}

impl EncodeMetric for LabeledValues {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        for (label, value) in &self.values {
            let labels = [(self.label, label.as_ref())];
            let mut metric = encoder.encode_family(&labels)?;
            match self.kind {
                ValueKind::Counter => metric.encode_counter::<NoLabelSet, _, u64>(value, None)?,
                ValueKind::Gauge => metric.encode_gauge(&as_gauge(*value))?,
            }
        }
        Ok(())
    }

    fn metric_type(&self) -> MetricType {
        match self.kind {
            ValueKind::Counter => MetricType::Counter,
            ValueKind::Gauge => MetricType::Gauge,
        }
    }
}

fn as_gauge(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// A histogram that was read at the time of the scrape.
#[derive(Debug, Default, Clone, PartialEq)]
pub(crate) struct HistogramValues {
    pub(crate) sum_seconds: f64,
    /// Upper bound and count of each bucket, not cumulative; the last bound is infinite.
    pub(crate) buckets: Vec<(f64, u64)>,
}

impl HistogramValues {
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().map(|(_, count)| count).sum()
    }
}

impl EncodeMetric for HistogramValues {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum_seconds, self.count(), &self.buckets, None)
    }

    fn metric_type(&self) -> MetricType {
        MetricType::Histogram
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Stage;

    impl Instrumented for Stage {
        fn register_metrics(&self, registry: &mut Registry) {
            register_gauge(registry, "open", "Open", 3);
            register_counter(registry, "failures", "Failures", 4);
            let values = vec![("a".into(), 1), ("b".into(), u64::MAX)];
            let (label, kind) = ("part", ValueKind::Gauge);
            let parts = LabeledValues {
                label,
                kind,
                values,
            };
            registry.register("part_on", "Parts", parts);
            let histogram = HistogramValues {
                sum_seconds: 1.5,
                buckets: vec![(1.0, 2), (f64::INFINITY, 1)],
            };
            registry.register_with_unit("wait", "Waits", Unit::Seconds, histogram);
        }
    }

    #[test]
    fn values_that_are_read_at_the_scrape_are_open_metrics() {
        let text = encode_metrics(&[&Stage]);
        for line in [
            "# TYPE hublet_open gauge\nhublet_open 3\n",
            "# TYPE hublet_failures counter\nhublet_failures_total 4\n",
            "hublet_part_on{part=\"a\"} 1\n",
            "hublet_part_on{part=\"b\"} 9223372036854775807\n",
            "# UNIT hublet_wait_seconds seconds\n",
            "hublet_wait_seconds_sum 1.5\nhublet_wait_seconds_count 3\n",
            "hublet_wait_seconds_bucket{le=\"1.0\"} 2\n",
            "hublet_wait_seconds_bucket{le=\"+Inf\"} 3\n",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1);
    }
}
