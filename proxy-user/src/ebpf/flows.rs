//! The audit: who dialled what, and what came of it. In: the programs' table, one part a CPU. Out: its rows, for status and
//! metrics.

use std::net::SocketAddr;

use aya::maps::{MapData, PerCpuHashMap, PerCpuValues};
use hublet_ebpf::{FlowCounts, FlowKey};
use serde::Serialize;

use super::maps::ip;
use super::sys::Plain;
use crate::node::cgroup::Cgroups;

pub(crate) type Table = PerCpuHashMap<MapData, Plain<FlowKey>, Plain<FlowCounts>>;

/// One caller (a cgroup) and service.
#[derive(Debug, Clone, Serialize)]
pub struct FlowStatus {
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// Its path, while it exists.
    pub cgroup: Option<String>,
    /// The address that was dialled.
    pub service: SocketAddr,
    /// What came of it.
    #[serde(flatten)]
    pub counts: FlowCounts,
}

/// The table's rows with the cgroups' paths, in the order of cgroups and services.
pub(crate) fn describe(entries: Vec<(FlowKey, FlowCounts)>, cgroups: &Cgroups) -> Vec<FlowStatus> {
    let row = |(key, counts): (FlowKey, FlowCounts)| FlowStatus {
        cgroup_id: key.cgroup_id,
        cgroup: cgroups.path(key.cgroup_id, 0),
        service: SocketAddr::new(ip(key.ip), key.port),
        counts,
    };
    let mut rows: Vec<_> = entries.into_iter().map(row).collect();
    rows.sort_by_key(|row| (row.cgroup_id, row.service));
    rows
}

/// Every caller and service, summed over the CPUs.
pub(crate) fn read(table: &Table) -> Vec<(FlowKey, FlowCounts)> {
    // An entry may go while we look: it is the least recently used one.
    table
        .iter()
        .flatten()
        .map(|(Plain(key), cpus)| (key, sum(&cpus)))
        .collect()
}

fn sum(cpus: &PerCpuValues<Plain<FlowCounts>>) -> FlowCounts {
    cpus.iter()
        .fold(FlowCounts::default(), |mut sum, Plain(part)| {
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
            sum.latency
                .iter_mut()
                .zip(part.latency)
                .for_each(|(sum, part)| *sum += part);
            sum
        })
}
