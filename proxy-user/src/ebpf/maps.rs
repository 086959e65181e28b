//! Typed access to the maps that the daemon writes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, SockMap};
use hublet_ebpf::{
    Address, COMM_LEN, CONFIG_GUARD, CONFIG_PODS, CONFIG_SELECTED, CONFIG_STEER, Config, MAX_PORTS,
    PROTO_TCP, SELECT_POD_CGROUP, SELECT_POD_NETNS, SERVICE_OWN, SERVICE_PODS, SERVICE_STEER,
    SelectKey, Service, ServiceKey, maps,
};
use nix::libc;

use super::object::take_map;
use super::sys::{self, Plain};
use crate::node::unavailable::Unavailable;

/// Steering stops this long after the last heartbeat.
pub(crate) const HEARTBEAT_TTL: Duration = Duration::from_secs(3);

/// The slot of `HUB_LISTEN` with the serving listener.
const LISTENER_SLOT: u16 = 0;

/// The daemon's own sockets, which are never steered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SelfExemption {
    /// SO_MARK; 0 = none.
    pub(crate) mark: u32,
    /// Id of the daemon's cgroup if no other process is in it; 0 = none.
    pub(crate) cgroup: u64,
}

/// The daemon that wrote the maps before this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MapOrigin {
    /// None, or one that has ended: its entries are dropped.
    Ended,
    /// One that hands over: its entries stay in force.
    Running,
}

/// Access of pods to a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PodAccess {
    Allowed,
    Refused,
}

impl PodAccess {
    fn flags(self) -> u32 {
        match self {
            Self::Allowed => SERVICE_PODS,
            Self::Refused => 0,
        }
    }
}

/// An entry of the guard's map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct GuardedInterface {
    pub(crate) index: u32,
    /// [`IFACE_LOCAL`](hublet_ebpf::IFACE_LOCAL) or [`IFACE_UPLINK`](hublet_ebpf::IFACE_UPLINK).
    pub(crate) kind: u32,
}

/// The selection of callers, as the maps hold it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SelectionEntries {
    /// By cgroup, user, network namespace.
    pub(crate) keys: Vec<(SelectKey, u32)>,
    pub(crate) commands: Vec<([u8; COMM_LEN], u32)>,
    /// Steer only the selected ones of the host's processes.
    pub(crate) selected_only: bool,
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

    /// True if some pods are selected.
    pub(crate) fn has_pods(&self) -> bool {
        let mut keys = self.keys.iter();
        keys.any(|(key, _)| matches!(key.kind, SELECT_POD_CGROUP | SELECT_POD_NETNS))
    }

    fn flags(&self) -> u32 {
        let selected = if self.selected_only {
            CONFIG_SELECTED
        } else {
            0
        };
        let pods = if self.has_pods() { CONFIG_PODS } else { 0 };
        selected | pods
    }
}

/// The maps that the daemon writes, and its view of their entries.
pub(crate) struct Control {
    config: Config,
    config_map: Array<MapData, Plain<Config>>,
    service_map: HashMap<MapData, Plain<ServiceKey>, Plain<Service>>,
    listener_map: SockMap<MapData>,
    selection_map: HashMap<MapData, Plain<SelectKey>, u32>,
    command_map: HashMap<MapData, [u8; COMM_LEN], u32>,
    interface_map: HashMap<MapData, u32, u32>,
    listeners: BTreeMap<SocketAddr, PodAccess>,
    /// The listener that services are steered to.
    target: Option<SocketAddr>,
    services: BTreeSet<SocketAddr>,
    /// The services in the map.
    installed: BTreeSet<SocketAddr>,
    /// Ports of an earlier daemon, kept until this one steers.
    inherited_ports: BTreeSet<u16>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control")
            .field("config", &self.config)
            .field("installed", &self.installed)
            .finish_non_exhaustive()
    }
}

impl Control {
    /// Takes the maps out of the object; nothing is written.
    pub(super) fn new(
        object: &mut Ebpf,
        netns: u64,
        exemption: &SelfExemption,
    ) -> Result<Self, Unavailable> {
        Ok(Self {
            config: Config {
                ttl_ns: u64::try_from(HEARTBEAT_TTL.as_nanos()).unwrap_or(u64::MAX),
                netns,
                own_cgroup: exemption.cgroup,
                bypass_mark: exemption.mark,
                ..Config::default()
            },
            config_map: take_map(object, maps::CONFIG)?,
            service_map: take_map(object, maps::SERVICES)?,
            listener_map: take_map(object, maps::LISTEN)?,
            selection_map: take_map(object, maps::SELECT)?,
            command_map: take_map(object, maps::SELECT_CMD)?,
            interface_map: take_map(object, maps::IFACES)?,
            listeners: BTreeMap::new(),
            target: None,
            services: BTreeSet::new(),
            installed: BTreeSet::new(),
            inherited_ports: BTreeSet::new(),
        })
    }

    /// Drops or takes over the entries of an earlier daemon.
    pub(super) fn initialise(&mut self, origin: MapOrigin) -> Result<(), MapError> {
        let Plain(theirs) = self.config_map.get(&0, 0)?;
        // Another namespace means that these maps are new: the other daemon's are of another layout and stay with its
        // own programs.
        if origin == MapOrigin::Running && theirs.netns == self.config.netns {
            self.adopt_entries(theirs)
        } else {
            self.reset_entries()
        }
    }

    fn reset_entries(&mut self) -> Result<(), MapError> {
        self.config_map.set(0, &Plain(self.config), 0)?;
        for key in self.service_map.keys().collect::<Result<Vec<_>, _>>()? {
            self.service_map.remove(&key)?;
        }
        Ok(())
    }

    fn adopt_entries(&mut self, theirs: Config) -> Result<(), MapError> {
        self.config = Config {
            own_cgroup: self.config.own_cgroup,
            bypass_mark: self.config.bypass_mark,
            ..theirs
        };
        self.inherited_ports = theirs.ports.into_iter().filter(|port| *port != 0).collect();
        self.read_installed()?;
        self.config_map.set(0, &Plain(self.config), 0)
    }

    fn read_installed(&mut self) -> Result<(), MapError> {
        for entry in self.service_map.iter() {
            let (Plain(key), Plain(service)) = entry?;
            if service.flags & SERVICE_OWN == 0 {
                self.installed.insert(service_address(&key));
            }
        }
        Ok(())
    }

    pub(super) fn netns(&self) -> u64 {
        self.config.netns
    }

    pub(super) fn target(&self) -> Option<SocketAddr> {
        self.target
    }

    pub(super) fn services(&self) -> &BTreeSet<SocketAddr> {
        &self.services
    }

    pub(super) fn is_steering(&self) -> bool {
        self.config.flags & CONFIG_STEER != 0
    }

    pub(super) fn add_listener(&mut self, own: SocketAddr, pods: PodAccess) -> io::Result<()> {
        self.listeners.insert(own, pods);
        self.update_ports()?;
        let service = service_at(own, SERVICE_OWN | pods.flags());
        self.set_service(own, service)
    }

    pub(super) fn start_steering(
        &mut self,
        listener: BorrowedFd<'_>,
        own: SocketAddr,
    ) -> io::Result<()> {
        self.add_listener(own, PodAccess::Allowed)?;
        self.target = Some(own);
        self.inherited_ports.clear();
        self.config.proxy = to_map(own.ip());
        self.listener_map
            .set(LISTENER_SLOT.into(), &listener, 0)
            .map_err(io_error)?;
        self.install_services(own)?;
        self.write_heartbeat()
    }

    pub(super) fn stop_steering(&mut self) -> io::Result<()> {
        self.target = None;
        self.set_flags(CONFIG_STEER, 0)?;
        self.empty_listener_slot()
    }

    fn empty_listener_slot(&mut self) -> io::Result<()> {
        let slot = u32::from(LISTENER_SLOT);
        match self.listener_map.clear_index(&slot).map_err(io_error) {
            // It was empty.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            emptied => emptied,
        }
    }

    pub(super) fn set_services(&mut self, services: &BTreeSet<SocketAddr>) -> io::Result<()> {
        self.services.clone_from(services);
        match self.target {
            Some(target) => self.install_services(target),
            None => Ok(()),
        }
    }

    /// Makes the map hold the services that fit the listener. New entries come first, so that no service is left out
    /// meanwhile.
    fn install_services(&mut self, target: SocketAddr) -> io::Result<()> {
        self.update_ports()?;
        let fitting = self.services_for(target);
        for service in &fitting {
            self.set_service(*service, service_at(target, SERVICE_STEER))?;
        }
        self.remove_services_except(&fitting);
        let steer = if fitting.is_empty() { 0 } else { CONFIG_STEER };
        self.installed = fitting;
        self.set_flags(CONFIG_STEER, steer)
    }

    /// The services of the listener's address family that are no listeners themselves.
    fn services_for(&self, target: SocketAddr) -> BTreeSet<SocketAddr> {
        let services = self.services.iter().copied();
        services
            .filter(|service| service.is_ipv4() == target.is_ipv4())
            .filter(|service| !self.listeners.contains_key(service))
            .collect()
    }

    fn remove_services_except(&mut self, keep: &BTreeSet<SocketAddr>) {
        for gone in self.installed.difference(keep) {
            if !self.listeners.contains_key(gone) {
                let _was_not_there = self.service_map.remove(&Plain(service_key(*gone)));
            }
        }
    }

    /// Announces the ports before any service is on them: the programs ignore all others.
    fn update_ports(&mut self) -> io::Result<()> {
        let ports = port_array(&self.used_ports())?;
        if ports == self.config.ports {
            return Ok(());
        }
        self.config.ports = ports;
        self.flush_config()
    }

    fn used_ports(&self) -> BTreeSet<u16> {
        let addresses = self.listeners.keys().chain(&self.services);
        addresses
            .map(SocketAddr::port)
            .chain(self.inherited_ports.iter().copied())
            .collect()
    }

    pub(super) fn set_selection(&mut self, entries: &SelectionEntries) -> io::Result<()> {
        let keys: Vec<_> = entries
            .keys
            .iter()
            .map(|(key, verdict)| (Plain(*key), *verdict))
            .collect();
        replace_entries(&mut self.selection_map, &keys)?;
        replace_entries(&mut self.command_map, &entries.commands)?;
        self.set_flags(CONFIG_SELECTED | CONFIG_PODS, entries.flags())
    }

    pub(super) fn set_guard(&mut self, interfaces: &[GuardedInterface]) -> io::Result<()> {
        let entries: Vec<_> = interfaces
            .iter()
            .map(|interface| (interface.index, interface.kind))
            .collect();
        replace_entries(&mut self.interface_map, &entries)?;
        self.set_flags(CONFIG_GUARD, CONFIG_GUARD)
    }

    pub(super) fn exempt_cgroup(&mut self, id: u64) -> io::Result<()> {
        self.config.own_cgroup = id;
        self.flush_config()
    }

    pub(super) fn write_heartbeat(&mut self) -> io::Result<()> {
        self.config.heartbeat_ns = sys::monotonic_ns();
        self.flush_config()
    }

    fn set_service(&mut self, at: SocketAddr, service: Service) -> io::Result<()> {
        self.service_map
            .insert(&Plain(service_key(at)), &Plain(service), 0)
            .map_err(io_error)
    }

    /// Sets the bits of `mask` to those of `flags`.
    fn set_flags(&mut self, mask: u32, flags: u32) -> io::Result<()> {
        let flags = self.config.flags & !mask | flags;
        if flags == self.config.flags {
            return Ok(());
        }
        self.config.flags = flags;
        self.flush_config()
    }

    fn flush_config(&mut self) -> io::Result<()> {
        self.config_map
            .set(0, &Plain(self.config), 0)
            .map_err(io_error)
    }
}

/// Makes a map hold exactly these entries. New ones come first, so that none is missing meanwhile.
fn replace_entries<K: aya::Pod + PartialEq>(
    map: &mut HashMap<MapData, K, u32>,
    wanted: &[(K, u32)],
) -> io::Result<()> {
    for (key, value) in wanted {
        map.insert(key, value, 0).map_err(io_error)?;
    }
    for key in map.keys().flatten().collect::<Vec<_>>() {
        if !wanted.iter().any(|(wanted, _)| *wanted == key) {
            let _was_not_there = map.remove(&key);
        }
    }
    Ok(())
}

fn port_array(ports: &BTreeSet<u16>) -> io::Result<[u16; MAX_PORTS]> {
    if ports.len() > MAX_PORTS {
        return Err(io::Error::other(format!(
            "services and listeners use {} different ports, and {MAX_PORTS} are possible",
            ports.len()
        )));
    }
    let mut array = [0; MAX_PORTS];
    for (slot, port) in array.iter_mut().zip(ports) {
        *slot = *port;
    }
    Ok(array)
}

fn service_key(at: SocketAddr) -> ServiceKey {
    ServiceKey {
        ip: to_map(at.ip()),
        port: at.port(),
        proto: PROTO_TCP,
        zero: 0,
    }
}

pub(super) fn service_address(key: &ServiceKey) -> SocketAddr {
    SocketAddr::new(from_map(key.ip), key.port)
}

fn service_at(target: SocketAddr, flags: u32) -> Service {
    Service {
        ip: to_map(target.ip()),
        port: target.port(),
        slot: LISTENER_SLOT,
        flags,
    }
}

fn to_map(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(ip) => Address::v4(ip.octets()),
        IpAddr::V6(ip) => Address::v6(ip.octets()),
    }
}

/// An IPv4-mapped address becomes an IPv4 one.
pub(crate) fn from_map(address: Address) -> IpAddr {
    IpAddr::from(address.bytes()).to_canonical()
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use hublet_ebpf::{SELECT_UID, VERDICT_EXCEPT, VERDICT_STEER};

    use super::*;

    #[test]
    fn addresses_survive_the_map_and_mapped_ones_become_ipv4() {
        for text in ["10.96.0.1", "169.254.2.1", "fd00::2:1", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(from_map(to_map(ip)), ip);
        }
        let mapped: IpAddr = "::ffff:10.96.0.1".parse().unwrap();
        assert_eq!(from_map(to_map(mapped)), mapped.to_canonical());
    }

    #[test]
    fn ports_beyond_the_limit_are_refused() {
        let ports: BTreeSet<u16> = (1..=8).collect();
        assert_eq!(port_array(&ports).unwrap(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(port_array(&BTreeSet::from([443])).unwrap()[..2], [443, 0]);
        let text = port_array(&(1..=9).collect()).unwrap_err().to_string();
        assert!(text.contains("9 different ports, and 8"), "{text}");
    }

    #[test]
    fn verdicts_on_one_key_add_up_and_decide_the_flags() {
        let mut entries = SelectionEntries::default();
        assert_eq!(entries.flags(), 0);
        entries.add(SELECT_UID, 0, VERDICT_STEER);
        entries.add(SELECT_UID, 0, VERDICT_EXCEPT);
        assert_eq!(entries.keys.len(), 1);
        assert_eq!(entries.keys[0].1, VERDICT_STEER | VERDICT_EXCEPT);
        assert!(!entries.has_pods());
        entries.selected_only = true;
        entries.add(SELECT_POD_NETNS, 7, VERDICT_STEER);
        assert_eq!(entries.flags(), CONFIG_SELECTED | CONFIG_PODS);
    }
}
