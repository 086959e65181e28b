//! The sockets of clients, bound in two steps: the host's before the interface exists, the interface's after.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

use tracing::warn;

use super::handover::Inheritance;

use crate::authz::caller::Port;
use crate::config::Config;
use crate::listen::{ListenError, Listener, Purpose, bind};
use crate::steer::Setup;

/// The bound sockets; the secure one comes last.
#[derive(Debug)]
pub(super) struct Sockets {
    listeners: Vec<Listener>,
    dummy: Option<IpAddr>,
}

impl Sockets {
    /// Binds what needs no interface of ours.
    pub(super) fn of_the_host(
        config: &Config,
        taken: &mut Inheritance,
    ) -> Result<Self, ListenError> {
        let dummy = config.setup.dummy.as_ref().map(|dummy| dummy.ip);
        let mut sockets = Self {
            listeners: Vec::new(),
            dummy,
        };
        for address in config
            .listen
            .plain
            .iter()
            .filter(|address| Some(address.ip()) != dummy)
        {
            sockets.add(*address, Port::Plain, taken)?;
        }
        if Some(config.listen.secure.ip()) != dummy {
            sockets.add(config.listen.secure, Port::Secure, taken)?;
        }
        Ok(sockets)
    }

    /// Binds what the interface carries. Without the interface (no privileges), the secure port moves to the host's
    /// address, so that clients that are told so are still served.
    pub(super) fn add_dummy(
        &mut self,
        config: &Config,
        setup: &Setup,
        taken: &mut Inheritance,
    ) -> Result<(), ListenError> {
        let Some(dummy) = self.dummy else {
            return Ok(());
        };
        let plain: Vec<_> = config
            .listen
            .plain
            .iter()
            .copied()
            .filter(|address| address.ip() == dummy)
            .collect();
        let secure = Some(config.listen.secure).filter(|secure| secure.ip() == dummy);
        if let Some(secure) = secure.filter(|_| !is_up(setup) && !is_local(dummy)) {
            let host = SocketAddr::new(config.listen.plain[0].ip(), secure.port());
            warn!(
                "{secure} can't be served without its interface: TLS is served on {host} instead"
            );
            return self.add(host, Port::Secure, taken);
        }
        for address in plain {
            self.add(address, Port::Plain, taken)?;
        }
        secure.map_or(Ok(()), |secure| self.add(secure, Port::Secure, taken))
    }

    fn add(
        &mut self,
        address: SocketAddr,
        port: Port,
        taken: &mut Inheritance,
    ) -> Result<(), ListenError> {
        let purpose = match port {
            Port::Plain => Purpose::Plain,
            Port::Secure => Purpose::Secure,
        };
        let socket = bind_or_take(address, purpose, taken)?;
        let socket =
            tokio::net::TcpListener::from_std(socket).map_err(|source| ListenError::Bind {
                address,
                reason: source.to_string(),
                source,
            })?;
        let listener = Listener {
            port,
            socket: Arc::new(socket),
        };
        match port {
            Port::Secure => self.listeners.push(listener),
            Port::Plain => self.listeners.insert(0, listener),
        }
        Ok(())
    }

    pub(super) fn listeners(&self) -> &[Listener] {
        &self.listeners
    }

    pub(super) fn secure(&self) -> &Listener {
        self.listeners
            .last()
            .expect("the secure listener is always bound, and last")
    }

    pub(super) fn secure_address(&self) -> SocketAddr {
        address(self.secure())
    }

    /// The secure listener is where eBPF sends clients.
    pub(super) fn on_dummy(&self) -> bool {
        Some(self.secure_address().ip()) == self.dummy
    }
}

/// An old daemon's socket for this address, or a new one.
pub(super) fn bind_or_take(
    address: SocketAddr,
    purpose: Purpose,
    taken: &mut Inheritance,
) -> Result<TcpListener, ListenError> {
    match taken.listener(address) {
        Some(socket) => Ok(socket),
        None => bind(address, purpose),
    }
}

fn address(listener: &Listener) -> SocketAddr {
    listener
        .socket
        .local_addr()
        .expect("a bound socket has an address")
}

fn is_up(setup: &Setup) -> bool {
    setup
        .components()
        .iter()
        .any(|part| part.name == "interface" && part.on)
}

/// Somebody else may have put the address on an interface.
fn is_local(ip: IpAddr) -> bool {
    TcpListener::bind((ip, 0)).is_ok()
}
