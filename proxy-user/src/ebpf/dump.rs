//! The entries of the maps as JSON, for `hublet bpf dump`.

use std::net::SocketAddr;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use hublet_ebpf::{
    COMM_LEN, CONFIG_GUARD, CONFIG_PODS, CONFIG_SELECTED, CONFIG_STEER, Config, Decision,
    IFACE_LOCAL, SELECT_CGROUP, SELECT_POD_CGROUP, SELECT_POD_NETNS, SELECT_UID, SERVICE_OWN,
    SERVICE_PODS, SelectKey, Service, ServiceKey, Stats, VERDICT_EXCEPT, VERDICT_STEER, maps,
};
use serde_json::{Value, json};

use super::flows::{self, Flow, FlowTable};
use super::maps::{from_map, service_address};
use super::programs::sum_cpus;
use super::sys::{self, Plain};

/// Reads a map of [`MAPS`](super::pins::MAPS).
pub(super) fn map_rows(name: &str, map: Map) -> Result<Value, MapError> {
    match name {
        maps::CONFIG => read_config(map),
        maps::SERVICES => read_services(map),
        maps::SELECT => read_selections(map),
        maps::SELECT_CMD => read_commands(map),
        maps::IFACES => read_interfaces(map),
        maps::STATS => read_stats(map),
        _ => read_flows(map),
    }
}

fn read_config(map: Map) -> Result<Value, MapError> {
    let Plain(config) = Array::<_, Plain<Config>>::try_from(map)?.get(&0, 0)?;
    Ok(config_row(&config))
}

fn read_services(map: Map) -> Result<Value, MapError> {
    let services = HashMap::<_, Plain<ServiceKey>, Plain<Service>>::try_from(map)?;
    collect_rows(&services, |Plain(key), Plain(to)| service_row(&key, &to))
}

fn read_selections(map: Map) -> Result<Value, MapError> {
    let selections = HashMap::<_, Plain<SelectKey>, u32>::try_from(map)?;
    collect_rows(&selections, |Plain(key), verdict| {
        json!({
            "kind": selection_kind(key.kind),
            "value": key.value,
            "verdict": verdict_name(verdict),
        })
    })
}

fn read_commands(map: Map) -> Result<Value, MapError> {
    let commands = HashMap::<_, [u8; COMM_LEN], u32>::try_from(map)?;
    collect_rows(&commands, |name, verdict| {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        json!({"command": String::from_utf8_lossy(name), "verdict": verdict_name(verdict)})
    })
}

fn read_interfaces(map: Map) -> Result<Value, MapError> {
    collect_rows(&HashMap::<_, u32, u32>::try_from(map)?, interface_row)
}

fn read_stats(map: Map) -> Result<Value, MapError> {
    let cpus = PerCpuArray::<_, Plain<Stats>>::try_from(map)?.get(&0, 0)?;
    let decisions = Decision::ALL.iter();
    let counts = decisions.map(|decision| {
        let count = sum_cpus(&cpus, *decision);
        (decision.name().to_owned(), json!(count))
    });
    Ok(counts.collect())
}

fn read_flows(map: Map) -> Result<Value, MapError> {
    let flows = flows::read_flows(&FlowTable::try_from(map)?);
    Ok(flows.iter().map(flow_row).collect())
}

fn collect_rows<K: aya::Pod, V: aya::Pod>(
    map: &HashMap<MapData, K, V>,
    row: impl Fn(K, V) -> Value,
) -> Result<Value, MapError> {
    map.iter()
        .map(|entry| entry.map(|(key, value)| row(key, value)))
        .collect()
}

fn config_row(config: &Config) -> Value {
    json!({
        "steering": config.flags & CONFIG_STEER != 0,
        "guard": config.flags & CONFIG_GUARD != 0,
        "selected": config.flags & CONFIG_SELECTED != 0,
        "pods": config.flags & CONFIG_PODS != 0,
        "heartbeatAgeMs": heartbeat_age_ms(config),
        "ttlMs": config.ttl_ns / 1_000_000,
        "netns": config.netns,
        "ownCgroup": config.own_cgroup,
        "bypassMark": config.bypass_mark,
        "proxy": from_map(config.proxy).to_string(),
        "ports": config.ports.iter().filter(|port| **port != 0).collect::<Vec<_>>(),
    })
}

/// `None` before the first heartbeat.
fn heartbeat_age_ms(config: &Config) -> Option<u64> {
    let age = sys::monotonic_ns().saturating_sub(config.heartbeat_ns);
    (config.heartbeat_ns != 0).then_some(age / 1_000_000)
}

fn service_row(key: &ServiceKey, to: &Service) -> Value {
    json!({
        "service": service_address(key).to_string(),
        "to": target_address(to).to_string(),
        "use": service_use(to.flags),
    })
}

fn target_address(to: &Service) -> SocketAddr {
    SocketAddr::new(from_map(to.ip), to.port)
}

fn interface_row(index: u32, kind: u32) -> Value {
    let name = nix::net::if_::if_indextoname(index).unwrap_or_default();
    let kind = if kind == IFACE_LOCAL {
        "local"
    } else {
        "uplink"
    };
    json!({"name": name.to_string_lossy(), "index": index, "kind": kind})
}

fn flow_row(flow: &Flow) -> Value {
    let mut row = json!(flow.counts);
    row["cgroupId"] = flow.cgroup_id.into();
    row["service"] = flow.service.to_string().into();
    row
}

fn service_use(flags: u32) -> &'static str {
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
