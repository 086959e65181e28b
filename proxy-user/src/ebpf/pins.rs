//! Inspects and removes pins without a running daemon, of this version and of others.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, MapError};
use hublet_ebpf::{LAYOUT, maps};
use serde::Serialize;

use super::attach;
use super::bpffs::{DIRECTORY, Pins, paths_in};
use super::dump::{self, AllEntries, MapEntries};
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
        "hublet has nothing pinned in {0}: it does not run with this --bpffs, or eBPF is off (see `hublet status`)"
    )]
    Nothing(PathBuf),
    #[error(
        "the pinned maps have another version's layout ({found}; this binary has {LAYOUT:016x}): use that version's binary"
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

impl PinnedError {
    fn file(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        |source| Self::File(path, source)
    }
}

/// The pin of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedLink {
    pub name: String,
    /// The hook that the program is attached to.
    pub hook: String,
    pub program: String,
    pub pin: String,
}

impl PinnedLink {
    fn read(pin: &Path) -> io::Result<Self> {
        let link = attach::describe_link(pin)?;
        let name = pin.file_name().unwrap_or_default();
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            hook: link.hook,
            program: link.program,
            pin: pin.display().to_string(),
        })
    }
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

    /// Links of all versions.
    ///
    /// # Errors
    /// A pin can't be opened.
    pub fn links(&self) -> Result<Vec<PinnedLink>, PinnedError> {
        let pins = self.link_pins()?.into_iter();
        pins.map(|pin| PinnedLink::read(&pin).map_err(PinnedError::file(&pin)))
            .collect()
    }

    fn link_pins(&self) -> Result<Vec<PathBuf>, PinnedError> {
        let mut pins = Vec::new();
        for layout in self.layouts()? {
            pins.extend(paths_in(&layout.join("links")));
        }
        pins.sort();
        Ok(pins)
    }

    /// The entries of a map.
    ///
    /// # Errors
    /// No such map, the layout of another version, or the kernel refuses.
    pub fn dump(&self, name: &str) -> Result<MapEntries, PinnedError> {
        let name = known_map(name)?;
        self.read(name, |map| dump::read_entries(name, map))
    }

    /// The entries of all maps.
    ///
    /// # Errors
    /// The layout of another version, or the kernel refuses.
    pub fn dump_all(&self) -> Result<AllEntries, PinnedError> {
        Ok(AllEntries {
            config: self.read(maps::CONFIG, dump::read_config)?,
            services: self.read(maps::SERVICES, dump::read_services)?,
            select: self.read(maps::SELECT, dump::read_selections)?,
            select_cmd: self.read(maps::SELECT_CMD, dump::read_commands)?,
            ifaces: self.read(maps::IFACES, dump::read_interfaces)?,
            stats: self.read(maps::STATS, dump::read_stats)?,
            flows: self.read(maps::FLOWS, dump::read_flows)?,
        })
    }

    fn read<T>(
        &self,
        name: &str,
        read: impl FnOnce(Map) -> Result<T, MapError>,
    ) -> Result<T, PinnedError> {
        let pin = self.own_layout()?.join("maps").join(name);
        MapData::from_pin(pin)
            .and_then(Map::from_map_data)
            .and_then(read)
            .map_err(|source| PinnedError::Map {
                map: name.into(),
                source: Box::new(source),
            })
    }

    /// The directory of this version's pins.
    fn own_layout(&self) -> Result<PathBuf, PinnedError> {
        let layout = self.directory.join(format!("{LAYOUT:016x}"));
        if layout.exists() {
            return Ok(layout);
        }
        let layouts = self.layouts()?;
        let names = layouts.iter().filter_map(|path| path.file_name()?.to_str());
        let found = names.collect::<Vec<_>>().join(", ");
        Err(PinnedError::Layout { found })
    }

    /// Removes the pins of the links, which detaches the programs; a running daemon still serves clients that dial it
    /// directly. Returns the pins.
    ///
    /// # Errors
    /// A pin can't be removed.
    pub fn detach(&self) -> Result<Vec<PathBuf>, PinnedError> {
        let pins = self.link_pins()?;
        for pin in &pins {
            fs::remove_file(pin).map_err(PinnedError::file(pin))?;
        }
        Ok(pins)
    }

    /// Removes all pins.
    ///
    /// # Errors
    /// A daemon runs, or a pin can't be removed.
    pub fn remove(self) -> Result<(), PinnedError> {
        remove_all(&self.bpffs, None)
    }
}

/// Removes the pins of an earlier daemon, for a daemon without eBPF; `lock` is the lock of a daemon that hands over. Does
/// nothing if another daemon holds the lock.
pub(crate) fn remove_leftovers(bpffs: &Path, lock: Option<OwnedFd>) {
    if Pinned::find(bpffs).is_err() {
        return;
    }
    match remove_all(bpffs, lock) {
        Ok(()) => tracing::info!(
            "--ebpf=false: removed an earlier daemon's pins in {}",
            bpffs.display()
        ),
        Err(error) => tracing::warn!("can't remove the pins in {}: {error}", bpffs.display()),
    }
}

fn remove_all(bpffs: &Path, lock: Option<OwnedFd>) -> Result<(), PinnedError> {
    let pins = Pins::open(bpffs, lock)?;
    pins.remove_other_layouts();
    let directory = bpffs.join(DIRECTORY);
    pins.remove().map_err(PinnedError::file(&directory))
}

/// The map's own spelling of a name in any case.
fn known_map(name: &str) -> Result<&'static str, PinnedError> {
    MAPS.into_iter()
        .find(|known| known.eq_ignore_ascii_case(name))
        .ok_or_else(|| PinnedError::NoSuchMap {
            name: name.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_found_by_their_name_in_any_case() {
        assert_eq!(known_map("hub_config").unwrap(), maps::CONFIG);
        let refused = known_map("HUB_NOTHING").unwrap_err().to_string();
        assert!(refused.contains("HUB_CONFIG"), "{refused}");
    }

    #[test]
    fn pins_of_another_version_are_named() {
        let bpffs = tempfile::tempdir().unwrap();
        let nothing = Pinned::find(bpffs.path()).unwrap_err();
        assert!(matches!(nothing, PinnedError::Nothing(_)), "{nothing}");
        fs::create_dir_all(bpffs.path().join(DIRECTORY).join("0123456789abcdef")).unwrap();
        let pinned = Pinned::find(bpffs.path()).unwrap();
        assert!(pinned.link_pins().unwrap().is_empty());
        let refused = pinned.dump("HUB_CONFIG").unwrap_err().to_string();
        assert!(refused.contains("0123456789abcdef"), "{refused}");
    }
}
