//! Promise (I15): `kill -9` at any instant loses nothing that was stored, and the next start serves within a second.
//!
//! The daemon is killed a hundred times while lists and writes stream into the store. A killed process is the common
//! crash on a node (out of memory, upgrades); losing power at each single write of the disk is tested in memory, in
//! `cache/power_loss_tests.rs`.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use hublet_tests::client::Client;
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::pki::random_bytes;
use hublet_tests::site::Site;
use serde_json::json;

const KILLS: usize = 100;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn map(name: &str, text: &str) -> serde_json::Value {
    let metadata = json!({"name": name, "namespace": "default"});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": text}})
}

/// Streams lists and writes through hublet until told to stop, or until it is gone.
fn ingest(client: &Client, stop: &AtomicBool) {
    for n in 0.. {
        let write = client.send_json(
            "PUT",
            &format!("{MAPS}/noise-{}", n % 50),
            &map(&format!("noise-{}", n % 50), &n.to_string()),
        );
        if stop.load(Ordering::Relaxed) || write.is_err() || client.get(MAPS).is_err() {
            return;
        }
    }
}

#[test]
fn i15_a_hundred_kills_lose_nothing_that_was_stored() -> Result<()> {
    let Some(mut site) = Site::start("crash", |_| {})? else {
        return Ok(());
    };
    for n in 0..300 {
        site.cloud
            .put(map(&format!("noise-{n}"), &"x".repeat(1000)))?;
    }
    let mut stored = Vec::new();
    let mut slowest = 0.0f64;
    for n in 0..KILLS {
        let marker = format!("marker-{n}");
        site.cloud.put(map(&marker, "kept"))?;
        let client = site.admin_client()?;
        let online = client.get(&format!("{MAPS}/{marker}"))?;
        assert_eq!(
            (online.status, online.header("x-hublet-source")),
            (200, "cloud"),
            "what is kept for comparison is the cloud's answer: {}",
            online.text()
        );
        stored.push((marker.clone(), online.body));
        eventually(
            Duration::from_secs(5),
            "all that was seen is on disk",
            || {
                let status = site.daemon.fetch_status().ok()?;
                (status["store"]["behind"] == false).then_some(())
            },
        )?;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| ingest(&client, &stop));
            std::thread::park_timeout(Duration::from_millis(
                20 + u64::from(random_bytes::<1>()[0]) / 2,
            ));
            site.daemon.kill().unwrap();
            stop.store(true, Ordering::Relaxed);
        });
        site.fault.set(Fault::Refuse)?;
        site.daemon.restart()?;
        slowest = slowest.max(
            site.daemon.fetch_status()?["store"]["openedInSeconds"]
                .as_f64()
                .unwrap(),
        );
        let client = site.admin_client()?;
        for (marker, body) in stored.iter().rev().take(5).chain(stored.iter().step_by(10)) {
            let answer = client.get(&format!("{MAPS}/{marker}"))?;
            assert_eq!(
                (answer.status, answer.header("x-hublet-source")),
                (200, "store"),
                "kill {n}, {marker}"
            );
            assert_eq!(&answer.body, body, "kill {n}, {marker}");
        }
        site.fault.set(Fault::None)?;
        site.daemon.kill()?;
        site.daemon.restart()?;
    }
    assert!(
        slowest < 1.0,
        "the slowest opening of the store took {slowest} s"
    );
    assert!(
        !site.daemon.read_log().contains("set aside"),
        "no store was given up"
    );
    eprintln!("{KILLS} kills: slowest opening of the store {slowest:.3} s");
    Ok(())
}
