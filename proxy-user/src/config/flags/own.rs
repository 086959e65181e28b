//! Flags that YurtHub doesn't have.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::go_bool;
use hublet_wire::duration;

/// Our own flags.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "hublet's own")]
pub struct OwnFlags {
    /// Steer, attest and guard by eBPF; with `false` nothing is attached anywhere, and hublet serves who dials it itself
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub ebpf: bool,
    /// What callers dial and eBPF steers to hublet: addresses, `kubernetes` (the Service's ClusterIP, as soon as it is
    /// known), `cloud` (the API servers' own addresses), or `none`
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', action = ArgAction::Append,
        default_value = "10.96.0.1:443,kubernetes")]
    pub steer: Vec<String>,
    /// Of the host's processes steer these only: cgroup:PATH, uid:NUMBER, command:NAME
    #[arg(long, value_name = "SELECTION", value_delimiter = ',', action = ArgAction::Append)]
    pub steer_only: Vec<String>,
    /// Do not steer these: cgroup:PATH, uid:NUMBER, command:NAME
    #[arg(long, value_name = "SELECTION", value_delimiter = ',', action = ArgAction::Append)]
    pub steer_except: Vec<String>,
    /// Pods to steer: annotated (hublet.io/steer: "true" on the pod or its namespace), cgroup:PATH, netns:COOKIE, or none
    #[arg(long, value_name = "SELECTION", value_delimiter = ',', action = ArgAction::Append, default_value = "annotated")]
    pub steer_pods: Vec<String>,
    /// getpeername() of steered clients gives the address that they dialled
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub steer_getpeername: bool,
    /// Refuse packets of uplinks to our addresses, and pods on ports that are not for them (eBPF, Linux 5.17)
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub guard: bool,
    /// Interfaces that lead out of the node, beside those that the guard finds by itself
    #[arg(long, value_name = "INTERFACE", value_delimiter = ',', action = ArgAction::Append)]
    pub uplink: Vec<String>,
    /// Uplinks whose packets to our addresses are dropped by XDP already
    #[arg(long, value_name = "INTERFACE", value_delimiter = ',', action = ArgAction::Append)]
    pub xdp_uplink: Vec<String>,
    /// Where bpffs is mounted, or is to be mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// cgroup v2 directory whose processes are steered [default: the root of cgroup v2]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Log what the eBPF programs decide (needs a build with the feature bpf-log)
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub bpf_log: bool,
    /// Connections open at once; for one more, one of the client that has the most is closed, an idle one first
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_connections: usize,
    /// Requests answered at once, watches included; one more gets 429
    #[arg(long, value_name = "N", default_value_t = 16384)]
    pub max_requests: usize,
    /// Bytes held at once for clients, of requests and answers, shared fairly between them, in bytes or with Ki, Mi, Gi
    #[arg(long, value_name = "SIZE", default_value = "64Mi", value_parser = size)]
    pub max_bytes_under_way: usize,
    /// How long a client may take to read something of what it asked for, before it is cut
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub reader_timeout: Duration,
    /// Page cache of the store, in bytes or with Ki, Mi, Gi
    #[arg(long, value_name = "SIZE", default_value = "1Mi", value_parser = size)]
    pub store_page_cache: usize,
    /// Most bytes that the store takes on disk, in bytes or with Ki, Mi, Gi; what nobody has asked for longest goes
    #[arg(long, value_name = "SIZE", default_value = "512Mi", value_parser = size)]
    pub cache_max_bytes: usize,
    /// How long what the cloud allowed a caller stays allowed while the cloud is away
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration::parse)]
    pub grant_max_age: Duration,
    /// Take the place of the hublet that runs with the same --root-dir: an upgrade without a failed connection
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub take_over: bool,
    /// How long requests may go on after SIGTERM
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    pub drain_timeout: Duration,
    /// Print the effective configuration as JSON and exit
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub print_config: bool,
}

/// A size as Kubernetes writes quantities of memory: a whole number with nothing, Ki, Mi or Gi behind it.
fn size(text: &str) -> Result<usize, String> {
    let (number, shift) = [("Ki", 10), ("Mi", 20), ("Gi", 30)]
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|n| (n, *shift)))
        .unwrap_or((text, 0));
    number
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| {
            format!("{text:?} is not a size: write bytes or a number with Ki, Mi or Gi, as in 1Mi")
        })
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_are_quantities() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("4Ki", 4096),
            ("1Mi", 1 << 20),
            ("2Gi", 2 << 30),
        ] {
            assert_eq!(size(text), Ok(bytes));
        }
        for text in ["", "Mi", "1M", "1.5Mi", "-1", "99999999999999Gi"] {
            assert!(size(text).is_err(), "{text}");
        }
    }
}
