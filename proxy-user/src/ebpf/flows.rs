//! Flow counts per caller and service, summed over the CPUs.

use std::net::SocketAddr;

use aya::maps::{MapData, PerCpuHashMap, PerCpuValues};
use hublet_ebpf::{FlowCounts, FlowKey};
use serde::{Deserialize, Serialize};

use super::maps::from_map;
use super::sys::Plain;

pub(crate) type FlowTable = PerCpuHashMap<MapData, Plain<FlowKey>, Plain<FlowCounts>>;

/// An entry of the map.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// cgroup v2 id of the caller.
    pub cgroup_id: u64,
    /// The address that was dialled.
    pub service: SocketAddr,
    #[serde(flatten)]
    pub counts: FlowCounts,
}

/// An entry of the map with the path of the caller's cgroup.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowStatus {
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// Path while the cgroup exists.
    pub cgroup: Option<String>,
    /// The address that was dialled.
    pub service: SocketAddr,
    #[serde(flatten)]
    pub counts: FlowCounts,
}

/// Entries may be evicted meanwhile: the least recently used ones.
pub(crate) fn read_flows(table: &FlowTable) -> Vec<Flow> {
    table
        .iter()
        .flatten()
        .map(|(Plain(key), cpus)| Flow {
            cgroup_id: key.cgroup_id,
            service: SocketAddr::new(from_map(key.ip), key.port),
            counts: sum_cpus(&cpus),
        })
        .collect()
}

fn sum_cpus(cpus: &PerCpuValues<Plain<FlowCounts>>) -> FlowCounts {
    let parts = cpus.iter().map(|Plain(part)| part);
    parts.fold(FlowCounts::default(), |mut sum, part| {
        add_counts(&mut sum, part);
        sum
    })
}

fn add_counts(sum: &mut FlowCounts, part: &FlowCounts) {
    sum.steered += part.steered;
    sum.direct += part.direct;
    sum.off += part.off;
    sum.own += part.own;
    sum.not_selected += part.not_selected;
    sum.stale += part.stale;
    sum.no_listener += part.no_listener;
    sum.established += part.established;
    sum.closed += part.closed;
    sum.bytes_up += part.bytes_up;
    sum.bytes_down += part.bytes_down;
    sum.retransmits += part.retransmits;
    sum.latency_us += part.latency_us;
    for (sum, part) in sum.latency.iter_mut().zip(part.latency) {
        *sum += part;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_count_of_every_cpu_is_added() {
        let ones = FlowCounts {
            steered: 1,
            direct: 1,
            off: 1,
            own: 1,
            not_selected: 1,
            stale: 1,
            no_listener: 1,
            established: 1,
            closed: 1,
            bytes_up: 1,
            bytes_down: 1,
            retransmits: 1,
            latency_us: 1,
            latency: [1; hublet_ebpf::LATENCY_BUCKETS],
        };
        let mut sum = FlowCounts::default();
        add_counts(&mut sum, &ones);
        assert_eq!(sum, ones);
    }
}
