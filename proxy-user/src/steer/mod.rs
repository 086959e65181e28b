//! Steering: which connects reach hublet, who makes them, and who is kept out. [`Setup`] prepares the node for it and
//! undoes everything in reverse order.
//!
//! ```text
//! prepare: address → maps and programs, switched off
//! steer:   services → listener in its slot → heartbeat → on
//! undo:    off → slot empty → pins (which detaches) → address and link
//! ```

mod attest;
mod data_plane;
pub(crate) mod discovery;
mod error;
mod pods;
mod selection;
mod services;
mod task;
mod uplinks;

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{BorrowedFd, OwnedFd};

use socket2::SockRef;

use self::data_plane::{DataPlane, PinsLock};
pub use self::error::SetupError;
use crate::caller::Process;
use crate::config::SetupConfig;
use crate::ebpf::maps::PodAccess;
use crate::ebpf::pins;
use crate::ebpf::status::EbpfStatus;
use crate::node::component::Component;
use crate::node::interface::{Interface, InterfaceError};
use crate::node::unavailable::Unavailable;

/// The rights of a daemon to the pins and to the interface's removal, as a hand-over passes them on: owned by the new
/// daemon, borrowed from the old one.
#[derive(Debug)]
pub struct Inheritance<Fd = OwnedFd> {
    /// The lock on the pins.
    pub pins: Option<Fd>,
    /// The socket whose name stands for the right to remove the interface.
    pub interface: Option<Fd>,
}

impl<Fd> Default for Inheritance<Fd> {
    fn default() -> Self {
        Self {
            pins: None,
            interface: None,
        }
    }
}

/// The prepared node. A component that is unavailable keeps its reason.
#[derive(Debug)]
pub struct Setup {
    bpf_log: bool,
    interface: Result<Interface, Unavailable>,
    data_plane: Result<DataPlane, Unavailable>,
}

impl Setup {
    /// Creates link and address, loads and attaches the programs, switched off until [`Setup::steer`]. Sockets with
    /// SO_MARK `mark` (0 = none) are never steered: the daemon's connections to the cloud. Missing privileges or kernel
    /// features are no error: the [`Component`] is off. Call it in the network namespace to steer, on the runtime that is
    /// to maintain the address.
    ///
    /// # Errors
    /// The address is on another interface, or netlink refuses for a reason other than privileges.
    pub async fn prepare(config: &SetupConfig, mark: u32) -> Result<Self, SetupError> {
        Self::take_over(config, mark, Inheritance::default()).await
    }

    /// As [`Setup::prepare`], in place of a daemon whose programs steer until they are replaced: if its pins are
    /// inherited, its configuration stays in force until [`Setup::steer`].
    ///
    /// # Errors
    /// As [`Setup::prepare`].
    pub async fn take_over(
        config: &SetupConfig,
        mark: u32,
        from: Inheritance,
    ) -> Result<Self, SetupError> {
        let interface = prepare_interface(config, from.interface).await?;
        let link = interface.as_ref().map(Interface::link_name);
        let data_plane = if config.ebpf {
            let lock = PinsLock(from.pins);
            DataPlane::prepare(config, mark, link.unwrap_or_default(), lock).await
        } else {
            pins::remove_leftovers(&config.bpffs, from.pins);
            Err(Unavailable::SwitchedOff("--ebpf=false"))
        };
        Ok(Self {
            bpf_log: config.bpf_log,
            interface,
            data_plane,
        })
    }

    /// Puts the serving listener into the liveness map and switches steering on. Call after the self-probe. Its
    /// connections are attested, as by [`Setup::attest`], and pods may reach it.
    ///
    /// # Errors
    /// The kernel refuses the listener.
    pub fn steer(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        let Ok(data_plane) = &self.data_plane else {
            return Ok(());
        };
        let address = own_address(listener)?;
        let steering = data_plane.programs.steer(listener, address);
        steering.map_err(|source| SetupError::Listener { address, source })?;
        data_plane.remove_other_layouts();
        Ok(())
    }

    /// The rights that a new daemon needs to take over.
    pub fn hand_over(&self) -> Inheritance<BorrowedFd<'_>> {
        Inheritance {
            pins: self.data_plane.as_ref().ok().and_then(DataPlane::lock),
            interface: self.interface.as_ref().ok().and_then(Interface::owner),
        }
    }

    /// Call when the predecessor has ended: this daemon may be alone in its cgroup by now, and is exempted by it then.
    pub fn predecessor_ended(&self) {
        if let Ok(data_plane) = &self.data_plane
            && let Err(error) = data_plane.exempt_own_cgroup()
        {
            tracing::warn!(%error, "hublet's cgroup can't be exempted from steering; its sockets are exempted by their mark only");
        }
    }

    /// Attests connections to another listener (the plain ports), which pods can't reach. Call at any time.
    ///
    /// # Errors
    /// It is not bound to one address.
    pub fn attest(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        if self.data_plane.is_err() {
            return Ok(());
        }
        self.defend(own_address(listener)?)
    }

    /// Keeps pods from an address of hublet (the admin port), whose connections are attested.
    ///
    /// # Errors
    /// The kernel refuses the address.
    pub fn defend(&self, address: SocketAddr) -> Result<(), SetupError> {
        let Ok(data_plane) = &self.data_plane else {
            return Ok(());
        };
        data_plane
            .programs
            .attest(address, PodAccess::Refused)
            .map_err(|source| SetupError::Listener { address, source })
    }

    /// Replaces the services; the configured addresses are the initial ones.
    ///
    /// # Errors
    /// Too many different ports, or the kernel refuses an address.
    pub fn set_services(&self, services: &BTreeSet<SocketAddr>) -> Result<(), SetupError> {
        let Ok(data_plane) = &self.data_plane else {
            return Ok(());
        };
        data_plane
            .programs
            .set_services(services)
            .map_err(SetupError::Services)
    }

    /// Replaces the UIDs of pods that opt in; configured pods are steered beside them.
    pub fn set_opted_in(&self, pods: BTreeSet<String>) {
        if let Ok(data_plane) = &self.data_plane {
            data_plane.selection.set_opted_in(pods);
        }
    }

    /// Call from the serving runtime every 500 ms, after it has probed itself. Steering ends 3 s after the last one.
    pub fn write_heartbeat(&self) {
        if let Ok(data_plane) = &self.data_plane
            && let Err(error) = data_plane.programs.write_heartbeat()
        {
            tracing::error!(%error, "the heartbeat can't be written: steering stops when the last one expires");
        }
    }

    /// The caller of an accepted connection, as the kernel attests it; an unknown one has no privileges.
    pub fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Process> {
        self.data_plane.as_ref().ok()?.identify(accepted)
    }

    /// Cookie of hublet's network namespace, the one that is steered: [`Process::netns`] of the host's processes.
    pub fn netns(&self) -> Option<u64> {
        let data_plane = self.data_plane.as_ref().ok()?;
        Some(data_plane.programs.netns())
    }

    /// For log, status and metrics.
    pub fn components(&self) -> Vec<Component> {
        let interface = self.interface.as_ref().map(Interface::describe);
        let interface = Component::from_result("interface", interface);
        let log = self.bpf_log.then(Component::bpf_log);
        [interface]
            .into_iter()
            .chain(self.ebpf_components())
            .chain(log)
            .collect()
    }

    fn ebpf_components(&self) -> Vec<Component> {
        match &self.data_plane {
            Ok(data_plane) => data_plane.components(),
            Err(reason) => ["steering", "identity", "guard"]
                .map(|name| Component::from_result(name, Err(reason)))
                .into(),
        }
    }

    /// Programs, counters and flows.
    pub fn ebpf(&self) -> EbpfStatus {
        self.data_plane
            .as_ref()
            .map_or_else(|_| EbpfStatus::default(), DataPlane::status)
    }

    /// Call at the beginning of a drain.
    pub fn stop_steering(&self) {
        if let Ok(data_plane) = &self.data_plane
            && let Err(error) = data_plane.programs.stop_steering()
        {
            tracing::error!(%error, "steering can't be switched off: it stops when the listener closes");
        }
    }

    /// Removes pins, links, address and interface.
    pub async fn undo(self) {
        self.stop_steering();
        if let Ok(data_plane) = self.data_plane
            && let Err(error) = data_plane.remove().await
        {
            tracing::error!(%error, "some pins remain in bpffs; remove its directory `hublet` to detach the programs");
        }
        if let Ok(interface) = self.interface
            && let Err(error) = interface.remove().await
        {
            tracing::error!("{error}");
        }
    }
}

/// The inner error is a reason to go on without the interface.
async fn prepare_interface(
    config: &SetupConfig,
    owner: Option<OwnedFd>,
) -> Result<Result<Interface, Unavailable>, InterfaceError> {
    let Some(dummy) = &config.dummy else {
        return Ok(Err(Unavailable::SwitchedOff("--enable-dummy-if=false")));
    };
    match Interface::ensure(dummy, owner).await {
        Ok(interface) => Ok(Ok(interface)),
        Err(InterfaceError::Unavailable(reason)) => Ok(Err(reason)),
        Err(error) => Err(error),
    }
}

/// The address at which clients reach a listener.
fn own_address(listener: BorrowedFd<'_>) -> Result<SocketAddr, SetupError> {
    let address = SockRef::from(&listener)
        .local_addr()
        .map_err(SetupError::NotASocket)?;
    let own = address.as_socket();
    let own = own.ok_or_else(|| SetupError::NotOneAddress("no IP address".into()))?;
    if own.ip().is_unspecified() {
        return Err(SetupError::NotOneAddress(own.to_string()));
    }
    Ok(without_scope(own))
}

/// The scope is not part of the address that clients dial.
fn without_scope(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V6(v6) => SocketAddrV6::new(*v6.ip(), v6.port(), 0, 0).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_refused() {
        let all = TcpListener::bind("0.0.0.0:0").unwrap();
        let refused = own_address(all.as_fd()).unwrap_err().to_string();
        assert!(refused.contains("one address only"), "{refused}");
        let one = TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(own_address(one.as_fd()).unwrap(), one.local_addr().unwrap());
    }

    #[test]
    fn a_file_is_no_listener() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let refused = own_address(file.as_fd()).unwrap_err();
        assert!(matches!(refused, SetupError::NotASocket(_)), "{refused}");
    }
}
