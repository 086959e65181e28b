//! Metrics of the node's setup and of the eBPF programs. Flows are summed over callers and services,
//! whose names are in `hublet status`. The kernel's table forgets its least recently used entries: a
//! flow that goes takes its counts along, which scrapers see as a reset.

use std::borrow::Cow;

use hublet_ebpf::FlowCounts;

use crate::ebpf::flows::FlowStatus;
use crate::steer::Setup;
use crate::telemetry::registry::{
    HistogramValues, Instrumented, LabeledValues, Registry, Unit, ValueKind, register_counter,
};

pub(super) struct EbpfMetrics<'a>(pub(super) &'a Setup);

impl Instrumented for EbpfMetrics<'_> {
    fn register_metrics(&self, registry: &mut Registry) {
        let components = self.0.components();
        registry.register(
            "component_on",
            "1 for each component of the node's setup that works",
            LabeledValues {
                label: "component",
                kind: ValueKind::Gauge,
                values: components
                    .iter()
                    .map(|component| (component.name.clone(), component.on.into()))
                    .collect(),
            },
        );
        let ebpf = self.0.ebpf();
        registry.register(
            "ebpf_decisions",
            "Decisions of the eBPF programs",
            LabeledValues {
                label: "decision",
                kind: ValueKind::Counter,
                values: ebpf
                    .decisions
                    .into_iter()
                    .map(|count| (count.decision, count.count))
                    .collect(),
            },
        );
        register_flows(&ebpf.flows, registry);
    }
}

fn register_flows(flows: &[FlowStatus], registry: &mut Registry) {
    registry.register(
        "ebpf_connects",
        "Calls of connect() to a service or to hublet, by outcome",
        LabeledValues {
            label: "outcome",
            kind: ValueKind::Counter,
            values: connects(flows),
        },
    );
    registry.register(
        "ebpf_bytes",
        "Payload of closed connections, as the kernel counted it",
        LabeledValues {
            label: "direction",
            kind: ValueKind::Counter,
            values: vec![
                ("up".into(), sum(flows, |counts| counts.bytes_up)),
                ("down".into(), sum(flows, |counts| counts.bytes_down)),
            ],
        },
    );
    register_counter(
        registry,
        "ebpf_retransmits",
        "Retransmitted segments of closed connections",
        sum(flows, |counts| counts.retransmits),
    );
    registry.register_with_unit(
        "ebpf_connect",
        "From connect() to established",
        Unit::Seconds,
        connect_latency(flows),
    );
}

fn sum(flows: &[FlowStatus], field: impl Fn(&FlowCounts) -> u64) -> u64 {
    flows.iter().map(|flow| field(&flow.counts)).sum()
}

fn connects(flows: &[FlowStatus]) -> Vec<(Cow<'static, str>, u64)> {
    vec![
        ("steered".into(), sum(flows, |counts| counts.steered)),
        ("direct".into(), sum(flows, |counts| counts.direct)),
        ("off".into(), sum(flows, |counts| counts.off)),
        ("own".into(), sum(flows, |counts| counts.own)),
        (
            "not_selected".into(),
            sum(flows, |counts| counts.not_selected),
        ),
        ("stale".into(), sum(flows, |counts| counts.stale)),
        (
            "no_listener".into(),
            sum(flows, |counts| counts.no_listener),
        ),
    ]
}

/// The programs' buckets: powers of two, the first below 16 µs.
fn connect_latency(flows: &[FlowStatus]) -> HistogramValues {
    let buckets = FlowCounts::default().latency.len();
    HistogramValues {
        sum_seconds: sum(flows, |counts| counts.latency_us) as f64 / 1e6,
        buckets: (0..buckets)
            .map(|bucket| {
                (
                    upper_bound(bucket, buckets),
                    sum(flows, |counts| counts.latency[bucket]),
                )
            })
            .collect(),
    }
}

/// Seconds.
fn upper_bound(bucket: usize, buckets: usize) -> f64 {
    if bucket + 1 == buckets {
        f64::INFINITY
    } else {
        f64::from(1_u32 << (bucket + 4)) / 1e6
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(counts: FlowCounts) -> FlowStatus {
        FlowStatus {
            cgroup_id: 1,
            cgroup: None,
            service: ([10, 96, 0, 1], 443).into(),
            counts,
        }
    }

    #[test]
    fn flows_are_summed_over_callers() {
        let mut first = FlowCounts::default();
        (first.steered, first.stale, first.latency_us) = (2, 1, 500_000);
        (first.latency[0], first.latency[1]) = (1, 1);
        let mut second = first;
        second.latency[first.latency.len() - 1] = 3;
        let flows = [flow(first), flow(second)];
        let connects = connects(&flows);
        assert_eq!(connects[0], ("steered".into(), 4));
        assert_eq!(connects[5], ("stale".into(), 2));
        let latency = connect_latency(&flows);
        assert!((latency.sum_seconds - 1.0).abs() < 1e-9);
        assert_eq!(latency.buckets[0], (0.000_016, 2));
        assert_eq!(latency.buckets.last(), Some(&(f64::INFINITY, 3)));
        assert_eq!(latency.count(), 7);
    }

    #[test]
    fn a_node_without_flows_has_all_buckets() {
        assert!(connect_latency(&[]).buckets.len() > 2);
    }
}
