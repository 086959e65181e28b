//! Inspects and removes pins without a running daemon, of this version and of others.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use hublet_ebpf::{
    CONFIG_GUARD, CONFIG_PODS, CONFIG_SELECTED, CONFIG_STEER, Config, Decision, IFACE_LOCAL,
    LAYOUT, SELECT_CGROUP, SELECT_POD_CGROUP, SELECT_POD_NETNS, SELECT_UID, SERVICE_OWN,
    SERVICE_PODS, SelectKey, Service, ServiceKey, Stats, VERDICT_EXCEPT, VERDICT_STEER, maps,
};
use serde_json::{Value, json};

use super::attach;
use super::bpffs::{DIRECTORY, Pins};
use super::flows::{self, Flow, FlowTable};
use super::maps::from_map;
use super::sys::{self, Plain};
use crate::node::unavailable::Unavailable;
use crate::text::with_causes;

/// The maps that [`Pinned::dump`] can show.
pub const MAPS: [&str; 7] = [
    maps::CONFIG,
    maps::SERVICES,
    maps::SELECT,
    maps::SELECT_CMD,
    maps::IFACES,
    maps::STATS,
    maps::FLOWS,
];

/// Errors of pins.
#[derive(Debug, thiserror::Error)]
pub enum PinnedError {
    #[error(
        "nothing of hublet is pinned in {0}: no hublet runs with that --bpffs, or eBPF is off (`hublet status` says why)"
    )]
    Nothing(PathBuf),
    #[error(
        "what is pinned is of another version's layout ({found}; this is {LAYOUT:016x}): use that version's binary"
    )]
    Layout { found: String },
    #[error("no map {name}; use one of {}", MAPS.join(", "))]
    NoSuchMap { name: String },
    #[error(
        "{map}: {}; run it as root (CAP_BPF, CAP_SYS_ADMIN)",
        with_causes(source)
    )]
    Map { map: String, source: Box<MapError> },
    #[error("{0}: {1}")]
    File(PathBuf, #[source] io::Error),
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
}

/// The pins below a bpffs.
#[derive(Debug)]
pub struct Pinned {
    directory: PathBuf,
    bpffs: PathBuf,
}

impl Pinned {
    /// # Errors
    /// Nothing is pinned.
    pub fn find(bpffs: &Path) -> Result<Self, PinnedError> {
        let pinned = Self {
            directory: bpffs.join(DIRECTORY),
            bpffs: bpffs.to_path_buf(),
        };
        if pinned.layouts()?.is_empty() {
            return Err(PinnedError::Nothing(bpffs.to_path_buf()));
        }
        Ok(pinned)
    }

    /// Directories of all versions with pins.
    fn layouts(&self) -> Result<Vec<PathBuf>, PinnedError> {
        match fs::read_dir(&self.directory) {
            Ok(entries) => Ok(entries.flatten().map(|entry| entry.path()).collect()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(PinnedError::File(self.directory.clone(), error)),
        }
    }

    /// Links of all versions as JSON: pin, hook, program.
    ///
    /// # Errors
    /// A pin can't be opened.
    pub fn links(&self) -> Result<Value, PinnedError> {
        let mut rows = Vec::new();
        for pin in self.link_pins()? {
            let link = attach::describe_link(&pin)
                .map_err(|error| PinnedError::File(pin.clone(), error))?;
            rows.push(json!({
                "name": pin.file_name().map(|name| name.to_string_lossy().into_owned()),
                "hook": link.hook,
                "program": link.program,
                "pin": pin.display().to_string(),
            }));
        }
        Ok(Value::Array(rows))
    }

    fn link_pins(&self) -> Result<Vec<PathBuf>, PinnedError> {
        let mut pins = Vec::new();
        for layout in self.layouts()? {
            pins.extend(
                fs::read_dir(layout.join("links"))
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
        pins.sort();
        Ok(pins)
    }

    /// The entries of a map as JSON.
    ///
    /// # Errors
    /// No such map, the layout of another version, or the kernel refuses.
    pub fn dump(&self, name: &str) -> Result<Value, PinnedError> {
        let layout = self.directory.join(format!("{LAYOUT:016x}"));
        if !layout.exists() {
            let found = self
                .layouts()?
                .iter()
                .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
                .collect::<Vec<_>>();
            return Err(PinnedError::Layout {
                found: found.join(", "),
            });
        }
        let known = MAPS
            .into_iter()
            .find(|known| known.eq_ignore_ascii_case(name));
        let name = known.ok_or_else(|| PinnedError::NoSuchMap {
            name: name.to_owned(),
        })?;
        let failed = |source| PinnedError::Map {
            map: name.into(),
            source: Box::new(source),
        };
        let map = MapData::from_pin(layout.join("maps").join(name))
            .and_then(Map::from_map_data)
            .map_err(failed)?;
        map_rows(name, map).map_err(failed)
    }

    /// Removes the pins of the links, which detaches the programs; a running daemon still serves clients that dial it
    /// directly. Returns the pins.
    ///
    /// # Errors
    /// A pin can't be removed.
    pub fn detach(&self) -> Result<Vec<PathBuf>, PinnedError> {
        let pins = self.link_pins()?;
        for pin in &pins {
            fs::remove_file(pin).map_err(|error| PinnedError::File(pin.clone(), error))?;
        }
        Ok(pins)
    }

    /// Removes all pins.
    ///
    /// # Errors
    /// A daemon runs, or a pin can't be removed.
    pub fn remove(self) -> Result<(), PinnedError> {
        let pins = Pins::open(&self.bpffs, None)?;
        pins.remove_other_layouts();
        pins.remove()
            .map_err(|error| PinnedError::File(self.directory, error))
    }
}

/// Removes the pins of an earlier daemon, for a daemon without eBPF; `lock` is the lock of a daemon that hands over. Does
/// nothing if another daemon holds the lock.
pub(crate) fn remove_leftovers(bpffs: &Path, lock: Option<OwnedFd>) {
    if Pinned::find(bpffs).is_err() {
        return;
    }
    let removed = Pins::open(bpffs, lock)
        .map_err(PinnedError::from)
        .and_then(|pins| {
            pins.remove_other_layouts();
            pins.remove()
                .map_err(|error| PinnedError::File(bpffs.to_path_buf(), error))
        });
    match removed {
        Ok(()) => tracing::info!(
            "removed the pins of an earlier daemon in {}: --ebpf=false",
            bpffs.display()
        ),
        Err(error) => tracing::warn!("the pins in {} stay: {error}", bpffs.display()),
    }
}

fn map_rows(name: &str, map: Map) -> Result<Value, MapError> {
    Ok(match name {
        maps::CONFIG => {
            let Plain(config) = Array::<_, Plain<Config>>::try_from(map)?.get(&0, 0)?;
            config_row(&config)
        }
        maps::SERVICES => collect_rows(
            &HashMap::<_, Plain<ServiceKey>, Plain<Service>>::try_from(map)?,
            |Plain(key), Plain(to)| service_row(&key, &to),
        )?,
        maps::SELECT => collect_rows(
            &HashMap::<_, Plain<SelectKey>, u32>::try_from(map)?,
            |Plain(key), verdict| json!({"kind": selection_kind(key.kind), "value": key.value, "verdict": verdict_name(verdict)}),
        )?,
        maps::SELECT_CMD => collect_rows(
            &HashMap::<_, [u8; 16], u32>::try_from(map)?,
            |name, verdict| {
                let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
                json!({"command": String::from_utf8_lossy(name), "verdict": verdict_name(verdict)})
            },
        )?,
        maps::IFACES => collect_rows(&HashMap::<_, u32, u32>::try_from(map)?, |index, kind| {
            let name = nix::net::if_::if_indextoname(index)
                .map(|name| name.to_string_lossy().into_owned());
            json!({"name": name.unwrap_or_default(), "index": index, "kind": if kind == IFACE_LOCAL { "local" } else { "uplink" }})
        })?,
        maps::STATS => {
            let cpus = PerCpuArray::<_, Plain<Stats>>::try_from(map)?.get(&0, 0)?;
            let sum = |decision| {
                cpus.iter()
                    .map(|Plain(stats)| stats.of(decision))
                    .sum::<u64>()
            };
            Decision::ALL
                .iter()
                .map(|decision| (decision.name().to_owned(), json!(sum(*decision))))
                .collect()
        }
        _ => flows::read_flows(&FlowTable::try_from(map)?)
            .iter()
            .map(flow_row)
            .collect(),
    })
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
    let on = |flag| config.flags & flag != 0;
    let age = sys::monotonic_ns().saturating_sub(config.heartbeat_ns);
    json!({
        "steering": on(CONFIG_STEER),
        "guard": on(CONFIG_GUARD),
        "selected": on(CONFIG_SELECTED),
        "pods": on(CONFIG_PODS),
        "heartbeatAgeMs": if config.heartbeat_ns == 0 { Value::Null } else { json!(age / 1_000_000) },
        "ttlMs": config.ttl_ns / 1_000_000,
        "netns": config.netns,
        "ownCgroup": config.own_cgroup,
        "bypassMark": config.bypass_mark,
        "proxy": from_map(config.proxy).to_string(),
        "ports": config.ports.iter().filter(|port| **port != 0).collect::<Vec<_>>(),
    })
}

fn service_row(key: &ServiceKey, to: &Service) -> Value {
    let use_ = match to.flags {
        flags if flags & SERVICE_OWN == 0 => "steered",
        flags if flags & SERVICE_PODS != 0 => "own, pods too",
        _ => "own",
    };
    json!({
        "service": SocketAddr::new(from_map(key.ip), key.port).to_string(),
        "to": SocketAddr::new(from_map(to.ip), to.port).to_string(),
        "use": use_,
    })
}

fn flow_row(flow: &Flow) -> Value {
    let mut row = json!(flow.counts);
    row["cgroupId"] = flow.cgroup_id.into();
    row["service"] = flow.service.to_string().into();
    row
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
