//! The block at start that says in plain words what is on, what is off and why.

use std::net::SocketAddr;

use tracing::{info, warn};

use super::Bound;
use super::bind::Sockets;
use crate::authz::caller::Port;
use crate::cli::VERSION;

/// Where clients are served, one line a socket.
pub(super) fn listeners(sockets: &Sockets, admin: SocketAddr) -> Vec<String> {
    let line = |listener: &crate::listen::Listener| {
        let speaks = match listener.port {
            Port::Plain => "HTTP and HTTPS",
            Port::Secure => "HTTPS",
        };
        listener
            .socket
            .local_addr()
            .map(|address| format!("{address} {speaks}"))
            .unwrap_or_default()
    };
    sockets
        .listeners()
        .iter()
        .map(line)
        .chain([format!("{admin} health, metrics, status")])
        .collect()
}

pub(super) fn all(bound: &Bound) {
    info!("hublet {VERSION} serves node {}", bound.config.node_name);
    for listener in listeners(&bound.sockets, bound.admin.address()) {
        info!("on   listener: {listener}");
    }
    for component in bound.setup.components() {
        if component.on {
            info!("on   {}: {}", component.name, component.detail);
        } else if component.wanted {
            // The verifier's log is many lines.
            component
                .detail
                .lines()
                .for_each(|line| warn!("off  {}: {line}", component.name));
        } else {
            info!("off  {}: {}", component.name, component.detail);
        }
    }
    info!("on   certificate: {}", bound.certificates.describe());
    if let Some(server) = bound.config.cloud.servers.first() {
        info!("on   cloud: {}:{}", server.host, server.port);
    }
    info!("on   store: {}", bound.config.cache.dir.display());
}
