//! Stage 0: prepares the node (link, address, eBPF) and undoes it in reverse order at exit. In: [`SetupConfig`].
//! Out: an address to listen on, callers that are steered to it, and who they are, for [`crate::client`].
//!
//! ```text
//! prepare: address → maps and programs, switched off
//! steer:   services → listener in its slot → heartbeat → on
//! undo:    off → slot empty → pins (which detaches) → address and link
//! ```

mod bpffs;
mod cgroup;
mod ebpf;
mod fallback;
#[cfg(feature = "bpf-log")]
mod log;
mod netlink;
mod programs;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;

use hublet_ebpf::IDENT_STEERED;
use serde::Serialize;
use socket2::SockRef;

use self::bpffs::Pins;
use self::cgroup::Cgroups;
use self::ebpf::Attach;
use self::fallback::Missing;
use self::netlink::{Failed, Interface};
use self::programs::Programs;
use crate::client::Process;
use crate::config::SetupConfig;

/// What setup made, and what it could not make and why. Undone by [`Setup::undo`].
#[derive(Debug)]
pub struct Setup {
    services: Vec<SocketAddrV4>,
    skipped: Vec<SocketAddr>,
    log_wanted: bool,
    interface: Result<Interface, Missing>,
    steering: Result<Steering, Missing>,
}

/// The eBPF half.
#[derive(Debug)]
struct Steering {
    programs: Programs,
    cgroups: Cgroups,
    attached: String,
    /// Is the daemon's own cgroup below the attached one? Otherwise accepted sockets have no identity.
    sees_itself: bool,
    pins: Result<Pins, Missing>,
}

/// A part of the setup and how it stands; the same in the log, `hublet status` and metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `interface`, `steering`, `identity`, `pins`, `bpf-log`.
    pub name: &'static str,
    /// Working?
    pub on: bool,
    /// What is there (`hub-dummy0 (bridge) 169.254.2.1/32`), or why not and what to do.
    pub detail: String,
}

/// eBPF state for `hublet status` and metrics.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EbpfStatus {
    /// Program name, id, attach point, link pin.
    pub programs: Vec<ProgramStatus>,
    /// Decision name → count.
    pub counters: Vec<(&'static str, u64)>,
}

/// One loaded program.
#[derive(Debug, Clone, Serialize)]
pub struct ProgramStatus {
    /// Name as bpftool shows it.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// Where it is attached.
    pub attached: String,
}

impl Setup {
    /// Makes link and address, loads and attaches the programs (switched off until [`Setup::steer`]). Sockets with
    /// `mark` (SO_MARK; 0 = none) are never steered: the daemon's own way to the cloud. Never fails for want of
    /// privileges or kernel features: what is missing is a [`Part`] that is off. Call it in the network namespace
    /// that is to be steered, on the runtime that is to keep the address there.
    ///
    /// # Errors
    /// The address belongs to another interface, or netlink refuses for a reason other than privileges.
    pub async fn prepare(config: &SetupConfig, mark: u32) -> Result<Self, SetupError> {
        let interface = match &config.dummy {
            None => Err(Missing::NotWanted("--enable-dummy-if=false")),
            Some(wish) => match Interface::ensure(wish).await {
                Ok(interface) => Ok(interface),
                Err(Failed::Off(missing)) => Err(missing),
                Err(Failed::Error(error)) => return Err(error),
            },
        };
        let (mut services, mut skipped) = (Vec::new(), Vec::new());
        for address in &config.steer {
            match address {
                SocketAddr::V4(address) => services.push(*address),
                SocketAddr::V6(_) => skipped.push(*address),
            }
        }
        let steering = Steering::prepare(config, mark);
        Ok(Self { services, skipped, log_wanted: config.bpf_log, interface, steering })
    }

    /// Puts the serving listener into the liveness map and switches steering on. Call after the self-probe. Its
    /// connections are attested, as by [`Setup::attest`].
    ///
    /// # Errors
    /// The kernel refuses the listener.
    pub fn steer(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        let Ok(steering) = &self.steering else { return Ok(()) };
        let own = own_address(listener)?;
        let services: Vec<_> = self.services.iter().copied().filter(|service| *service != own).collect();
        steering
            .programs
            .steer(listener, own, &services)
            .map_err(|source| SetupError::Listener { address: own.into(), source })
    }

    /// Has connections to another listener (the plain ports) attested too. Any time.
    ///
    /// # Errors
    /// It is not bound to one IPv4 address.
    pub fn attest(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        let Ok(steering) = &self.steering else { return Ok(()) };
        let own = own_address(listener)?;
        steering.programs.attest(own).map_err(|source| SetupError::Listener { address: own.into(), source })
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
        let steering = self.steering.as_ref().ok()?;
        let ident = steering.programs.identify(accepted)?;
        let name = ident.comm.split(|byte| *byte == 0).next().unwrap_or_default();
        Some(Process {
            pid: ident.pid,
            uid: ident.uid,
            gid: ident.gid,
            cgroup_id: ident.cgroup_id,
            cgroup: steering.cgroups.path(ident.cgroup_id, ident.pid),
            netns: ident.netns,
            command: String::from_utf8_lossy(name).into_owned(),
            original: Some((Ipv4Addr::from(ident.orig_ip), ident.orig_port)),
            steered: ident.flags & IDENT_STEERED != 0,
        })
    }

    /// Cookie of the network namespace that is steered, which is hublet's own: what [`Process::netns`] is for
    /// processes of the host.
    pub fn netns(&self) -> Option<u64> {
        self.steering.as_ref().ok().map(|steering| steering.programs.netns())
    }

    /// The parts, for log, status and metrics.
    pub fn parts(&self) -> Vec<Part> {
        let mut parts = vec![part("interface", self.interface.as_ref().map(Interface::describe))];
        match &self.steering {
            Err(missing) => {
                parts.extend(["steering", "identity"].map(|name| part(name, Err::<String, _>(missing))));
            }
            Ok(steering) => {
                parts.push(self.steering_part(steering));
                parts.push(Part {
                    name: "identity",
                    on: steering.sees_itself,
                    detail: if steering.sees_itself {
                        format!("callers are attested at {}", steering.attached)
                    } else {
                        format!(
                            "hublet's own cgroup is not below {}: move it there, or attach at the root",
                            steering.attached
                        )
                    },
                });
                parts.push(part(
                    "pins",
                    steering.pins.as_ref().map(|pins| pins.layout().display().to_string()),
                ));
            }
        }
        if self.log_wanted {
            parts.push(log_part());
        }
        parts
    }

    /// Programs and counters.
    pub fn ebpf(&self) -> EbpfStatus {
        let Ok(steering) = &self.steering else { return EbpfStatus::default() };
        let status = |program: &ebpf::Loaded| ProgramStatus {
            name: program.name.into(),
            id: program.id,
            attached: match &program.pin {
                Some(pin) => format!("{} {}, link {}", program.hook, steering.attached, pin.display()),
                None => format!("{} {}, link not pinned", program.hook, steering.attached),
            },
        };
        EbpfStatus {
            programs: steering.programs.loaded().iter().map(status).collect(),
            counters: steering.programs.counters(),
        }
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
        if let Ok(Steering { programs, pins: Ok(pins), .. }) = self.steering {
            drop(programs);
            if let Err(error) = pins.remove() {
                tracing::error!(%error, "pins are left in bpffs; remove its directory `hublet` to detach the programs");
            }
        }
        if let Ok(interface) = self.interface
            && let Err(error) = interface.remove().await
        {
            tracing::error!("{error}");
        }
    }

    fn steering_part(&self, steering: &Steering) -> Part {
        let list = |addresses: Vec<String>| addresses.join(", ");
        let services = list(self.services.iter().map(SocketAddrV4::to_string).collect());
        let mut detail = if self.services.is_empty() {
            "no service address to steer (--steer=none)".into()
        } else if steering.programs.is_steering() {
            format!("{services} from this network namespace, at {}", steering.attached)
        } else {
            format!("ready for {services}; switched off until the listener serves, and while it drains")
        };
        if !self.skipped.is_empty() {
            let skipped = list(self.skipped.iter().map(SocketAddr::to_string).collect());
            detail.push_str(&format!("; not {skipped}: IPv6 services are not steered yet"));
        }
        Part { name: "steering", on: steering.programs.is_steering(), detail }
    }
}

impl Steering {
    fn prepare(config: &SetupConfig, mark: u32) -> Result<Self, Missing> {
        let cgroups = Cgroups::find()?;
        let (dir, path) = cgroups.open(config.cgroup.as_deref())?;
        let cgroup_id =
            dir.metadata().map_err(|source| Missing::Cgroup { path: path.clone(), source })?.ino();
        ebpf::embedded()?;
        let pins = match Pins::open(&config.bpffs) {
            // Its programs are not to be replaced under it.
            Err(busy @ Missing::Busy { .. }) => return Err(busy),
            pins => pins, // without bpffs the programs go with the process: also fail-open
        };
        let attach =
            Attach { cgroup: dir.as_fd(), cgroup_id, pins: pins.as_ref().ok(), mark, log: config.bpf_log };
        let loaded = Programs::load(&attach);
        if let Ok(pins) = &pins {
            for old in pins.remove_other_layouts() {
                tracing::info!("removed the pins of another version: {}", old.display());
            }
        }
        let programs = match (loaded, pins) {
            (Ok(programs), pins) => (programs, pins),
            (Err(missing), pins) => {
                let _nothing_to_keep = pins.map(Pins::remove);
                return Err(missing);
            }
        };
        let (programs, pins) = programs;
        let sees_itself = config.cgroup.is_none() || cgroups.is_inside(&path);
        let mut attached = path.display().to_string();
        if cgroup_id != cgroup::ROOT_ID {
            attached.push_str(" (not the root of the hierarchy: processes outside of it are not seen)");
        }
        Ok(Self { programs, cgroups, attached, sees_itself, pins })
    }
}

fn part(name: &'static str, result: Result<String, &Missing>) -> Part {
    match result {
        Ok(detail) => Part { name, on: true, detail },
        Err(missing) => Part { name, on: false, detail: missing.to_string() },
    }
}

fn log_part() -> Part {
    let on = cfg!(feature = "bpf-log");
    let detail = if on {
        "the programs' debug lines are in the log at debug level"
    } else {
        "this binary's BPF object has no debug lines; build with the feature `bpf-log`"
    };
    Part { name: "bpf-log", on, detail: detail.into() }
}

/// Where clients reach a listener.
fn own_address(listener: BorrowedFd<'_>) -> Result<SocketAddrV4, SetupError> {
    let address = SockRef::from(&listener).local_addr().map_err(SetupError::NotASocket)?;
    match address.as_socket_ipv4() {
        Some(own) if !own.ip().is_unspecified() => Ok(own),
        _ => Err(SetupError::NotOneAddress(
            address.as_socket().map_or_else(|| "no IP address".into(), |a| a.to_string()),
        )),
    }
}

/// Why setup failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Someone else has our address.
    #[error(
        "{ip} is on the interface {link}, not on {wanted}: remove it there (`ip address del {ip} dev {link}`), or name {link} or another address"
    )]
    AddressElsewhere {
        /// The address.
        ip: IpAddr,
        /// Who has it.
        link: String,
        /// Where it should be.
        wanted: String,
    },
    /// The kernel refused.
    #[error("{doing}: {source}")]
    Netlink {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: Box<rtnetlink::Error>,
    },
    /// A link vanished between two looks at it.
    #[error(
        "the link {name} vanished while it was set up; something else manages it (NetworkManager, systemd-networkd?): exclude it there"
    )]
    LinkGone {
        /// The link.
        name: String,
    },
    /// Not a socket, or closed.
    #[error("the listener has no address: {0}")]
    NotASocket(std::io::Error),
    /// Listeners that are steered to or attested are bound to one IPv4 address.
    #[error("the listener is bound to {0}; clients can be steered to one IPv4 address only")]
    NotOneAddress(String),
    /// The maps refused it.
    #[error("the kernel refuses the listener {address}: {source}")]
    Listener {
        /// Its address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
}
