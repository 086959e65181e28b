//! The link-local address and the link that carries it. In: a name and an address. Out: the address on this node,
//! put back within a second when someone removes it, and taken away by [`Interface::remove`] if it is ours.
//!
//! Kinds in order: `dummy`, and where the kernel has none `ifb`, a bridge without ports, an address on `lo`.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, future};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkMessage,
};
use nix::errno::Errno;
use parking_lot::Mutex;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::{
    Handle, LinkBridge, LinkDummy, LinkGetRequest, LinkIfb, LinkUnspec, MulticastGroup,
};
use tokio::task::JoinHandle;

use super::error::SetupError;
use super::link::{self, ALIAS, name_of};
use super::unavailable::{self, Unavailable};
use crate::config::DummyConfig;

/// A pause before the address is put back, so that someone who insists on removing it does not start a race.
const REPAIR_PAUSE: Duration = Duration::from_millis(200);
/// Looked at this often without an event too: netlink drops events when its queue is full.
const RECHECK: Duration = Duration::from_secs(30);

/// The address on this node.
#[derive(Debug)]
pub(crate) struct Interface {
    node: Node,
    state: Arc<Mutex<State>>,
    repair: JoinHandle<()>,
    connection: JoinHandle<()>,
    /// One daemon a network namespace removes the link at its end: the first, while it lives.
    owner: Option<UnixDatagram>,
}

/// What there is, and what of it is ours.
#[derive(Debug, Clone)]
struct State {
    index: u32,
    link: String,
    kind: String,
    made_link: bool,
    made_address: bool,
    repairs: u64,
}

/// The wish, and the way to the kernel.
#[derive(Debug, Clone)]
struct Node {
    handle: Handle,
    name: String,
    ip: IpAddr,
}

/// Why there is no address.
pub(crate) enum Failed {
    /// A part is off; the daemon goes on.
    Off(Unavailable),
    /// The user must decide.
    Error(SetupError),
}

impl From<SetupError> for Failed {
    fn from(error: SetupError) -> Self {
        Self::Error(error)
    }
}

impl Interface {
    /// Finds or makes it, and keeps it there. Call on a tokio runtime, in the network namespace to serve.
    pub(crate) async fn ensure(wish: &DummyConfig, owner: Option<OwnedFd>) -> Result<Self, Failed> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
        ];
        let (connection, handle, mut events) = rtnetlink::new_multicast_connection(&groups)
            .map_err(|error| {
                Failed::Off(unavailable::from_kernel("opening a netlink socket", &error))
            })?;
        let connection = tokio::spawn(connection);
        let node = Node {
            handle,
            name: wish.name.clone(),
            ip: wish.ip,
        };
        let state = match node.put().await {
            Ok(state) => Arc::new(Mutex::new(state)),
            Err(failed) => {
                connection.abort();
                return Err(failed);
            }
        };
        let (repairer, shared) = (node.clone(), Arc::clone(&state));
        let repair = tokio::spawn(async move {
            loop {
                let event = tokio::time::timeout(RECHECK, events.next()).await;
                match event {
                    Ok(None) => return,
                    Ok(Some((message, _))) if !repairer.is_about_us(&message.payload) => {}
                    _ => repairer.repair(&shared).await,
                }
            }
        });
        let owner = owner.map(UnixDatagram::from).or_else(|| own(&wish.name));
        Ok(Self {
            owner,
            node,
            state,
            repair,
            connection,
        })
    }

    /// The right to remove it, if it is ours.
    pub(crate) fn owner(&self) -> Option<BorrowedFd<'_>> {
        self.owner.as_ref().map(AsFd::as_fd)
    }

    /// The link that carries the address.
    pub(crate) fn link(&self) -> String {
        self.state.lock().link.clone()
    }

    pub(crate) fn describe(&self) -> String {
        let state = self.state.lock();
        let mut text = format!(
            "{} ({}) {}/{}",
            state.link,
            state.kind,
            self.node.ip,
            full(self.node.ip)
        );
        if state.repairs > 0 {
            text.push_str(&format!(", put back {} times", state.repairs));
        }
        text
    }

    /// Takes away what we made.
    pub(crate) async fn remove(self) -> Result<(), SetupError> {
        self.repair.abort();
        if self.owner.is_none() {
            return Ok(());
        }
        let state = self.state.lock().clone();
        let result = if state.made_link {
            self.node.handle.link().del(state.index).execute().await
        } else if state.made_address {
            let message = self.node.address(state.index);
            self.node.handle.address().del(message).execute().await
        } else {
            Ok(())
        };
        match result {
            Err(error) if matches!(errno(&error), Some(Errno::ENODEV | Errno::EADDRNOTAVAIL)) => {
                Ok(())
            }
            result => result.map_err(|error| netlink(format!("removing {}", state.link), error)),
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
    /// Makes sure that link and address are there and up.
    async fn put(&self) -> Result<State, Failed> {
        let mut state = match self.find_address().await? {
            Some(index) => {
                let link = self
                    .link(self.handle.link().get().match_index(index))
                    .await?;
                let link = link.ok_or_else(|| gone(&self.name))?;
                if name_of(&link) != self.name && name_of(&link) != "lo" {
                    return Err(Failed::Error(SetupError::AddressElsewhere {
                        ip: self.ip,
                        link: name_of(&link),
                        wanted: self.name.clone(),
                    }));
                }
                State {
                    made_address: false,
                    ..state_of(&link)
                }
            }
            None => {
                let mut state = self.find_or_make_link().await?;
                self.add_address(state.index).await?;
                state.made_address = true;
                state
            }
        };
        let up = LinkUnspec::new_with_index(state.index).up().build();
        if let Err(error) = self.handle.link().set(up).execute().await
            && !is_denied(&error)
        {
            return Err(netlink(format!("setting {} up", state.link), error).into());
        }
        // Link and address of an earlier life of ours: both go at the end.
        state.made_address |= state.made_link;
        Ok(state)
    }

    async fn find_or_make_link(&self) -> Result<State, Failed> {
        let by_name = || self.handle.link().get().match_name(&self.name);
        if let Some(link) = self.link(by_name()).await? {
            return Ok(state_of(&link));
        }
        let kinds = [
            LinkDummy::new(&self.name).build(),
            LinkIfb::new(&self.name).build(),
            LinkBridge::new(&self.name).down().build(), // made up, it has an IPv6 address already
        ];
        for message in kinds {
            match self.handle.link().add(message).execute().await {
                Ok(()) => {}
                Err(error) if errno(&error) == Some(Errno::EEXIST) => {} // made by another meanwhile
                Err(error) if is_denied(&error) => {
                    return Err(Failed::Off(Unavailable::Privilege {
                        what: format!("making the link {}", self.name),
                        needs: unavailable::NEEDS_NET,
                    }));
                }
                Err(error)
                    if matches!(
                        errno(&error),
                        Some(Errno::EOPNOTSUPP | Errno::ENOENT | Errno::ENODEV)
                    ) =>
                {
                    continue;
                }
                Err(error) => {
                    return Err(netlink(format!("making the link {}", self.name), error).into());
                }
            }
            let link = self
                .link(by_name())
                .await?
                .ok_or_else(|| gone(&self.name))?;
            let index = link.header.index;
            self.mark_as_ours(index).await;
            return Ok(State {
                made_link: true,
                ..state_of(&link)
            });
        }
        let lo = self
            .link(self.handle.link().get().match_name("lo"))
            .await?
            .ok_or_else(|| gone("lo"))?;
        Ok(state_of(&lo))
    }

    /// Alias, and no IPv6 link-local address of its own. Niceties: the address works without.
    async fn mark_as_ours(&self, index: u32) {
        let alias = LinkUnspec::new_with_index(index).alias(ALIAS).build();
        let no_ipv6 = LinkUnspec::new_with_index(index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(
                vec![AfSpecInet6::AddrGenMode(In6AddrGenMode::None)],
            )]))
            .build();
        for message in [alias, no_ipv6] {
            if let Err(error) = self.handle.link().set(message).execute().await {
                tracing::debug!(%error, link = self.name, "link attribute not set");
            }
        }
    }

    async fn add_address(&self, index: u32) -> Result<(), Failed> {
        let mut request = self.handle.address().add(index, self.ip, full(self.ip));
        request.message_mut().header.scope = AddressScope::Link;
        match request.execute().await {
            Err(error) if errno(&error) == Some(Errno::EEXIST) => Ok(()),
            Err(error) if is_denied(&error) => Err(Failed::Off(Unavailable::Privilege {
                what: format!("adding {} to {}", self.ip, self.name),
                needs: unavailable::NEEDS_NET,
            })),
            result => result.map_err(|error| {
                netlink(format!("adding {} to {}", self.ip, self.name), error).into()
            }),
        }
    }

    /// Index of the link that has our address.
    async fn find_address(&self) -> Result<Option<u32>, SetupError> {
        // The kernel's dump knows no filter by address.
        let all = self.handle.address().get().execute();
        let mut ours = all
            .try_filter(|message| future::ready(has_address(message, self.ip)))
            .boxed();
        match ours.try_next().await {
            Ok(found) => Ok(found.map(|message| message.header.index)),
            Err(error) => Err(netlink(format!("looking for {}", self.ip), error)),
        }
    }

    async fn link(&self, request: LinkGetRequest) -> Result<Option<LinkMessage>, SetupError> {
        let mut found = request.execute().boxed();
        match found.try_next().await {
            Err(error) if errno(&error) == Some(Errno::ENODEV) => Ok(None),
            result => result
                .map_err(|error| netlink(format!("looking for the link {}", self.name), error)),
        }
    }

    fn address(&self, index: u32) -> AddressMessage {
        let mut request = self.handle.address().add(index, self.ip, full(self.ip));
        request.message_mut().clone()
    }

    /// Did our link or our address go?
    fn is_about_us(
        &self,
        payload: &NetlinkPayload<rtnetlink::packet_route::RouteNetlinkMessage>,
    ) -> bool {
        use rtnetlink::packet_route::RouteNetlinkMessage::{DelAddress, DelLink};
        match payload {
            NetlinkPayload::InnerMessage(DelAddress(message)) => has_address(message, self.ip),
            NetlinkPayload::InnerMessage(DelLink(message)) => name_of(message) == self.name,
            _ => false,
        }
    }

    async fn repair(&self, shared: &Mutex<State>) {
        if matches!(self.find_address().await, Ok(Some(_))) {
            return;
        }
        tokio::time::sleep(REPAIR_PAUSE).await;
        match self.put().await {
            Ok(found) => {
                let mut state = shared.lock();
                let repairs = state.repairs + 1;
                *state = State { repairs, ..found };
                tracing::warn!(ip = %self.ip, link = state.link, "someone removed our address; it is back");
            }
            Err(Failed::Off(missing)) => tracing::error!("our address is gone: {missing}"),
            Err(Failed::Error(error)) => tracing::error!("our address is gone: {error}"),
        }
    }
}

/// Removes the link of this name if a hublet made it, and none lives on it. True when there was one.
///
/// # Errors
/// A daemon lives on it, or the kernel refuses.
pub(crate) async fn remove_interface(name: &str) -> Result<bool, SetupError> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(SetupError::NoNetlink)?;
    let connection = tokio::spawn(connection);
    let mut found = handle
        .link()
        .get()
        .match_name(name.to_owned())
        .execute()
        .boxed();
    let ours = match found.try_next().await {
        Ok(link) => link.filter(|link| state_of(link).made_link),
        Err(_) => None, // no such link
    };
    let removed = match ours {
        None => Ok(false),
        Some(_) if own(name).is_none() => Err(SetupError::InUse { name: name.into() }),
        Some(link) => match handle.link().del(link.header.index).execute().await {
            Ok(()) => Ok(true),
            Err(error) => Err(netlink(format!("removing {name}"), error)),
        },
    };
    connection.abort();
    removed
}

/// A name among the abstract unix sockets, which belong to the network namespace and go with the process.
fn own(link: &str) -> Option<UnixDatagram> {
    let name = format!("hublet/{link}");
    SocketAddr::from_abstract_name(name)
        .and_then(|name| UnixDatagram::bind_addr(&name))
        .ok()
}

fn has_address(message: &AddressMessage, ip: IpAddr) -> bool {
    message.attributes.contains(&AddressAttribute::Address(ip))
}

/// Prefix length of a single address.
fn full(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn state_of(link: &LinkMessage) -> State {
    State {
        index: link.header.index,
        link: name_of(link),
        kind: link::kind_of(link),
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

fn netlink(doing: String, source: rtnetlink::Error) -> SetupError {
    SetupError::Netlink {
        doing,
        source: Box::new(source),
    }
}

fn gone(name: &str) -> SetupError {
    SetupError::LinkGone { name: name.into() }
}
