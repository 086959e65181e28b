//! The state of a component of the setup; the same in the log, in `hublet status` and in metrics.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::unavailable::Unavailable;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Component {
    /// `interface`, `steering`, `identity`, `guard`, `getpeername`, `xdp`, `pins`, `bpf-log`.
    pub name: Cow<'static, str>,
    pub on: bool,
    /// False if a flag switched it off.
    pub wanted: bool,
    /// Its state (`hub-dummy0 (bridge) 169.254.2.1/32`), or the reason why it is off.
    pub detail: String,
}

impl Component {
    pub(crate) fn from_result(name: &'static str, result: Result<String, &Unavailable>) -> Self {
        match result {
            Ok(detail) => Self::on(name, detail),
            Err(reason) => Self {
                name: name.into(),
                on: false,
                wanted: !matches!(reason, Unavailable::SwitchedOff(_)),
                detail: reason.to_string(),
            },
        }
    }

    fn on(name: &'static str, detail: String) -> Self {
        Self {
            name: name.into(),
            on: true,
            wanted: true,
            detail,
        }
    }

    /// The debug log of the programs, for which the binary must be built.
    pub(crate) fn bpf_log() -> Self {
        let on = cfg!(feature = "bpf-log");
        let detail = if on {
            "the programs' debug lines are in the log at debug level"
        } else {
            "this binary's BPF object has no debug lines; build with the feature `bpf-log`"
        };
        Self {
            name: "bpf-log".into(),
            on,
            wanted: true,
            detail: detail.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_that_a_flag_switches_off_is_not_wanted() {
        let off = Component::from_result("guard", Err(&Unavailable::SwitchedOff("--guard=false")));
        assert!(!off.on && !off.wanted);
        assert_eq!(off.detail, "switched off by --guard=false");
        let missing = Component::from_result("steering", Err(&Unavailable::Stub));
        assert!(!missing.on && missing.wanted);
        let on = Component::from_result("interface", Ok("lo".into()));
        assert!(on.on && on.wanted && on.detail == "lo");
    }
}
