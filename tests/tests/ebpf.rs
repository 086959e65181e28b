//! Promise: host processes that dial the API service reach hublet, which identifies them (I6). Whatever happens to
//! hublet, their next connect reaches the address that they dialled (I12). On the real kernel, in network namespaces of
//! the test.
//!
//! A program that stays attached after its daemon has died could cut the node off from its API server, so each way to
//! die has a test: `kill -9`, a hang, a closed listener, missing privileges.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod node;

use std::fs;
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use hublet::steer::Setup;
use hublet_tests::cgroup::Cgroup;
use node::{
    MARK, Node, OWN, SERVICE, accept, assert_passes_through, component, counter, dial, dial_mapped,
    dial_marked, ip, listen, skip,
};

/// Setup with a listener, steering.
fn steering(node: &Node) -> Option<(Setup, std::net::TcpListener)> {
    let setup = node.prepare()?;
    let listener = listen(OWN);
    setup.steer(listener.as_fd()).expect("steer");
    Some((setup, listener))
}

/// This process's cgroup v2 path.
fn own_cgroup() -> String {
    let lines = fs::read_to_string("/proc/self/cgroup").unwrap();
    lines
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .expect("a cgroup v2 line")
        .to_owned()
}

fn own_command() -> String {
    fs::read_to_string("/proc/thread-self/comm")
        .unwrap()
        .trim_end()
        .to_owned()
}

#[test]
fn a_client_without_a_route_is_steered_and_attested() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };

    let mut client = dial(SERVICE).expect("steered");
    let (mut accepted, process) = accept(&setup, &listener);
    let process = process.expect("attested");
    assert_eq!(process.pid, std::process::id());
    assert_eq!((process.uid, process.gid), (0, 0));
    assert_eq!(process.command, own_command());
    assert_eq!(process.cgroup.as_deref(), Some(own_cgroup().as_str()));
    assert_eq!(process.original, Some(SERVICE.into()));
    assert!(process.steered);
    assert_eq!(Some(process.netns), setup.netns());

    client.write_all(b"ping").unwrap();
    let mut word = [0; 4];
    accepted.read_exact(&mut word).unwrap();
    assert_eq!(&word, b"ping");
    assert_eq!(
        (
            counter(&setup, "steered"),
            counter(&setup, "joined"),
            counter(&setup, "join_miss")
        ),
        (1, 1, 0)
    );
    node.undo(setup);
}

#[test]
fn another_user_is_attested_with_its_uid() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    let client = Role::Dial.start(&node.bpffs(), |command| {
        command.uid(4242).gid(4343);
    });
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!(
        (process.uid, process.gid, process.pid),
        (4242, 4343, client.child.id())
    );
    client.end();
    node.undo(setup);
}

#[test]
fn direct_and_mapped_clients_are_attested_too() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    let plain = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10261));
    setup.attest(plain.as_fd()).expect("attest");

    let _direct = dial(OWN).expect("direct");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!(
        (process.steered, process.original),
        (false, Some(OWN.into()))
    );
    assert_eq!(process.pid, std::process::id());

    let _loopback = dial(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 10261)).expect("loopback");
    let process = accept(&setup, &plain).1.expect("attested");
    assert_eq!((process.steered, process.pid), (false, std::process::id()));

    let _mapped = dial_mapped(SERVICE).expect("IPv4-mapped, as Java dials");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!(
        (process.steered, process.original),
        (true, Some(SERVICE.into()))
    );

    let _mapped_direct = dial_mapped(OWN).expect("IPv4-mapped and direct");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!((process.steered, process.pid), (false, std::process::id()));

    node.undo(setup);
}

#[test]
fn identity_is_there_at_every_accept() {
    const CLIENTS: usize = 4;
    const EACH: usize = 250;
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    std::thread::scope(|scope| {
        for client in 0..CLIENTS {
            scope.spawn(move || {
                for round in 0..EACH {
                    let to = if (client + round) % 3 == 0 {
                        OWN
                    } else {
                        SERVICE
                    };
                    let mut stream = dial(to).expect("connect");
                    // Wait for the server's close: TIME_WAIT stays on its side.
                    let _end = stream.read(&mut [0; 1]);
                }
            });
        }
        let known = (0..CLIENTS * EACH).filter(|_| {
            // As the daemon does: on a slow machine all this takes longer than one heartbeat holds.
            setup.write_heartbeat();
            accept(&setup, &listener).1.is_some()
        });
        let known = known.count();
        assert_eq!(known, CLIENTS * EACH);
    });
    assert!(counter(&setup, "joined") >= (CLIENTS * EACH) as u64);
    node.undo(setup);
}

#[test]
fn a_socket_that_went_elsewhere_first_is_not_confused() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    let closed = SocketAddrV4::new(*OWN.ip(), 9);
    ip("address add 10.96.0.2/32 dev lo");
    let other = listen(SocketAddrV4::new(Ipv4Addr::new(10, 96, 0, 2), 443));

    // Refused at one of our own addresses, then elsewhere with the same socket: no record may follow it.
    setup.stop_steering();
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )
    .unwrap();
    assert!(socket.connect(&closed.into()).is_err());
    socket
        .connect(&other.local_addr().unwrap().into())
        .expect("elsewhere");
    let (stream, _) = other.accept().unwrap();
    assert!(
        setup.identify(stream.as_fd()).is_none(),
        "a socket that is none of ours carries no identity"
    );
    drop(listener);
    node.undo(setup);
}

#[test]
fn i12_listener_gone_passes_through_at_once() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    drop(dial(SERVICE).expect("steered"));
    drop(listener);
    assert_passes_through(dial(SERVICE));
    assert_passes_through(dial_mapped(SERVICE));
    assert_eq!(counter(&setup, "no_listener"), 2);

    let again = listen(OWN);
    setup.steer(again.as_fd()).expect("steer again");
    drop(dial(SERVICE).expect("steered again"));
    node.undo(setup);
}

#[test]
fn i12_stale_heartbeat_passes_through_and_a_new_one_steers_again() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    let begin = Instant::now();
    node.until("the heartbeat gets stale", || match dial(SERVICE) {
        Ok(_client) => listener.accept().is_err(), // keeps the backlog empty
        Err(_) => true,
    });
    assert!(
        begin.elapsed() > Duration::from_secs(2),
        "steering ended after {:?} already",
        begin.elapsed()
    );
    assert!(
        begin.elapsed() < Duration::from_secs(5),
        "a hang is noticed after {:?} only",
        begin.elapsed()
    );
    assert_passes_through(dial(SERVICE));
    assert!(counter(&setup, "stale") >= 2);
    setup.write_heartbeat();
    drop(dial(SERVICE).expect("steered again"));
    node.undo(setup);
}

#[test]
fn hublets_own_sockets_are_never_steered() {
    let Some(node) = Node::new() else { return };
    let Some((setup, _listener)) = steering(&node) else {
        return;
    };
    assert_passes_through(dial_marked(SERVICE, MARK));
    drop(dial_marked(SERVICE, MARK + 1).expect("another mark is steered"));
    drop(dial(SERVICE).expect("the same process without the mark is steered"));
    assert_eq!(counter(&setup, "marked"), 1);
    node.undo(setup);
}

#[test]
fn other_network_namespaces_are_not_steered() {
    let Some(node) = Node::new() else { return };
    let Some((setup, _listener)) = steering(&node) else {
        return;
    };
    let pod = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        dial(SERVICE).map(drop)
    });
    assert_passes_through(pod.join().unwrap());
    assert_eq!(counter(&setup, "other_netns"), 1);
    node.undo(setup);
}

#[test]
fn stop_steering_passes_through_but_still_attests() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    assert!(component(&setup, "steering").on);
    setup.stop_steering();
    assert!(!component(&setup, "steering").on);
    assert_passes_through(dial(SERVICE));
    let _direct = dial(OWN).expect("the listener still serves while it drains");
    assert!(accept(&setup, &listener).1.is_some());
    setup.stop_steering(); // twice does no harm
    node.undo(setup);
}

#[test]
fn only_the_configured_cgroup_is_steered() {
    let Some(node) = Node::new() else { return };
    let cgroup = Cgroup::new(&format!("hublet-test-{}", std::process::id())).unwrap();
    let mut config = node.config();
    config.cgroup = Some(cgroup.path().to_path_buf());
    let setup = node
        .runtime
        .block_on(Setup::prepare(&config, MARK))
        .expect("setup");
    if setup.ebpf().programs.is_empty() {
        let _skipped: Option<()> = skip(&component(&setup, "identity").detail);
        return;
    }
    let identity = component(&setup, "identity");
    assert!(
        !identity.on && identity.detail.contains("own cgroup"),
        "{identity:?}"
    );
    let listener = listen(OWN);
    setup.steer(listener.as_fd()).expect("steer");

    assert_passes_through(dial(SERVICE));
    let join = format!("{} && exec \"$0\" \"$@\"", cgroup.join_command());
    let client = Role::Dial.start_by(&join, &node.bpffs());
    let process = accept(&setup, &listener).1;
    assert!(
        process.is_none(),
        "the listener is outside: unknown, never someone"
    );
    client.end();

    // Killed, and started anew for the whole node: the old links are of another cgroup and must go.
    drop((setup, listener));
    let (setup, listener) = steering(&node).expect("over what was left");
    drop(dial(SERVICE).expect("steered"));
    assert!(accept(&setup, &listener).1.is_some());
    assert_eq!(
        counter(&setup, "steered"),
        2,
        "one from the subtree, one from here, each counted once"
    );
    node.undo(setup);
}

#[test]
fn i15_kill_9_passes_through_and_the_next_daemon_takes_over() {
    let Some(node) = Node::new() else { return };
    let Some(setup) = node.prepare() else { return };
    node.undo(setup);

    let mut daemon = Role::Daemon.start(&node.bpffs(), |_| {});
    drop(dial(SERVICE).expect("steered by the other process"));
    daemon.child.kill().unwrap();
    daemon.child.wait().unwrap();
    assert_passes_through(dial(SERVICE));
    let left = pins(&node.bpffs());
    assert!(
        left.iter().any(|pin| pin.ends_with("links/hub_connect4")),
        "killed, so its pins are left: {left:?}"
    );
    // A directory of another version is left as well.
    let stale = node.bpffs().join("hublet/0123456789abcdef/links");
    fs::create_dir_all(&stale).unwrap();
    fs::rename(
        left.iter()
            .find(|pin| pin.ends_with("links/hub_connect6"))
            .unwrap(),
        stale.join("hub_connect6"),
    )
    .unwrap();

    let setup = node.prepare().expect("over what was left");
    assert!(
        !stale.exists(),
        "pins of another version would steer a second time"
    );
    assert_passes_through(dial(SERVICE));
    let listener = listen(OWN);
    setup.steer(listener.as_fd()).expect("steer");
    drop(dial(SERVICE).expect("steered"));
    drop(dial_mapped(SERVICE).expect("steered"));
    let seen = counter(&setup, "steered");
    drop(dial(SERVICE).expect("steered"));
    assert_eq!(
        counter(&setup, "steered") - seen,
        1,
        "attached once, not twice"
    );
    node.undo(setup);
    assert!(pins(&node.bpffs()).is_empty());
}

#[test]
fn a_second_daemon_does_not_disturb_the_first() {
    let Some(node) = Node::new() else { return };
    let Some((first, listener)) = steering(&node) else {
        return;
    };
    let second = node
        .runtime
        .block_on(Setup::prepare(&node.config(), MARK))
        .expect("never fails for that");
    let refused = component(&second, "steering");
    assert!(
        !refused.on && refused.detail.contains("another hublet"),
        "{refused:?}"
    );
    second.steer(listener.as_fd()).expect("nothing to do");
    node.undo(second);

    drop(dial(SERVICE).expect("steered still"));
    assert!(accept(&first, &listener).1.is_some());
    assert!(ip("-brief address").contains("hub-dummy0"));
    node.undo(first);
    assert!(!ip("-brief address").contains("hub-dummy0"));
}

#[test]
fn cgroup_v2_is_found_when_nobody_mounted_it() {
    let Some(node) = Node::new() else { return };
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for line in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
        nix::mount::umount2(
            line.split(' ').nth(4).unwrap(),
            nix::mount::MntFlags::MNT_DETACH,
        )
        .unwrap();
    }
    let before = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let Some((setup, listener)) = steering(&node) else {
        return;
    };
    let _client = dial(SERVICE).expect("steered");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!(process.cgroup.as_deref(), Some(own_cgroup().as_str()));
    node.undo(setup);
    assert_eq!(
        fs::read_to_string("/proc/thread-self/mountinfo").unwrap(),
        before,
        "no mount is left"
    );
}

#[test]
fn undo_leaves_nothing() {
    let Some(node) = Node::new() else { return };
    let before = (ip("-brief link"), ip("-brief address"));
    let Some((setup, _listener)) = steering(&node) else {
        return;
    };
    assert!(!pins(&node.bpffs()).is_empty());
    let ids: Vec<_> = setup
        .ebpf()
        .programs
        .iter()
        .map(|program| program.id)
        .collect();
    node.undo(setup);
    assert!(pins(&node.bpffs()).is_empty());
    assert!(!is_bpffs(&node.bpffs()), "the mount was ours");
    assert_eq!((ip("-brief link"), ip("-brief address")), before);
    // Programs are freed a moment (an RCU grace period) after their last reference.
    node.until("the programs are gone", || {
        ids.iter().all(|id| !program_exists(*id))
    });
}

#[test]
fn undo_keeps_other_files_in_bpffs() {
    let Some(node) = Node::new() else { return };
    let bpffs = node.bpffs();
    fs::create_dir(&bpffs).unwrap();
    nix::mount::mount(
        Some("bpf"),
        &bpffs,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )
    .unwrap();
    fs::create_dir(bpffs.join("cilium")).unwrap();
    let Some(setup) = node.prepare() else { return };
    node.undo(setup);
    assert!(bpffs.join("cilium").exists());
    assert!(!bpffs.join("hublet").exists());
}

#[test]
fn without_privileges_the_log_names_what_is_off() {
    let Some(node) = Node::new() else { return };
    ip("address add 169.254.2.1/32 dev lo scope link");
    let output = Role::Unprivileged
        .command(&node.dir.path().join("none"))
        .uid(65534)
        .gid(65534)
        .stdout(Stdio::piped())
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{printed}");
    let line = |name: &str| {
        let found = printed.lines().find(|line| line.starts_with(name));
        found
            .unwrap_or_else(|| panic!("nothing about {name}: {printed}"))
            .to_owned()
    };
    assert!(
        line("interface on").contains("169.254.2.1/32"),
        "an address that is there already is used"
    );
    for name in ["steering off", "identity off"] {
        let line = line(name);
        assert!(
            line.contains("CAP_BPF") || line.contains("built without"),
            "{line}"
        );
    }
}

// ---- what the tests start ----

/// This program again, in another role.
#[derive(Clone, Copy)]
enum Role {
    Dial,
    Daemon,
    Unprivileged,
}

/// A started role, which said "ready" and ends when its input closes.
struct Started {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Dial => "dial",
            Self::Daemon => "daemon",
            Self::Unprivileged => "unprivileged",
        }
    }

    fn command(self, bpffs: &Path) -> Command {
        let mut command = Command::new(program());
        self.dress(&mut command, bpffs);
        command
    }

    fn dress(self, command: &mut Command, bpffs: &Path) {
        command.args([
            "--ignored",
            "--exact",
            "role",
            "--nocapture",
            "--test-threads=1",
        ]);
        command
            .env("HUBLET_TEST_ROLE", self.name())
            .env("HUBLET_TEST_BPFFS", bpffs);
    }

    fn start(self, bpffs: &Path, change: impl FnOnce(&mut Command)) -> Started {
        let mut command = self.command(bpffs);
        change(&mut command);
        Started::new(command)
    }

    /// Through a shell script that ends in `exec "$0" "$@"`.
    fn start_by(self, script: &str, bpffs: &Path) -> Started {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .arg(std::env::current_exe().unwrap());
        self.dress(&mut command, bpffs);
        Started::new(command)
    }
}

/// This test program, at a path that every user may execute.
fn program() -> PathBuf {
    PathBuf::from("/proc/self/exe")
}

impl Started {
    fn new(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start a role");
        let input = child.stdin.take().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = output.find(|line| line.as_ref().is_ok_and(|line| line.ends_with("ready")));
        assert!(ready.is_some(), "the role ended before it was ready");
        Self {
            child,
            input,
            output,
        }
    }

    fn end(self) {
        let Self {
            mut child,
            input,
            output,
        } = self;
        drop(input);
        assert!(output.last().is_some(), "it tells its result");
        assert!(child.wait().unwrap().success());
    }
}

/// Runs one of the roles; not a test.
#[test]
#[ignore = "started by the tests above"]
fn role() {
    let role = std::env::var("HUBLET_TEST_ROLE").expect("started by a test");
    let bpffs = PathBuf::from(std::env::var_os("HUBLET_TEST_BPFFS").expect("started by a test"));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let wait = || {
        println!("ready");
        let _end = std::io::stdin().read(&mut [0; 1]);
    };
    match role.as_str() {
        "dial" => {
            let _stream = dial(SERVICE).expect("steered");
            wait();
        }
        "daemon" => {
            let setup = runtime
                .block_on(Setup::prepare(&node::config(&bpffs), MARK))
                .expect("setup");
            let listener = listen(OWN);
            setup.steer(listener.as_fd()).expect("steer");
            wait();
        }
        "unprivileged" => {
            let setup = runtime
                .block_on(Setup::prepare(&node::config(&bpffs), MARK))
                .expect("never fails");
            println!(); // the test's own line ends here
            for component in setup.components() {
                println!(
                    "{} {} {}",
                    component.name,
                    if component.on { "on" } else { "off" },
                    component.detail.replace('\n', " ")
                );
            }
            assert!(setup.identify(std::io::stdin().as_fd()).is_none());
            setup.write_heartbeat();
            runtime.block_on(setup.undo());
        }
        other => panic!("no role {other}"),
    }
}

/// All pins below a bpffs.
fn pins(bpffs: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut queue = vec![bpffs.join("hublet")];
    while let Some(dir) = queue.pop() {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().unwrap().is_dir() {
                queue.push(entry.path())
            } else {
                found.push(entry.path())
            }
        }
    }
    found
}

fn is_bpffs(path: &Path) -> bool {
    nix::sys::statfs::statfs(path)
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC)
}

fn program_exists(id: u32) -> bool {
    let output = Command::new("bpftool")
        .args(["prog", "show", "id", &id.to_string()])
        .output();
    output.is_ok_and(|output| output.status.success())
}
