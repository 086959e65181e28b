//! The state of the eBPF programs, as `hublet status` and metrics show it.

use serde::Serialize;

use super::flows::FlowStatus;

/// eBPF state for `hublet status` and metrics.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EbpfStatus {
    /// Program name, id, attach point, link pin.
    pub programs: Vec<ProgramStatus>,
    /// Decision name → count.
    pub counters: Vec<(&'static str, u64)>,
    /// Who dialled what.
    pub flows: Vec<FlowStatus>,
}

/// One attached program.
#[derive(Debug, Clone, Serialize)]
pub struct ProgramStatus {
    /// Name as bpftool shows it.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// Where it is attached.
    pub attached: String,
}
