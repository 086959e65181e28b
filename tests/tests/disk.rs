//! Promise (I13): a full, read-only or failing disk costs nothing that is stored. Reads are still answered from the
//! store, requests are still forwarded, and the store is written again as soon as the disk accepts writes. A small
//! `--cache-max-bytes` is kept (I14), and slow readers don't make the file grow.
//!
//! Before, one write that a full disk refused made every read from the store fail with 500 until a restart. The restart
//! set the good store aside, and a start on a read-only disk failed.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use hublet_tests::client::Answer;
use hublet_tests::cloud::{self, ServerFault, ServerFaultRule};
use hublet_tests::disk::{self, HangingDisk, SmallDisk};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::metrics::metric;
use hublet_tests::site::Site;
use serde_json::{Value, json};

const NODE: &str = "/api/v1/nodes/edge-1";
const NODES: &str = "/api/v1/nodes";
const SOON: Duration = Duration::from_secs(20);
/// The writer tries again after ten seconds at the most.
const BACK: Duration = Duration::from_secs(25);

fn site(
    megabytes: u32,
    before: impl FnOnce(&SmallDisk) -> Result<()>,
) -> Result<Option<(Site, SmallDisk)>> {
    disk::start_site("disk", megabytes, cloud::Options::default(), |_| {}, before)
}

fn label(site: &Site, value: &str) -> Result<()> {
    let mut node = site.cloud.get(NODE)?.unwrap();
    node["metadata"]["labels"]["seen"] = json!(value);
    site.cloud.put(node)?;
    Ok(())
}

fn seen(answer: &Answer) -> (u16, String, Value) {
    (
        answer.status,
        answer.header("x-hublet-source").into(),
        answer.json()["metadata"]["labels"]["seen"].clone(),
    )
}

fn from_store(value: &str) -> (u16, String, Value) {
    (200, "store".into(), json!(value))
}

fn writable(site: &Site, expected: bool) -> Result<Value> {
    eventually(
        BACK,
        if expected {
            "the store is written"
        } else {
            "the disk is known to be full"
        },
        || {
            let store = site.daemon.fetch_status().ok()?["store"].clone();
            (store["writable"] == expected).then_some(store)
        },
    )
}

/// Waits until all that was seen is on the disk.
fn written(site: &Site) -> Result<()> {
    eventually(BACK, "the writer has nothing to do", || {
        let store = site.daemon.fetch_status().ok()?["store"].clone();
        (store["behind"] == false && store["collections"] == 1).then_some(())
    })
}

fn wait_for_cloud(site: &Site) -> Result<()> {
    site.fault.set(Fault::None)?;
    let admin = site.admin_client()?;
    eventually(Duration::from_secs(10), "the cloud answers again", || {
        admin
            .get(NODE)
            .ok()
            .filter(|answer| answer.header("x-hublet-source") == "cloud")
            .map(|_| ())
    })
}

/// Asks until the store has refused a batch: a full disk still takes what fits into pages that are free.
fn exhaust(site: &Site) -> Result<()> {
    let admin = site.admin_client()?;
    eventually(BACK, "a batch has failed", || {
        for n in 0..20 {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
                "metadata": {"name": format!("fill-{n}"), "namespace": "default"}, "data": {"x": "y".repeat(60_000)}});
            site.cloud.put(map).ok()?;
            admin
                .get(&format!("/api/v1/namespaces/default/configmaps/fill-{n}"))
                .ok()?;
        }
        let failures = site.daemon.fetch_status().ok()?["store"]["writesFailed"].as_u64();
        failures.filter(|failures| *failures > 0).map(|_| ())
    })
}

#[test]
fn i13_a_disk_that_fills_up_costs_no_read_and_is_written_again_when_it_has_room() -> Result<()> {
    let Some((mut site, disk)) = site(6, |_| Ok(()))? else {
        return Ok(());
    };
    label(&site, "before")?;
    let admin = site.admin_client()?;
    assert_eq!(
        (admin.get(NODE)?.status, admin.get(NODES)?.status),
        (200, 200)
    );
    written(&site)?;
    disk.fill()?;
    exhaust(&site)?;
    site.cut_link()?;
    for _ in 0..20 {
        assert_eq!(seen(&admin.get(NODE)?), from_store("before"));
        assert_eq!(admin.get(NODES)?.status, 200, "lists, too");
    }
    let store = writable(&site, false)?;
    assert!(
        store["problem"].as_str().unwrap().contains("space"),
        "{store}"
    );
    metric("hublet_store_writable")
        .value(0.0)
        .assert_in(&site.daemon.scrape_metrics()?);

    // A start over the full disk loses nothing either.
    site.daemon.kill()?;
    site.daemon.restart()?;
    assert_eq!(
        disk.count_set_aside(),
        0,
        "a full disk says nothing against the store"
    );
    assert_eq!(seen(&site.admin_client()?.get(NODE)?), from_store("before"));

    wait_for_cloud(&site)?;
    disk.free()?;
    writable(&site, true)?;
    label(&site, "after")?;
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    site.cut_link()?;
    assert_eq!(seen(&admin.get(NODE)?), from_store("after"));
    site.daemon.restart()?;
    assert_eq!(seen(&site.admin_client()?.get(NODE)?), from_store("after"));
    assert_eq!(disk.count_set_aside(), 0);
    Ok(())
}

/// Absences that had ended, and rights that had been revoked, were in memory only, and counted again after a restart.
#[test]
fn what_a_full_disk_has_not_taken_counts_after_a_restart() -> Result<()> {
    let Some((mut site, disk)) = site(6, |_| Ok(()))? else {
        return Ok(());
    };
    let maps = "/api/v1/namespaces/default/configmaps";
    let (created, missing) = (format!("{maps}/created"), format!("{maps}/missing"));
    let changed = format!("{maps}/changed");
    let admin = site.admin_client()?;
    let object = |data: Value, name: &str| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "data": data,
            "metadata": {"name": name, "namespace": "default"}})
    };
    site.cloud.put(object(json!({"k": "old"}), "changed"))?;
    assert_eq!(admin.get(NODES)?.status, 200);
    assert_eq!(admin.get(&changed)?.status, 200);
    for path in [&created, &missing] {
        assert_eq!(admin.get(path)?.status, 404);
    }
    written(&site)?;
    disk.fill()?;
    exhaust(&site)?;
    let map = object(json!({}), "created");
    assert_eq!(admin.send_json("POST", maps, &map)?.status, 201);
    let map = object(json!({"k": "new"}), "changed");
    assert_eq!(admin.send_json("PUT", &changed, &map)?.status, 200);
    site.cut_link()?;
    assert_eq!(admin.get(&created)?.status, 503);
    assert_eq!(admin.get(&changed)?.status, 503);
    assert_eq!(admin.get(NODES)?.status, 200);
    site.daemon.kill()?;
    site.daemon.restart()?;
    let admin = site.admin_client()?;
    writable(&site, false)?;
    assert_eq!(admin.get(&created)?.status, 503);
    assert_eq!(admin.get(&changed)?.status, 503);
    assert_eq!(admin.get(&missing)?.status, 404);
    assert_eq!(admin.get(NODES)?.status, 200);
    Ok(())
}

#[test]
fn i13_a_disk_that_is_full_at_the_first_start_keeps_no_request_from_the_cloud() -> Result<()> {
    let Some((site, disk)) = site(4, SmallDisk::fill)? else {
        return Ok(());
    };
    label(&site, "forwarded")?;
    let admin = site.admin_client()?;
    let online = admin.get(NODE)?;
    assert_eq!(
        (online.status, online.header("x-hublet-source")),
        (200, "cloud"),
        "{online:?}"
    );
    assert!(
        site.daemon.fetch_status()?["store"]["problem"]
            .as_str()
            .unwrap()
            .contains("space")
    );
    assert!(
        site.daemon
            .read_log()
            .contains("the store can't be written"),
        "{}",
        site.daemon.read_log()
    );
    disk.free()?;
    writable(&site, true)?;
    assert_eq!(admin.get(NODE)?.status, 200);
    site.cut_link()?;
    assert_eq!(seen(&admin.get(NODE)?), from_store("forwarded"));
    assert_eq!(disk.count_set_aside(), 0);
    Ok(())
}

#[test]
fn i13_a_store_on_a_read_only_disk_is_served_after_a_kill() -> Result<()> {
    let Some((mut site, disk)) = site(8, |_| Ok(()))? else {
        return Ok(());
    };
    label(&site, "before")?;
    let admin = site.admin_client()?;
    assert_eq!(
        (admin.get(NODE)?.status, admin.get(NODES)?.status),
        (200, 200)
    );
    site.cut_link()?;
    assert_eq!(seen(&admin.get(NODE)?), from_store("before"));
    site.daemon.kill()?;
    disk.set_read_only(true)?;
    site.daemon.restart()?;
    let admin = site.admin_client()?;
    assert_eq!(seen(&admin.get(NODE)?), from_store("before"));
    assert_eq!(admin.get(NODES)?.status, 200);
    assert_eq!(site.daemon.fetch_status()?["store"]["writable"], false);
    disk.set_read_only(false)?;
    writable(&site, true)?;
    wait_for_cloud(&site)?;
    label(&site, "after")?;
    assert_eq!(admin.get(NODE)?.status, 200);
    site.cut_link()?;
    assert_eq!(seen(&admin.get(NODE)?), from_store("after"));
    Ok(())
}

fn allocated(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.metadata().ok())
        .map(|metadata| metadata.blocks() * 512)
        .sum()
}

#[test]
fn i14_the_budget_holds_and_recently_requested_objects_stay() -> Result<()> {
    let Some(site) = Site::start("budget", |options| {
        options.flags.push("--cache-max-bytes=64Mi".into())
    })?
    else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let dir = site.daemon.root_dir().join("cache");
    let filler = "y".repeat(900_000);
    let path = |n: u32| format!("/api/v1/namespaces/default/configmaps/large-{n}");
    for n in 0..110 {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": format!("large-{n}"), "namespace": "default"}, "data": {"x": filler}});
        site.cloud.put(map)?;
        assert_eq!(admin.get(&path(n))?.status, 200);
        assert!(allocated(&dir) <= 64 << 20, "{} after {n}", allocated(&dir));
    }
    site.cut_link()?;
    let newest = admin.get(&path(109))?;
    assert_eq!(
        (newest.status, newest.header("x-hublet-source")),
        (200, "store")
    );
    assert_eq!(admin.get(&path(0))?.status, 503, "it went, and is unknown");
    assert!(
        site.daemon.fetch_status()?["store"]["evicted"]
            .as_u64()
            .unwrap()
            > 20
    );
    Ok(())
}

/// The store can't be closed for the new daemon, so that one has to go; the old one, whose writer waits for the disk,
/// starts again when the disk goes on, and never before.
#[test]
fn a_disk_that_hangs_within_a_hand_over_brings_the_old_daemon_back() -> Result<()> {
    const LOG: &str = "/api/v1/namespaces/default/pods/web/log";
    let Some(mut site) = Site::prepare("disk", cloud::Options::default(), |_| {})? else {
        return Ok(());
    };
    let Some(disk) = HangingDisk::mount(site.daemon.root_dir().join("cache"))? else {
        return Ok(());
    };
    site.start_daemon()?;
    let client = site.admin_client()?;
    assert_eq!(client.get(NODE)?.status, 200);
    let logs = |site: &Site, line: &str| site.daemon.read_log().matches(line).count();

    // An open request keeps the store open for 1.25 s, in which the test makes the disk hang.
    let rule = ServerFaultRule::new("GET", LOG, ServerFault::Hang);
    site.cloud.server_faults().add_rule(rule);
    let reader = site.admin_client()?;
    let reading = std::thread::spawn(move || reader.get(LOG));
    eventually(SOON, "the request is under way", || {
        let sent = site.cloud.record();
        (sent.count_matching(|request| request.path == LOG) == 1).then_some(())
    })?;
    let mut successor = site.daemon.start_successor()?;
    eventually(SOON, "the hand-over begins", || {
        (logs(&site, "a new hublet takes over") == 1).then_some(())
    })?;
    disk.hang()?;
    let ended = eventually(SOON, "the new one gives up", || {
        successor.try_wait().ok().flatten()
    })?;
    assert!(!ended.success(), "{ended}");
    assert_eq!(logs(&site, "the store is not closed after"), 1);
    assert_eq!(logs(&site, "serves node"), 1, "the disk still hangs");
    let _answer = reading.join().unwrap();
    let pid = site.daemon.pid();
    disk.go_on()?;
    eventually(SOON, "the old one starts itself anew", || {
        (logs(&site, "serves node") == 2).then_some(())
    })?;
    site.daemon.wait_ready()?;
    assert_eq!(site.daemon.pid(), pid, "in the same process");
    assert_eq!(site.admin_client()?.get(NODE)?.status, 200);
    assert!(site.daemon.stop()?.success());
    Ok(())
}
