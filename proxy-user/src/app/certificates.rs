//! The serving certificate at start: its names, and its renewal from then on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::warn;

use crate::certs::{Certificates, CertsError};
use crate::config::Config;

/// Interval between checks of the serving certificate.
const CHECK_INTERVAL: Duration = Duration::from_secs(600);

pub(super) fn open(config: &Config) -> Result<Arc<Certificates>, CertsError> {
    let now = OffsetDateTime::now_utc();
    Certificates::open(&config.certs, &config.node_name, now).map(Arc::new)
}

/// Runs on the admin runtime: generating a key takes too long for a traffic worker.
pub(super) async fn renew(certificates: Arc<Certificates>) {
    loop {
        tokio::time::sleep(CHECK_INTERVAL).await;
        if let Err(error) = certificates.refresh(OffsetDateTime::now_utc()) {
            warn!("can't renew the serving certificate: {error}");
        }
    }
}

/// Adds the node's address to the serving certificate if `--node-ip` isn't given.
pub(super) fn add_node_address(config: &mut Config) {
    if config.certs.node_ip.is_some() {
        return;
    }
    let server = config.cloud.servers.first();
    let ip = server.and_then(|server| source_address(&server.host, server.port));
    if let Some(ip) = ip
        && !config.certs.ip_sans.contains(&ip)
    {
        config.certs.ip_sans.push(ip);
    }
}

/// The source address that the kernel chooses towards a server. Connecting a UDP socket sends
/// nothing. DNS names aren't resolved: that could hold up the start.
fn source_address(host: &str, port: u16) -> Option<IpAddr> {
    let server: IpAddr = host.parse().ok()?;
    let socket = UdpSocket::bind((unspecified(server), 0)).ok()?;
    socket.connect((server, port)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}

/// Of the same address family.
fn unspecified(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_address_is_the_routes() {
        let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
        assert_eq!(source_address("127.0.0.1", 6443), Some(loopback));
        assert_eq!(source_address("api.example.com", 6443), None, "no DNS");
    }
}
