//! The log at start: each component, on or off, and the reason.

use std::net::SocketAddr;

use tracing::{info, warn};

use super::Bound;
use super::bind::Sockets;
use crate::VERSION;
use crate::caller::Port;
use crate::listen::Listener;
use crate::node::component::Component;

/// Address and protocols, a line for each listener.
pub(super) fn describe_listeners(sockets: &Sockets, admin: SocketAddr) -> Vec<String> {
    sockets
        .listeners()
        .iter()
        .map(describe_listener)
        .chain([format!("{admin} health, metrics, status")])
        .collect()
}

fn describe_listener(listener: &Listener) -> String {
    let protocols = match listener.port {
        Port::Plain => "HTTP and HTTPS",
        Port::Secure => "HTTPS",
    };
    listener
        .socket
        .local_addr()
        .map(|address| format!("{address} {protocols}"))
        .unwrap_or_default()
}

pub(super) fn log_components(bound: &Bound) {
    info!("hublet {VERSION} serves node {}", bound.config.node_name);
    for listener in describe_listeners(&bound.sockets, bound.admin.address()) {
        info!("on   listener: {listener}");
    }
    bound.setup.components().iter().for_each(log_component);
    info!("on   certificate: {}", bound.certificates.describe());
    if let Some(server) = bound.config.cloud.servers.first() {
        info!("on   cloud: {server}");
    }
    info!("on   store: {}", bound.config.cache.dir.display());
}

fn log_component(component: &Component) {
    let Component { name, detail, .. } = component;
    if component.on {
        info!("on   {name}: {detail}");
    } else if component.wanted {
        // The verifier's log has many lines.
        detail.lines().for_each(|line| warn!("off  {name}: {line}"));
    } else {
        info!("off  {name}: {detail}");
    }
}
