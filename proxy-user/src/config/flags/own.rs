//! Flags that YurtHub does not have.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::go_bool;
use hublet_wire::duration;

/// hublet's own flags.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "hublet's own")]
pub struct OwnFlags {
    /// Steer, attest and guard with eBPF; with `false` nothing is attached, and hublet serves the clients that dial it
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub ebpf: bool,
    /// Destinations whose connections are steered to hublet: addresses, `kubernetes` (the Service's ClusterIP, once it is
    /// known), `cloud` (the API servers' own addresses), or `none`
    #[arg(long, value_name = "ADDR:PORT", value_delimiter = ',', action = ArgAction::Append,
        default_value = "10.96.0.1:443,kubernetes")]
    pub steer: Vec<String>,
    /// Steer only these processes of the host: cgroup:PATH, uid:NUMBER, command:NAME
    #[arg(long, value_name = "SELECTION", value_delimiter = ',', action = ArgAction::Append)]
    pub steer_only: Vec<String>,
    /// Never steer these processes: cgroup:PATH, uid:NUMBER, command:NAME
    #[arg(long, value_name = "SELECTION", value_delimiter = ',', action = ArgAction::Append)]
    pub steer_except: Vec<String>,
    /// Pods to steer: annotated (hublet.io/steer: "true" on the pod or its namespace), cgroup:PATH, netns:COOKIE, or none
    #[arg(long, value_name = "SELECTION", value_delimiter = ',', action = ArgAction::Append, default_value = "annotated")]
    pub steer_pods: Vec<String>,
    /// Let getpeername() of a steered client return the address that it dialled
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub steer_getpeername: bool,
    /// Drop packets from uplinks to hublet's addresses, and from pods to ports other than the secure one (eBPF, Linux 5.17)
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub guard: bool,
    /// Interfaces that lead out of the node, in addition to those that the guard discovers
    #[arg(long, value_name = "INTERFACE", value_delimiter = ',', action = ArgAction::Append)]
    pub uplink: Vec<String>,
    /// Uplinks on which XDP drops packets to hublet's addresses
    #[arg(long, value_name = "INTERFACE", value_delimiter = ',', action = ArgAction::Append)]
    pub xdp_uplink: Vec<String>,
    /// Mount point of bpffs; hublet mounts it if nothing is mounted there
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Directory of cgroup v2 whose processes are steered [default: the root of cgroup v2]
    #[arg(long, value_name = "DIR")]
    pub cgroup: Option<PathBuf>,
    /// Log the decisions of the eBPF programs (requires a build with the feature bpf-log)
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub bpf_log: bool,
    /// Maximum number of open connections; beyond it, one of the client with the most is closed, an idle one first
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub max_connections: usize,
    /// Maximum number of concurrent requests, watches included; beyond it the answer is 429
    #[arg(long, value_name = "N", default_value_t = 16384)]
    pub max_requests: usize,
    /// Memory for requests and answers in flight, shared fairly between clients; bytes, or with a suffix Ki, Mi or Gi
    #[arg(long, value_name = "SIZE", default_value = "64Mi", value_parser = parse_size)]
    pub max_bytes_under_way: usize,
    /// Time in which a client must read some of its answer, before its stream is reset
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = duration::parse)]
    pub reader_timeout: Duration,
    /// Page cache of the store; bytes, or with a suffix Ki, Mi or Gi
    #[arg(long, value_name = "SIZE", default_value = "1Mi", value_parser = parse_size)]
    pub store_page_cache: usize,
    /// Maximum size of the store on disk; beyond it, the least recently used data is evicted
    #[arg(long, value_name = "SIZE", default_value = "512Mi", value_parser = parse_size)]
    pub cache_max_bytes: usize,
    /// Time for which a caller keeps an observed permission while disconnected from the cloud
    #[arg(long, value_name = "DURATION", default_value = "168h", value_parser = duration::parse)]
    pub grant_max_age: Duration,
    /// Replace the running hublet with the same --root-dir, without failing a connection (zero-downtime upgrade)
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub take_over: bool,
    /// Time for open requests to finish after SIGTERM (at a hand-over 1.5s at most)
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = duration::parse)]
    pub drain_timeout: Duration,
    /// Print the effective configuration as JSON and exit
    #[arg(long, value_name = "BOOL", default_value = "false", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set)]
    pub print_config: bool,
}

/// Parses a binary quantity of Kubernetes': an integer, optionally with a suffix Ki, Mi or Gi.
fn parse_size(text: &str) -> Result<usize, String> {
    let (number, shift) = [("Ki", 10), ("Mi", 20), ("Gi", 30)]
        .iter()
        .find_map(|(unit, shift)| text.strip_suffix(unit).map(|n| (n, *shift)))
        .unwrap_or((text, 0));
    number
        .parse::<usize>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift))
        .ok_or_else(|| invalid_size(text))
}

fn invalid_size(text: &str) -> String {
    format!("invalid size {text:?}; use bytes, or a number with a suffix Ki, Mi or Gi, as in 1Mi")
}

#[cfg(test)]
mod tests {
    use super::parse_size;

    #[test]
    fn sizes_are_kubernetes_quantities() {
        for (text, bytes) in [
            ("1048576", 1 << 20),
            ("4Ki", 4096),
            ("1Mi", 1 << 20),
            ("2Gi", 2 << 30),
        ] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for text in ["", "Mi", "1M", "1.5Mi", "-1", "99999999999999Gi"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }
}
