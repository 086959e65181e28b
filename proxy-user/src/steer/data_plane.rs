//! The eBPF part of the setup: programs that are attached, configured, kept up to date, and removed at the end.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::net::if_::if_nametoindex;

use super::attest::ProcessCache;
use super::selection::Selection;
use super::task::OwnedTask;
use super::uplinks::{Guard, UplinkConfig};
use crate::caller::Process;
use crate::config::SetupConfig;
use crate::ebpf::attach::{self, AttachPlan, AttachedProgram, XdpInterface};
use crate::ebpf::bpffs::Pins;
use crate::ebpf::flows::{Flow, FlowStatus};
use crate::ebpf::maps::{MapOrigin, SelfExemption};
use crate::ebpf::object;
use crate::ebpf::programs::{Programs, ServicesByFamily};
use crate::ebpf::status::{EbpfStatus, ProgramStatus};
use crate::node::cgroup::{CgroupDirectory, Cgroups, ROOT_ID};
use crate::node::component::Component;
use crate::node::unavailable::{self, Unavailable, UnavailableComponent};

/// Programs, and the tasks that keep their maps up to date.
#[derive(Debug)]
pub(super) struct DataPlane {
    pub(super) programs: Arc<Programs>,
    pub(super) selection: Arc<Selection>,
    cgroups: Cgroups,
    processes: ProcessCache,
    attached_at: PathBuf,
    attached_at_root: bool,
    /// False if the daemon's own cgroup is not below the attached one: accepted sockets have no identity then.
    sees_itself: bool,
    /// Programs of others that see a connect() before hublet's.
    earlier_programs: Vec<String>,
    guard: GuardState,
    /// Any service is to be steered (`--steer`).
    steering_wanted: bool,
    /// Optional components that are configured.
    optional: Vec<&'static str>,
    pins: Result<Pins, Unavailable>,
    selecting: OwnedTask,
}

#[derive(Debug)]
enum GuardState {
    Running(Guard),
    /// Neither program that it needs is attached.
    NotAttached,
    Unavailable(Unavailable),
}

/// The right to remove the pins, and a daemon's that hands it over.
#[derive(Debug)]
pub(super) struct PinsLock(pub(super) Option<OwnedFd>);

impl PinsLock {
    /// The inner error is a reason to go on without pins: the programs end with the process, which also fails open.
    ///
    /// # Errors
    /// Another daemon runs; its programs must not be replaced.
    fn open_pins(self, bpffs: &Path) -> Result<Result<Pins, Unavailable>, Unavailable> {
        match Pins::open(bpffs, self.0) {
            Err(busy @ Unavailable::Busy { .. }) => Err(busy),
            pins => Ok(pins),
        }
    }

    fn origin(&self) -> MapOrigin {
        match self.0 {
            Some(_) => MapOrigin::Running,
            None => MapOrigin::Ended,
        }
    }
}

impl DataPlane {
    /// `link` carries hublet's address; `lock` is that of a daemon that hands over.
    ///
    /// # Errors
    /// The core programs can't be attached.
    pub(super) async fn prepare(
        config: &SetupConfig,
        mark: u32,
        link: String,
        lock: PinsLock,
    ) -> Result<Self, Unavailable> {
        let origin = lock.origin();
        let cgroups = Cgroups::find()?;
        let root = cgroups.open(None)?;
        let directory = cgroups.open(config.cgroup.as_deref())?;
        object::check_embedded()?;
        let pins = lock.open_pins(&config.bpffs)?;
        let (xdp, missing) = find_interfaces(&config.guard.xdp);
        let plan = AttachPlan {
            root: &root,
            cgroup: &directory,
            pins: pins.as_ref().ok(),
            getpeername: config.getpeername,
            guard: config.guard.on,
            xdp: &xdp,
        };
        let exemption = SelfExemption {
            mark,
            cgroup: cgroups.exclusive_id().unwrap_or_default(),
        };
        let loaded = Programs::load(&plan, &exemption, origin, config.bpf_log);
        if let (Ok(pins), MapOrigin::Ended) = (&pins, origin) {
            remove_other_layouts(pins);
        }
        match loaded {
            Ok(mut programs) => {
                programs.mark_unavailable(missing);
                Self::start(config, Arc::new(programs), link, cgroups, directory, pins).await
            }
            Err(reason) => {
                let _nothing_to_keep = pins.map(Pins::remove);
                Err(reason)
            }
        }
    }

    async fn start(
        config: &SetupConfig,
        programs: Arc<Programs>,
        link: String,
        cgroups: Cgroups,
        directory: CgroupDirectory,
        pins: Result<Pins, Unavailable>,
    ) -> Result<Self, Unavailable> {
        let uplinks = UplinkConfig {
            own_link: link,
            uplinks: [&config.guard.uplinks[..], &config.guard.xdp].concat(),
        };
        let guard = start_guard(config, uplinks, &programs).await;
        let selection = Selection::new(&config.select, cgroups.root());
        configure(&programs, config, &selection)
            .map_err(|error| unavailable::from_kernel("configuring the programs", error))?;
        let selecting = OwnedTask::spawn(Arc::clone(&selection).run(Arc::clone(&programs)));
        let earlier = attach::earlier_programs(directory.file.as_fd(), programs.attached());
        Ok(Self {
            earlier_programs: earlier.unwrap_or_default(),
            sees_itself: config.cgroup.is_none() || cgroups.is_inside(&directory.path),
            steering_wanted: !config.steer.is_empty(),
            optional: optional_components(config),
            processes: ProcessCache::default(),
            programs,
            selection,
            cgroups,
            attached_at_root: directory.id == ROOT_ID,
            attached_at: directory.path,
            guard,
            pins,
            selecting,
        })
    }

    /// Removes the pins of another version, which has steered until this one does.
    pub(super) fn remove_other_layouts(&self) {
        if let Ok(pins) = &self.pins {
            remove_other_layouts(pins);
        }
    }

    /// Exempts the daemon's cgroup if no other process is in it by now.
    ///
    /// # Errors
    /// The kernel refuses the configuration.
    pub(super) fn exempt_own_cgroup(&self) -> io::Result<()> {
        self.cgroups
            .exclusive_id()
            .map_or(Ok(()), |id| self.programs.exempt_cgroup(id))
    }

    /// For a daemon that takes over.
    pub(super) fn lock(&self) -> Option<BorrowedFd<'_>> {
        self.pins.as_ref().ok().map(Pins::lock)
    }

    /// The caller of an accepted connection.
    pub(super) fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Process> {
        let ident = self.programs.identify(accepted)?;
        Some(self.processes.describe(&ident, &self.cgroups))
    }

    pub(super) fn components(&self) -> Vec<Component> {
        let core = [
            self.steering_component(),
            self.identity_component(),
            self.guard_component(),
        ];
        let optional = self.optional.iter();
        core.into_iter()
            .chain(optional.map(|name| self.optional_component(name)))
            .chain([self.pins_component()])
            .collect()
    }

    fn pins_component(&self) -> Component {
        let pins = self.pins.as_ref();
        let layout = pins.map(|pins| pins.layout().display().to_string());
        Component::from_result("pins", layout)
    }

    fn steering_component(&self) -> Component {
        let services = self.programs.services();
        let on = self.programs.is_steering();
        let detail = if on {
            self.steering_detail(&services)
        } else {
            self.not_steering_detail(&services)
        };
        Component {
            name: "steering".into(),
            on,
            wanted: self.steering_wanted,
            detail: detail + &self.earlier_programs_note(),
        }
    }

    fn earlier_programs_note(&self) -> String {
        if self.earlier_programs.is_empty() {
            return String::new();
        }
        format!(
            "; after {} on the same cgroup: addresses that it rewrites are not steered",
            self.earlier_programs.join(", ")
        )
    }

    fn steering_detail(&self, services: &ServicesByFamily) -> String {
        let steered = join(&services.matching);
        let callers = self.selection.describe();
        let mut detail = format!("{steered} from {callers}, at {}", self.attachment());
        if !services.other.is_empty() {
            detail.push_str(&format!(
                "; not {}: of another address family than hublet's address (--dummy-if-ip)",
                join(&services.other)
            ));
        }
        detail
    }

    fn not_steering_detail(&self, services: &ServicesByFamily) -> String {
        let all = [&services.matching[..], &services.other].concat();
        match (all.is_empty(), self.steering_wanted) {
            (false, _) => format!(
                "ready for {}; switched off until the listener serves, and while it drains",
                join(&all)
            ),
            (true, true) => "no service address is known to steer (--steer)".into(),
            (true, false) => "switched off by --steer=none".into(),
        }
    }

    fn identity_component(&self) -> Component {
        let attachment = self.attachment();
        let detail = if self.sees_itself {
            format!("callers are attested at {attachment}")
        } else {
            format!(
                "hublet's own cgroup is not below {attachment}: move it there, or attach at the root"
            )
        };
        Component {
            name: "identity".into(),
            on: self.sees_itself,
            wanted: true,
            detail,
        }
    }

    fn attachment(&self) -> String {
        let note = if self.attached_at_root {
            ""
        } else {
            " (not the root of the hierarchy: processes outside of it are not seen)"
        };
        format!("{}{note}", self.attached_at.display())
    }

    fn guard_component(&self) -> Component {
        const DETAIL: &str = "packets from uplinks to hublet's addresses are refused, pods reach the secure port only";
        const XDP_ONLY: &str =
            "; XDP drops packets from uplinks, but pods reach hublet's other ports";
        match (&self.guard, self.programs.unavailable("guard")) {
            (GuardState::Unavailable(reason), _) => Component::from_result("guard", Err(reason)),
            (_, None) => Component::from_result("guard", Ok(DETAIL.into())),
            (GuardState::NotAttached, Some(reason)) => Component::from_result("guard", Err(reason)),
            (GuardState::Running(_), Some(reason)) => {
                let mut component = Component::from_result("guard", Err(reason));
                component.detail.push_str(XDP_ONLY);
                component
            }
        }
    }

    fn optional_component(&self, name: &'static str) -> Component {
        let state = match self.programs.unavailable(name) {
            Some(reason) => Err(reason),
            None => Ok(self.hooks_of(name)),
        };
        Component::from_result(name, state)
    }

    fn hooks_of(&self, component: &str) -> String {
        let attached = self.programs.attached().iter();
        let hooks: Vec<_> = attached
            .filter(|program| program.hook.starts_with(component))
            .map(|program| program.hook.as_str())
            .collect();
        hooks.join(", ")
    }

    pub(super) fn status(&self) -> EbpfStatus {
        let programs = self.programs.attached().iter();
        EbpfStatus {
            programs: programs.map(program_status).collect(),
            decisions: self.programs.decisions(),
            flows: self.flows(),
        }
    }

    fn flows(&self) -> Vec<FlowStatus> {
        let flows = self.programs.flows().into_iter();
        let mut flows: Vec<_> = flows.map(|flow| self.flow_status(flow)).collect();
        flows.sort_by_key(|flow| (flow.cgroup_id, flow.service));
        flows
    }

    fn flow_status(&self, flow: Flow) -> FlowStatus {
        FlowStatus {
            cgroup_id: flow.cgroup_id,
            cgroup: self.cgroups.path_of(flow.cgroup_id, 0),
            service: flow.service,
            counts: flow.counts,
        }
    }

    /// Ends the tasks, closes the maps and removes the pins.
    ///
    /// # Errors
    /// A pin can't be removed.
    pub(super) async fn remove(self) -> io::Result<()> {
        self.selecting.stop().await;
        if let GuardState::Running(guard) = self.guard {
            guard.stop().await;
        }
        // The tasks were the only other owners: with this the maps are closed.
        drop(self.programs);
        self.pins.map_or(Ok(()), Pins::remove)
    }
}

fn configure(programs: &Programs, config: &SetupConfig, selection: &Selection) -> io::Result<()> {
    programs.set_services(&config.steer.addresses.iter().copied().collect())?;
    programs.set_selection(&selection.current().entries)
}

fn program_status(program: &AttachedProgram) -> ProgramStatus {
    ProgramStatus {
        name: program.name.into(),
        id: program.id,
        attached: match &program.pin {
            Some(pin) => format!("{}, link {}", program.hook, pin.display()),
            None => format!("{}, link not pinned", program.hook),
        },
    }
}

fn remove_other_layouts(pins: &Pins) {
    for old in pins.remove_other_layouts() {
        tracing::info!("removed the pins of another version: {}", old.display());
    }
}

async fn start_guard(
    config: &SetupConfig,
    uplinks: UplinkConfig,
    programs: &Arc<Programs>,
) -> GuardState {
    if !config.guard.on {
        return GuardState::Unavailable(Unavailable::SwitchedOff("--guard=false"));
    }
    if !has_guard_program(config, programs) {
        return GuardState::NotAttached;
    }
    match Guard::start(uplinks, Arc::clone(programs)).await {
        Ok(guard) => GuardState::Running(guard),
        Err(reason) => GuardState::Unavailable(reason),
    }
}

fn has_guard_program(config: &SetupConfig, programs: &Programs) -> bool {
    let has_xdp = !config.guard.xdp.is_empty() && programs.unavailable("xdp").is_none();
    has_xdp || programs.unavailable("guard").is_none()
}

fn optional_components(config: &SetupConfig) -> Vec<&'static str> {
    let mut optional = Vec::new();
    if config.getpeername {
        optional.push("getpeername");
    }
    if !config.guard.xdp.is_empty() {
        optional.push("xdp");
    }
    optional
}

/// The interfaces that exist, and the reasons for those that don't.
fn find_interfaces(names: &[String]) -> (Vec<XdpInterface>, Vec<UnavailableComponent>) {
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for name in names {
        match if_nametoindex(name.as_str()) {
            Ok(index) => found.push(XdpInterface {
                name: name.clone(),
                index,
            }),
            Err(_) => missing.push(missing_interface(name)),
        }
    }
    (found, missing)
}

fn missing_interface(name: &str) -> UnavailableComponent {
    UnavailableComponent {
        name: "xdp",
        reason: Unavailable::NoInterface {
            interface: name.to_owned(),
        },
    }
}

fn join(addresses: &[SocketAddr]) -> String {
    let addresses: Vec<_> = addresses.iter().map(SocketAddr::to_string).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_does_not_exist_is_named() {
        let (found, missing) = find_interfaces(&["lo".into(), "no-such-link".into()]);
        assert_eq!(found[0].name, "lo");
        assert_eq!((found.len(), missing.len()), (1, 1));
        let text = missing[0].reason.to_string();
        assert!(text.contains("no-such-link: no such interface"), "{text}");
    }
}
