//! The sockets of clients, bound in two steps: the host's before the interface exists, the
//! interface's after it.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use tracing::warn;

use super::handover::Inheritance;
use crate::caller::Port;
use crate::config::ListenConfig;
use crate::listen::{ListenError, Listener, ListenerState, ListenerStatus, Purpose, bind};
use crate::steer::Setup;

/// The bound sockets; the secure one is the last.
#[derive(Debug)]
pub(super) struct Sockets {
    listeners: Vec<Listener>,
    /// The dummy interface's address.
    dummy: Option<IpAddr>,
    /// The reason why the secure socket isn't on its configured address.
    secure_moved: Option<String>,
}

impl Sockets {
    /// Binds the addresses that exist without the dummy interface.
    pub(super) fn bind_host(
        config: &ListenConfig,
        dummy: Option<IpAddr>,
        inheritance: &mut Inheritance,
    ) -> Result<Self, ListenError> {
        let mut sockets = Self {
            listeners: Vec::new(),
            dummy,
            secure_moved: None,
        };
        for address in &config.plain {
            if Some(address.ip()) != dummy {
                sockets.add(*address, Port::Plain, inheritance)?;
            }
        }
        if Some(config.secure.ip()) != dummy {
            sockets.add(config.secure, Port::Secure, inheritance)?;
        }
        Ok(sockets)
    }

    /// Binds the dummy interface's addresses. If the interface could not be created (no
    /// privileges), the secure port moves to the host's address: clients that are configured with
    /// it are still served.
    pub(super) fn bind_interface(
        &mut self,
        config: &ListenConfig,
        setup: &Setup,
        inheritance: &mut Inheritance,
    ) -> Result<(), ListenError> {
        let Some(dummy) = self.dummy else {
            return Ok(());
        };
        let secure = Some(config.secure).filter(|secure| secure.ip() == dummy);
        if secure.is_some() && !has_interface(setup) && !is_local(dummy) {
            return self.add_on_host(config, inheritance);
        }
        for address in config.plain.iter().filter(|plain| plain.ip() == dummy) {
            self.add(*address, Port::Plain, inheritance)?;
        }
        match secure {
            Some(secure) => self.add(secure, Port::Secure, inheritance),
            None => Ok(()),
        }
    }

    /// Adds the secure port on the host's address, instead of the interface's.
    fn add_on_host(
        &mut self,
        config: &ListenConfig,
        inheritance: &mut Inheritance,
    ) -> Result<(), ListenError> {
        let secure = config.secure;
        let host = SocketAddr::new(config.plain[0].ip(), secure.port());
        let reason = format!("{secure} can't be bound without the dummy interface");
        warn!("{reason}: TLS is served on {host} instead");
        self.secure_moved = Some(reason);
        self.add(host, Port::Secure, inheritance)
    }

    fn add(
        &mut self,
        address: SocketAddr,
        port: Port,
        inheritance: &mut Inheritance,
    ) -> Result<(), ListenError> {
        let socket = inherit_or_bind(address, purpose_of(port), inheritance)?;
        let socket = Arc::new(into_async(socket, address)?);
        let listener = Listener { port, socket };
        match port {
            Port::Secure => self.listeners.push(listener),
            Port::Plain => self.listeners.insert(0, listener),
        }
        Ok(())
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    /// The sockets of clients, and the admin server's, as they are before the start of accepting.
    pub(super) fn statuses(&self, admin: SocketAddr) -> Vec<ListenerStatus> {
        let clients = self.listeners.iter().filter_map(|listener| {
            let address = listener.socket.local_addr().ok()?;
            Some(self.status_of(listener.port, address))
        });
        let admin = ListenerStatus {
            purpose: Purpose::Admin,
            address: admin,
            state: ListenerState::Accepting,
            reason: None,
        };
        clients.chain([admin]).collect()
    }

    fn status_of(&self, port: Port, address: SocketAddr) -> ListenerStatus {
        let moved = self.secure_moved.clone();
        ListenerStatus {
            purpose: purpose_of(port),
            address,
            state: ListenerState::Bound,
            reason: moved.filter(|_| port == Port::Secure),
        }
    }

    pub(super) fn secure(&self) -> &Listener {
        self.listeners
            .last()
            .expect("the secure listener is always bound, and last")
    }

    pub(super) fn secure_address(&self) -> SocketAddr {
        self.secure()
            .socket
            .local_addr()
            .expect("a bound socket has an address")
    }

    /// True if the secure listener is on the interface, where eBPF can steer clients to.
    pub(super) fn is_secure_on_interface(&self) -> bool {
        Some(self.secure_address().ip()) == self.dummy
    }
}

/// The old daemon's socket for this address, otherwise a new one.
pub(super) fn inherit_or_bind(
    address: SocketAddr,
    purpose: Purpose,
    inheritance: &mut Inheritance,
) -> Result<TcpListener, ListenError> {
    match inheritance.take_listener(address) {
        Some(socket) => Ok(socket),
        None => bind(address, purpose),
    }
}

fn purpose_of(port: Port) -> Purpose {
    match port {
        Port::Plain => Purpose::Plain,
        Port::Secure => Purpose::Secure,
    }
}

fn into_async(
    socket: TcpListener,
    address: SocketAddr,
) -> Result<tokio::net::TcpListener, ListenError> {
    tokio::net::TcpListener::from_std(socket).map_err(|source| ListenError::Bind {
        address,
        reason: source.to_string(),
        source,
    })
}

fn has_interface(setup: &Setup) -> bool {
    setup
        .components()
        .iter()
        .any(|component| component.name == "interface" && component.on)
}

/// True if any interface has the address: the administrator may have added it to another one.
fn is_local(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn free_port() -> u16 {
        let socket = TcpListener::bind((LOOPBACK, 0)).expect("a socket");
        socket.local_addr().expect("its address").port()
    }

    fn config() -> ListenConfig {
        ListenConfig {
            plain: vec![SocketAddr::new(LOOPBACK, free_port())],
            secure: SocketAddr::new(LOOPBACK, free_port()),
            max_connections: 1,
            max_requests: 1,
            max_bytes_under_way: 1,
            reader_timeout: std::time::Duration::from_secs(1),
            drain: std::time::Duration::ZERO,
        }
    }

    #[tokio::test]
    async fn the_secure_socket_is_the_last() {
        let config = config();
        let mut inheritance = Inheritance::default();
        let sockets = Sockets::bind_host(&config, None, &mut inheritance).expect("bound");
        let ports: Vec<_> = sockets.listeners().iter().map(|l| l.port).collect();
        assert_eq!(ports, [Port::Plain, Port::Secure]);
        assert_eq!(sockets.secure_address(), config.secure);
        assert!(!sockets.is_secure_on_interface());
    }

    #[tokio::test]
    async fn a_secure_socket_on_the_hosts_address_has_its_reason_in_the_status() {
        let mut config = config();
        config.secure = SocketAddr::new([192, 0, 2, 1].into(), config.secure.port());
        let (dummy, mut inheritance) = (config.secure.ip(), Inheritance::default());
        let mut sockets =
            Sockets::bind_host(&config, Some(dummy), &mut inheritance).expect("bound");
        sockets
            .add_on_host(&config, &mut inheritance)
            .expect("bound");
        let admin = SocketAddr::new(LOOPBACK, 1);
        let statuses = sockets.statuses(admin);
        let purposes: Vec<_> = statuses.iter().map(|status| status.purpose).collect();
        assert_eq!(purposes, [Purpose::Plain, Purpose::Secure, Purpose::Admin]);
        let reason = statuses[1].reason.as_deref().expect("a reason");
        assert!(reason.contains("192.0.2.1"), "{reason}");
        assert_eq!((&statuses[0].reason, &statuses[2].reason), (&None, &None));
        assert_eq!(statuses[2].address, admin);
    }

    #[tokio::test]
    async fn the_interfaces_addresses_wait_for_the_interface() {
        let mut config = config();
        let dummy: IpAddr = "169.254.2.1".parse().expect("address");
        config.secure = SocketAddr::new(dummy, 10268);
        config.plain.push(SocketAddr::new(dummy, 10261));
        let mut inheritance = Inheritance::default();
        let sockets = Sockets::bind_host(&config, Some(dummy), &mut inheritance).expect("bound");
        assert_eq!(sockets.listeners().len(), 1);
    }
}
