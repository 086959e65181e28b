//! The eBPF audit as metrics: summed over all callers and services, whose names are in `hublet status`. In: the rows.
//! Out: OpenMetrics text.

use std::fmt::Write;

use hublet_ebpf::FlowCounts;

use crate::ebpf::flows::FlowStatus;

/// Appends the metrics. A caller that is forgotten (the table is an LRU) takes its counts with it: scrapers see a reset.
pub(super) fn render(text: &mut String, rows: &[FlowStatus]) {
    let sum =
        |field: fn(&FlowCounts) -> u64| rows.iter().map(|row| field(&row.counts)).sum::<u64>();
    let connects: [(&str, u64); 7] = [
        ("steered", sum(|counts| counts.steered)),
        ("direct", sum(|counts| counts.direct)),
        ("off", sum(|counts| counts.off)),
        ("own", sum(|counts| counts.own)),
        ("not_selected", sum(|counts| counts.not_selected)),
        ("stale", sum(|counts| counts.stale)),
        ("no_listener", sum(|counts| counts.no_listener)),
    ];
    text.push_str("# HELP hublet_ebpf_connects Calls of connect() to a service or to hublet, by what became of them.\n");
    text.push_str("# TYPE hublet_ebpf_connects counter\n");
    for (outcome, count) in connects {
        let _ = writeln!(
            text,
            "hublet_ebpf_connects_total{{outcome=\"{outcome}\"}} {count}"
        );
    }
    text.push_str(
        "# HELP hublet_ebpf_bytes Payload of closed connections, as the kernel counted it.\n",
    );
    text.push_str("# TYPE hublet_ebpf_bytes counter\n");
    for (direction, count) in [
        ("up", sum(|counts| counts.bytes_up)),
        ("down", sum(|counts| counts.bytes_down)),
    ] {
        let _ = writeln!(
            text,
            "hublet_ebpf_bytes_total{{direction=\"{direction}\"}} {count}"
        );
    }
    text.push_str(
        "# HELP hublet_ebpf_retransmits Segments of closed connections that were sent again.\n",
    );
    let _ = writeln!(
        text,
        "# TYPE hublet_ebpf_retransmits counter\nhublet_ebpf_retransmits_total {}",
        sum(|counts| counts.retransmits)
    );
    text.push_str("# HELP hublet_ebpf_connect_seconds From connect() to established.\n");
    text.push_str(
        "# TYPE hublet_ebpf_connect_seconds histogram\n# UNIT hublet_ebpf_connect_seconds seconds\n",
    );
    latency(text, rows);
}

fn latency(text: &mut String, rows: &[FlowStatus]) {
    let buckets = rows.first().map_or(0, |row| row.counts.latency.len());
    let mut below = 0;
    for bucket in 0..buckets {
        below += rows
            .iter()
            .filter_map(|row| row.counts.latency.get(bucket))
            .sum::<u64>();
        let limit = if bucket + 1 == buckets {
            "+Inf".to_owned()
        } else {
            format!("{:.6}", f64::from(1_u32 << (bucket + 4)) / 1e6)
        };
        let _ = writeln!(
            text,
            "hublet_ebpf_connect_seconds_bucket{{le=\"{limit}\"}} {below}"
        );
    }
    if buckets == 0 {
        text.push_str("hublet_ebpf_connect_seconds_bucket{le=\"+Inf\"} 0\n");
    }
    let us = rows.iter().map(|row| row.counts.latency_us).sum::<u64>();
    let _ = writeln!(text, "hublet_ebpf_connect_seconds_count {below}");
    let _ = writeln!(
        text,
        "hublet_ebpf_connect_seconds_sum {}.{:06}",
        us / 1_000_000,
        us % 1_000_000
    );
}
