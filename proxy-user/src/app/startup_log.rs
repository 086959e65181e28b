//! The log at start: each component, on or off, and the reason.

use tracing::{info, warn};

use super::Bound;
use crate::VERSION;
use crate::node::component::Component;

pub(super) fn log_components(bound: &Bound) {
    info!("hublet {VERSION} serves node {}", bound.config.node_name);
    for listener in bound.sockets.statuses(bound.admin.address()) {
        let protocols = listener.purpose.protocols();
        info!("on   listener: {} {protocols}", listener.address);
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
