//! Stage 0: prepares the node (link, address, eBPF) and undoes it in reverse order at exit. In: [`SetupConfig`].
//! Out: an address to listen on, callers that are steered to it, and who they are, for [`crate::client`].
//!
//! ```text
//! prepare: address → maps and programs, switched off
//! steer:   services → listener in its slot → heartbeat → on
//! undo:    off → slot empty → pins (which detaches) → address and link
//! ```

mod attest;
mod data_plane;
pub(crate) mod discovery;
mod pods;
mod selection;
mod services;
mod uplinks;

use std::collections::BTreeSet;
use std::net::{SocketAddr, SocketAddrV6};
use std::os::fd::{BorrowedFd, OwnedFd};

use socket2::SockRef;

use self::data_plane::Steering;
use crate::authz::caller::Process;
use crate::config::SetupConfig;
use crate::ebpf::pins;
use crate::ebpf::status::EbpfStatus;
use crate::node::component::Component;
use crate::node::error::SetupError;
use crate::node::interface::{Failed, Interface};
use crate::node::unavailable::Unavailable;

/// What an old daemon's setup hands over to a new one's, so that nobody else gets it in between.
#[derive(Debug, Default)]
pub struct Inherited {
    /// The lock on the pins.
    pub pins: Option<OwnedFd>,
    /// The name that stands for the right to remove the interface.
    pub interface: Option<OwnedFd>,
}

/// The same, in the old daemon's hands.
#[derive(Debug, Default)]
pub struct Held<'a> {
    /// See [`Inherited::pins`].
    pub pins: Option<BorrowedFd<'a>>,
    /// See [`Inherited::interface`].
    pub interface: Option<BorrowedFd<'a>>,
}

/// What setup made, and what it could not make and why. Undone by [`Setup::undo`].
#[derive(Debug)]
pub struct Setup {
    log_wanted: bool,
    interface: Result<Interface, Unavailable>,
    steering: Result<Steering, Unavailable>,
}

impl Setup {
    /// Makes link and address, loads and attaches the programs (switched off until [`Setup::steer`]). Sockets with
    /// `mark` (SO_MARK; 0 = none) are never steered: the daemon's own way to the cloud. Never fails for want of
    /// privileges or kernel features: what is missing is a [`Component`] that is off. Call it in the network namespace
    /// that is to be steered, on the runtime that is to keep the address there.
    ///
    /// # Errors
    /// The address belongs to another interface, or netlink refuses for a reason other than privileges.
    pub async fn prepare(config: &SetupConfig, mark: u32) -> Result<Self, SetupError> {
        Self::take_over(config, mark, Inherited::default()).await
    }

    /// As [`Setup::prepare`], in the place of an old daemon, whose programs steer until ours have replaced them: with
    /// its pins inherited, what it told its programs stays in force until [`Setup::steer`].
    ///
    /// # Errors
    /// As [`Setup::prepare`].
    pub async fn take_over(
        config: &SetupConfig,
        mark: u32,
        from: Inherited,
    ) -> Result<Self, SetupError> {
        let interface = match &config.dummy {
            None => Err(Unavailable::NotWanted("--enable-dummy-if=false")),
            Some(wish) => match Interface::ensure(wish, from.interface).await {
                Ok(interface) => Ok(interface),
                Err(Failed::Off(missing)) => Err(missing),
                Err(Failed::Error(error)) => return Err(error),
            },
        };
        let own = interface
            .as_ref()
            .map_or_else(|_| String::new(), Interface::link);
        let steering = match config.ebpf {
            true => Steering::prepare(config, mark, (own, from.pins)).await,
            false => {
                pins::forget(&config.bpffs, from.pins);
                Err(Unavailable::NotWanted("--ebpf=false"))
            }
        };
        Ok(Self {
            log_wanted: config.bpf_log,
            interface,
            steering,
        })
    }

    /// Puts the serving listener into the liveness map and switches steering on. Call after the self-probe. Its
    /// connections are attested, as by [`Setup::attest`], and pods may reach it.
    ///
    /// # Errors
    /// The kernel refuses the listener.
    pub fn steer(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        let Ok(steering) = &self.steering else {
            return Ok(());
        };
        let own = own_address(listener)?;
        steering
            .programs
            .steer(listener, own)
            .map_err(|source| SetupError::Listener {
                address: own,
                source,
            })?;
        steering.forget_other_layouts();
        Ok(())
    }

    /// What a new daemon needs to take this one's place.
    pub fn hand_over(&self) -> Held<'_> {
        Held {
            pins: self.steering.as_ref().ok().and_then(Steering::lock),
            interface: self.interface.as_ref().ok().and_then(Interface::owner),
        }
    }

    /// To be said when the daemon whose place this one took has ended: the cgroup that both were in may be this one's own
    /// now, and then nothing in it is steered.
    pub fn predecessor_ended(&self) {
        if let Ok(steering) = &self.steering
            && let Err(error) = steering.look_at_own_cgroup()
        {
            tracing::warn!(%error, "the programs can't be told of our cgroup; our sockets are still known by their mark");
        }
    }

    /// Has connections to another listener (the plain ports) attested too. Any time. Pods are kept from it.
    ///
    /// # Errors
    /// It is not bound to one address.
    pub fn attest(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        let Ok(steering) = &self.steering else {
            return Ok(());
        };
        let own = own_address(listener)?;
        steering
            .programs
            .attest(own, false)
            .map_err(|source| SetupError::Listener {
                address: own,
                source,
            })
    }

    /// Keeps pods from an address of ours that no listener of [`Setup::attest`] has (the admin port).
    ///
    /// # Errors
    /// The kernel refuses the address.
    pub fn defend(&self, own: SocketAddr) -> Result<(), SetupError> {
        let Ok(steering) = &self.steering else {
            return Ok(());
        };
        steering
            .programs
            .attest(own, false)
            .map_err(|source| SetupError::Listener {
                address: own,
                source,
            })
    }

    /// Steers what dials these addresses, and nothing else; before, it is what was configured.
    ///
    /// # Errors
    /// On too many different ports, or the kernel refuses an address.
    pub fn services(&self, services: &BTreeSet<SocketAddr>) -> Result<(), SetupError> {
        let Ok(steering) = &self.steering else {
            return Ok(());
        };
        steering
            .programs
            .services(services)
            .map_err(SetupError::Services)
    }

    /// Pods, by UID, that want to be steered; all others are not, but for those that the configuration names.
    pub fn opt_in(&self, pods: BTreeSet<String>) {
        if let Ok(steering) = &self.steering {
            steering.selection.opt_in(pods);
        }
    }

    /// Writes the heartbeat; called by the serving runtime each 500 ms after it has probed itself. Steering ends by
    /// itself 3 s after the last one.
    pub fn heartbeat(&self) {
        if let Ok(steering) = &self.steering
            && let Err(error) = steering.programs.heartbeat()
        {
            tracing::error!(%error, "no heartbeat: steering will end by itself");
        }
    }

    /// What the kernel attests of the accepted socket; `None` is "unknown", never a privilege.
    pub fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Process> {
        self.steering.as_ref().ok()?.identify(accepted)
    }

    /// Cookie of the network namespace that is steered, which is hublet's own: what [`Process::netns`] is for
    /// processes of the host.
    pub fn netns(&self) -> Option<u64> {
        self.steering
            .as_ref()
            .ok()
            .map(|steering| steering.programs.netns())
    }

    /// The components, for log, status and metrics.
    pub fn components(&self) -> Vec<Component> {
        let mut components = vec![Component::of(
            "interface",
            self.interface.as_ref().map(Interface::describe),
        )];
        match &self.steering {
            Ok(steering) => components.extend(steering.components()),
            Err(missing) => {
                components.extend(
                    ["steering", "identity", "guard"].map(|name| Component::of(name, Err(missing))),
                );
            }
        }
        if self.log_wanted {
            components.push(Component::log());
        }
        components
    }

    /// Programs, counters, audit.
    pub fn ebpf(&self) -> EbpfStatus {
        self.steering
            .as_ref()
            .map_or_else(|_| EbpfStatus::default(), Steering::status)
    }

    /// Steering off (first thing of a drain).
    pub fn stop_steering(&self) {
        if let Ok(steering) = &self.steering
            && let Err(error) = steering.programs.stop()
        {
            tracing::error!(%error, "steering could not be switched off; it ends with the listener");
        }
    }

    /// Removes pins, links, address and interface.
    pub async fn undo(self) {
        self.stop_steering();
        if let Ok(steering) = self.steering
            && let Err(error) = steering.remove().await
        {
            tracing::error!(%error, "pins are left in bpffs; remove its directory `hublet` to detach the programs");
        }
        if let Ok(interface) = self.interface
            && let Err(error) = interface.remove().await
        {
            tracing::error!("{error}");
        }
    }
}

/// Where clients reach a listener.
fn own_address(listener: BorrowedFd<'_>) -> Result<SocketAddr, SetupError> {
    let address = SockRef::from(&listener)
        .local_addr()
        .map_err(SetupError::NotASocket)?;
    match address.as_socket() {
        Some(own) if !own.ip().is_unspecified() => Ok(match own {
            // A scope is no part of the address that clients dial.
            SocketAddr::V6(own) => SocketAddrV6::new(*own.ip(), own.port(), 0, 0).into(),
            v4 => v4,
        }),
        other => Err(SetupError::NotOneAddress(
            other.map_or_else(|| "no IP address".into(), |a| a.to_string()),
        )),
    }
}
