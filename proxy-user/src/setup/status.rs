//! What setup tells of itself: the same in the log, in `hublet status` and in metrics.

use std::net::SocketAddr;

use serde::Serialize;

use super::fallback::Missing;

/// A part of the setup and how it stands; the same in the log, `hublet status` and metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `interface`, `steering`, `identity`, `guard`, `getpeername`, `xdp`, `pins`, `bpf-log`.
    pub name: &'static str,
    /// Working?
    pub on: bool,
    /// What is there (`hub-dummy0 (bridge) 169.254.2.1/32`), or why not and what to do.
    pub detail: String,
}

impl Part {
    pub(super) fn of(name: &'static str, result: Result<String, &Missing>) -> Self {
        match result {
            Ok(detail) => Self { name, on: true, detail },
            Err(missing) => Self { name, on: false, detail: missing.to_string() },
        }
    }

    pub(super) fn log() -> Self {
        let on = cfg!(feature = "bpf-log");
        let detail = if on {
            "the programs' debug lines are in the log at debug level"
        } else {
            "this binary's BPF object has no debug lines; build with the feature `bpf-log`"
        };
        Self { name: "bpf-log", on, detail: detail.into() }
    }
}

/// eBPF state for `hublet status` and metrics.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EbpfStatus {
    /// Program name, id, attach point, link pin.
    pub programs: Vec<ProgramStatus>,
    /// Decision name → count.
    pub counters: Vec<(&'static str, u64)>,
    /// Who dialled what.
    pub audit: Vec<AuditStatus>,
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

/// One caller (a cgroup) and service of the audit.
#[derive(Debug, Clone, Serialize)]
pub struct AuditStatus {
    /// cgroup v2 id.
    pub cgroup_id: u64,
    /// Its path, while it exists.
    pub cgroup: Option<String>,
    /// The address that was dialled.
    pub service: SocketAddr,
    /// connect() calls that were steered.
    pub steered: u64,
    /// connect() calls to our own address.
    pub direct: u64,
    /// connect() calls that passed through: steering off, hublet's own, or not selected.
    pub passed: u64,
    /// connect() calls that passed through because the daemon hung.
    pub stale: u64,
    /// connect() calls that passed through because the daemon was dead.
    pub dead: u64,
    /// Connections established.
    pub established: u64,
    /// Connections closed; only their bytes are counted.
    pub closed: u64,
    /// Payload bytes to the service; up to one more for each close.
    pub bytes_up: u64,
    /// Payload bytes from the service; up to one more for each close.
    pub bytes_down: u64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Time from connect() to established, in all, in µs.
    pub latency_us: u64,
    /// Connects by that time: bucket `i` took less than 2^(i+4) µs, the last one longer.
    pub latency: Vec<u64>,
}
