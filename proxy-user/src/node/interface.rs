//! The link-local address and the link that carries it: created at start, restored when someone removes it, removed by
//! `Interface::remove` if hublet created it.
//!
//! Link types in order of preference: `dummy`, then (on kernels without it) `ifb`, a bridge without ports, and an address
//! on `lo`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, future};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use nix::errno::Errno;
use parking_lot::Mutex;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{
    AddressAddRequest, Handle, LinkBridge, LinkDummy, LinkGetRequest, LinkIfb, LinkUnspec,
    MulticastGroup,
};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::link::{self, ALIAS};
use super::unavailable::{self, Unavailable};
use crate::config::DummyConfig;

/// A pause before the address is restored: without it a program that insists on its removal would cause a busy loop.
const REPAIR_DELAY: Duration = Duration::from_millis(200);
/// Netlink drops events when its queue is full, so the address is also checked at this interval.
const CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Events of links and addresses.
const GROUPS: [MulticastGroup; 3] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
];

/// Errors of the interface.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceError {
    /// The daemon goes on without the interface.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    #[error(
        "{ip} is already assigned to {link}, not to {wanted}: remove it (`ip address del {ip} dev {link}`), \
         or set --dummy-if-name={link} or another --dummy-if-ip"
    )]
    AddressElsewhere {
        ip: IpAddr,
        link: String,
        wanted: String,
    },
    #[error("{operation}: {source}")]
    Netlink {
        operation: String,
        source: Box<rtnetlink::Error>,
    },
    #[error("opening a netlink socket: {0}")]
    Socket(#[source] io::Error),
    #[error("a running hublet uses the interface {name}: stop it first")]
    InUse { name: String },
    #[error(
        "the interface {name} disappeared during setup: another program manages it (NetworkManager, \
         systemd-networkd?); exclude {name} there"
    )]
    LinkGone { name: String },
}

/// Hublet's address on this node.
#[derive(Debug)]
pub(crate) struct Interface {
    node: Node,
    state: Arc<Mutex<LinkState>>,
    repair: JoinHandle<()>,
    connection: JoinHandle<()>,
    /// Held by the daemon that removes the link at its end: the first one of the network namespace.
    owner: Option<UnixDatagram>,
}

/// The link that carries the address, and which of both hublet created.
#[derive(Debug, Clone)]
struct LinkState {
    index: u32,
    name: String,
    kind: String,
    made_link: bool,
    made_address: bool,
    repairs: u64,
}

/// The configured interface, and a netlink handle.
#[derive(Debug, Clone)]
struct Node {
    handle: Handle,
    name: String,
    ip: IpAddr,
}

impl Interface {
    /// Finds or creates the interface and keeps it there. Call on a tokio runtime, in the network namespace to serve.
    /// `owner` is the right to remove it, taken over from another daemon.
    ///
    /// # Errors
    /// The address is on another interface, or netlink refuses.
    pub(crate) async fn ensure(
        config: &DummyConfig,
        owner: Option<OwnedFd>,
    ) -> Result<Self, InterfaceError> {
        let (connection, handle, events) = rtnetlink::new_multicast_connection(&GROUPS)
            .map_err(|error| unavailable::from_kernel("opening a netlink socket", error))?;
        let connection = tokio::spawn(connection);
        let node = Node {
            handle,
            name: config.name.clone(),
            ip: config.ip,
        };
        let state = match node.ensure_address().await {
            Ok(state) => Arc::new(Mutex::new(state)),
            Err(error) => {
                connection.abort();
                return Err(error);
            }
        };
        let messages = events.map(|(message, _)| message.payload).boxed();
        let repair = tokio::spawn(node.clone().keep_address(Arc::clone(&state), messages));
        let owner = owner
            .map(UnixDatagram::from)
            .or_else(|| claim_ownership(&config.name));
        Ok(Self {
            node,
            state,
            repair,
            connection,
            owner,
        })
    }

    /// The right to remove the interface, if this daemon has it.
    pub(crate) fn owner(&self) -> Option<BorrowedFd<'_>> {
        self.owner.as_ref().map(AsFd::as_fd)
    }

    /// The link that carries the address.
    pub(crate) fn link_name(&self) -> String {
        self.state.lock().name.clone()
    }

    pub(crate) fn describe(&self) -> String {
        let state = self.state.lock();
        let mut text = format!(
            "{} ({}) {}/{}",
            state.name,
            state.kind,
            self.node.ip,
            prefix_length(self.node.ip)
        );
        if state.repairs > 0 {
            text.push_str(&format!(", restored {} times", state.repairs));
        }
        text
    }

    /// Removes the link or address that hublet created, if this daemon owns it.
    ///
    /// # Errors
    /// Netlink refuses.
    pub(crate) async fn remove(self) -> Result<(), InterfaceError> {
        self.repair.abort();
        if self.owner.is_none() {
            return Ok(());
        }
        let state = self.state.lock().clone();
        match self.node.remove_made(&state).await {
            // It is gone already.
            Err(error) if matches!(errno(&error), Some(Errno::ENODEV | Errno::EADDRNOTAVAIL)) => {
                Ok(())
            }
            result => {
                result.map_err(|error| netlink_error(format!("removing {}", state.name), error))
            }
        }
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.repair.abort();
        self.connection.abort();
    }
}

impl Node {
    /// Restores the address whenever it is removed.
    async fn keep_address(
        self,
        state: Arc<Mutex<LinkState>>,
        mut messages: BoxStream<'static, NetlinkPayload<RouteNetlinkMessage>>,
    ) {
        loop {
            match timeout(CHECK_INTERVAL, messages.next()).await {
                Ok(None) => return,
                Ok(Some(message)) if !self.is_own_removal(&message) => {}
                _ => self.repair(&state).await,
            }
        }
    }

    async fn remove_made(&self, state: &LinkState) -> Result<(), rtnetlink::Error> {
        if state.made_link {
            self.handle.link().del(state.index).execute().await
        } else if state.made_address {
            let message = self.address_message(state.index);
            self.handle.address().del(message).execute().await
        } else {
            Ok(())
        }
    }

    /// Makes sure that link and address exist and that the link is up.
    async fn ensure_address(&self) -> Result<LinkState, InterfaceError> {
        let mut state = match self.find_address().await? {
            Some(index) => self.existing_address(index).await?,
            None => self.create_address().await?,
        };
        self.set_up(&state).await?;
        // An address on a link of an earlier hublet is hublet's, too: both go at the end.
        state.made_address |= state.made_link;
        Ok(state)
    }

    async fn create_address(&self) -> Result<LinkState, InterfaceError> {
        let mut state = self.find_or_create_link().await?;
        self.add_address(state.index).await?;
        state.made_address = true;
        Ok(state)
    }

    async fn set_up(&self, state: &LinkState) -> Result<(), InterfaceError> {
        let up = LinkUnspec::new_with_index(state.index).up().build();
        match self.handle.link().set(up).execute().await {
            Err(error) if !is_denied(&error) => {
                Err(netlink_error(format!("setting {} up", state.name), error))
            }
            _ => Ok(()),
        }
    }

    /// The state of the link that has the address, which must be the configured one or `lo`.
    async fn existing_address(&self, index: u32) -> Result<LinkState, InterfaceError> {
        let request = self.handle.link().get().match_index(index);
        let link = self.find_link(request).await?;
        let state = link_state(&link.ok_or_else(|| self.link_gone())?);
        if state.name == self.name || state.name == "lo" {
            return Ok(state);
        }
        Err(InterfaceError::AddressElsewhere {
            ip: self.ip,
            link: state.name,
            wanted: self.name.clone(),
        })
    }

    async fn find_or_create_link(&self) -> Result<LinkState, InterfaceError> {
        if let Some(link) = self.find_link(self.request_by_name()).await? {
            return Ok(link_state(&link));
        }
        for candidate in self.candidates() {
            if let Some(state) = self.create_link(candidate).await? {
                return Ok(state);
            }
        }
        self.loopback().await
    }

    /// Links to create, in order of preference.
    fn candidates(&self) -> [LinkMessage; 3] {
        [
            LinkDummy::new(&self.name).build(),
            LinkIfb::new(&self.name).build(),
            // Down, because a bridge that is created up gets an IPv6 address at once.
            LinkBridge::new(&self.name).down().build(),
        ]
    }

    async fn loopback(&self) -> Result<LinkState, InterfaceError> {
        let lo = self.handle.link().get().match_name("lo");
        let lo = self.find_link(lo).await?;
        let lo = lo.ok_or_else(|| InterfaceError::LinkGone { name: "lo".into() })?;
        Ok(link_state(&lo))
    }

    /// `None` if the kernel has no links of this type.
    async fn create_link(
        &self,
        candidate: LinkMessage,
    ) -> Result<Option<LinkState>, InterfaceError> {
        if !self.add_link(candidate).await? {
            return Ok(None);
        }
        let link = self.find_link(self.request_by_name()).await?;
        let link = link.ok_or_else(|| self.link_gone())?;
        self.mark_as_ours(link.header.index).await;
        Ok(Some(LinkState {
            made_link: true,
            ..link_state(&link)
        }))
    }

    /// False if the kernel has no links of this type.
    async fn add_link(&self, candidate: LinkMessage) -> Result<bool, InterfaceError> {
        let Err(error) = self.handle.link().add(candidate).execute().await else {
            return Ok(true);
        };
        match errno(&error) {
            // Another process was faster.
            Some(Errno::EEXIST) => Ok(true),
            Some(Errno::EOPNOTSUPP | Errno::ENOENT | Errno::ENODEV) => Ok(false),
            _ => Err(change_error(
                format!("making the link {}", self.name),
                error,
            )),
        }
    }

    /// Sets the alias, and keeps the kernel from adding an IPv6 link-local address. The address also works without.
    async fn mark_as_ours(&self, index: u32) {
        let alias = LinkUnspec::new_with_index(index).alias(ALIAS).build();
        let no_ipv6 = LinkUnspec::new_with_index(index)
            .append_extra_attribute(no_link_local_address())
            .build();
        for message in [alias, no_ipv6] {
            if let Err(error) = self.handle.link().set(message).execute().await {
                tracing::debug!(%error, link = self.name, "link attribute not set");
            }
        }
    }

    async fn add_address(&self, index: u32) -> Result<(), InterfaceError> {
        let mut request = self.add_address_request(index);
        request.message_mut().header.scope = AddressScope::Link;
        match request.execute().await {
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
            result => result.map_err(|error| {
                change_error(format!("adding {} to {}", self.ip, self.name), error)
            }),
        }
    }

    /// Index of the link that has the address.
    async fn find_address(&self) -> Result<Option<u32>, InterfaceError> {
        // The kernel can't filter its dump by address.
        let all = self.handle.address().get().execute();
        let mut ours = all
            .try_filter(|message| future::ready(has_address(message, self.ip)))
            .boxed();
        match ours.try_next().await {
            Ok(found) => Ok(found.map(|message| message.header.index)),
            Err(error) => Err(netlink_error(format!("looking for {}", self.ip), error)),
        }
    }

    fn request_by_name(&self) -> LinkGetRequest {
        self.handle.link().get().match_name(&self.name)
    }

    async fn find_link(
        &self,
        request: LinkGetRequest,
    ) -> Result<Option<LinkMessage>, InterfaceError> {
        let mut found = request.execute().boxed();
        match found.try_next().await {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            result => result.map_err(|error| {
                netlink_error(format!("looking for the link {}", self.name), error)
            }),
        }
    }

    fn add_address_request(&self, index: u32) -> AddressAddRequest {
        let prefix = prefix_length(self.ip);
        self.handle.address().add(index, self.ip, prefix)
    }

    fn address_message(&self, index: u32) -> AddressMessage {
        self.add_address_request(index).message_mut().clone()
    }

    /// True if hublet's link or address was removed.
    fn is_own_removal(&self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
        use RouteNetlinkMessage::{DelAddress, DelLink};
        match payload {
            NetlinkPayload::InnerMessage(DelAddress(message)) => has_address(message, self.ip),
            NetlinkPayload::InnerMessage(DelLink(message)) => link::name_of(message) == self.name,
            _ => false,
        }
    }

    fn link_gone(&self) -> InterfaceError {
        InterfaceError::LinkGone {
            name: self.name.clone(),
        }
    }

    /// Restores the address if it is gone.
    async fn repair(&self, shared: &Mutex<LinkState>) {
        if matches!(self.find_address().await, Ok(Some(_))) {
            return;
        }
        sleep(REPAIR_DELAY).await;
        match self.ensure_address().await {
            Ok(found) => {
                tracing::warn!(ip = %self.ip, link = found.name, "the address was removed by another program; it is restored");
                let mut state = shared.lock();
                let repairs = state.repairs + 1;
                *state = LinkState { repairs, ..found };
            }
            Err(error) => tracing::error!("the address is gone and can't be restored: {error}"),
        }
    }
}

/// Removes the link of this name if a hublet created it. True if there was one.
///
/// # Errors
/// A running daemon uses it, or the kernel refuses.
pub(crate) async fn remove_interface(name: &str) -> Result<bool, InterfaceError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(InterfaceError::Socket)?;
    let connection = tokio::spawn(connection);
    let removed = remove_own_link(&handle, name).await;
    connection.abort();
    removed
}

async fn remove_own_link(handle: &Handle, name: &str) -> Result<bool, InterfaceError> {
    let request = handle.link().get().match_name(name.to_owned());
    let link = request.execute().boxed().try_next().await;
    // An error means that there is no such link.
    let Some(link) = link.ok().flatten().filter(link::is_ours) else {
        return Ok(false);
    };
    if claim_ownership(name).is_none() {
        return Err(InterfaceError::InUse { name: name.into() });
    }
    let removed = handle.link().del(link.header.index).execute().await;
    removed.map_err(|error| netlink_error(format!("removing {name}"), error))?;
    Ok(true)
}

/// Binds an abstract unix socket, whose name belongs to the network namespace and is released with the process. `None` if
/// another daemon has it.
fn claim_ownership(link: &str) -> Option<UnixDatagram> {
    let name = format!("hublet/{link}");
    SocketAddr::from_abstract_name(name)
        .and_then(|name| UnixDatagram::bind_addr(&name))
        .ok()
}

fn no_link_local_address() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

fn has_address(message: &AddressMessage, ip: IpAddr) -> bool {
    message.attributes.contains(&AddressAttribute::Address(ip))
}

/// Prefix length of a single address.
fn prefix_length(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn link_state(link: &LinkMessage) -> LinkState {
    LinkState {
        index: link.header.index,
        name: link::name_of(link),
        kind: link::kind_name(link),
        made_link: link::is_ours(link),
        made_address: false,
        repairs: 0,
    }
}

fn errno(error: &rtnetlink::Error) -> Option<Errno> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(Errno::from_raw(-message.raw_code())),
        _ => None,
    }
}

fn is_denied(error: &rtnetlink::Error) -> bool {
    matches!(errno(error), Some(Errno::EPERM | Errno::EACCES))
}

fn netlink_error(operation: String, source: rtnetlink::Error) -> InterfaceError {
    InterfaceError::Netlink {
        operation,
        source: Box::new(source),
    }
}

/// Lack of privileges makes the interface unavailable; any other refusal of a change is an error.
fn change_error(operation: String, source: rtnetlink::Error) -> InterfaceError {
    if is_denied(&source) {
        return InterfaceError::Unavailable(Unavailable::Privilege {
            operation,
            needs: unavailable::NEEDS_NET,
        });
    }
    netlink_error(operation, source)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroI32;

    use rtnetlink::packet_core::ErrorMessage;

    use super::*;

    fn refusal(errno: Errno) -> rtnetlink::Error {
        let mut message = ErrorMessage::default();
        message.code = NonZeroI32::new(-(errno as i32));
        rtnetlink::Error::NetlinkError(message)
    }

    fn link(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut link = LinkMessage::default();
        link.attributes = attributes;
        link
    }

    #[test]
    fn a_lack_of_privileges_makes_the_interface_unavailable() {
        for errno in [Errno::EPERM, Errno::EACCES] {
            let error = change_error("adding".into(), refusal(errno));
            assert!(matches!(error, InterfaceError::Unavailable(_)), "{error}");
        }
        let error = change_error("adding".into(), refusal(Errno::EBUSY));
        assert!(matches!(error, InterfaceError::Netlink { .. }), "{error}");
    }

    #[test]
    fn the_alias_tells_hublets_links_from_others() {
        let name = LinkAttribute::IfName("hub-dummy0".into());
        let own = link(vec![name.clone(), LinkAttribute::IfAlias(ALIAS.into())]);
        assert!(link_state(&own).made_link);
        let foreign = link_state(&link(vec![name]));
        assert!(!foreign.made_link && !foreign.made_address);
        assert_eq!(foreign.name, "hub-dummy0");
    }

    #[test]
    fn one_daemon_owns_a_link() {
        let name = format!("test-{}", std::process::id());
        let owner = claim_ownership(&name).expect("it is free");
        assert!(claim_ownership(&name).is_none());
        drop(owner);
        assert!(claim_ownership(&name).is_some());
    }

    #[tokio::test]
    async fn the_removal_of_link_or_address_is_noticed() {
        let Ok((_connection, handle, _)) = rtnetlink::new_connection() else {
            return eprintln!("SKIP: no netlink socket");
        };
        let node = Node {
            handle,
            name: "hub-dummy0".into(),
            ip: [169, 254, 2, 1].into(),
        };
        let removed = |name: &str| {
            let message = link(vec![LinkAttribute::IfName(name.into())]);
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(message))
        };
        assert!(node.is_own_removal(&removed("hub-dummy0")));
        assert!(!node.is_own_removal(&removed("eth0")));
        let gone = |ip: [u8; 4]| {
            let mut message = AddressMessage::default();
            message.attributes = vec![AddressAttribute::Address(ip.into())];
            NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelAddress(message))
        };
        assert!(node.is_own_removal(&gone([169, 254, 2, 1])));
        assert!(!node.is_own_removal(&gone([169, 254, 2, 2])));
    }
}
