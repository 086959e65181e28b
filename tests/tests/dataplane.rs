//! Promise: hublet steers the selected callers and no others, and identifies each of them (I6): selections, pods, flow
//! counts, and other programs on the same cgroup, on the real kernel in network namespaces of the test.
//!
//! Steering too much sends the cloud's own traffic in circles; steering too little leaves a client without its store.
//! The suite `guard` tests who is refused.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::print_stdout,
    reason = "the other processes tell their test what they saw"
)]

mod node;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use hublet::cli::Output;
use hublet::cli::bpf::{BpfArgs, BpfCommand, DumpArgs, bpf};
use hublet::cli::uninstall::{UninstallArgs, uninstall};
use hublet::config::{DummyConfig, PodSelector, Selector, SetupConfig};
use hublet::steer::Setup;
use hublet_tests::cgroup::{self, Cgroup};
use hublet_tests::netns::Netns;
use node::pod::Pod;
use node::{
    MARK, Node, OWN, SERVICE, accept, assert_passes_through, component, counter, dial, dial_mapped,
    dial_marked, ip, listen, steering,
};
use socket2::{Domain, Protocol, Socket, Type};

/// A program of its own that dials and stays connected until it is dropped.
struct Client {
    child: std::process::Child,
}

impl Client {
    /// `before` runs in its shell first; `None` when it can't connect.
    fn dial(to: SocketAddrV4, before: &str, change: impl FnOnce(&mut Command)) -> Option<Self> {
        let script = format!(
            "{before}; exec 3<>/dev/tcp/{}/{} || exit 1; echo on; read -r _",
            to.ip(),
            to.port()
        );
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        change(&mut command);
        let mut child = command.spawn().expect("bash");
        let mut said = [0; 3];
        let connected = child.stdout.as_mut().unwrap().read_exact(&mut said).is_ok();
        let mut client = Self { child };
        if !connected {
            client.child.wait().unwrap();
        }
        connected.then_some(client)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
fn the_host_is_selected_by_user_name_and_cgroup() {
    let Some(node) = Node::new() else { return };
    let inside = Cgroup::new(&format!("hublet-test-in-{}", std::process::id())).unwrap();
    let only = vec![
        Selector::Uid(4242),
        Selector::Command("picked-one".into()),
        Selector::Cgroup(inside.hierarchy_path()),
    ];
    let Some((setup, listener)) = steering(&node, |config| config.select.only = only) else {
        return;
    };

    assert_passes_through(dial(SERVICE));
    assert_eq!(counter(&setup, "not_selected"), 1);
    let flows = setup.ebpf().flows;
    assert_eq!(
        flows
            .iter()
            .map(|row| row.counts.not_selected)
            .collect::<Vec<_>>(),
        [1],
        "{flows:?}"
    );
    let by_user = Client::dial(SERVICE, ":", |command| {
        command.uid(4242);
    });
    assert!(by_user.is_some(), "by its user");
    assert_eq!(accept(&setup, &listener).1.expect("attested").uid, 4242);
    let by_name = std::thread::spawn(|| {
        fs::write("/proc/thread-self/comm", "picked-one").unwrap();
        dial(SERVICE).map(drop)
    });
    by_name.join().unwrap().expect("by its name");
    assert_eq!(
        accept(&setup, &listener).1.expect("attested").command,
        "picked-one"
    );
    let by_cgroup = Client::dial(SERVICE, &inside.join_command(), |_| {});
    assert!(by_cgroup.is_some(), "by its cgroup");
    assert_eq!(
        accept(&setup, &listener).1.expect("attested").cgroup,
        Some(inside.hierarchy_path().display().to_string())
    );
    drop((by_user, by_cgroup));
    node.undo(setup);
}

#[test]
fn exceptions_win_and_a_cgroup_may_come_later() {
    let Some(node) = Node::new() else { return };
    let name = format!("hublet-test-out-{}", std::process::id());
    let except = vec![
        Selector::Cgroup(format!("/{name}").into()),
        Selector::Uid(4242),
    ];
    let change = |config: &mut SetupConfig| {
        config.select.only = vec![Selector::Uid(0), Selector::Uid(4242)];
        config.select.except = except;
    };
    let Some((setup, _listener)) = steering(&node, change) else {
        return;
    };
    drop(dial(SERVICE).expect("selected"));
    let other = Client::dial(SERVICE, ":", |command| {
        command.uid(4242);
    });
    assert!(other.is_none(), "selected and excepted");
    let cgroup = Cgroup::new(&name).unwrap();
    node.until("the new cgroup is excepted", || {
        Client::dial(SERVICE, &cgroup.join_command(), |_| {}).is_none()
    });
    drop(dial(SERVICE).expect("everybody else is still steered"));
    node.undo(setup);
}

#[test]
fn a_daemon_in_a_cgroup_of_its_own_needs_no_mark() {
    let Some(node) = Node::new() else { return };
    let Some(setup) = node.prepare() else { return };
    node.undo(setup);
    let cgroup = Cgroup::new(&format!("hublet-test-own-{}", std::process::id())).unwrap();
    let output = role("alone", &node)
        .env("HUBLET_TEST_CGROUP", cgroup.path())
        .output()
        .expect("the other process");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && said.contains("own_cgroup 1, steered 1"),
        "{said}{output:?}"
    );
}

#[test]
fn pods_are_steered_when_their_namespace_is_named() {
    let Some(node) = Node::new() else { return };
    let (pod, beside) = (Pod::new(), Netns::new("beside").unwrap());
    let Some(cookie) = pod.cookie(&node) else {
        return;
    };
    let pods = vec![PodSelector::Netns(cookie)];
    let Some((setup, listener)) = steering(&node, |config| config.select.pods = pods) else {
        return;
    };
    let _client = pod.dial(SERVICE).expect("steered");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!((process.netns, process.steered), (cookie, true));
    assert_passes_through(beside.run(|| dial(SERVICE)));
    drop(dial(SERVICE).expect("the host still is, too"));
    node.undo(setup);
}

#[test]
fn a_pod_that_opts_in_is_steered_and_attested_with_its_ids() {
    const UID: &str = "0a1b2c3d-1111-4222-8333-0123456789ab";
    const OTHER: &str = "0a1b2c3d-1111-4222-8333-0123456789ac";
    let container = "c0ffee".repeat(11)[..64].to_owned();
    let Some(node) = Node::new() else { return };
    let pod = Pod::new();
    let top = format!("kubepods-hublet-test-{}", std::process::id());
    let pods = vec![PodSelector::Annotated];
    let Some((setup, listener)) = steering(&node, |config| config.select.pods = pods) else {
        return;
    };
    let wished = Cgroup::new(&format!("{top}/burstable/pod{UID}/{container}")).unwrap();
    let silent = Cgroup::new(&format!("{top}/burstable/pod{OTHER}/{container}")).unwrap();
    let dial_in = |cgroup: &Cgroup| {
        pod.netns
            .run(|| Client::dial(SERVICE, &cgroup.join_command(), |_| {}))
    };

    assert!(dial_in(&wished).is_none(), "nobody asked yet");
    setup.set_opted_in(BTreeSet::from([UID.to_owned()]));
    node.until("the pod is steered", || dial_in(&wished).is_some());
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!(process.pod_uid.as_deref(), Some(UID));
    assert_eq!(process.container_id, Some(container));
    assert_ne!(Some(process.netns), setup.netns());
    let client = dial_in(&wished).expect("steered");
    let process = accept(&setup, &listener).1.expect("attested");
    assert!(
        process
            .executable
            .is_some_and(|path| path.ends_with("bash"))
    );
    assert!(
        dial_in(&silent).is_none(),
        "the pod beside it was not opted in"
    );
    setup.set_opted_in(BTreeSet::new());
    node.until("the wish is withdrawn", || dial_in(&wished).is_none());
    drop(client);
    node.undo(setup);
}

#[test]
fn ipv6_services_are_steered_to_an_ipv6_address() {
    let Some(node) = Node::new() else { return };
    let own: SocketAddr = "[fd00::2:1]:10268".parse().unwrap();
    let service: SocketAddr = "[fd00:96::1]:443".parse().unwrap();
    let mut config = node.config();
    config.dummy = Some(DummyConfig {
        name: "hub-dummy0".into(),
        ip: own.ip(),
    });
    config.steer.addresses = vec![service, SERVICE.into()];
    let Some(setup) = node.prepare_with(&config) else {
        return;
    };
    let listener = TcpListener::bind(own).unwrap();
    setup.steer(listener.as_fd()).expect("steer");
    let steering = component(&setup, "steering");
    assert!(
        steering.on && steering.detail.contains("another address family"),
        "{steering:?}"
    );

    let _client = dial(service).expect("steered");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!((process.original, process.steered), (Some(service), true));
    assert_eq!(process.pid, std::process::id());
    let _direct = dial(own).expect("direct");
    let process = accept(&setup, &listener).1.expect("attested");
    assert_eq!((process.original, process.steered), (Some(own), false));
    assert_passes_through(dial(SERVICE));
    node.undo(setup);
}

#[test]
fn getpeername_shows_steered_clients_the_address_they_dialled() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node, |config| config.getpeername = true) else {
        return;
    };
    assert!(component(&setup, "getpeername").on);
    let client = dial(SERVICE).expect("steered");
    assert_eq!(client.peer_addr().unwrap(), SERVICE.into());
    let (accepted, _) = accept(&setup, &listener);
    assert_eq!(
        accepted.peer_addr().unwrap(),
        client.local_addr().unwrap(),
        "the server sees its client"
    );
    let mapped = dial_mapped(SERVICE).expect("steered");
    let peer = mapped.peer_addr().unwrap().as_socket().unwrap();
    assert_eq!(peer.ip(), IpAddr::V6(SERVICE.ip().to_ipv6_mapped()));
    let direct = dial(OWN).expect("direct");
    assert_eq!(direct.peer_addr().unwrap(), OWN.into());
    node.undo(setup);
}

#[test]
fn flows_count_what_both_ends_count() {
    const CONNECTIONS: u64 = 20;
    const UP: u64 = 3_000;
    const DOWN: u64 = 50_000;
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node, |_| {}) else {
        return;
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..CONNECTIONS {
                let mut client = dial(SERVICE).unwrap();
                client.write_all(&[1; UP as usize]).unwrap();
                let mut all = Vec::new();
                client.read_to_end(&mut all).unwrap();
                assert_eq!(all.len() as u64, DOWN);
            }
        });
        for _ in 0..CONNECTIONS {
            let (mut stream, _) = accept(&setup, &listener);
            stream.read_exact(&mut vec![0; UP as usize]).unwrap();
            stream.write_all(&vec![2; DOWN as usize]).unwrap();
        }
    });
    let row = || {
        let flows = setup.ebpf().flows;
        flows
            .into_iter()
            .find(|row| row.service == SERVICE.into())
            .expect("a row for the service")
    };
    node.until("all are closed", || row().counts.closed == CONNECTIONS);
    let caller = row();
    let seen = caller.counts;
    assert_eq!((seen.steered, seen.established), (CONNECTIONS, CONNECTIONS));
    assert_eq!(
        (
            seen.off,
            seen.own,
            seen.not_selected,
            seen.stale,
            seen.no_listener
        ),
        (0, 0, 0, 0, 0)
    );
    // Per connection at most one for the FIN, each way; the SYN is taken off already.
    assert!(
        (CONNECTIONS * UP..=CONNECTIONS * (UP + 1)).contains(&seen.bytes_up),
        "{seen:?}"
    );
    assert!(
        (CONNECTIONS * DOWN..=CONNECTIONS * (DOWN + 1)).contains(&seen.bytes_down),
        "{seen:?}"
    );
    assert_eq!(seen.latency.iter().sum::<u64>(), CONNECTIONS);
    assert!(seen.latency_us > 0 && seen.retransmits == 0, "{seen:?}");
    assert_eq!(caller.cgroup, own_cgroup());

    assert_passes_through(dial_marked(SERVICE, MARK));
    assert_eq!(row().counts.own, 1, "and so is hublet's own traffic");
    setup.stop_steering();
    assert_passes_through(dial(SERVICE));
    assert_eq!(row().counts.off, 1, "passed connects are counted, too");
    let _direct = dial(OWN).unwrap();
    let direct = setup
        .ebpf()
        .flows
        .into_iter()
        .find(|row| row.service == OWN.into())
        .expect("a row");
    assert_eq!((direct.counts.direct, direct.counts.steered), (1, 0));
    node.undo(setup);
}

fn own_cgroup() -> Option<String> {
    let lines = fs::read_to_string("/proc/self/cgroup").unwrap();
    lines
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

#[test]
fn i6_a_namespace_with_the_same_addresses_claims_nothing() {
    const ROUNDS: u16 = 300;
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node, |_| {}) else {
        return;
    };
    // Of another user, in namespaces of its own making, where it is root and has all our addresses. The program is
    // run by a descriptor: its folder may be closed to other users.
    let unshared = "exec setpriv --reuid 4242 --regid 4242 --clear-groups unshare -Urn /proc/self/fd/9 \"$@\" 9</proc/$PPID/exe";
    let mut attacker = Command::new("bash")
        .args(["-c", unshared, "attacker"])
        .args(ROLE_ARGUMENTS)
        .env("HUBLET_TEST_ROLE", "attack")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(attacker.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("attacking") {
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut said, &mut line).unwrap(),
            0,
            "the attacker ended"
        );
    }
    for round in 0..ROUNDS {
        // The attacker uses the same few source ports, addresses and destination all the time.
        let client = bound(40_000 + round % 4);
        let (_stream, process) = accept(&setup, &listener);
        let process = process.expect("attested");
        assert_eq!(
            (process.pid, process.uid),
            (std::process::id(), 0),
            "round {round}: {process:?}"
        );
        drop(client);
    }
    drop(attacker.stdin.take());
    let mut rest = String::new();
    said.read_to_string(&mut rest).unwrap();
    assert!(attacker.wait().unwrap().success(), "{rest}");
    let tried = rest
        .lines()
        .find_map(|line| line.split_once("tried "))
        .expect("it counts")
        .1
        .trim()
        .parse::<u32>();
    assert!(
        tried.as_ref().is_ok_and(|tried| *tried > 50),
        "the attack was mounted: {tried:?}"
    );
    node.undo(setup);
}

/// A connection from our own address and this port to the secure port; a reset ends it, so that the port is free.
fn bound(port: u16) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_linger(Some(Duration::ZERO)).unwrap();
    socket
        .bind(&SocketAddrV4::new(*OWN.ip(), port).into())
        .unwrap();
    socket.connect(&OWN.into()).unwrap();
    socket
}

#[test]
fn beside_another_program_the_order_decides_and_nothing_breaks() {
    let Some(node) = Node::new() else { return };
    // What Cilium's kube-proxy replacement does: the service's address becomes a backend's at connect().
    let backend = listen(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 6443));
    let mut other = node.config();
    other.dummy = None;
    other.bpffs = node.dir.path().join("other");
    other.guard.on = false;

    // Ours first: it steers, and the other one has nothing to do with our address.
    let Some((ours, listener)) = steering(&node, |_| {}) else {
        return;
    };
    let theirs = node.prepare_with(&other).expect("beside ours");
    theirs.steer(backend.as_fd()).unwrap();
    let _client = dial(SERVICE).expect("steered");
    let process = accept(&ours, &listener).1.expect("attested");
    assert_eq!(
        (process.original, process.steered),
        (Some(SERVICE.into()), true)
    );
    node.undo(ours);
    drop(listener);
    let _client = dial(SERVICE).expect("by the other program");
    let (_stream, _) = backend.accept().expect("at its backend");

    // Theirs first: the call is theirs, ours never sees the service's address.
    let Some((ours, listener)) = steering(&node, |_| {}) else {
        return;
    };
    let _client = dial(SERVICE).expect("by the other program");
    let (_stream, _) = backend.accept().expect("at its backend");
    assert_eq!(counter(&ours, "steered"), 0);
    let before = component(&ours, "steering");
    assert!(
        before.detail.contains("hub_connect4"),
        "it says who comes first: {before:?}"
    );
    drop(dial(OWN).expect("direct"));
    assert!(accept(&ours, &listener).1.is_some(), "and attests as ever");
    node.undo(ours);
    node.undo(theirs);
}

#[test]
fn detached_programs_leave_callers_unknown_and_connects_alone() {
    let Some(node) = Node::new() else { return };
    let Some((setup, listener)) = steering(&node, |_| {}) else {
        return;
    };
    let links = fs::read_dir(node.bpffs().join("hublet"))
        .unwrap()
        .flatten()
        .next()
        .unwrap()
        .path()
        .join("links");
    // The kernel detaches a moment after the last reference has gone.
    fs::remove_file(links.join("hub_sockops")).unwrap();
    node.until("callers are unknown, never someone", || {
        let _client = dial(SERVICE).expect("steered still");
        accept(&setup, &listener).1.is_none()
    });
    fs::remove_file(links.join("hub_connect4")).unwrap();
    node.until("connects pass through", || dial(SERVICE).is_err());
    assert_passes_through(dial(SERVICE));
    node.undo(setup);
}

fn cli(command: &BpfCommand) -> Result<serde_json::Value, String> {
    let mut out = Vec::new();
    bpf(command, &mut out).map_err(|error| error.to_string())?;
    Ok(serde_json::from_slice(&out).expect("JSON"))
}

#[test]
fn without_bpftool_the_pins_are_shown_and_detached() {
    let Some(node) = Node::new() else { return };
    let at = BpfArgs {
        bpffs: node.bpffs(),
        output: Output::Json,
    };
    let nothing = cli(&BpfCommand::Status(at.clone())).unwrap_err();
    assert!(nothing.contains("hublet has nothing pinned"), "{nothing}");
    let Some((setup, _listener)) = steering(&node, |config| {
        config.select.except = vec![Selector::Uid(4242)]
    }) else {
        return;
    };
    drop(dial(SERVICE).unwrap());
    let status = cli(&BpfCommand::Status(at.clone())).unwrap();
    let links = status["links"].as_array().unwrap();
    let found = |name: &str| {
        links
            .iter()
            .any(|link| link["name"] == name && link["program"] == name)
    };
    assert!(
        found("hub_connect4") && found("hub_connect6") && found("hub_sockops"),
        "{links:?}"
    );
    assert_eq!(
        (&status["config"]["steering"], &status["stats"]["steered"]),
        (&true.into(), &1.into())
    );
    assert_eq!(status["config"]["proxy"], "169.254.2.1");
    assert_eq!(status["select"][0]["verdict"], "except");
    let services = cli(&BpfCommand::Dump(DumpArgs {
        map: "hub_services".into(),
        common: at.clone(),
    }))
    .unwrap();
    let services = services.as_array().unwrap();
    assert!(
        services
            .iter()
            .any(|row| row["service"] == "10.96.0.1:443" && row["to"] == "169.254.2.1:10268")
    );
    let unknown = cli(&BpfCommand::Dump(DumpArgs {
        map: "HUB_NONE".into(),
        common: at.clone(),
    }))
    .unwrap_err();
    assert!(unknown.contains("HUB_SERVICES"), "{unknown}");

    let gone = cli(&BpfCommand::Detach(at)).unwrap();
    assert!(gone["detached"].as_array().unwrap().len() >= 3);
    node.until("nothing is steered", || dial(SERVICE).is_err());
    drop(dial(OWN).expect("the daemon goes on serving"));
    node.undo(setup);
}

#[test]
fn uninstall_removes_everything_unless_a_daemon_runs() {
    let Some(node) = Node::new() else { return };
    let before = (ip("-brief link"), ip("-brief address"));
    let Some(setup) = node.prepare() else { return };
    let root = node.dir.path().join("root");
    fs::create_dir_all(root.join("pki")).unwrap();
    fs::write(root.join("pki/dev-ca.crt"), "ours").unwrap();
    fs::write(root.join("pki/yurthub-server-current.pem"), "the cluster's").unwrap();
    let store = node.dir.path().join("store");
    fs::create_dir_all(&store).unwrap();
    fs::write(store.join("hublet.redb"), "").unwrap();
    let args = UninstallArgs {
        bpffs: node.bpffs(),
        dummy_if_name: "hub-dummy0".into(),
        root_dir: root.clone(),
        disk_cache_path: store.clone(),
        keep_files: false,
    };
    let refused = uninstall(&args, &mut Vec::new()).unwrap_err().to_string();
    assert!(
        refused.contains("already steering") && refused.contains("stop hublet first"),
        "{refused}"
    );
    assert!(store.join("hublet.redb").exists() && ip("-brief link").contains("hub-dummy0"));

    // As a crash leaves it.
    let mut killed = role("daemon", &node)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    node.undo(setup);
    killed.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let mut said = std::io::BufReader::new(killed.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("ready") {
        line.clear();
        assert_ne!(
            std::io::BufRead::read_line(&mut said, &mut line).unwrap(),
            0,
            "the daemon ended"
        );
    }
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(ip("-brief link").contains("hub-dummy0"), "it left its link");

    let mut out = Vec::new();
    uninstall(&args, &mut out).unwrap();
    let out = String::from_utf8(out).unwrap();
    assert!(
        out.contains("removed the interface hub-dummy0") && out.contains("hublet.redb"),
        "{out}"
    );
    assert_eq!((ip("-brief link"), ip("-brief address")), before);
    assert!(
        !node.bpffs().join("hublet").exists()
            && !store.exists()
            && !root.join("pki/dev-ca.crt").exists()
    );
    assert!(
        root.join("pki/yurthub-server-current.pem").exists(),
        "what isn't ours stays"
    );
    let mut out = Vec::new();
    uninstall(&args, &mut out).unwrap();
    assert!(out.is_empty(), "again: nothing to do");
}

// ---- what the tests start ----

const ROLE_ARGUMENTS: [&str; 5] = [
    "--ignored",
    "--exact",
    "other_process",
    "--nocapture",
    "--test-threads=1",
];

fn role(name: &str, node: &Node) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(ROLE_ARGUMENTS);
    command
        .env("HUBLET_TEST_ROLE", name)
        .env("HUBLET_TEST_BPFFS", node.bpffs());
    command
}

/// Runs as one of the other processes; not a test.
#[test]
#[ignore = "started by the tests above"]
fn other_process() {
    match std::env::var("HUBLET_TEST_ROLE")
        .expect("started by a test")
        .as_str()
    {
        "alone" => alone(),
        "daemon" => daemon(),
        "attack" => attack(),
        other => panic!("no role {other}"),
    }
}

fn daemon() {
    let bpffs = PathBuf::from(std::env::var_os("HUBLET_TEST_BPFFS").unwrap());
    let _go = std::io::stdin().read(&mut [0; 3]);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let _setup = runtime
        .block_on(Setup::prepare(&node::config(&bpffs), 0))
        .unwrap();
    println!("ready");
    let _killed = std::io::stdin().read(&mut [0; 1]);
}

fn alone() {
    // Removed by the test, when we are no longer in it.
    let cgroup = PathBuf::from(std::env::var_os("HUBLET_TEST_CGROUP").unwrap());
    fs::write(cgroup.join("cgroup.procs"), "0").unwrap();
    let bpffs = PathBuf::from(std::env::var_os("HUBLET_TEST_BPFFS").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let setup = runtime
        .block_on(Setup::prepare(&node::config(&bpffs), 0))
        .unwrap();
    let listener = listen(OWN);
    setup.steer(listener.as_fd()).unwrap();
    assert_passes_through(dial(SERVICE));
    let out = cgroup::join_command(&cgroup::find_root().unwrap());
    assert!(
        Client::dial(SERVICE, &out, |_| {}).is_some(),
        "others are steered"
    );
    println!(
        "own_cgroup {}, steered {}",
        counter(&setup, "own_cgroup"),
        counter(&setup, "steered")
    );
    runtime.block_on(setup.undo());
}

/// A process of a user's own making, who is root in its namespaces.
fn attack() {
    ip("link set lo up");
    ip("address add 169.254.2.1/32 dev lo");
    let listener = listen(OWN);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            drop(stream);
        }
    });
    println!("attacking");
    let mut tried = 0;
    let stop = std::thread::spawn(|| {
        let _end = std::io::stdin().read(&mut [0; 1]);
    });
    while !stop.is_finished() {
        drop(bound(40_000 + tried % 4));
        tried += 1;
    }
    println!("tried {tried}");
}
