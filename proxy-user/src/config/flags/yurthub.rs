//! YurtHub's flags that hublet implements, with YurtHub's defaults.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::go_bool;
use hublet_wire::duration;

/// YurtHub's flags that have an effect.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node and cloud")]
pub struct YurthubFlags {
    /// Name of this node; without it, or with a literal $(NODE_NAME), the environment variable NODE_NAME
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// URLs of the API servers, https://HOST:PORT[,…]
    #[arg(long, value_name = "URL", value_delimiter = ',', action = ArgAction::Append)]
    pub server_addr: Vec<String>,
    /// Load balancing between API servers: `rr` (round robin) or `priority` (in the given order)
    #[arg(long, value_name = "MODE", default_value = "rr")]
    pub lb_mode: String,
    /// `edge` (responses are stored, and answer reads while disconnected) or `cloud` (nothing is stored)
    #[arg(long, value_name = "MODE", default_value = "edge")]
    pub working_mode: String,
    /// Seconds between health probes of the cloud
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub heartbeat_interval_seconds: u32,
    /// Timeout of a health probe in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub heartbeat_timeout_seconds: u32,
    /// Consecutive successful probes after which the cloud counts as connected again
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub heartbeat_healthy_threshold: u32,
    /// Length of a watch without timeoutSeconds while disconnected (times a random factor between 1 and 2)
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = duration::parse)]
    pub min_request_timeout: Duration,

    /// Source of certificates: `token`, `kubeletcertificate`, or `development` (an embedded CA signs the serving certificate)
    #[arg(
        long,
        value_name = "MODE",
        default_value = "token",
        help_heading = "Certificates and files"
    )]
    pub bootstrap_mode: String,
    /// Kubeconfig with the CA of the API servers
    #[arg(long, value_name = "FILE", value_parser = parse_optional_path, help_heading = "Certificates and files")]
    pub bootstrap_file: Option<PathBuf>,
    /// Organizations of the client certificate, in addition to system:nodes
    #[arg(long, value_name = "ORG", value_delimiter = ',', action = ArgAction::Append,
        help_heading = "Certificates and files")]
    pub hub_cert_organizations: Vec<String>,
    /// Directory of the certificates, which are in DIR/pki
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/yurthub",
        help_heading = "Certificates and files"
    )]
    pub root_dir: PathBuf,
    /// Directory of the store
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/kubernetes/cache/",
        help_heading = "Certificates and files"
    )]
    pub disk_cache_path: PathBuf,

    /// Listen address for health, metrics and status
    #[arg(
        long,
        value_name = "IP",
        default_value = "127.0.0.1",
        help_heading = "Listeners"
    )]
    pub bind_address: String,
    /// Port for health, metrics and status
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10267,
        help_heading = "Listeners"
    )]
    pub serve_port: u16,
    /// Listen address of the proxy for processes of the host
    #[arg(
        long,
        value_name = "IP",
        default_value = "127.0.0.1",
        help_heading = "Listeners"
    )]
    pub bind_proxy_address: String,
    /// Proxy port for plain HTTP and TLS
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10261,
        help_heading = "Listeners"
    )]
    pub proxy_port: u16,
    /// Proxy port for TLS only
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10268,
        help_heading = "Listeners"
    )]
    pub proxy_secure_port: u16,
    /// IP address of this node for the serving certificate [default: the source address towards the API server]
    #[arg(long, value_name = "IP", help_heading = "Listeners")]
    pub node_ip: Option<IpAddr>,
    /// Create a dummy interface with the link-local address
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set, help_heading = "Listeners")]
    pub enable_dummy_if: bool,
    /// Name of the dummy interface, at most 15 characters
    #[arg(
        long,
        value_name = "NAME",
        default_value = "hub-dummy0",
        help_heading = "Listeners"
    )]
    pub dummy_if_name: String,
    /// Address of the dummy interface [default: 169.254.2.1, or fd00::2:1 when --node-ip is IPv6]
    #[arg(long, value_name = "IP", help_heading = "Listeners")]
    pub dummy_if_ip: Option<String>,

    /// Log verbosity: 0 warnings, 1-2 informational, 3 debug, 4 also a line per request, 5 and more trace
    #[arg(
        long,
        short = 'v',
        value_name = "LEVEL",
        default_value_t = 2,
        help_heading = "Log"
    )]
    pub v: u8,
}

/// Accepts an empty path, which clap's own parser rejects: a unit file's `--bootstrap-file=$FILE`
/// may expand to one.
fn parse_optional_path(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}
