//! The loaded programs and what the daemon does with them. Holds map descriptors only: the links live by their pins
//! ([`attach`](super::attach)), so that they outlast a crash and end when the pins are removed.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;

use aya::maps::{MapData, PerCpuArray, PerCpuValues, SkStorage};
use aya::programs::links::FdLink;
use hublet_ebpf::{Decision, Ident, Stats, maps};
use parking_lot::Mutex;

use super::attach::{self, AttachPlan, AttachedProgram};
use super::flows::{self, Flow, FlowTable};
use super::maps::{
    Control, GuardedInterface, MapOrigin, PodAccess, SelectionEntries, SelfExemption,
};
use super::netns;
use super::object::{self, take_map, unavailable};
use super::status::DecisionCount;
use super::sys::Plain;
use crate::node::unavailable::{Unavailable, UnavailableComponent};

pub(crate) struct Programs {
    control: Mutex<Control>,
    ident: SkStorage<MapData, Plain<Ident>>,
    stats: PerCpuArray<MapData, Plain<Stats>>,
    flows: FlowTable,
    attached: Vec<AttachedProgram>,
    unavailable: Vec<UnavailableComponent>,
    /// Keep the programs attached where there is no bpffs.
    _links: Vec<FdLink>,
    /// Reads aya-log's ring until it is dropped.
    #[cfg(feature = "bpf-log")]
    _log: Option<super::log::LogReader>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs")
            .field("attached", &self.attached)
            .field("control", &self.control.lock())
            .finish_non_exhaustive()
    }
}

impl Programs {
    /// Loads and attaches everything, switched off. Maps and links of an earlier daemon are taken over; with
    /// [`MapOrigin::Running`] its configuration stays in force until [`Programs::steer`].
    ///
    /// # Errors
    /// The kernel refuses a map or a core program.
    pub(crate) fn load(
        plan: &AttachPlan<'_>,
        exemption: &SelfExemption,
        origin: MapOrigin,
        read_log: bool,
    ) -> Result<Self, Unavailable> {
        let mut object = object::load(plan.pins)?;
        let ident = take_map(&mut object, maps::IDENT)?;
        let netns = netns::cookie(&mut object, &ident, plan.root)?;
        let mut control = Control::new(&mut object, netns, exemption)?;
        control
            .initialise(origin)
            .map_err(|error| unavailable("writing the maps", error))?;
        let stats = take_map(&mut object, maps::STATS)?;
        let flows = take_map(&mut object, maps::FLOWS)?;
        #[cfg(feature = "bpf-log")]
        let log = read_log
            .then(|| super::log::LogReader::start(&mut object))
            .flatten();
        #[cfg(not(feature = "bpf-log"))]
        let _ = read_log;
        let attached = attach::attach(&mut object, plan)?;
        Ok(Self {
            control: Mutex::new(control),
            ident,
            stats,
            flows,
            attached: attached.programs,
            unavailable: attached.unavailable,
            _links: attached.links,
            #[cfg(feature = "bpf-log")]
            _log: log,
        })
    }

    /// Attests connections to the listener at `own`.
    ///
    /// # Errors
    /// Too many different ports, or the kernel refuses the address.
    pub(crate) fn attest(&self, own: SocketAddr, pods: PodAccess) -> io::Result<()> {
        self.control.lock().add_listener(own, pods)
    }

    /// Steers the services to the listener at `own`.
    ///
    /// # Errors
    /// The kernel refuses the listener or an address.
    pub(crate) fn steer(&self, listener: BorrowedFd<'_>, own: SocketAddr) -> io::Result<()> {
        self.control.lock().start_steering(listener, own)
    }

    /// Replaces the services. Those of the other address family than the listener are not steered.
    ///
    /// # Errors
    /// Too many different ports, or the kernel refuses an address.
    pub(crate) fn set_services(&self, services: &BTreeSet<SocketAddr>) -> io::Result<()> {
        self.control.lock().set_services(services)
    }

    /// # Errors
    /// The kernel refuses an entry.
    pub(crate) fn set_selection(&self, entries: &SelectionEntries) -> io::Result<()> {
        self.control.lock().set_selection(entries)
    }

    /// Never steers processes of this cgroup, the daemon's own.
    ///
    /// # Errors
    /// The kernel refuses the configuration.
    pub(crate) fn exempt_cgroup(&self, id: u64) -> io::Result<()> {
        self.control.lock().exempt_cgroup(id)
    }

    /// Replaces the interfaces that the guard knows, and switches it on.
    ///
    /// # Errors
    /// The kernel refuses an entry.
    pub(crate) fn set_guard(&self, interfaces: &[GuardedInterface]) -> io::Result<()> {
        self.control.lock().set_guard(interfaces)
    }

    /// Proves that the daemon serves.
    ///
    /// # Errors
    /// The kernel refuses the configuration.
    pub(crate) fn write_heartbeat(&self) -> io::Result<()> {
        self.control.lock().write_heartbeat()
    }

    /// Switches steering off; connections to the listeners are still attested.
    ///
    /// # Errors
    /// The kernel refuses the configuration.
    pub(crate) fn stop_steering(&self) -> io::Result<()> {
        self.control.lock().stop_steering()
    }

    /// True if steering is switched on, even if listener or heartbeat are missing.
    pub(crate) fn is_steering(&self) -> bool {
        self.control.lock().is_steering()
    }

    /// The services, and whether each has the listener's address family.
    pub(crate) fn services(&self) -> ServicesByFamily {
        let control = self.control.lock();
        let is_ipv4 = control.target().map(|target| target.is_ipv4());
        let (matching, other) = control
            .services()
            .iter()
            .partition(|service| is_ipv4.is_none_or(|is_ipv4| service.is_ipv4() == is_ipv4));
        ServicesByFamily { matching, other }
    }

    /// The caller of an accepted connection, as the kernel attests it.
    pub(crate) fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Ident> {
        let Plain(ident) = self.ident.get(&accepted, 0).ok()?;
        Some(ident)
    }

    /// The number of times that each decision was made; zeroes if the map can't be read.
    pub(crate) fn decisions(&self) -> Vec<DecisionCount> {
        let cpus = self.stats.get(&0, 0).ok();
        let cpus = cpus.as_ref();
        let counts = Decision::ALL.iter().map(|decision| DecisionCount {
            decision: decision.name().into(),
            count: cpus.map_or(0, |cpus| sum_cpus(cpus, *decision)),
        });
        counts.collect()
    }

    pub(crate) fn flows(&self) -> Vec<Flow> {
        flows::read_flows(&self.flows)
    }

    /// Cookie of the network namespace that is steered.
    pub(crate) fn netns(&self) -> u64 {
        self.control.lock().netns()
    }

    /// Adds components that could not even be tried.
    pub(crate) fn mark_unavailable(&mut self, components: Vec<UnavailableComponent>) {
        self.unavailable.extend(components);
    }

    pub(crate) fn attached(&self) -> &[AttachedProgram] {
        &self.attached
    }

    /// The reason if this optional component is unavailable.
    pub(crate) fn unavailable(&self, component: &str) -> Option<&Unavailable> {
        let mut unavailable = self.unavailable.iter();
        unavailable
            .find(|unavailable| unavailable.name == component)
            .map(|unavailable| &unavailable.reason)
    }
}

pub(super) fn sum_cpus(cpus: &PerCpuValues<Plain<Stats>>, decision: Decision) -> u64 {
    cpus.iter().map(|Plain(stats)| stats.of(decision)).sum()
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct ServicesByFamily {
    /// Of the listener's address family, or any while there is no listener.
    pub(crate) matching: Vec<SocketAddr>,
    /// Not steered.
    pub(crate) other: Vec<SocketAddr>,
}
