//! A node of its own for one test: a network and a mount namespace of the test's thread, a private bpffs in it,
//! and the tools of a client. All of it goes with the thread, also after a panic or kill -9.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each suite is a program of its own and uses its part"
)]

pub mod pod;

use std::io;
use std::net::{IpAddr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hublet::caller::Process;
use hublet::config::{DummyConfig, GuardConfig, SelectConfig, Services, SetupConfig};
use hublet::node::component::Component;
use hublet::steer::Setup;
use hublet_tests::eventually::slowness_factor;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockAddr, SockRef, Socket, Type};
use tempfile::TempDir;

/// The service address that clients dial; no route leads to it.
pub const SERVICE: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(10, 96, 0, 1), 443);
pub const OWN: SocketAddrV4 = SocketAddrV4::new(std::net::Ipv4Addr::new(169, 254, 2, 1), 10268);
/// SO_MARK of the daemon's own sockets.
pub const MARK: u32 = 0x4855_4221;

/// The programs see the whole machine, so a node that dials the same address in its own namespace would show in
/// the other's counters: one at a time.
static ONE: Mutex<()> = Mutex::new(());

pub struct Node {
    _one: MutexGuard<'static, ()>,
    pub dir: TempDir,
    pub runtime: tokio::runtime::Runtime,
}

impl Node {
    /// Moves this thread into namespaces of its own. `None`: the machine can't, which is said (and fails in CI).
    pub fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            return skip("network namespaces and BPF need root");
        }
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("own namespaces");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts stay ours");
        ip("link set lo up");
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime of this thread");
        Some(Self {
            _one: one,
            dir,
            runtime,
        })
    }

    /// Where this node's pins go.
    pub fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpf")
    }

    /// The daemon's default configuration, except for the private bpffs.
    pub fn config(&self) -> SetupConfig {
        config(&self.bpffs())
    }

    /// `Setup::prepare`; `None` when the BPF object is missing (said, fails in CI) .
    pub fn prepare(&self) -> Option<Setup> {
        self.prepare_with(&self.config())
    }

    /// The same with another configuration.
    pub fn prepare_with(&self, config: &SetupConfig) -> Option<Setup> {
        let setup = self
            .runtime
            .block_on(Setup::prepare(config, MARK))
            .expect("setup");
        let steering = component(&setup, "identity");
        if steering.on {
            return Some(setup);
        }
        self.runtime.block_on(setup.undo());
        skip(&steering.detail)
    }

    pub fn undo(&self, setup: Setup) {
        self.runtime.block_on(setup.undo());
    }

    /// Lets the node's background tasks run for a moment, until `done`, or fails after ten seconds.
    pub fn until(&self, what: &str, done: impl Fn() -> bool) {
        self.runtime.block_on(async {
            let deadline = Instant::now() + Duration::from_secs(10);
            while !done() {
                assert!(
                    Instant::now() < deadline,
                    "waited ten seconds in vain: {what}"
                );
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
    }
}

/// A node that steers with this configuration.
pub fn steering(
    node: &Node,
    change: impl FnOnce(&mut SetupConfig),
) -> Option<(Setup, TcpListener)> {
    let mut config = node.config();
    change(&mut config);
    let setup = node.prepare_with(&config)?;
    let listener = listen(OWN);
    setup.steer(listener.as_fd()).expect("steer");
    Some((setup, listener))
}

/// See [`Node::config`].
pub fn config(bpffs: &Path) -> SetupConfig {
    SetupConfig {
        ebpf: true,
        dummy: Some(DummyConfig {
            name: "hub-dummy0".into(),
            ip: IpAddr::V4(*OWN.ip()),
        }),
        steer: Services {
            addresses: vec![SERVICE.into()],
            ..Services::default()
        },
        select: SelectConfig::default(),
        guard: GuardConfig::default(),
        getpeername: false,
        cgroup: None,
        bpffs: bpffs.to_path_buf(),
        bpf_log: false,
    }
}

/// Says why a test proves nothing here; in CI that is a failure.
pub fn skip<T>(reason: &str) -> Option<T> {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "nothing is skipped in CI: {reason}"
    );
    let test = std::thread::current().name().unwrap_or("test").to_owned();
    eprintln!("SKIP {test}: {reason}");
    None
}

/// A part of the setup.
pub fn component(setup: &Setup, name: &str) -> Component {
    setup
        .components()
        .into_iter()
        .find(|component| component.name == name)
        .unwrap_or_else(|| panic!("no component {name}"))
}

/// The count of a decision of the eBPF programs.
pub fn counter(setup: &Setup, name: &str) -> u64 {
    let mut decisions = setup.ebpf().decisions.into_iter();
    decisions
        .find(|found| found.decision == name)
        .unwrap_or_else(|| panic!("no counter {name}"))
        .count
}

/// Runs `ip` in this thread's network namespace.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .expect("ip is installed");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// hublet's listener. Who accepts in vain fails after a minute instead of waiting for ever.
pub fn listen(at: SocketAddrV4) -> TcpListener {
    let listener = TcpListener::bind(at).unwrap_or_else(|error| panic!("bind {at}: {error}"));
    let timeout = Duration::from_secs(60) * slowness_factor();
    SockRef::from(&listener)
        .set_read_timeout(Some(timeout))
        .expect("SO_RCVTIMEO");
    listener
}

/// connect() of an ordinary client.
pub fn dial(to: impl Into<SocketAddr>) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&to.into(), Duration::from_secs(5))
}

/// connect() of an IPv6 socket to the IPv4-mapped address, as Java does.
pub fn dial_mapped(to: SocketAddrV4) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    let mapped = SocketAddr::new(IpAddr::V6(to.ip().to_ipv6_mapped()), to.port());
    socket.connect_timeout(&SockAddr::from(mapped), Duration::from_secs(5))?;
    Ok(socket)
}

/// connect() of a socket with a mark.
pub fn dial_marked(to: SocketAddrV4, mark: u32) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(mark)?;
    socket.connect_timeout(&SockAddr::from(to), Duration::from_secs(5))?;
    Ok(socket)
}

/// accept(), and who it is.
pub fn accept(setup: &Setup, listener: &TcpListener) -> (TcpStream, Option<Process>) {
    let (stream, _) = listener.accept().expect("accept");
    let process = setup.identify(stream.as_fd());
    (stream, process)
}

/// Without steering nothing answers at the service address: there is no route.
#[track_caller]
pub fn assert_passes_through<T: std::fmt::Debug>(dialled: io::Result<T>) {
    let error = dialled.expect_err("a connect that passes through finds no route");
    assert_eq!(
        error.raw_os_error(),
        Some(nix::libc::ENETUNREACH),
        "{error}"
    );
}
