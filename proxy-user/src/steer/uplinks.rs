//! The interfaces that lead out of the node, kept up to date in the guard's map as links and routes change.
//!
//! hublet's own link and the loopback are local. Packets from a veth, a bridge, a netkit or an Open vSwitch port are pods',
//! unless a default route leads there. All other interfaces (network cards, tunnels to other nodes) are uplinks.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{BoxStream, Stream};
use futures_util::{StreamExt, TryStreamExt};
use hublet_ebpf::{IFACE_LOCAL, IFACE_UPLINK, MAX_INTERFACES};
use netlink_packet_route::link::{InfoKind, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};

use super::task::OwnedTask;
use crate::ebpf::maps::GuardedInterface;
use crate::ebpf::programs::Programs;
use crate::node::unavailable::{self, Unavailable};
use crate::node::{info_kind, name_of};

/// Changes come in bursts, and are handled together after this time.
const BURST: Duration = Duration::from_millis(50);
/// Netlink drops events when its queue is full, so the links are also read at this interval.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// The kernel's own table of local addresses (rtnetlink(7)).
const RT_TABLE_LOCAL: u8 = 255;

/// Events of links and routes.
const GROUPS: [MulticastGroup; 3] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Configured, not discovered.
#[derive(Debug, Clone)]
pub(super) struct UplinkConfig {
    /// The link that carries hublet's address.
    pub(super) own_link: String,
    /// Interfaces that are uplinks whatever their type.
    pub(super) uplinks: Vec<String>,
}

impl UplinkConfig {
    fn names(&self, interface: &str) -> bool {
        self.uplinks.iter().any(|uplink| uplink == interface)
    }
}

/// Keeps the guard's map up to date until it is stopped or dropped.
#[derive(Debug)]
pub(super) struct Guard {
    connection: OwnedTask,
    updates: OwnedTask,
}

impl Guard {
    /// Reads the interfaces, switches the guard on, and follows changes. Call on a tokio runtime, in the network namespace
    /// to guard.
    ///
    /// # Errors
    /// Netlink or the map is refused.
    pub(super) async fn start(
        config: UplinkConfig,
        programs: Arc<Programs>,
    ) -> Result<Self, Unavailable> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&GROUPS)
            .map_err(|error| unavailable::from_kernel("opening a netlink socket", error))?;
        let connection = OwnedTask::spawn(connection);
        let installed = read_interfaces(&handle, &config)
            .await
            .map_err(interfaces_unreadable)?;
        install(&programs, &installed)?;
        let changes = events.filter(|(message, _)| {
            let relevant = may_change_uplinks(&message.payload);
            async move { relevant }
        });
        let updater = Updater {
            handle,
            config,
            programs,
            installed,
        };
        let updates = OwnedTask::spawn(updater.run(changes.map(drop).boxed()));
        Ok(Self {
            connection,
            updates,
        })
    }

    pub(super) async fn stop(self) {
        self.updates.stop().await;
        self.connection.stop().await;
    }
}

fn install(programs: &Programs, interfaces: &[GuardedInterface]) -> Result<(), Unavailable> {
    let set = programs.set_guard(interfaces);
    set.map_err(|error| unavailable::from_kernel("writing the guard's interfaces", error))
}

fn interfaces_unreadable(error: rtnetlink::Error) -> Unavailable {
    Unavailable::Failed {
        operation: "reading the interfaces".into(),
        source: Box::new(error),
    }
}

struct Updater {
    handle: Handle,
    config: UplinkConfig,
    programs: Arc<Programs>,
    installed: Vec<GuardedInterface>,
}

impl Updater {
    async fn run(mut self, mut changes: BoxStream<'static, ()>) {
        loop {
            match tokio::time::timeout(CHECK_INTERVAL, changes.next()).await {
                Ok(None) => return,
                Ok(Some(())) => tokio::time::sleep(BURST).await,
                Err(_) => {}
            }
            self.update().await;
        }
    }

    async fn update(&mut self) {
        match read_interfaces(&self.handle, &self.config).await {
            Ok(found) if found == self.installed => {}
            Ok(found) => match self.programs.set_guard(&found) {
                Ok(()) => self.installed = found,
                Err(error) => tracing::error!("the guard can't learn of new interfaces: {error}"),
            },
            Err(error) => tracing::error!("the guard can't list the interfaces: {error}"),
        }
    }
}

/// The entries of the map. An interface that is not in it is a pod's.
async fn read_interfaces(
    handle: &Handle,
    config: &UplinkConfig,
) -> Result<Vec<GuardedInterface>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let default_routes = read_default_routes(handle).await;
    let mut interfaces: Vec<_> = links
        .iter()
        .filter_map(|link| guarded_interface(link, &default_routes, config))
        .collect();
    interfaces.sort_unstable();
    interfaces.truncate(MAX_INTERFACES);
    Ok(interfaces)
}

/// The interfaces of all default routes.
async fn read_default_routes(handle: &Handle) -> BTreeSet<u32> {
    let ipv4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let ipv6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
    let mut interfaces = BTreeSet::new();
    collect_default_routes(handle.route().get(ipv4).execute(), &mut interfaces).await;
    collect_default_routes(handle.route().get(ipv6).execute(), &mut interfaces).await;
    interfaces
}

/// Ends at an error: a kernel without IPv6 has no such routes.
async fn collect_default_routes(
    routes: impl Stream<Item = Result<RouteMessage, rtnetlink::Error>> + Send,
    interfaces: &mut BTreeSet<u32>,
) {
    let mut routes = std::pin::pin!(routes);
    while let Ok(Some(route)) = routes.try_next().await {
        interfaces.extend(default_route_interfaces(&route));
    }
}

fn guarded_interface(
    link: &LinkMessage,
    default_routes: &BTreeSet<u32>,
    config: &UplinkConfig,
) -> Option<GuardedInterface> {
    let (index, name) = (link.header.index, name_of(link));
    let is_loopback = link.header.flags.contains(LinkFlags::Loopback);
    let kind = if is_loopback || name == config.own_link {
        IFACE_LOCAL
    } else if receives_nothing(link) {
        return None;
    } else if !is_of_pods(link) || default_routes.contains(&index) || config.names(&name) {
        IFACE_UPLINK
    } else {
        return None;
    };
    Some(GuardedInterface { index, kind })
}

/// No packets arrive on these.
fn receives_nothing(link: &LinkMessage) -> bool {
    matches!(info_kind(link), Some(InfoKind::Dummy | InfoKind::Ifb))
}

fn is_of_pods(link: &LinkMessage) -> bool {
    match info_kind(link) {
        Some(InfoKind::Veth | InfoKind::Bridge | InfoKind::Netkit) => true,
        Some(InfoKind::Other(kind)) => kind == "openvswitch",
        _ => false,
    }
}

/// The interfaces of a default route; none for other routes. The tables of policy routing count, the kernel's local one
/// does not.
fn default_route_interfaces(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.table == RT_TABLE_LOCAL {
        return Vec::new();
    }
    let attributes = route.attributes.iter();
    attributes.flat_map(interfaces_of).collect()
}

fn interfaces_of(attribute: &RouteAttribute) -> Vec<u32> {
    match attribute {
        RouteAttribute::Oif(index) => vec![*index],
        RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
        _ => Vec::new(),
    }
}

fn may_change_uplinks(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelLink, DelRoute, NewLink, NewRoute};
    match payload {
        NetlinkPayload::InnerMessage(NewLink(_) | DelLink(_)) => true,
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
            !default_route_interfaces(route).is_empty()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::link::{LinkAttribute, LinkInfo};
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    fn link(index: u32, name: &str, kind: Option<InfoKind>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.attributes = vec![LinkAttribute::IfName(name.into())];
        if let Some(kind) = kind {
            let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
            link.attributes.push(info);
        }
        link
    }

    fn kind_of(link: &LinkMessage) -> Option<u32> {
        let config = UplinkConfig {
            own_link: "hub-dummy0".into(),
            uplinks: vec!["veth-uplink".into()],
        };
        guarded_interface(link, &BTreeSet::from([7]), &config).map(|interface| interface.kind)
    }

    #[test]
    fn network_cards_and_tunnels_are_uplinks_and_veths_are_pods() {
        assert_eq!(kind_of(&link(2, "eth0", None)), Some(IFACE_UPLINK));
        let tunnel = link(3, "vxlan.calico", Some(InfoKind::Vxlan));
        assert_eq!(kind_of(&tunnel), Some(IFACE_UPLINK));
        for kind in [InfoKind::Veth, InfoKind::Bridge, InfoKind::Netkit] {
            assert_eq!(kind_of(&link(4, "cali1", Some(kind))), None);
        }
        let ovs = InfoKind::Other("openvswitch".into());
        assert_eq!(kind_of(&link(5, "ovs-system", Some(ovs))), None);
    }

    #[test]
    fn a_default_route_or_the_configuration_makes_an_uplink() {
        let routed = link(7, "br0", Some(InfoKind::Bridge));
        assert_eq!(kind_of(&routed), Some(IFACE_UPLINK));
        let configured = link(8, "veth-uplink", Some(InfoKind::Veth));
        assert_eq!(kind_of(&configured), Some(IFACE_UPLINK));
    }

    #[test]
    fn the_loopback_and_the_own_link_are_local() {
        let own = link(9, "hub-dummy0", Some(InfoKind::Dummy));
        assert_eq!(kind_of(&own), Some(IFACE_LOCAL));
        let mut lo = link(1, "lo", None);
        lo.header.flags = LinkFlags::Loopback;
        assert_eq!(kind_of(&lo), Some(IFACE_LOCAL));
        let other = link(10, "dummy0", Some(InfoKind::Dummy));
        assert_eq!(kind_of(&other), None);
    }

    #[test]
    fn only_default_routes_outside_of_the_local_table_count() {
        let mut route = RouteMessage::default();
        route.attributes = vec![RouteAttribute::Oif(3)];
        assert_eq!(default_route_interfaces(&route), [3]);
        let mut hop = RouteNextHop::default();
        hop.interface_index = 4;
        route.attributes.push(RouteAttribute::MultiPath(vec![hop]));
        assert_eq!(default_route_interfaces(&route), [3, 4]);
        route.header.table = RT_TABLE_LOCAL;
        assert!(default_route_interfaces(&route).is_empty());
        route.header.table = 254;
        route.header.destination_prefix_length = 8;
        assert!(default_route_interfaces(&route).is_empty());
    }
}
