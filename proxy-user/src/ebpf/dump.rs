//! The entries of the maps, for `hublet bpf`.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use hublet_ebpf::{
    COMM_LEN, CONFIG_GUARD, CONFIG_PODS, CONFIG_SELECTED, CONFIG_STEER, Config, Decision,
    IFACE_LOCAL, SELECT_CGROUP, SELECT_POD_CGROUP, SELECT_POD_NETNS, SELECT_UID, SERVICE_OWN,
    SERVICE_PODS, SelectKey, Service, ServiceKey, Stats, VERDICT_EXCEPT, VERDICT_STEER, maps,
};
use serde::Serialize;

use super::flows::{self, Flow, FlowTable};
use super::maps::{from_map, service_address};
use super::programs::sum_cpus;
use super::sys::{self, Plain};

/// The entries of one map of [`MAPS`](super::pins::MAPS).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum MapEntries {
    Config(ConfigEntry),
    Services(Vec<ServiceEntry>),
    Selections(Vec<SelectionEntry>),
    Commands(Vec<CommandEntry>),
    Interfaces(Vec<InterfaceEntry>),
    Decisions(DecisionCounts),
    Flows(Vec<Flow>),
}

/// The entries of every map of [`MAPS`](super::pins::MAPS), by the map's name.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AllEntries {
    pub config: ConfigEntry,
    pub services: Vec<ServiceEntry>,
    pub select: Vec<SelectionEntry>,
    pub select_cmd: Vec<CommandEntry>,
    pub ifaces: Vec<InterfaceEntry>,
    pub stats: DecisionCounts,
    pub flows: Vec<Flow>,
}

/// The counters of `HUB_STATS` by name, summed over the CPUs.
pub type DecisionCounts = BTreeMap<&'static str, u64>;

/// The only entry of `HUB_CONFIG`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigEntry {
    pub steering: bool,
    pub guard: bool,
    /// Only selected processes of the host are steered.
    pub selected: bool,
    /// Some pods are steered.
    pub pods: bool,
    /// `None` before the first heartbeat.
    pub heartbeat_age_ms: Option<u64>,
    /// Age of a heartbeat at which connects pass through.
    pub ttl_ms: u64,
    /// Cookie of the network namespace that is steered.
    pub netns: u64,
    /// The daemon's cgroup if no other process is in it, otherwise 0.
    pub own_cgroup: u64,
    /// `SO_MARK` of the daemon's own sockets.
    pub bypass_mark: u32,
    pub proxy: IpAddr,
    /// The ports of services and listeners.
    pub ports: Vec<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceEntry {
    pub service: SocketAddr,
    pub to: SocketAddr,
    /// `steered`; `own` and `own, pods too` for hublet's own listeners.
    #[serde(rename = "use")]
    pub usage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SelectionEntry {
    /// `cgroup`, `uid`, `pod cgroup`, `pod netns`.
    pub kind: &'static str,
    pub value: u64,
    /// `steer`, `except`.
    pub verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CommandEntry {
    pub command: String,
    /// `steer`, `except`.
    pub verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InterfaceEntry {
    /// Empty if the interface has gone.
    pub name: String,
    pub index: u32,
    /// `local`, `uplink`.
    pub kind: &'static str,
}

/// Reads a map of [`MAPS`](super::pins::MAPS).
pub(super) fn read_entries(name: &str, map: Map) -> Result<MapEntries, MapError> {
    Ok(match name {
        maps::CONFIG => MapEntries::Config(read_config(map)?),
        maps::SERVICES => MapEntries::Services(read_services(map)?),
        maps::SELECT => MapEntries::Selections(read_selections(map)?),
        maps::SELECT_CMD => MapEntries::Commands(read_commands(map)?),
        maps::IFACES => MapEntries::Interfaces(read_interfaces(map)?),
        maps::STATS => MapEntries::Decisions(read_stats(map)?),
        _ => MapEntries::Flows(read_flows(map)?),
    })
}

pub(super) fn read_config(map: Map) -> Result<ConfigEntry, MapError> {
    let Plain(config) = Array::<_, Plain<Config>>::try_from(map)?.get(&0, 0)?;
    Ok(config_entry(&config))
}

pub(super) fn read_services(map: Map) -> Result<Vec<ServiceEntry>, MapError> {
    let services = HashMap::<_, Plain<ServiceKey>, Plain<Service>>::try_from(map)?;
    collect_entries(&services, |Plain(key), Plain(to)| service_entry(&key, &to))
}

pub(super) fn read_selections(map: Map) -> Result<Vec<SelectionEntry>, MapError> {
    let selections = HashMap::<_, Plain<SelectKey>, u32>::try_from(map)?;
    collect_entries(&selections, |Plain(key), verdict| SelectionEntry {
        kind: selection_kind(key.kind),
        value: key.value,
        verdict: verdict_name(verdict),
    })
}

pub(super) fn read_commands(map: Map) -> Result<Vec<CommandEntry>, MapError> {
    let commands = HashMap::<_, [u8; COMM_LEN], u32>::try_from(map)?;
    collect_entries(&commands, |name, verdict| {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        CommandEntry {
            command: String::from_utf8_lossy(name).into_owned(),
            verdict: verdict_name(verdict),
        }
    })
}

pub(super) fn read_interfaces(map: Map) -> Result<Vec<InterfaceEntry>, MapError> {
    collect_entries(&HashMap::<_, u32, u32>::try_from(map)?, interface_entry)
}

pub(super) fn read_stats(map: Map) -> Result<DecisionCounts, MapError> {
    let cpus = PerCpuArray::<_, Plain<Stats>>::try_from(map)?.get(&0, 0)?;
    let decisions = Decision::ALL.iter();
    let counts = decisions.map(|decision| (decision.name(), sum_cpus(&cpus, *decision)));
    Ok(counts.collect())
}

pub(super) fn read_flows(map: Map) -> Result<Vec<Flow>, MapError> {
    Ok(flows::read_flows(&FlowTable::try_from(map)?))
}

fn collect_entries<K: aya::Pod, V: aya::Pod, E>(
    map: &HashMap<MapData, K, V>,
    to_entry: impl Fn(K, V) -> E,
) -> Result<Vec<E>, MapError> {
    map.iter()
        .map(|entry| entry.map(|(key, value)| to_entry(key, value)))
        .collect()
}

fn config_entry(config: &Config) -> ConfigEntry {
    let ports = config.ports.into_iter().filter(|port| *port != 0);
    ConfigEntry {
        steering: config.flags & CONFIG_STEER != 0,
        guard: config.flags & CONFIG_GUARD != 0,
        selected: config.flags & CONFIG_SELECTED != 0,
        pods: config.flags & CONFIG_PODS != 0,
        heartbeat_age_ms: heartbeat_age_ms(config),
        ttl_ms: config.ttl_ns / 1_000_000,
        netns: config.netns,
        own_cgroup: config.own_cgroup,
        bypass_mark: config.bypass_mark,
        proxy: from_map(config.proxy),
        ports: ports.collect(),
    }
}

/// `None` before the first heartbeat.
fn heartbeat_age_ms(config: &Config) -> Option<u64> {
    let age = sys::monotonic_ns().saturating_sub(config.heartbeat_ns);
    (config.heartbeat_ns != 0).then_some(age / 1_000_000)
}

fn service_entry(key: &ServiceKey, to: &Service) -> ServiceEntry {
    ServiceEntry {
        service: service_address(key),
        to: SocketAddr::new(from_map(to.ip), to.port),
        usage: service_usage(to.flags),
    }
}

fn interface_entry(index: u32, kind: u32) -> InterfaceEntry {
    let name = nix::net::if_::if_indextoname(index).unwrap_or_default();
    let is_local = kind == IFACE_LOCAL;
    InterfaceEntry {
        name: name.to_string_lossy().into_owned(),
        index,
        kind: if is_local { "local" } else { "uplink" },
    }
}

fn service_usage(flags: u32) -> &'static str {
    match flags {
        flags if flags & SERVICE_OWN == 0 => "steered",
        flags if flags & SERVICE_PODS != 0 => "own, pods too",
        _ => "own",
    }
}

fn selection_kind(kind: u32) -> &'static str {
    match kind {
        SELECT_CGROUP => "cgroup",
        SELECT_UID => "uid",
        SELECT_POD_CGROUP => "pod cgroup",
        SELECT_POD_NETNS => "pod netns",
        _ => "?",
    }
}

fn verdict_name(verdict: u32) -> &'static str {
    match verdict {
        VERDICT_STEER => "steer",
        v if v & VERDICT_EXCEPT != 0 => "except",
        _ => "?",
    }
}
