//! YurtHub's flags that change what hublet does, with YurtHub's defaults.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args};

use super::go_bool;
use hublet_wire::duration;

/// YurtHub's flags in effect.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Node and cloud")]
pub struct YurthubFlags {
    /// This node's name; a literal $(NODE_NAME) and no flag at all both mean the environment's NODE_NAME
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// The API servers, https://HOST:PORT[,…]
    #[arg(long, value_name = "URL", value_delimiter = ',', action = ArgAction::Append)]
    pub server_addr: Vec<String>,
    /// `rr` (in turn) or `priority` (in the order given)
    #[arg(long, value_name = "MODE", default_value = "rr")]
    pub lb_mode: String,
    /// `edge` (responses are stored and answer reads while the cloud is away) or `cloud` (nothing is stored)
    #[arg(long, value_name = "MODE", default_value = "edge")]
    pub working_mode: String,
    /// Seconds between two health probes of the cloud
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub heartbeat_interval_seconds: u32,
    /// Seconds that one health probe may take
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    pub heartbeat_timeout_seconds: u32,
    /// Successful probes in a row after which the cloud counts as reachable again
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub heartbeat_healthy_threshold: u32,
    /// Length of a watch without timeoutSeconds while the cloud is away (stretched ×1–2 at random)
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = duration::parse)]
    pub min_request_timeout: Duration,

    /// `token`, `kubeletcertificate`, or `development` (an embedded CA signs the serving certificate)
    #[arg(
        long,
        value_name = "MODE",
        default_value = "token",
        help_heading = "Certificates and files"
    )]
    pub bootstrap_mode: String,
    /// Kubeconfig whose CA the cloud is trusted by
    #[arg(long, value_name = "FILE", value_parser = maybe_empty, help_heading = "Certificates and files")]
    pub bootstrap_file: Option<PathBuf>,
    /// Organizations of the client certificate, besides system:nodes
    #[arg(long, value_name = "ORG", value_delimiter = ',', action = ArgAction::Append,
        help_heading = "Certificates and files")]
    pub hub_cert_organizations: Vec<String>,
    /// Directory of certificates (DIR/pki)
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

    /// Address of health, metrics and status
    #[arg(
        long,
        value_name = "IP",
        default_value = "127.0.0.1",
        help_heading = "Listeners"
    )]
    pub bind_address: String,
    /// Port of health, metrics and status
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10267,
        help_heading = "Listeners"
    )]
    pub serve_port: u16,
    /// Address of the proxy for processes of the host
    #[arg(
        long,
        value_name = "IP",
        default_value = "127.0.0.1",
        help_heading = "Listeners"
    )]
    pub bind_proxy_address: String,
    /// Port of the proxy that takes plain HTTP and TLS
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10261,
        help_heading = "Listeners"
    )]
    pub proxy_port: u16,
    /// Port of the proxy that takes TLS only
    #[arg(
        long,
        value_name = "PORT",
        default_value_t = 10268,
        help_heading = "Listeners"
    )]
    pub proxy_secure_port: u16,
    /// This node's address, for the serving certificate (found by itself when not given)
    #[arg(long, value_name = "IP", help_heading = "Listeners")]
    pub node_ip: Option<IpAddr>,
    /// Make an interface that holds the link-local address
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true", num_args = 0..=1,
        require_equals = true, value_parser = go_bool, action = ArgAction::Set, help_heading = "Listeners")]
    pub enable_dummy_if: bool,
    /// Name of that interface, at most 15 characters
    #[arg(
        long,
        value_name = "NAME",
        default_value = "hub-dummy0",
        help_heading = "Listeners"
    )]
    pub dummy_if_name: String,
    /// Its address [default: 169.254.2.1, or fd00::2:1 when --node-ip is IPv6]
    #[arg(long, value_name = "IP", help_heading = "Listeners")]
    pub dummy_if_ip: Option<String>,

    /// Log verbosity: 0 warnings, 1–2 information, 3–4 debug, 5 and more trace
    #[arg(
        long,
        short = 'v',
        value_name = "LEVEL",
        default_value_t = 2,
        help_heading = "Log"
    )]
    pub v: u8,
}

/// A path that a unit file may leave empty (`--bootstrap-file=$FILE`), which means none.
fn maybe_empty(text: &str) -> Result<PathBuf, std::convert::Infallible> {
    Ok(PathBuf::from(text))
}
