//! The effective configuration: one checked struct a stage. Flags (`config::flags`) and one TOML-free
//! environment go in; [`Config`] comes out, printable, and every later stage takes its own part of it.

mod check;
mod error;
pub mod flags;
mod server;
mod steer;
#[cfg(test)]
mod tests;

pub use check::{Checked, UPSTREAM_MARK, checked};
pub use error::ConfigError;
pub use steer::{PodSelector, Selector, Services};

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

/// Everything that the daemon was told, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// This node's name (`--node-name`): the CN of the serving certificate is `system:node:NAME`.
    pub node_name: String,
    pub working_mode: WorkingMode,
    /// The interface and the eBPF programs.
    pub setup: SetupConfig,
    /// The certificates.
    pub certs: CertsConfig,
    /// The sockets that clients reach.
    pub listen: ListenConfig,
    /// The admin listener (`--bind-address:--serve-port`): health, readiness, metrics, status.
    pub admin: SocketAddr,
    /// The API servers.
    pub cloud: CloudConfig,
    /// The store.
    pub cache: CacheConfig,
    /// Answers from the store.
    pub local: LocalConfig,
    /// Take the place of the daemon that runs with the same root directory (`--take-over`).
    pub take_over: bool,
    /// Log verbosity: klog's `--v` (0 warnings, 1–2 information, 3–4 debug, 5 and more trace).
    pub verbosity: u8,
}

/// Whether reads are answered from the store (`--working-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkingMode {
    /// Responses are stored, and answer reads while the cloud is away.
    Edge,
    /// Everything is forwarded and nothing stored, for a node that is never cut off.
    Cloud,
}

/// Interface and eBPF.
#[derive(Debug, Clone, Serialize)]
pub struct SetupConfig {
    /// Any eBPF at all (`--ebpf`).
    pub ebpf: bool,
    /// The link to make and the address on it; `None` with `--enable-dummy-if=false`.
    pub dummy: Option<DummyConfig>,
    /// API service addresses that are steered to hublet when they are dialled (`--steer`).
    pub steer: Services,
    /// Whose calls are steered.
    pub select: SelectConfig,
    /// The guard of our addresses.
    pub guard: GuardConfig,
    /// getpeername() of steered clients gives the address that they dialled (`--steer-getpeername`).
    pub getpeername: bool,
    /// The cgroup v2 directory that the programs are attached to; `None` = the v2 root, found by itself.
    pub cgroup: Option<PathBuf>,
    /// Where bpffs is mounted, or is to be mounted by us (`--bpffs`, default /sys/fs/bpf); pins go to `BPFFS/hublet/HASH/`.
    pub bpffs: PathBuf,
    /// aya-log's debug lines of the programs (`--bpf-log`), off by default.
    pub bpf_log: bool,
}

/// Whose calls are steered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SelectConfig {
    /// Of the host's processes these only (`--steer-only`); empty = all.
    pub only: Vec<Selector>,
    /// But not these (`--steer-except`).
    pub except: Vec<Selector>,
    /// Pods, which are not steered otherwise (`--steer-pods`).
    pub pods: Vec<PodSelector>,
}

/// The guard of our addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardConfig {
    /// `--guard`.
    pub on: bool,
    /// Interfaces that lead out of the node beside those found by themselves (`--uplink`).
    pub uplinks: Vec<String>,
    /// Interfaces whose packets XDP looks at (`--xdp-uplink`); uplinks, too.
    pub xdp: Vec<String>,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            on: true,
            uplinks: Vec::new(),
            xdp: Vec::new(),
        }
    }
}

/// The link-local address and its link.
#[derive(Debug, Clone, Serialize)]
pub struct DummyConfig {
    /// `--dummy-if-name`, at most 15 characters.
    pub name: String,
    /// `--dummy-if-ip`.
    pub ip: IpAddr,
}

/// How hublet gets its certificates (`--bootstrap-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootstrapMode {
    /// An embedded CA signs the serving certificate.
    Development,
    /// YurtHub's `token`; not implemented yet: it serves with the development CA and says so.
    Token,
    /// YurtHub's `kubeletcertificate`; as `Token`.
    KubeletCertificate,
}

/// Certificates.
#[derive(Debug, Clone, Serialize)]
pub struct CertsConfig {
    /// `--bootstrap-mode`.
    pub mode: BootstrapMode,
    /// `--bootstrap-file`: a kubeconfig; its CA is what the cloud is trusted by.
    pub bootstrap_file: Option<PathBuf>,
    /// `--root-dir`; certificates live in `ROOT_DIR/pki`.
    pub root_dir: PathBuf,
    /// `--hub-cert-organizations` other than `system:nodes`: for the client certificate.
    pub organizations: Vec<String>,
    /// IP addresses of the serving certificate: the service addresses steered, the dummy address, the bind
    /// addresses, the node's own.
    pub ip_sans: Vec<IpAddr>,
    /// DNS names of the serving certificate beside Kubernetes' own: the API servers' with `--steer=cloud`.
    pub dns_sans: Vec<String>,
    /// `--node-ip`; `None` = found by itself at start.
    pub node_ip: Option<IpAddr>,
}

/// Listeners.
#[derive(Debug, Clone, Serialize)]
pub struct ListenConfig {
    /// Where plain HTTP and TLS are told apart by the first byte (`127.0.0.1:10261`, `169.254.2.1:10261`).
    pub plain: Vec<SocketAddr>,
    /// TLS with h2 and http/1.1 (`169.254.2.1:10268`).
    pub secure: SocketAddr,
    /// Connections open at once; for one more a connection of the client that has the most is closed.
    pub max_connections: usize,
    /// Requests answered at once; one more gets 429.
    pub max_requests: usize,
    /// Bytes of requests and answers that are held for clients at once.
    pub max_bytes_under_way: usize,
    /// How long a client may take to read something of what it asked for.
    #[serde(with = "seconds")]
    pub reader_timeout: Duration,
    /// How long streams may go on after a signal to end.
    #[serde(with = "seconds")]
    pub drain: Duration,
}

/// One API server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Server {
    /// DNS name or IP address.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// `--lb-mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LbMode {
    Rr,
    Priority,
}

/// The API servers and how their health is judged.
#[derive(Debug, Clone, Serialize)]
pub struct CloudConfig {
    /// `--server-addr`, in order.
    pub servers: Vec<Server>,
    /// `--lb-mode`.
    pub lb_mode: LbMode,
    /// Probe interval while connected (`--heartbeat-interval-seconds`).
    #[serde(with = "seconds")]
    pub probe_interval: Duration,
    /// How long one probe may take (`--heartbeat-timeout-seconds`).
    #[serde(with = "seconds")]
    pub probe_timeout: Duration,
    /// Successful probes in a row that make the cloud Connected again (`--heartbeat-healthy-threshold`).
    pub healthy_threshold: u32,
    /// SO_MARK of our own upstream sockets, which are never steered.
    pub mark: u32,
}

/// The store.
#[derive(Debug, Clone, Serialize)]
pub struct CacheConfig {
    /// `--disk-cache-path`: the directory of `hublet.redb`.
    pub dir: PathBuf,
    /// redb's page cache in bytes.
    pub page_cache: usize,
    /// Most bytes of the store on disk (`--cache-max-bytes`).
    pub max_bytes: u64,
}

/// Answers from the store.
#[derive(Debug, Clone, Serialize)]
pub struct LocalConfig {
    /// How long what the cloud allowed an identity stays allowed while the cloud is away.
    #[serde(with = "seconds")]
    pub grant_max_age: Duration,
    /// Length of an offline watch without `timeoutSeconds` (`--min-request-timeout`), stretched ×1–2 at random.
    #[serde(with = "seconds")]
    pub min_request_timeout: Duration,
}

mod seconds {
    //! Durations print as seconds.
    use std::time::Duration;

    pub(super) fn serialize<S: serde::Serializer>(
        value: &Duration,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.as_secs_f64())
    }
}
