//! Flags that existing manifests and units carry and that hublet takes without effect: one table, one warning for
//! each that is set. Values are still checked for their kind, so that a slip of the pen is found.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::go_bool;
use hublet_wire::duration;

/// Shown above these flags in `--help`.
const HEADING: &str = "Accepted without effect";

/// What a flag's value must look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bool,
    Number,
    Time,
    Text,
    /// Text that no log may show.
    Secret,
}

#[derive(Debug)]
struct IgnoredFlag {
    name: &'static str,
    kind: Kind,
    /// The value that needs no warning, because hublet does just that anyway ("" = none).
    agreed: &'static str,
    /// Why it has no effect, after "is ignored: ".
    why: &'static str,
}

const fn ignored(
    name: &'static str,
    kind: Kind,
    agreed: &'static str,
    why: &'static str,
) -> IgnoredFlag {
    IgnoredFlag {
        name,
        kind,
        agreed,
        why,
    }
}

const DEAD: &str = "YurtHub parses it and never uses it either";
const POOLS: &str = "node pools come with the resource filters, which hublet doesn't have yet";
const BOOTSTRAP: &str = "certificates from the cluster are not implemented yet";
const LOG: &str = "hublet logs to stderr only, one line an event";

const FLAGS: &[IgnoredFlag] = &[
    ignored("nodepool-name", Kind::Text, "", POOLS),
    ignored("enable-node-pool", Kind::Bool, "", POOLS),
    ignored("enable-pool-service-topology", Kind::Bool, "false", POOLS),
    ignored(
        "enable-resource-filter",
        Kind::Bool,
        "false",
        "hublet changes no answer of the cloud yet",
    ),
    ignored(
        "disabled-resource-filters",
        Kind::Text,
        "*",
        "hublet changes no answer of the cloud yet",
    ),
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
        Kind::Time,
        "",
        "kubelet's silence never makes the cloud count as away",
    ),
    ignored(
        "gc-frequency",
        Kind::Number,
        "",
        "the store keeps its own limits",
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
        "it belongs to the working mode local",
    ),
    ignored("logtostderr", Kind::Bool, "true", LOG),
    ignored("alsologtostderr", Kind::Bool, "true", LOG),
    ignored("stderrthreshold", Kind::Text, "", LOG),
    ignored("log-dir", Kind::Text, "", LOG),
    ignored("log-file", Kind::Text, "", LOG),
    ignored("log-file-max-size", Kind::Number, "", LOG),
    ignored("log-flush-frequency", Kind::Time, "", LOG),
    ignored("log-backtrace-at", Kind::Text, "", LOG),
    ignored("add-dir-header", Kind::Bool, "false", LOG),
    ignored("skip-headers", Kind::Bool, "false", LOG),
    ignored("skip-log-headers", Kind::Bool, "false", LOG),
    ignored("one-output", Kind::Bool, "", LOG),
    ignored("vmodule", Kind::Text, "", "verbosity is one number, --v"),
    ignored("logging-format", Kind::Text, "text", LOG),
];

/// The ignored flags that were set, as one warning each.
#[derive(Debug, Clone, Default)]
pub struct Ignored {
    /// One sentence a flag.
    pub warnings: Vec<String>,
}

impl Args for Ignored {
    fn augment_args(cmd: Command) -> Command {
        FLAGS.iter().fold(cmd, |cmd, flag| cmd.arg(argument(flag)))
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
                .filter_map(|flag| warning(flag, matches))
                .collect(),
        })
    }
    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn argument(flag: &'static IgnoredFlag) -> Arg {
    let arg = Arg::new(flag.name)
        .long(flag.name)
        .help(flag.why)
        .help_heading(HEADING)
        .action(ArgAction::Append)
        .value_parser(move |text: &str| check(flag.kind, text));
    if flag.kind == Kind::Bool {
        arg.num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .value_name("BOOL")
    } else {
        arg.value_name("VALUE")
    }
}

fn check(kind: Kind, text: &str) -> Result<String, String> {
    match kind {
        Kind::Bool => go_bool(text).map(|value| value.to_string()),
        Kind::Number => text
            .parse::<i64>()
            .map(|n| n.to_string())
            .map_err(|_| format!("{text:?} is not a whole number")),
        Kind::Time => duration::parse(text).map(|_| text.to_owned()),
        Kind::Text | Kind::Secret => Ok(text.to_owned()),
    }
}

fn warning(flag: &IgnoredFlag, matches: &ArgMatches) -> Option<String> {
    let values: Vec<&str> = matches
        .get_many::<String>(flag.name)?
        .map(String::as_str)
        .collect();
    let last = *values.last()?;
    if last == flag.agreed {
        return None;
    }
    let shown = match flag.kind {
        Kind::Secret => "…".to_owned(),
        _ => values.join(","),
    };
    Some(format!("--{}={shown} is ignored: {}", flag.name, flag.why))
}
