//! What setup tells of itself: the same in the log, in `hublet status` and in metrics.

use serde::Serialize;

use super::audit::AuditStatus;
use super::fallback::Missing;

/// A part of the setup and how it stands; the same in the log, `hublet status` and metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `interface`, `steering`, `identity`, `guard`, `getpeername`, `xdp`, `pins`, `bpf-log`.
    pub name: &'static str,
    /// Working?
    pub on: bool,
    /// False where a flag switched it off.
    pub wanted: bool,
    /// What is there (`hub-dummy0 (bridge) 169.254.2.1/32`), or why not and what to do.
    pub detail: String,
}

impl Part {
    pub(super) fn of(name: &'static str, result: Result<String, &Missing>) -> Self {
        match result {
            Ok(detail) => Self {
                name,
                on: true,
                wanted: true,
                detail,
            },
            Err(missing) => {
                let wanted = !matches!(missing, Missing::NotWanted(_));
                Self {
                    name,
                    on: false,
                    wanted,
                    detail: missing.to_string(),
                }
            }
        }
    }

    pub(super) fn log() -> Self {
        let on = cfg!(feature = "bpf-log");
        let detail = if on {
            "the programs' debug lines are in the log at debug level"
        } else {
            "this binary's BPF object has no debug lines; build with the feature `bpf-log`"
        };
        Self {
            name: "bpf-log",
            on,
            wanted: true,
            detail: detail.into(),
        }
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
