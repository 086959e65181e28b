//! Which interfaces lead out of the node. In: the node's links and default routes, as they change. Out: the guard's
//! map, kept true.
//!
//! Ours and the loopback are local. A veth's, a bridge's, a netkit's and an Open vSwitch port's packets are pods', as
//! long as no default route leads there. Everything else (network cards, tunnels to other nodes) is an uplink.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use hublet_ebpf::{IFACE_LOCAL, IFACE_UPLINK, MAX_INTERFACES};
use netlink_packet_route::link::{InfoKind, LinkFlags, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::task::JoinHandle;

use crate::ebpf::maps::Programs;
use crate::node::link::{info_kind, name_of};
use crate::node::unavailable::{self, Unavailable};

/// Changes come in bursts; they are looked at together.
const PAUSE: Duration = Duration::from_millis(50);
/// Looked at this often without an event too: netlink drops events when its queue is full.
const RECHECK: Duration = Duration::from_secs(30);

/// The kernel's own table of local addresses (rtnetlink(7)).
const RT_TABLE_LOCAL: u8 = 255;

/// What is not found out but told.
#[derive(Debug, Clone)]
pub(super) struct UplinkConfig {
    /// The link that carries our address.
    pub(super) own: String,
    /// Interfaces that are uplinks whatever they look like.
    pub(super) uplinks: Vec<String>,
}

/// Keeps the guard's map true until it is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    tasks: [JoinHandle<()>; 2],
}

impl Guard {
    /// Looks once, switches the guard on, and goes on looking. Call on a tokio runtime, in the network namespace to
    /// guard.
    pub(super) async fn start(
        uplink_config: UplinkConfig,
        programs: Arc<Programs>,
    ) -> Result<Self, Unavailable> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut events) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|error| {
                unavailable::from_kernel("opening a netlink socket for the guard", &error)
            })?;
        let connection = tokio::spawn(connection);
        let mut told = match look(&handle, &uplink_config).await {
            Ok(found) => found,
            Err(error) => {
                connection.abort();
                return Err(Unavailable::Other {
                    what: "looking for uplinks".into(),
                    why: error.to_string(),
                });
            }
        };
        programs
            .guard(&told)
            .map_err(|error| unavailable::from_kernel("telling the guard the uplinks", &error))?;
        let keeper = tokio::spawn(async move {
            loop {
                match tokio::time::timeout(RECHECK, events.next()).await {
                    Ok(None) => return,
                    Ok(Some((message, _))) if !concerns(&message.payload) => continue,
                    _ => tokio::time::sleep(PAUSE).await,
                }
                match look(&handle, &uplink_config).await {
                    Ok(found) if found == told => {}
                    Ok(found) => match programs.guard(&found) {
                        Ok(()) => told = found,
                        Err(error) => {
                            tracing::error!("the guard can't be told of new interfaces: {error}")
                        }
                    },
                    Err(error) => {
                        tracing::error!("the guard can't look for new interfaces: {error}")
                    }
                }
            }
        });
        Ok(Self {
            tasks: [connection, keeper],
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Interfaces and their kinds, for the map. What isn't in it is a pod's.
async fn look(
    handle: &Handle,
    uplink_config: &UplinkConfig,
) -> Result<Vec<(u32, u32)>, rtnetlink::Error> {
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await?;
    let mut leading = BTreeSet::new();
    for wanted in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(wanted).execute().boxed();
        // A kernel without IPv6 has no such routes.
        while let Ok(Some(route)) = routes.try_next().await {
            leading.extend(leads_to(&route));
        }
    }
    let mut kinds: Vec<_> = links
        .iter()
        .filter_map(|link| kind(link, &leading, uplink_config))
        .collect();
    kinds.sort_unstable();
    kinds.truncate(MAX_INTERFACES);
    Ok(kinds)
}

fn kind(
    link: &LinkMessage,
    leading: &BTreeSet<u32>,
    uplink_config: &UplinkConfig,
) -> Option<(u32, u32)> {
    let (index, name) = (link.header.index, name_of(link));
    if link.header.flags.contains(LinkFlags::Loopback) || name == uplink_config.own {
        return Some((index, IFACE_LOCAL));
    }
    let pods = match info_kind(link) {
        Some(InfoKind::Veth | InfoKind::Bridge | InfoKind::Netkit) => true,
        Some(InfoKind::Other(kind)) => kind == "openvswitch",
        Some(InfoKind::Dummy | InfoKind::Ifb) => return None, // nothing comes in by these
        _ => false,
    };
    let uplink = !pods || leading.contains(&index) || uplink_config.uplinks.contains(&name);
    uplink.then_some((index, IFACE_UPLINK))
}

/// Where a default route leads; the tables of policy routing count, the kernel's own does not.
fn leads_to(route: &RouteMessage) -> Vec<u32> {
    if route.header.destination_prefix_length != 0 || route.header.table == RT_TABLE_LOCAL {
        return Vec::new();
    }
    let mut links = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => links.push(*index),
            RouteAttribute::MultiPath(hops) => {
                links.extend(hops.iter().map(|hop| hop.interface_index))
            }
            _ => {}
        }
    }
    links
}

/// Could this change who is an uplink?
fn concerns(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelLink, DelRoute, NewLink, NewRoute};
    match payload {
        NetlinkPayload::InnerMessage(NewLink(_) | DelLink(_)) => true,
        NetlinkPayload::InnerMessage(NewRoute(route) | DelRoute(route)) => {
            !leads_to(route).is_empty()
        }
        _ => false,
    }
}
