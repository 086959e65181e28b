//! What the daemon says to its programs and hears from them. In: a listener, service addresses, heartbeats, an
//! accepted socket. Out: map entries; who called; counters. Holds map descriptors only: the links live by their
//! pins ([`ebpf`]), so that they outlast a crash and go when the pins are removed.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError, PerCpuArray, SkStorage, SockMap};
use aya::programs::links::FdLink;
use hublet_ebpf::{
    CONFIG_STEER, Config, Decision, Ident, PROTO_TCP, SERVICE_OWN, SERVICE_STEER, Service, ServiceKey, Stats,
    maps,
};
use nix::libc;
use parking_lot::Mutex;

use super::ebpf::{self, Attach, Loaded, Plain, map, missing};
use super::fallback::{self, Missing};

/// How long a heartbeat holds; steering stops this long after the serving runtime's last proof of life.
pub(super) const HEARTBEAT_TTL: Duration = Duration::from_secs(3);

/// The loaded programs' maps.
pub(super) struct Programs {
    control: Mutex<Control>,
    ident: SkStorage<MapData, Plain<Ident>>,
    stats: PerCpuArray<MapData, Plain<Stats>>,
    loaded: Vec<Loaded>,
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

/// The maps that the daemon writes.
struct Control {
    config: Config,
    config_map: Array<MapData, Plain<Config>>,
    services: HashMap<MapData, Plain<ServiceKey>, Plain<Service>>,
    listen: SockMap<MapData>,
}

impl Programs {
    /// Loads and attaches everything, switched off. Takes over the maps and links that a dead daemon left.
    pub(super) fn load(to: &Attach<'_>) -> Result<Self, Missing> {
        let netns =
            ebpf::netns_cookie().map_err(|error| fallback::bpf("asking for the netns cookie", &error))?;
        let mut object = ebpf::load(to.pins)?;
        let mut control = control(&mut object, netns, to.mark)?;
        control.reset().map_err(|error| missing("writing the maps", &error))?;
        let ident = map(&mut object, maps::IDENT)?;
        let stats = map(&mut object, maps::STATS)?;
        #[cfg(feature = "bpf-log")]
        let log = to.log.then(|| super::log::Drain::start(&mut object)).flatten();
        #[cfg(not(feature = "bpf-log"))]
        let _ = to.log;
        let (loaded, links) = ebpf::attach(&mut object, to)?;
        Ok(Self {
            control: Mutex::new(control),
            ident,
            stats,
            loaded,
            _links: links,
            #[cfg(feature = "bpf-log")]
            _log: log,
        })
    }

    /// Connections to `own`, a listener of ours, are attested.
    pub(super) fn attest(&self, own: SocketAddrV4) -> io::Result<()> {
        self.control
            .lock()
            .put(own, Service { ip: own.ip().octets(), port: own.port(), slot: 0, flags: SERVICE_OWN })
    }

    /// Steers `services` to the listener at `own`.
    pub(super) fn steer(
        &self,
        listener: BorrowedFd<'_>,
        own: SocketAddrV4,
        services: &[SocketAddrV4],
    ) -> io::Result<()> {
        let mut control = self.control.lock();
        let to = Service { ip: own.ip().octets(), port: own.port(), slot: 0, flags: SERVICE_STEER };
        for service in services {
            control.put(*service, to)?;
        }
        control.put(own, Service { flags: SERVICE_OWN, ..to })?;
        control.listen.set(0, &listener, 0).map_err(io_error)?;
        if !services.is_empty() {
            control.config.flags |= CONFIG_STEER;
        }
        control.beat()
    }

    /// Proves that the daemon serves.
    pub(super) fn heartbeat(&self) -> io::Result<()> {
        self.control.lock().beat()
    }

    /// Switches steering off; attested listeners stay attested.
    pub(super) fn stop(&self) -> io::Result<()> {
        let mut control = self.control.lock();
        control.config.flags &= !CONFIG_STEER;
        control.write()?;
        match control.listen.clear_index(&0).map_err(io_error) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()), // the slot was empty
            result => result,
        }
    }

    /// Is steering switched on (whatever the guards say)?
    pub(super) fn is_steering(&self) -> bool {
        self.control.lock().config.flags & CONFIG_STEER != 0
    }

    /// Who is at the other end of an accepted socket.
    pub(super) fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Ident> {
        let Plain(ident) = self.ident.get(&accepted, 0).ok()?;
        Some(ident)
    }

    /// Decisions and how often each was taken.
    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        let cpus = self.stats.get(&0, 0);
        let sum = |decision: Decision| {
            cpus.as_ref().map_or(0, |cpus| cpus.iter().map(|Plain(stats)| stats.of(decision)).sum())
        };
        Decision::ALL.iter().map(|decision| (decision.name(), sum(*decision))).collect()
    }

    /// Cookie of the network namespace that is steered.
    pub(super) fn netns(&self) -> u64 {
        self.control.lock().config.netns
    }

    /// The programs.
    pub(super) fn loaded(&self) -> &[Loaded] {
        &self.loaded
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

    fn put(&mut self, at: SocketAddrV4, service: Service) -> io::Result<()> {
        let key = ServiceKey { ip: at.ip().octets(), port: at.port(), proto: PROTO_TCP, zero: 0 };
        self.services.insert(&Plain(key), &Plain(service), 0).map_err(io_error)
    }

    fn beat(&mut self) -> io::Result<()> {
        self.config.heartbeat_ns = ebpf::monotonic_ns();
        self.write()
    }

    fn write(&mut self) -> io::Result<()> {
        self.config_map.set(0, &Plain(self.config), 0).map_err(io_error)
    }
}

fn control(object: &mut Ebpf, netns: u64, bypass_mark: u32) -> Result<Control, Missing> {
    let ttl_ns = u64::try_from(HEARTBEAT_TTL.as_nanos()).unwrap_or(u64::MAX);
    Ok(Control {
        config: Config { heartbeat_ns: 0, ttl_ns, netns, flags: 0, bypass_mark },
        config_map: map(object, maps::CONFIG)?,
        services: map(object, maps::SERVICES)?,
        listen: map(object, maps::LISTEN)?,
    })
}

fn io_error(error: MapError) -> io::Error {
    match error {
        MapError::SyscallError(call) => call.io_error,
        other => io::Error::other(other),
    }
}
