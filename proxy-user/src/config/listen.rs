//! The listeners of clients and of the admin server, and their limits.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use serde::Serialize;

use super::flags::{OwnFlags, YurthubFlags};
use super::value::{SizeLimits, listen_address, port, positive_count};
use super::{ConfigError, DummyConfig};

/// A client is allowed at most half of it. Below 1 MiB, every list would be sent in small steps.
const BYTES_UNDER_WAY: SizeLimits = SizeLimits {
    min: 1 << 20,
    min_text: "1Mi",
    max: 1 << 34,
    max_text: "16Gi",
};

/// A reader that is merely slow shows progress within this time.
const MIN_READER_TIMEOUT: Duration = Duration::from_secs(1);

/// Listeners that clients reach.
#[derive(Debug, Clone, Serialize)]
pub struct ListenConfig {
    /// Listeners that tell plain HTTP and TLS apart by the first byte (`127.0.0.1:10261`,
    /// `169.254.2.1:10261`); the host's own first.
    pub plain: Vec<SocketAddr>,
    /// TLS with h2 and http/1.1 (`169.254.2.1:10268`).
    pub secure: SocketAddr,
    /// Open connections; beyond it a connection of the client with the most is closed.
    pub max_connections: usize,
    /// Concurrent requests; beyond it the answer is 429.
    pub max_requests: usize,
    /// Bytes of requests and answers that are held for clients at once.
    pub max_bytes_under_way: usize,
    /// Time in which a client must read something of its answer.
    #[serde(with = "super::seconds")]
    pub reader_timeout: Duration,
    /// Time for open requests after a termination signal.
    #[serde(with = "super::seconds")]
    pub drain: Duration,
}

/// The ports of the three listeners, all different.
struct Ports {
    plain: u16,
    secure: u16,
    admin: u16,
}

impl Ports {
    fn check(flags: &YurthubFlags) -> Result<Self, ConfigError> {
        let ports = [
            ("proxy-port", port("proxy-port", flags.proxy_port)?),
            (
                "proxy-secure-port",
                port("proxy-secure-port", flags.proxy_secure_port)?,
            ),
            ("serve-port", port("serve-port", flags.serve_port)?),
        ];
        refuse_same_ports(&ports)?;
        let [(_, plain), (_, secure), (_, admin)] = ports;
        Ok(Self {
            plain,
            secure,
            admin,
        })
    }
}

fn refuse_same_ports(ports: &[(&'static str, u16)]) -> Result<(), ConfigError> {
    for (at, (second, value)) in ports.iter().enumerate() {
        if let Some((first, _)) = ports[..at].iter().find(|(_, port)| port == value) {
            return Err(ConfigError::SamePort {
                first,
                second,
                value: *value,
            });
        }
    }
    Ok(())
}

pub(super) struct Listeners {
    pub(super) admin: SocketAddr,
    pub(super) clients: ListenConfig,
}

impl Listeners {
    /// `--bind-address` and `--bind-proxy-address`.
    pub(super) fn addresses(&self) -> [IpAddr; 2] {
        [self.admin.ip(), self.clients.plain[0].ip()]
    }

    /// Warns of addresses that other machines may reach.
    pub(super) fn warn_if_exposed(&self) -> Vec<String> {
        let flags = ["bind-address", "bind-proxy-address"];
        let listeners = flags.into_iter().zip(self.addresses());
        listeners
            .filter(|(_, ip)| !stays_on_node(*ip))
            .map(|(flag, ip)| warn_of_exposure(flag, ip))
            .collect()
    }
}

pub(super) fn check(
    flags: &YurthubFlags,
    own: &OwnFlags,
    dummy: Option<&DummyConfig>,
) -> Result<Listeners, ConfigError> {
    let host = listen_address("bind-proxy-address", &flags.bind_proxy_address)?;
    let ports = Ports::check(flags)?;
    let admin = listen_address("bind-address", &flags.bind_address)?;
    let clients = ListenConfig {
        plain: plain_addresses(host, dummy, ports.plain),
        secure: SocketAddr::new(dummy.map_or(host, |dummy| dummy.ip), ports.secure),
        max_connections: positive_count("max-connections", own.max_connections)?,
        max_requests: positive_count("max-requests", own.max_requests)?,
        max_bytes_under_way: BYTES_UNDER_WAY
            .check("max-bytes-under-way", own.max_bytes_under_way)?,
        reader_timeout: check_reader_timeout(own.reader_timeout)?,
        drain: own.drain_timeout,
    };
    Ok(Listeners {
        admin: SocketAddr::new(admin, ports.admin),
        clients,
    })
}

/// The host's own address first.
fn plain_addresses(host: IpAddr, dummy: Option<&DummyConfig>, port: u16) -> Vec<SocketAddr> {
    // A listener on the unspecified address already serves the dummy one.
    let dummy = dummy.filter(|dummy| dummy.ip != host && !host.is_unspecified());
    let ips = [host].into_iter().chain(dummy.map(|dummy| dummy.ip));
    ips.map(|ip| SocketAddr::new(ip, port)).collect()
}

fn check_reader_timeout(timeout: Duration) -> Result<Duration, ConfigError> {
    if timeout < MIN_READER_TIMEOUT {
        return Err(ConfigError::invalid(
            "reader-timeout",
            format!("{timeout:?}"),
            "must be at least 1s: it would close connections that are merely slow",
        ));
    }
    Ok(timeout)
}

fn warn_of_exposure(flag: &str, ip: IpAddr) -> String {
    format!(
        "--{flag}={ip} is reachable from outside this node: use 127.0.0.1 unless a firewall protects it"
    )
}

fn stays_on_node(ip: IpAddr) -> bool {
    ip.is_loopback() || matches!(ip, IpAddr::V4(address) if address.is_link_local())
}
