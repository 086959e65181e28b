//! The serving certificate at start: its names, and its renewal from then on.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::warn;

use crate::certs::{Certificates, CertsError};
use crate::config::{Config, Server};

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
    let ip = server.and_then(source_address);
    let sans = &mut config.certs.ip_sans;
    sans.extend(ip.filter(|ip| !sans.contains(ip)));
}

/// The source address that the kernel chooses towards a server. Connecting a UDP socket sends
/// nothing. DNS names aren't resolved: that could hold up the start.
fn source_address(server: &Server) -> Option<IpAddr> {
    let ip: IpAddr = server.host.parse().ok()?;
    let socket = UdpSocket::bind((unspecified(ip), 0)).ok()?;
    socket.connect((ip, server.port)).ok()?;
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
        let [address, name] = ["127.0.0.1", "api.example.com"].map(|host| Server {
            host: host.to_owned(),
            port: 6443,
        });
        assert_eq!(source_address(&address), Some(loopback));
        assert_eq!(source_address(&name), None, "no DNS");
    }
}
