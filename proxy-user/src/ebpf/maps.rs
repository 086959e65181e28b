//! What the daemon says to its programs and hears from them. In: listeners, services, selections, interfaces,
//! heartbeats, an accepted socket. Out: map entries; who called; counters. Holds map descriptors only: the links live
//! by their pins ([`attach`]), so that they outlast a crash and go when the pins are removed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage, SockMap};
use aya::programs::links::FdLink;
use hublet_ebpf::{
    Address, COMM_LEN, CONFIG_GUARD, CONFIG_PODS, CONFIG_SELECTED, CONFIG_STEER, Config, Decision,
    FlowCounts, FlowKey, Ident, MAX_PORTS, PROTO_TCP, SERVICE_OWN, SERVICE_PODS, SERVICE_STEER,
    SelectKey, Service, ServiceKey, Stats, maps,
};
use nix::libc;
use parking_lot::Mutex;

use super::attach::{self, Attach, Loaded};
use super::flows;
use super::netns;
use super::object::{self, map, missing};
use super::sys::{self, Plain};
use crate::node::unavailable::Unavailable;

/// How long a heartbeat holds; steering stops this long after the serving runtime's last proof of life.
pub(crate) const HEARTBEAT_TTL: Duration = Duration::from_secs(3);

/// The loaded programs' maps.
pub(crate) struct Programs {
    control: Mutex<Control>,
    ident: SkStorage<MapData, Plain<Ident>>,
    stats: PerCpuArray<MapData, Plain<Stats>>,
    flows: flows::Table,
    loaded: Vec<Loaded>,
    off: Vec<(&'static str, Unavailable)>,
    /// Without bpffs the links live by these.
    _links: Vec<FdLink>,
    /// aya-log's reader, which ends with us.
    #[cfg(feature = "bpf-log")]
    _log: Option<super::log::Drain>,
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Programs")
            .field("loaded", &self.loaded)
            .field("config", &self.control.lock().config)
            .finish_non_exhaustive()
    }
}

/// How the programs know the daemon's own sockets.
pub(crate) struct SelfExemption {
    /// SO_MARK; 0 = none.
    pub(crate) mark: u32,
    /// The daemon's cgroup, when nobody else is in it; 0 = none.
    pub(crate) cgroup: u64,
}

/// The maps that the daemon writes.
struct Control {
    config: Config,
    config_map: Array<MapData, Plain<Config>>,
    services: HashMap<MapData, Plain<ServiceKey>, Plain<Service>>,
    listen: SockMap<MapData>,
    select: HashMap<MapData, Plain<SelectKey>, u32>,
    commands: HashMap<MapData, [u8; 16], u32>,
    ifaces: HashMap<MapData, u32, u32>,
    /// Our listeners, and what pods may reach of them.
    own: BTreeMap<SocketAddr, u32>,
    /// Where services are steered to.
    target: Option<SocketAddr>,
    steered: BTreeSet<SocketAddr>,
    /// What the map says is steered.
    told: BTreeSet<SocketAddr>,
    /// Ports of an old daemon, until we steer ourselves.
    kept_ports: BTreeSet<u16>,
}

/// What the programs are told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SelectionEntries {
    /// By cgroup, user, network namespace.
    pub(crate) keys: Vec<(SelectKey, u32)>,
    pub(crate) commands: Vec<([u8; COMM_LEN], u32)>,
    /// Of the host's processes only the selected ones.
    pub(crate) only: bool,
    pub(crate) pods: bool,
}

impl SelectionEntries {
    pub(crate) fn add(&mut self, kind: u32, value: u64, verdict: u32) {
        let key = SelectKey {
            value,
            kind,
            zero: 0,
        };
        match self.keys.iter_mut().find(|(known, _)| *known == key) {
            Some((_, known)) => *known |= verdict,
            None => self.keys.push((key, verdict)),
        }
    }
}

impl Programs {
    /// Loads and attaches everything, switched off. Takes over the maps and links that a dead daemon left; with
    /// `living` those of one that hands over: what it told its programs stays in force until we steer ourselves.
    pub(crate) fn load(
        to: &Attach<'_>,
        own: &SelfExemption,
        living: bool,
        log: bool,
    ) -> Result<Self, Unavailable> {
        let mut object = object::load(to.pins)?;
        let ident = map(&mut object, maps::IDENT)?;
        let netns = netns::cookie(&mut object, &ident, to.root)?;
        let mut control = control(&mut object, netns, own)?;
        if living {
            control.adopt()
        } else {
            control.reset()
        }
        .map_err(|error| missing("writing the maps", &error))?;
        let stats = map(&mut object, maps::STATS)?;
        let flows = map(&mut object, maps::FLOWS)?;
        #[cfg(feature = "bpf-log")]
        let log = log.then(|| super::log::Drain::start(&mut object)).flatten();
        #[cfg(not(feature = "bpf-log"))]
        let _ = log;
        let attached = attach::attach(&mut object, to)?;
        Ok(Self {
            control: Mutex::new(control),
            ident,
            stats,
            flows,
            loaded: attached.loaded,
            off: attached.off,
            _links: attached.links,
            #[cfg(feature = "bpf-log")]
            _log: log,
        })
    }

    /// Connections to `own`, a listener of ours, are attested; pods may reach it only with `pods`.
    pub(crate) fn attest(&self, own: SocketAddr, pods: bool) -> io::Result<()> {
        self.control.lock().attest(own, pods)
    }

    /// Steers to the listener at `own`: what [`Programs::services`] names.
    pub(crate) fn steer(&self, listener: BorrowedFd<'_>, own: SocketAddr) -> io::Result<()> {
        let mut control = self.control.lock();
        control.attest(own, true)?;
        control.target = Some(own);
        control.kept_ports.clear();
        control.config.proxy = address(own.ip());
        control.listen.set(0, &listener, 0).map_err(io_error)?;
        let steered = control.steered.clone();
        control.services(&steered)?;
        control.beat()
    }

    /// These services are steered from now on, and no others. Gives back those that can't be: of the other address
    /// family than our listener, or on one port too many.
    pub(crate) fn services(&self, services: &BTreeSet<SocketAddr>) -> io::Result<()> {
        self.control.lock().services(services)
    }

    pub(crate) fn select(&self, entries: &SelectionEntries) -> io::Result<()> {
        self.control.lock().select(entries)
    }

    /// The daemon's own cgroup, of which nothing is steered.
    pub(crate) fn own_cgroup(&self, id: u64) -> io::Result<()> {
        let mut control = self.control.lock();
        control.config.own_cgroup = id;
        control.write()
    }

    /// Interfaces that the guard knows, with their kinds; switches it on.
    pub(crate) fn guard(&self, ifaces: &[(u32, u32)]) -> io::Result<()> {
        let mut control = self.control.lock();
        replace(&mut control.ifaces, ifaces)?;
        if control.config.flags & CONFIG_GUARD == 0 {
            control.config.flags |= CONFIG_GUARD;
            control.write()?;
        }
        Ok(())
    }

    /// Proves that the daemon serves.
    pub(crate) fn heartbeat(&self) -> io::Result<()> {
        self.control.lock().beat()
    }

    /// Switches steering off; attested listeners stay attested.
    pub(crate) fn stop(&self) -> io::Result<()> {
        let mut control = self.control.lock();
        control.target = None;
        control.config.flags &= !CONFIG_STEER;
        control.write()?;
        match control.listen.clear_index(&0).map_err(io_error) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()), // the slot was empty
            result => result,
        }
    }

    /// Is steering switched on (whatever the guards say)?
    pub(crate) fn is_steering(&self) -> bool {
        self.control.lock().config.flags & CONFIG_STEER != 0
    }

    /// What is steered now, and what is not because it is of another address family than our listener.
    pub(crate) fn steered(&self) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let control = self.control.lock();
        let family = control.target.map(|target| target.is_ipv4());
        control
            .steered
            .iter()
            .partition(|service| family.is_none_or(|v4| service.is_ipv4() == v4))
    }

    /// Who is at the other end of an accepted socket.
    pub(crate) fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Ident> {
        let Plain(ident) = self.ident.get(&accepted, 0).ok()?;
        Some(ident)
    }

    /// Decisions and how often each was taken.
    pub(crate) fn counters(&self) -> Vec<(&'static str, u64)> {
        let cpus = self.stats.get(&0, 0);
        let sum = |decision: Decision| {
            cpus.as_ref().map_or(0, |cpus| {
                cpus.iter().map(|Plain(stats)| stats.of(decision)).sum()
            })
        };
        Decision::ALL
            .iter()
            .map(|decision| (decision.name(), sum(*decision)))
            .collect()
    }

    /// The audit: every caller and service, summed over the CPUs.
    pub(crate) fn flows(&self) -> Vec<(FlowKey, FlowCounts)> {
        flows::read(&self.flows)
    }

    /// Cookie of the network namespace that is steered.
    pub(crate) fn netns(&self) -> u64 {
        self.control.lock().config.netns
    }

    /// Parts that could not even be tried.
    pub(crate) fn mark_unavailable(&mut self, components: Vec<(&'static str, Unavailable)>) {
        self.off.extend(components);
    }

    pub(crate) fn loaded(&self) -> &[Loaded] {
        &self.loaded
    }

    /// Parts that could not be had, and why.
    pub(crate) fn off(&self) -> &[(&'static str, Unavailable)] {
        &self.off
    }
}

impl Control {
    /// Forgets what an earlier daemon wrote.
    fn reset(&mut self) -> Result<(), MapError> {
        self.config_map.set(0, &Plain(self.config), 0)?;
        for key in self.services.keys().collect::<Result<Vec<_>, _>>()? {
            self.services.remove(&key)?;
        }
        Ok(())
    }

    /// Goes on with what a living daemon wrote.
    fn adopt(&mut self) -> Result<(), MapError> {
        let Plain(theirs) = self.config_map.get(&0, 0)?;
        if theirs.netns != self.config.netns {
            // New maps: the old one's are of another layout, and steer until its links go.
            return self.reset();
        }
        self.config = Config {
            own_cgroup: self.config.own_cgroup,
            bypass_mark: self.config.bypass_mark,
            ..theirs
        };
        self.kept_ports = theirs.ports.into_iter().filter(|port| *port != 0).collect();
        for entry in self.services.iter() {
            let (Plain(key), Plain(service)) = entry?;
            if service.flags & SERVICE_OWN == 0 {
                self.told.insert(SocketAddr::new(ip(key.ip), key.port));
            }
        }
        self.config_map.set(0, &Plain(self.config), 0)
    }

    fn attest(&mut self, own: SocketAddr, pods: bool) -> io::Result<()> {
        let flags = SERVICE_OWN | if pods { SERVICE_PODS } else { 0 };
        self.own.insert(own, flags);
        self.ports()?;
        self.put(
            own,
            Service {
                ip: address(own.ip()),
                port: own.port(),
                slot: 0,
                flags,
            },
        )
    }

    fn services(&mut self, services: &BTreeSet<SocketAddr>) -> io::Result<()> {
        self.steered.clone_from(services);
        let Some(target) = self.target else {
            return Ok(());
        };
        self.ports()?;
        let to = Service {
            ip: address(target.ip()),
            port: target.port(),
            slot: 0,
            flags: SERVICE_STEER,
        };
        let fits = |service: &&SocketAddr| {
            service.is_ipv4() == target.is_ipv4() && !self.own.contains_key(service)
        };
        let fitting: BTreeSet<SocketAddr> = services.iter().filter(fits).copied().collect();
        for service in &fitting {
            self.put(*service, to)?;
        }
        for gone in self
            .told
            .difference(&fitting)
            .filter(|gone| !self.own.contains_key(gone))
        {
            let _was_not_there = self.services.remove(&Plain(key(*gone)));
        }
        let steer = if fitting.is_empty() { 0 } else { CONFIG_STEER };
        self.told = fitting;
        let flags = self.config.flags & !CONFIG_STEER | steer;
        if flags != self.config.flags {
            self.config.flags = flags;
            self.write()?;
        }
        Ok(())
    }

    /// Tells the programs which ports to look at, before anything is on them.
    fn ports(&mut self) -> io::Result<()> {
        let mut ports: BTreeSet<u16> = self
            .own
            .keys()
            .chain(&self.steered)
            .map(SocketAddr::port)
            .collect();
        ports.extend(&self.kept_ports);
        if ports.len() > MAX_PORTS {
            return Err(io::Error::other(format!(
                "services and listeners are on {} different ports, and {MAX_PORTS} are possible",
                ports.len()
            )));
        }
        let mut all = [0; MAX_PORTS];
        all.iter_mut()
            .zip(ports)
            .for_each(|(slot, port)| *slot = port);
        if all != self.config.ports {
            self.config.ports = all;
            self.write()?;
        }
        Ok(())
    }

    fn select(&mut self, entries: &SelectionEntries) -> io::Result<()> {
        let keys = entries
            .keys
            .iter()
            .map(|(key, verdict)| (Plain(*key), *verdict));
        replace(&mut self.select, &keys.collect::<Vec<_>>())?;
        replace(&mut self.commands, &entries.commands)?;
        let wanted = if entries.only { CONFIG_SELECTED } else { 0 }
            | if entries.pods { CONFIG_PODS } else { 0 };
        let flags = self.config.flags & !(CONFIG_SELECTED | CONFIG_PODS) | wanted;
        if flags != self.config.flags {
            self.config.flags = flags;
            self.write()?;
        }
        Ok(())
    }

    fn put(&mut self, at: SocketAddr, service: Service) -> io::Result<()> {
        self.services
            .insert(&Plain(key(at)), &Plain(service), 0)
            .map_err(io_error)
    }

    fn beat(&mut self) -> io::Result<()> {
        self.config.heartbeat_ns = sys::monotonic_ns();
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.config_map
            .set(0, &Plain(self.config), 0)
            .map_err(io_error)
    }
}

/// Makes a map hold exactly these entries: new ones first, so that nobody is forgotten meanwhile.
fn replace<K: aya::Pod + PartialEq>(
    map: &mut HashMap<MapData, K, u32>,
    wanted: &[(K, u32)],
) -> io::Result<()> {
    for (key, value) in wanted {
        map.insert(key, value, 0).map_err(io_error)?;
    }
    for key in map.keys().flatten().collect::<Vec<_>>() {
        if !wanted.iter().any(|(wanted, _)| *wanted == key) {
            let _gone = map.remove(&key);
        }
    }
    Ok(())
}

fn key(at: SocketAddr) -> ServiceKey {
    ServiceKey {
        ip: address(at.ip()),
        port: at.port(),
        proto: PROTO_TCP,
        zero: 0,
    }
}

/// As the maps hold it.
pub(crate) fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::v4(ip.octets()),
        IpAddr::V6(ip) => Address::v6(ip.octets()),
    }
}

/// Out of a map; an IPv4-mapped address is an IPv4 one.
pub(crate) fn ip(address: Address) -> IpAddr {
    IpAddr::from(address.bytes()).to_canonical()
}

fn control(object: &mut Ebpf, netns: u64, own: &SelfExemption) -> Result<Control, Unavailable> {
    let ttl_ns = u64::try_from(HEARTBEAT_TTL.as_nanos()).unwrap_or(u64::MAX);
    Ok(Control {
        config: Config {
            ttl_ns,
            netns,
            own_cgroup: own.cgroup,
            bypass_mark: own.mark,
            ..Config::default()
        },
        config_map: map(object, maps::CONFIG)?,
        services: map(object, maps::SERVICES)?,
        listen: map(object, maps::LISTEN)?,
        select: map(object, maps::SELECT)?,
        commands: map(object, maps::SELECT_CMD)?,
        ifaces: map(object, maps::IFACES)?,
        own: BTreeMap::new(),
        target: None,
        steered: BTreeSet::new(),
        told: BTreeSet::new(),
        kept_ports: BTreeSet::new(),
    })
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    }
}
