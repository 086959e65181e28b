//! The eBPF half of the setup. In: the configuration. Out: programs that are attached, told whom to steer, kept true,
//! and taken away.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::attest::Processes;
use super::selection::Selection;
use super::uplinks::{Guard, UplinkConfig};
use crate::authz::caller::Process;
use crate::config::SetupConfig;
use crate::ebpf::attach::{self, Attach};
use crate::ebpf::bpffs::Pins;
use crate::ebpf::maps::{Programs, SelfExemption};
use crate::ebpf::status::{EbpfStatus, ProgramStatus};
use crate::ebpf::{flows, object};
use crate::node::cgroup::{self, Cgroups};
use crate::node::component::Component;
use crate::node::unavailable::Unavailable;

/// How long the end waits for tasks that still hold the programs.
const PATIENCE: Duration = Duration::from_secs(1);

const NOT_THE_ROOT: &str = " (not the root of the hierarchy: processes outside of it are not seen)";

/// Parts that are off, and why.
type Off = Vec<(&'static str, Unavailable)>;

/// Programs, and what keeps their maps true.
#[derive(Debug)]
pub(super) struct Steering {
    pub(super) programs: Arc<Programs>,
    pub(super) selection: Arc<Selection>,
    cgroups: Cgroups,
    processes: Processes,
    attached: String,
    /// Is the daemon's own cgroup below the attached one? Otherwise accepted sockets have no identity.
    sees_itself: bool,
    /// Programs of others that see a connect() before ours.
    before: Vec<String>,
    guard: Result<Option<Guard>, Unavailable>,
    /// Anything is to be steered (`--steer`).
    steers: bool,
    /// Parts that the user wished for beside the usual ones.
    wished: Vec<&'static str>,
    pins: Result<Pins, Unavailable>,
    selecting: Task,
}

/// Ends when it is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Steering {
    /// `link` carries our address; `lock` is an old daemon's on its pins.
    pub(super) async fn prepare(
        config: &SetupConfig,
        mark: u32,
        (link, lock): (String, Option<OwnedFd>),
    ) -> Result<Self, Unavailable> {
        let living = lock.is_some();
        let cgroups = Cgroups::find()?;
        let ((root, _), (dir, path)) =
            (cgroups.open(None)?, cgroups.open(config.cgroup.as_deref())?);
        let cgroup_id = dir
            .metadata()
            .map_err(|source| Unavailable::Cgroup {
                path: path.clone(),
                source,
            })?
            .ino();
        object::embedded()?;
        let pins = match Pins::open(&config.bpffs, lock) {
            // Its programs are not to be replaced under it.
            Err(busy @ Unavailable::Busy { .. }) => return Err(busy),
            pins => pins, // without bpffs the programs go with the process: also fail-open
        };
        let (xdp, unknown) = interfaces(&config.guard.xdp);
        let attach = Attach {
            root: root.as_fd(),
            cgroup: dir.as_fd(),
            cgroup_id,
            cgroup_path: &path,
            pins: pins.as_ref().ok(),
            getpeername: config.getpeername,
            guard: config.guard.on,
            xdp: &xdp,
        };
        let own = SelfExemption {
            mark,
            cgroup: cgroups.own().unwrap_or_default(),
        };
        let loaded = Programs::load(&attach, &own, living, config.bpf_log);
        if let (Ok(pins), false) = (&pins, living) {
            forget_others(pins);
        }
        let (mut programs, pins) = match loaded {
            Ok(programs) => (programs, pins),
            Err(missing) => {
                let _nothing_to_keep = pins.map(Pins::remove);
                return Err(missing);
            }
        };
        programs.mark_unavailable(unknown);
        let programs = Arc::new(programs);
        let uplink_config = UplinkConfig {
            own: link,
            uplinks: [&config.guard.uplinks[..], &config.guard.xdp].concat(),
        };
        let guard = guard(config, uplink_config, &programs).await;
        let selection = Selection::new(&config.select, cgroups.root());
        programs
            .services(&config.steer.addresses.iter().copied().collect())
            .and_then(|()| programs.select(&selection.entries().0))
            .map_err(|error| other("telling the programs what and whom to steer", &error))?;
        let selecting = Task(tokio::spawn(
            Arc::clone(&selection).keep(Arc::clone(&programs)),
        ));
        let narrow = if cgroup_id == cgroup::ROOT_ID {
            ""
        } else {
            NOT_THE_ROOT
        };
        Ok(Self {
            before: attach::before_ours(dir.as_fd(), programs.loaded()).unwrap_or_default(),
            sees_itself: config.cgroup.is_none() || cgroups.is_inside(&path),
            steers: !config.steer.is_empty(),
            wished: wished(config),
            processes: Processes::default(),
            programs,
            selection,
            cgroups,
            attached: format!("{}{narrow}", path.display()),
            guard,
            pins,
            selecting,
        })
    }

    /// What a daemon of another version pinned goes: it steered until we did.
    pub(super) fn forget_other_layouts(&self) {
        if let Ok(pins) = &self.pins {
            forget_others(pins);
        }
    }

    /// Tells the programs of the daemon's cgroup, if it has become its own.
    pub(super) fn look_at_own_cgroup(&self) -> io::Result<()> {
        self.cgroups
            .own()
            .map_or(Ok(()), |own| self.programs.own_cgroup(own))
    }

    /// For a daemon that takes this one's place.
    pub(super) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.pins.as_ref().ok().map(Pins::lock)
    }

    /// Who is at the other end of an accepted socket.
    pub(super) fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Process> {
        let ident = self.programs.identify(accepted)?;
        Some(self.processes.describe(&ident, &self.cgroups))
    }

    pub(super) fn components(&self) -> Vec<Component> {
        let mut components = vec![
            self.steering_component(),
            self.identity_component(),
            self.guard_component(),
        ];
        for name in &self.wished {
            let off = self.programs.off().iter().find(|(part, _)| part == name);
            let hooks = || {
                let ours = self
                    .programs
                    .loaded()
                    .iter()
                    .filter(|loaded| loaded.hook.starts_with(name));
                ours.map(|loaded| loaded.hook.clone())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            components.push(Component::of(
                name,
                off.map_or_else(|| Ok(hooks()), |(_, missing)| Err(missing)),
            ));
        }
        components.push(Component::of(
            "pins",
            self.pins
                .as_ref()
                .map(|pins| pins.layout().display().to_string()),
        ));
        components
    }

    fn steering_component(&self) -> Component {
        let list = |addresses: &[SocketAddr]| {
            addresses
                .iter()
                .map(SocketAddr::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        let (steered, other) = self.programs.steered();
        let on = self.programs.is_steering();
        let mut detail = if on {
            format!(
                "{} from {}, at {}",
                list(&steered),
                self.selection.describe(),
                self.attached
            )
        } else if steered.is_empty() && other.is_empty() {
            match self.steers {
                true => "no service address is known to steer (--steer)".into(),
                false => "switched off by --steer=none".into(),
            }
        } else {
            let all = [&steered[..], &other].concat();
            format!(
                "ready for {}; switched off until the listener serves, and while it drains",
                list(&all)
            )
        };
        if on && !other.is_empty() {
            detail.push_str(&format!(
                "; not {}: of another address family than our own address (--dummy-if-ip)",
                list(&other)
            ));
        }
        if !self.before.is_empty() {
            detail.push_str(&format!(
                "; after {} on the same cgroup: what that rewrites is not steered",
                self.before.join(", ")
            ));
        }
        Component {
            name: "steering",
            on,
            wanted: self.steers,
            detail,
        }
    }

    fn identity_component(&self) -> Component {
        let detail = if self.sees_itself {
            format!("callers are attested at {}", self.attached)
        } else {
            format!(
                "hublet's own cgroup is not below {}: move it there, or attach at the root",
                self.attached
            )
        };
        Component {
            name: "identity",
            on: self.sees_itself,
            wanted: true,
            detail,
        }
    }

    fn guard_component(&self) -> Component {
        let off = self
            .programs
            .off()
            .iter()
            .find(|(part, _)| *part == "guard")
            .map(|(_, missing)| missing);
        let state = match (&self.guard, off) {
            (Err(missing), _) | (Ok(_), Some(missing)) => Err(missing),
            (Ok(_), None) => Ok(
                "packets of uplinks to our addresses are refused, pods reach the secure port only"
                    .into(),
            ),
        };
        let mut part = Component::of("guard", state);
        if let (Ok(Some(_)), Some(_)) = (&self.guard, off) {
            part.detail
                .push_str("; XDP drops packets of uplinks, but pods reach our other ports, too");
        }
        part
    }

    pub(super) fn status(&self) -> EbpfStatus {
        let program = |program: &attach::Loaded| ProgramStatus {
            name: program.name.into(),
            id: program.id,
            attached: match &program.pin {
                Some(pin) => format!("{}, link {}", program.hook, pin.display()),
                None => format!("{}, link not pinned", program.hook),
            },
        };
        EbpfStatus {
            programs: self.programs.loaded().iter().map(program).collect(),
            counters: self.programs.counters(),
            flows: flows::describe(self.programs.flows(), &self.cgroups),
        }
    }

    /// Ends the tasks and removes the pins.
    pub(super) async fn remove(self) -> io::Result<()> {
        let Self {
            programs,
            guard,
            selecting,
            pins,
            ..
        } = self;
        drop((selecting, guard));
        // The maps live as long as somebody holds them; the tasks let go when they are next polled.
        let began = Instant::now();
        while Arc::strong_count(&programs) > 1 && began.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(programs);
        pins.map_or(Ok(()), Pins::remove)
    }
}

fn forget_others(pins: &Pins) {
    for old in pins.remove_other_layouts() {
        tracing::info!("removed the pins of another version: {}", old.display());
    }
}

async fn guard(
    config: &SetupConfig,
    uplink_config: UplinkConfig,
    programs: &Arc<Programs>,
) -> Result<Option<Guard>, Unavailable> {
    if !config.guard.on {
        return Err(Unavailable::NotWanted("--guard=false"));
    }
    let attached = |part| programs.off().iter().all(|(off, _)| *off != part);
    if !attached("guard") && (config.guard.xdp.is_empty() || !attached("xdp")) {
        return Ok(None);
    }
    Guard::start(uplink_config, Arc::clone(programs))
        .await
        .map(Some)
}

fn wished(config: &SetupConfig) -> Vec<&'static str> {
    let wishes = [
        ("getpeername", config.getpeername),
        ("xdp", !config.guard.xdp.is_empty()),
    ];
    wishes
        .into_iter()
        .filter(|(_, wished)| *wished)
        .map(|(name, _)| name)
        .collect()
}

/// Interfaces by name: those that are there, and what to say of those that aren't.
fn interfaces(names: &[String]) -> (Vec<(String, u32)>, Off) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match nix::net::if_::if_nametoindex(name.as_str()) {
            Ok(index) => found.push((name.clone(), index)),
            Err(_) => missing.push((
                "xdp",
                Unavailable::Other {
                    what: name.clone(),
                    why: "no such interface; `ip link` lists those that are".into(),
                },
            )),
        }
    }
    (found, missing)
}

fn other(what: &str, error: &io::Error) -> Unavailable {
    Unavailable::Other {
        what: what.into(),
        why: error.to_string(),
    }
}
