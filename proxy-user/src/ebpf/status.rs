//! The state of the eBPF programs, as `hublet status` and metrics show it.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::flows::FlowStatus;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EbpfStatus {
    /// One entry per link.
    pub programs: Vec<ProgramStatus>,
    /// The counters of `HUB_STATS`, summed over the CPUs.
    pub decisions: Vec<DecisionCount>,
    pub flows: Vec<FlowStatus>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DecisionCount {
    /// The counter's name in `HUB_STATS`.
    pub decision: Cow<'static, str>,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// The name that bpftool shows.
    pub name: String,
    pub id: u32,
    /// Hook and pin.
    pub attached: String,
}
