//! Promise (I12): an upgrade loses no connection attempt. A new hublet takes over the old one's sockets, store,
//! programs and interface, under load and while the cloud is away; if it fails on the way, the old one serves again.
//!
//! Before, an old daemon kept its store open for requests that a dead link would never answer, so the new one gave up;
//! and an old one whose successor hung ended, so that nobody served.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::io::{IoSliceMut, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::Result;
use hublet::ebpf::dump::MapEntries;
use hublet::ebpf::pins::Pinned;
use hublet_tests::cgroup::Cgroup;
use hublet_tests::client::{self, Answer, Client};
use hublet_tests::cloud::{Request, ServerFault, ServerFaultRule};
use hublet_tests::eventually::{eventually, slowness_factor};
use hublet_tests::fault::Fault;
use hublet_tests::require;
use hublet_tests::site::Site;
use nix::sys::socket::{MsgFlags, recvmsg};
use serde_json::json;

const SERVICE: &str = "https://10.96.0.1:443";
const CALL: &str = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
/// No call may take longer, whatever is upgraded.
const SLOWEST: Duration = Duration::from_millis(2500);

fn site() -> Result<Option<Site>> {
    if !require::bpf() {
        return Ok(None);
    }
    Site::start("handover", |options| {
        options.steer = "10.96.0.1:443".into();
        options.bpffs = true;
    })
}

/// Steered: nothing else answers at the service's address, so that a call which passes through fails.
fn by_service(site: &Site) -> Result<Client> {
    let options = client::Options::new(
        SERVICE,
        &site.daemon.ca_pem()?,
        Some(&site.cloud.admin_token),
    );
    Client::new(client::Options {
        netns: Some(site.netns.clone()),
        ..options
    })
}

#[test]
fn i12_an_upgrade_under_load_loses_nothing() -> Result<()> {
    upgrades_under_load(|_| Ok(()))
}

#[test]
fn i12_an_upgrade_to_another_layout_of_the_maps_loses_nothing() -> Result<()> {
    upgrades_under_load(|site| {
        // What the old one pinned looks like another version's: the new one can't take over its maps.
        let ours = site.daemon.bpffs().unwrap().join("hublet");
        let layout = std::fs::read_dir(&ours)?.next().unwrap()?.path();
        Ok(std::fs::rename(layout, ours.join("0123456789abcdef"))?)
    })
}

/// Calls and their failures.
#[derive(Default)]
struct Met {
    lost: Vec<String>,
    slowest: Duration,
}

/// Calls until it is stopped.
fn call(client: &Client, served: &AtomicU32, stop: &AtomicBool) -> Met {
    let mut met = Met::default();
    while !stop.load(Relaxed) {
        let began = Instant::now();
        match client.get(CALL) {
            Ok(answer) if answer.status == 200 => drop(served.fetch_add(1, Relaxed)),
            Ok(answer) => met
                .lost
                .push(format!("{} {}", answer.status, answer.text())),
            Err(cause) => met.lost.push(format!("{cause:#}")),
        }
        met.slowest = met.slowest.max(began.elapsed());
    }
    met
}

/// Three upgrades in a row while three clients call without a pause; `prepare` is done before each (0, 1, 2).
fn three_upgrades(site: &mut Site, prepare: impl Fn(&Site, usize) -> Result<()>) -> Result<()> {
    const CLIENTS: usize = 3;
    const UPGRADES: usize = 3;
    let (served, stop) = (AtomicU32::new(0), AtomicBool::new(false));
    let clients: Vec<Client> = (0..CLIENTS)
        .map(|_| by_service(site))
        .collect::<Result<_>>()?;
    let met = std::thread::scope(|scope| -> Result<Vec<Met>> {
        let (served, stop) = (&served, &stop);
        let calling: Vec<_> = clients
            .iter()
            .map(|client| scope.spawn(move || call(client, served, stop)))
            .collect();
        let upgraded = (|| {
            for upgrade in 0..UPGRADES {
                let before = served.load(Relaxed);
                prepare(site, upgrade)?;
                let ended = site.daemon.hand_over()?;
                assert!(ended.success(), "the old one ends well: {ended}");
                eventually(Duration::from_secs(5), "the new one serves", || {
                    (served.load(Relaxed) > before + 20).then_some(())
                })?;
            }
            Ok(())
        })();
        stop.store(true, Relaxed);
        let met = calling
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        upgraded.map(|()| met)
    })?;
    let slowest = met.iter().map(|met| met.slowest).max().unwrap();
    let lost: Vec<&String> = met.iter().flat_map(|met| &met.lost).collect();
    let some = &lost[..lost.len().min(5)];
    assert!(
        lost.is_empty(),
        "{} calls lost of {}: {some:?}",
        lost.len(),
        served.load(Relaxed)
    );
    assert!(
        slowest < SLOWEST * slowness_factor(),
        "a call took {slowest:?}; the log:\n{}",
        site.daemon.read_log()
    );
    Ok(())
}

fn upgrades_under_load(prepare: impl Fn(&Site) -> Result<()>) -> Result<()> {
    let Some(mut site) = site()? else {
        return Ok(());
    };
    let client = by_service(&site)?;
    eventually(Duration::from_secs(5), "steered", || {
        client
            .get(CALL)
            .is_ok_and(|a| a.status == 200)
            .then_some(())
    })?;
    site.cut_link()?;
    let stored = || {
        client
            .get(CALL)
            .is_ok_and(|a| a.status == 200 && a.header("x-hublet-source") == "store")
    };
    eventually(Duration::from_secs(10), "answered from the store", || {
        stored().then_some(())
    })?;

    three_upgrades(&mut site, |site, _| prepare(site))?;
    all_of_it_is_the_last_ones(&mut site)
}

/// One set of pins, every part on, and nothing left when it ends.
fn all_of_it_is_the_last_ones(site: &mut Site) -> Result<()> {
    let layouts = std::fs::read_dir(site.daemon.bpffs().unwrap().join("hublet"))?.count();
    assert_eq!(layouts, 1, "what the old ones pinned is gone");
    let status = site.daemon.fetch_status()?;
    let off = status["components"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|part| part["on"] != true);
    let off: Vec<_> = off.map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(
        off,
        require::expected_off().unwrap_or_default(),
        "{status:#}"
    );
    assert_eq!(
        daemons(site)?,
        [site.daemon.pid().unwrap()],
        "one daemon is left"
    );
    assert!(site.daemon.stop()?.success());
    let links = site
        .netns
        .run(|| Command::new("ip").args(["-brief", "link"]).output())?;
    assert!(
        !String::from_utf8_lossy(&links.stdout).contains("hub-dummy0"),
        "the last one removes the interface"
    );
    Ok(())
}

/// Processes that were started with this site's root directory.
fn daemons(site: &Site) -> Result<Vec<u32>> {
    let flag = format!("--root-dir={}", site.daemon.root_dir().display());
    let ours = |process: &std::fs::DirEntry| {
        let arguments = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        arguments
            .split(|byte| *byte == 0)
            .any(|argument| argument == flag.as_bytes())
    };
    let processes = std::fs::read_dir("/proc")?
        .filter_map(Result::ok)
        .filter(ours);
    Ok(processes
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect())
}

/// The link becomes a black hole, and a moment later the upgrade begins, while responses are outstanding that will
/// never come. Before, the old daemon kept its store open for them, so that the new one found it in use and gave
/// up.
#[test]
fn i12_an_upgrade_loses_nothing_right_after_the_link_has_died() -> Result<()> {
    upgrades_as_the_link_dies(|_| Ok(()))
}

/// As above, while one client waits for a response that only the cloud has: the other clients don't wait for it.
#[test]
fn i12_an_upgrade_on_a_dead_link_does_not_wait_for_the_cloud() -> Result<()> {
    upgrades_as_the_link_dies(|site| {
        let log = by_service(site)?;
        drop(std::thread::spawn(move || {
            log.get("/api/v1/namespaces/default/pods/web/log")
        }));
        Ok(())
    })
}

fn upgrades_as_the_link_dies(ask: impl Fn(&Site) -> Result<()>) -> Result<()> {
    let Some(mut site) = site()? else {
        return Ok(());
    };
    let client = by_service(&site)?;
    let forwarded = || {
        client
            .get(CALL)
            .is_ok_and(|a| a.status == 200 && a.header("x-hublet-source") == "cloud")
    };
    eventually(Duration::from_secs(5), "forwarded", || {
        forwarded().then_some(())
    })?;
    three_upgrades(&mut site, |site, upgrade| {
        if upgrade == 1 {
            site.fault.set(Fault::Blackhole(None))?;
            ask(site)?;
        }
        Ok(())
    })?;
    all_of_it_is_the_last_ones(&mut site)
}

/// Responses to a write and to a read that the API server never answers, over a hand-over.
fn hand_over_with_open_requests(site: &mut Site) -> Result<[Result<Answer>; 2]> {
    const MAPS: &str = "/api/v1/namespaces/default/configmaps";
    const LOG: &str = "/api/v1/namespaces/default/pods/web/log";
    for (method, path) in [("POST", MAPS), ("GET", LOG)] {
        let rule = ServerFaultRule::new(method, path, ServerFault::Hang);
        site.cloud.server_faults().add_rule(rule);
    }
    let [writer, reader] = [by_service(site)?, by_service(site)?];
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}});
    std::thread::scope(|scope| {
        let write = scope.spawn(move || writer.send_json("POST", MAPS, &map));
        let read = scope.spawn(move || reader.get(LOG));
        eventually(Duration::from_secs(5), "both are under way", || {
            let sent = |request: &Request| [MAPS, LOG].contains(&request.path.as_str());
            (site.cloud.record().count_matching(sent) == 2).then_some(())
        })?;
        assert!(site.daemon.hand_over()?.success());
        Ok([write.join().unwrap(), read.join().unwrap()])
    })
}

/// They were cut off without a status, however long `--drain-timeout` was.
#[test]
fn requests_that_outlast_a_hand_over_are_answered() -> Result<()> {
    let Some(mut site) = site()? else {
        return Ok(());
    };
    for answer in hand_over_with_open_requests(&mut site)? {
        let answer = answer?;
        assert_eq!(answer.status, 504, "{}", answer.text());
        assert_eq!(answer.json()["reason"], "Timeout");
    }
    Ok(())
}

/// Probes that the old daemon no longer accepted were the new one's, which took them for clients; and the
/// old one warned that new connections went past it.
#[test]
fn a_hand_over_leaves_no_probe_to_the_successor() -> Result<()> {
    let Some(mut site) = site()? else {
        return Ok(());
    };
    let _answers = hand_over_with_open_requests(&mut site)?;
    let connections = &site.daemon.fetch_status()?["connections"];
    assert_eq!(connections["accepted"]["secure"], 0, "{connections:#}");
    assert_eq!(connections["closed"]["plainOnSecure"], 0, "{connections:#}");
    let log = site.daemon.read_log();
    assert!(!log.contains("does not answer its own probe"), "{log}");
    Ok(())
}

#[test]
fn a_successor_gets_the_cgroup_to_itself_when_the_old_daemon_ends() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let cgroup = Cgroup::new(&format!("hublet-test-handover-{}", std::process::id()))?;
    let site = Site::start("handover", |options| {
        options.steer = "10.96.0.1:443".into();
        options.bpffs = true;
        options.cgroup = Some(cgroup.path().to_path_buf());
    })?;
    let Some(mut site) = site else { return Ok(()) };
    let bpffs = site.daemon.bpffs().unwrap().to_path_buf();
    let left_out = || match Pinned::find(&bpffs)?.dump("hub_config")? {
        MapEntries::Config(config) => Ok(config.own_cgroup),
        other => anyhow::bail!("no configuration: {other:?}"),
    };
    let own = std::fs::metadata(cgroup.path())?.ino();
    assert_eq!(left_out()?, own, "alone in it from the start");
    assert!(site.daemon.hand_over()?.success());
    eventually(Duration::from_secs(5), "the new one is alone in it", || {
        left_out().is_ok_and(|id| id == own).then_some(())
    })
}

#[test]
fn a_successor_that_dies_brings_the_old_one_back() -> Result<()> {
    let Some(site) = site()? else { return Ok(()) };
    let client = by_service(&site)?;
    let served = || client.get(CALL).is_ok_and(|a| a.status == 200);
    eventually(Duration::from_secs(5), "steered", || served().then_some(()))?;
    let pid = site.daemon.pid();

    let mut successor = start_successor(&site)?;
    let takes = || site.daemon.read_log().contains("a new hublet takes over");
    eventually(Duration::from_secs(10), "it takes our place", || {
        takes().then_some(())
    })?;
    successor.kill()?;
    successor.wait()?;
    let again = || site.daemon.read_log().matches("serves node").count() == 2;
    eventually(Duration::from_secs(10), "it starts itself anew", || {
        again().then_some(())
    })?;
    eventually(Duration::from_secs(10), "steered again", || {
        served().then_some(())
    })?;
    assert_eq!(
        site.daemon.pid(),
        pid,
        "in the same process: whoever watches over it sees none end"
    );
    Ok(())
}

const DOOR: &str = "HUBLET_TEST_DOOR";

/// Takes the sockets and hangs: the process that the next test starts.
#[test]
#[ignore = "the successor's process"]
fn hanging_successor() -> Result<()> {
    let Ok(door) = std::env::var(DOOR) else {
        return Ok(());
    };
    let mut old = UnixStream::connect(door)?;
    old.write_all(b"?")?;
    let (mut words, mut space) = ([0; 4096], nix::cmsg_space!([RawFd; 16]));
    let mut words = [IoSliceMut::new(&mut words)];
    recvmsg::<()>(
        old.as_raw_fd(),
        &mut words,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    loop {
        std::thread::park();
    }
}

fn start_successor(site: &Site) -> Result<Child> {
    let successor = Command::new(std::env::current_exe()?)
        .args(["--exact", "hanging_successor", "--ignored"])
        .env(DOOR, site.daemon.root_dir().join("handover.sock"))
        .stdout(Stdio::null())
        .spawn()?;
    Ok(successor)
}

/// Before, the old daemon restarted itself and ended all its responses, although no successor had taken its
/// sockets.
#[test]
fn a_successor_that_has_gone_before_it_takes_anything_changes_nothing() -> Result<()> {
    let Some(site) = site()? else { return Ok(()) };
    let mut successor = UnixStream::connect(site.daemon.root_dir().join("handover.sock"))?;
    successor.shutdown(Shutdown::Read)?;
    successor.write_all(b"?")?;
    let refused = || {
        site.daemon
            .read_log()
            .contains("can't hand over to a new hublet")
    };
    eventually(Duration::from_secs(5), "it is told", || {
        refused().then_some(())
    })?;
    drop(successor);
    assert_eq!(by_service(&site)?.get(CALL)?.status, 200, "and all goes on");
    assert_eq!(
        site.daemon.read_log().matches("serves node").count(),
        1,
        "{}",
        site.daemon.read_log()
    );
    Ok(())
}

/// Before, the old daemon gave up after 20 s, could not listen on the sockets that the new one held, and ended: no
/// daemon was left.
#[test]
fn a_successor_that_hangs_is_ended_and_the_old_one_comes_back() -> Result<()> {
    let Some(site) = site()? else { return Ok(()) };
    let client = by_service(&site)?;
    let served = || client.get(CALL).is_ok_and(|a| a.status == 200);
    eventually(Duration::from_secs(5), "steered", || served().then_some(()))?;
    let mut successor = start_successor(&site)?;
    let again = || site.daemon.read_log().matches("serves node").count() == 2;
    let came = eventually(Duration::from_secs(30), "it starts itself anew", || {
        again().then_some(())
    });
    let _ended = successor.kill();
    let ended = successor.wait()?;
    came?;
    assert_eq!(ended.signal(), Some(9));
    eventually(Duration::from_secs(10), "steered again", || {
        served().then_some(())
    })
}

#[test]
fn an_invalid_hand_over_request_is_rejected() -> Result<()> {
    let Some(site) = site()? else { return Ok(()) };
    let socket = site.daemon.root_dir().join("handover.sock");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&socket)?.permissions());
    assert_eq!(mode & 0o777, 0o600);
    let mut stranger = UnixStream::connect(&socket)?;
    stranger.write_all(b"x")?;
    let refused = || {
        site.daemon
            .read_log()
            .contains("rejected a request for a hand-over")
    };
    eventually(Duration::from_secs(5), "it is refused", || {
        refused().then_some(())
    })?;
    assert_eq!(by_service(&site)?.get(CALL)?.status, 200, "and all goes on");
    Ok(())
}

#[test]
fn without_a_running_daemon_take_over_is_an_ordinary_start() -> Result<()> {
    let Some(mut site) = site()? else {
        return Ok(());
    };
    site.daemon.kill()?;
    assert!(
        site.daemon.root_dir().join("handover.sock").exists(),
        "left by the killed one"
    );
    let take_over = |site: &mut Site| site.daemon.start_with("--take-over");
    take_over(&mut site)?;
    assert_eq!(by_service(&site)?.get(CALL)?.status, 200);
    Ok(())
}
