//! Flags of YurtHub and klog that hublet accepts without effect, so that existing manifests and
//! units keep working. Each that is set gives a warning; values are still checked for their type.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::go_bool;
use hublet_wire::duration;

const HEADING: &str = "Accepted without effect";

/// The type of a flag's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Number,
    Duration,
    Text,
    /// Never logged.
    Secret,
}

#[derive(Debug)]
struct IgnoredFlag {
    name: &'static str,
    kind: Kind,
    /// The value that describes what hublet does anyway and gives no warning; "" = none.
    silent_value: &'static str,
    /// Follows "is ignored: " in the warning.
    reason: &'static str,
}

const fn ignored(
    name: &'static str,
    kind: Kind,
    silent_value: &'static str,
    reason: &'static str,
) -> IgnoredFlag {
    IgnoredFlag {
        name,
        kind,
        silent_value,
        reason,
    }
}

const DEAD: &str = "YurtHub parses it, but has no use for it either";
const POOLS: &str = "node pools belong to resource filters, which are not implemented yet";
const FILTERS: &str = "response filters are not implemented yet";
const BOOTSTRAP: &str = "certificates from the cluster are not implemented yet";
const LOG: &str = "hublet logs to stderr only, one line per event";

const FLAGS: &[IgnoredFlag] = &[
    ignored("nodepool-name", Kind::Text, "", POOLS),
    ignored("enable-node-pool", Kind::Bool, "", POOLS),
    ignored("enable-pool-service-topology", Kind::Bool, "false", POOLS),
    ignored("enable-resource-filter", Kind::Bool, "false", FILTERS),
    ignored("disabled-resource-filters", Kind::Text, "*", FILTERS),
    ignored(
        "pool-scope-resources",
        Kind::Text,
        "",
        "watches are not shared yet",
    ),
    ignored(
        "multiplexer-port",
        Kind::Number,
        "",
        "hublet opens no port to other nodes",
    ),
    ignored(
        "namespace",
        Kind::Text,
        "kube-system",
        "hublet reads no ConfigMap of its own yet",
    ),
    ignored("join-token", Kind::Secret, "", BOOTSTRAP),
    ignored("discovery-token-ca-cert-hash", Kind::Text, "", BOOTSTRAP),
    ignored(
        "discovery-token-unsafe-skip-ca-verification",
        Kind::Bool,
        "false",
        BOOTSTRAP,
    ),
    ignored(
        "heartbeat-failed-retry",
        Kind::Number,
        "",
        "two agreeing signals make the cloud count as away",
    ),
    ignored(
        "kubelet-health-grace-period",
        Kind::Duration,
        "",
        "an idle kubelet never makes the cloud count as disconnected",
    ),
    ignored(
        "gc-frequency",
        Kind::Number,
        "",
        "the store has its own limits",
    ),
    ignored(
        "profiling",
        Kind::Bool,
        "false",
        "hublet has no pprof endpoint",
    ),
    ignored("max-requests-in-flight", Kind::Number, "", DEAD),
    ignored("enable-iptables", Kind::Bool, "false", DEAD),
    ignored(
        "host-control-plane-address",
        Kind::Text,
        "",
        "it belongs to working mode local",
    ),
    ignored("logtostderr", Kind::Bool, "true", LOG),
    ignored("alsologtostderr", Kind::Bool, "true", LOG),
    ignored("stderrthreshold", Kind::Text, "", LOG),
    ignored("log-dir", Kind::Text, "", LOG),
    ignored("log-file", Kind::Text, "", LOG),
    ignored("log-file-max-size", Kind::Number, "", LOG),
    ignored("log-flush-frequency", Kind::Duration, "", LOG),
    ignored("log-backtrace-at", Kind::Text, "", LOG),
    ignored("add-dir-header", Kind::Bool, "false", LOG),
    ignored("skip-headers", Kind::Bool, "false", LOG),
    ignored("skip-log-headers", Kind::Bool, "false", LOG),
    ignored("one-output", Kind::Bool, "", LOG),
    ignored(
        "vmodule",
        Kind::Text,
        "",
        "verbosity is the same for all modules: --v",
    ),
    ignored("logging-format", Kind::Text, "text", LOG),
];

/// Warnings of the ignored flags that were set.
#[derive(Debug, Clone, Default)]
pub struct Ignored {
    pub warnings: Vec<String>,
}

impl Args for Ignored {
    fn augment_args(cmd: Command) -> Command {
        FLAGS
            .iter()
            .fold(cmd, |cmd, flag| cmd.arg(argument_of(flag)))
    }
    fn augment_args_for_update(cmd: Command) -> Command {
        Self::augment_args(cmd)
    }
}

impl FromArgMatches for Ignored {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        Ok(Self {
            warnings: FLAGS
                .iter()
                .filter_map(|flag| warning_of(flag, matches))
                .collect(),
        })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument_of(flag: &'static IgnoredFlag) -> Arg {
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .help(flag.reason)
        .help_heading(HEADING)
        .action(ArgAction::Append)
        .value_parser(move |text: &str| check_value(flag.kind, text));
    if flag.kind == Kind::Bool {
        arg.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
    } else {
        arg.value_name("VALUE")
    }
}

fn check_value(kind: Kind, text: &str) -> Result<String, String> {
    match kind {
        Kind::Bool => go_bool(text).map(|value| value.to_string()),
        Kind::Number => text
            .parse::<i64>()
            .map(|n| n.to_string())
            .map_err(|_| format!("invalid number {text:?}; must be an integer")),
        Kind::Duration => duration::parse(text).map(|_| text.to_owned()),
        Kind::Text | Kind::Secret => Ok(text.to_owned()),
    }
}

fn warning_of(flag: &IgnoredFlag, matches: &ArgMatches) -> Option<String> {
    let values: Vec<&str> = matches
        .get_many::<String>(flag.name)?
        .map(String::as_str)
        .collect();
    let last = *values.last()?;
    if last == flag.silent_value {
        return None;
    }
    let IgnoredFlag { name, reason, .. } = flag;
    let shown = shown_value(flag.kind, &values);
    Some(format!("--{name}={shown} is ignored: {reason}"))
}

fn shown_value(kind: Kind, values: &[&str]) -> String {
    match kind {
        Kind::Secret => "…".to_owned(),
        _ => values.join(","),
    }
}
