//! The state of the eBPF programs, as `hublet status` and metrics show it.

use serde::Serialize;

use super::flows::FlowStatus;

#[derive(Debug, Clone, Default, Serialize)]
pub struct EbpfStatus {
    /// One entry per link.
    pub programs: Vec<ProgramStatus>,
    /// Counts by decision.
    pub counters: Vec<(&'static str, u64)>,
    pub flows: Vec<FlowStatus>,
}

#[derive(Debug, Clone, Serialize)]
pub struct ProgramStatus {
    /// The name that bpftool shows.
    pub name: String,
    pub id: u32,
    /// Hook and pin.
    pub attached: String,
}
