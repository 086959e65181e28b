//! What setup tells of itself: the same in the log, in `hublet status` and in metrics.

use serde::Serialize;

use super::unavailable::Unavailable;

/// A part of the setup and how it stands; the same in the log, `hublet status` and metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Component {
    /// `interface`, `steering`, `identity`, `guard`, `getpeername`, `xdp`, `pins`, `bpf-log`.
    pub name: &'static str,
    /// Working?
    pub on: bool,
    /// False where a flag switched it off.
    pub wanted: bool,
    /// What is there (`hub-dummy0 (bridge) 169.254.2.1/32`), or why not and what to do.
    pub detail: String,
}

impl Component {
    pub(crate) fn of(name: &'static str, result: Result<String, &Unavailable>) -> Self {
        match result {
            Ok(detail) => Self {
                name,
                on: true,
                wanted: true,
                detail,
            },
            Err(missing) => {
                let wanted = !matches!(missing, Unavailable::NotWanted(_));
                Self {
                    name,
                    on: false,
                    wanted,
                    detail: missing.to_string(),
                }
            }
        }
    }

    pub(crate) fn log() -> Self {
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
