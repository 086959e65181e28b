//! Promise (I11): hublet's view of the cloud depends on the cloud only. Slow requests, many requests and long round
//! trips are not taken for an outage; an outage is noticed by whoever waits, and also when nobody sends requests.
//!
//! Before, a slow response meant a slow cloud: one of them turned everybody's reads to the store. A dead link, on the
//! other hand, was noticed only by a request that ran into it, up to 25 s later, or over HTTP/1.1 never.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use hublet_tests::client::{Answer, Client};
use hublet_tests::cloud::{self, Cloud, ServerFault, ServerFaultRule};
use hublet_tests::daemon::{self, Daemon};
use hublet_tests::eventually::{eventually, slowness_factor};
use hublet_tests::fault::{Fault, FaultProxy};
use hublet_tests::netns::Netns;
use hublet_tests::require;
use hublet_tests::site::Site;
use serde_json::{Value, json};

const NODE: &str = "/api/v1/nodes/edge-1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// `--heartbeat-timeout-seconds`: a probe's, where the way is short.
const PROBE: Duration = Duration::from_secs(2);

fn source(answer: &Answer) -> &str {
    answer.header("x-hublet-source")
}

fn config_map(name: &str, value: u64) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"},
        "data": {"value": value.to_string()}})
}

fn state(daemon: &Daemon) -> Result<String> {
    Ok(daemon.fetch_status()?["cloud"]["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

fn until(daemon: &Daemon, wanted: &str, within: Duration) -> Result<()> {
    eventually(within, &format!("the cloud's state is {wanted}"), || {
        state(daemon)
            .is_ok_and(|state| state == wanted)
            .then_some(())
    })
}

/// A client of its own connection, with the administrator's token.
fn client(site: &Site, timeout: Duration) -> Result<Client> {
    let mut options = site.daemon.client_options(Some(&site.cloud.admin_token))?;
    options.timeout = timeout * slowness_factor();
    options.keep = true;
    Client::new(options)
}

/// Before, a slow response counted as a slow cloud, and one of them turned everybody's reads to the store. Now,
/// with a round trip of 80 ms and four clients whose requests take seconds, every read of a changing object is
/// answered by the cloud.
#[test]
fn i11_slow_requests_turn_no_reads_of_others_to_the_store() -> Result<()> {
    let Some(site) = Site::start("slow", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for n in 0..4 {
        site.cloud.put(config_map(&format!("slow-{n}"), 0))?;
        assert_eq!(admin.get(&format!("{MAPS}/slow-{n}"))?.status, 200);
    }
    site.cloud.put(config_map("changing", 0))?;
    assert_eq!(admin.get(&format!("{MAPS}/changing"))?.status, 200);
    site.fault.set(Fault::Delay(Duration::from_millis(40)))?;
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "GET",
        &format!("{MAPS}/slow-"),
        ServerFault::Delay(2_500),
    ));
    let (done, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let read = |path: String| -> Result<()> {
        let client = client(&site, Duration::from_secs(10))?;
        while !done.load(Ordering::Relaxed) {
            let before = written.load(Ordering::Relaxed);
            let answer = client.get(&path)?;
            assert_eq!(
                (answer.status, source(&answer)),
                (200, "cloud"),
                "{path}: {answer:?}"
            );
            let value: u64 = answer.json()["data"]["value"].as_str().unwrap().parse()?;
            assert!(
                path.contains("slow") || value >= before,
                "{value} was read after {before} was written"
            );
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let slow = (0..4).map(|n| format!("{MAPS}/slow-{n}"));
        let readers: Vec<_> = slow
            .chain((0..3).map(|_| format!("{MAPS}/changing")))
            .map(|path| scope.spawn(|| read(path)))
            .collect();
        let began = Instant::now();
        let mut value = 0;
        while began.elapsed() < Duration::from_secs(6) && !readers.iter().any(|r| r.is_finished()) {
            value += 1;
            site.cloud.put(config_map("changing", value))?;
            written.store(value, Ordering::Relaxed);
            std::thread::park_timeout(Duration::from_millis(20));
        }
        done.store(true, Ordering::Relaxed);
        readers
            .into_iter()
            .try_for_each(|reader| reader.join().expect("no reader panics"))
    })
}

/// Before, a read that took longer than 250 ms was answered from the store, even if the cloud was about to answer.
/// If no other client receives data, the response to a probe is the sign of life.
#[test]
fn i11_a_slow_answer_is_waited_for() -> Result<()> {
    let Some(site) = Site::start("waited", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for path in [NODE, "/api/v1/nodes", "/version"] {
        assert_eq!(admin.get(path)?.status, 200);
        site.cloud
            .server_faults()
            .add_rule(ServerFaultRule::new("GET", path, ServerFault::Delay(2_000)).times(1));
        let slow = admin.get(path)?;
        assert_eq!((slow.status, source(&slow)), (200, "cloud"), "{slow:?}");
        assert_eq!(state(&site.daemon)?, "connected");
    }
    Ok(())
}

/// Before, the probe needed one of the 32 connections for unproven credentials: when all of them were in use, the
/// cloud counted as away, every stream was ended, and writes were refused.
#[test]
fn a_lack_of_connections_is_no_outage() -> Result<()> {
    let Some(site) = Site::start("places", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let mut watch = admin.watch("/api/v1/nodes?watch=true&resourceVersion=0")?;
    while watch.next_event(Duration::from_millis(300)).is_ok() {}
    let timeout = Duration::from_secs(3);
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("GET", "/version", ServerFault::Hang));
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "GET",
        NODE,
        ServerFault::Delay(1_000),
    ));
    let mut nobody = site.daemon.client_options(None)?;
    nobody.timeout = timeout;
    let nobody = Client::new(nobody)?;
    std::thread::scope(|scope| {
        for _ in 0..40 {
            // Ends at its own timeout.
            scope.spawn(|| nobody.get("/version").is_ok());
        }
        let asked = || {
            site.cloud
                .record()
                .count_matching(|request| request.path == "/version")
        };
        // Of the 32, one party has eight.
        eventually(Duration::from_secs(2), "all its places are taken", || {
            (asked() >= 8).then_some(())
        })?;
        for n in 0..2 {
            let slow = admin.get(NODE)?;
            assert_eq!((slow.status, source(&slow)), (200, "cloud"), "{slow:?}");
            let written = admin.send_json("POST", MAPS, &config_map(&format!("places-{n}"), n))?;
            assert_eq!(written.status, 201, "{written:?}");
        }
        assert_eq!(state(&site.daemon)?, "connected");
        let open = watch.next_event(Duration::from_millis(100));
        assert!(open.is_err(), "no stream was cut: {open:?}");
        Ok(())
    })
}

/// Before, a write into a black hole got its 504 only when the connection's pings failed, after 25 s.
#[test]
fn i2_a_write_into_silence_is_answered_when_the_probe_decides() -> Result<()> {
    let Some(site) = Site::start("silence", |_| {})? else {
        return Ok(());
    };
    let client = client(&site, PROBE + Duration::from_secs(2))?;
    assert_eq!(client.get(NODE)?.status, 200);
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("POST", MAPS, ServerFault::Delay(3_000)).times(1));
    let slow = client.send_json("POST", MAPS, &config_map("slow", 1))?;
    assert_eq!(slow.status, 201, "a living server is waited for: {slow:?}");
    assert_eq!(source(&client.get(NODE)?), "cloud", "a connection is open");
    site.fault.set(Fault::Blackhole(None))?;
    let written = client.send_json("POST", MAPS, &config_map("lost", 1))?;
    assert_eq!(
        (written.status, written.json()["kind"].as_str()),
        (504, Some("Status")),
        "{written:?}"
    );
    let refused = client.send_json("POST", MAPS, &config_map("refused", 1))?;
    assert_eq!(refused.status, 503, "known by now: {refused:?}");
    Ok(())
}

/// Before, if the server had closed its connections in good order and the link then died, a write waited ten
/// seconds for a connection before its 503.
#[test]
fn i2_a_write_without_a_connection_is_refused_when_the_probe_decides() -> Result<()> {
    let Some(site) = Site::start("closed", |_| {})? else {
        return Ok(());
    };
    let client = client(&site, PROBE + Duration::from_secs(2))?;
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("GET", NODE, ServerFault::Close).times(1));
    assert_eq!(client.get(NODE)?.status, 200);
    eventually(PROBE, "no connection is open", || {
        let status = site.daemon.fetch_status().ok()?;
        (status["cloud"]["connections"] == 0 && status["cloud"]["state"] == "connected")
            .then_some(())
    })?;
    site.fault.set(Fault::Blackhole(None))?;
    let refused = client.send_json("POST", MAPS, &config_map("refused", 1))?;
    assert_eq!(
        (refused.status, refused.json()["kind"].as_str()),
        (503, Some("Status")),
        "{refused:?}"
    );
    Ok(())
}

/// Before, a shared connection that the server had closed in good order was still counted as open, so no probe was
/// sent: if the cloud then went away and no requests came, the state stayed `connected` for ever.
#[test]
fn an_idle_node_notices_outage_and_recovery() -> Result<()> {
    let interval = Duration::from_secs(1);
    let flag = format!("--heartbeat-interval-seconds={}", interval.as_secs());
    let Some(site) = Site::start("idle", |options| options.flags.push(flag))? else {
        return Ok(());
    };
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("GET", NODE, ServerFault::Close).times(1));
    assert_eq!(site.admin_client()?.get(NODE)?.status, 200);
    let probes = || -> Vec<u64> {
        let asked = site
            .cloud
            .record()
            .requests()
            .into_iter()
            .filter(|request| request.path == "/readyz");
        asked.map(|request| request.connection).collect()
    };
    eventually(interval * 6, "the cloud is asked", || {
        (probes().len() >= 4).then_some(())
    })?;
    assert!(
        probes().windows(2).all(|two| two[0] == two[1]),
        "on one connection: {:?}",
        probes()
    );
    site.fault.set(Fault::Blackhole(None))?;
    until(
        &site.daemon,
        "disconnected",
        interval + PROBE + Duration::from_millis(500),
    )?;
    site.fault.set(Fault::None)?;
    until(&site.daemon, "connected", Duration::from_secs(5))
}

/// Before, one failing check of the API server (of a key management service) made the cloud of an idle node "away":
/// its writes were refused, lease renewals among them, although the API server would have accepted them.
#[test]
fn a_failing_check_that_leaves_requests_served_is_no_outage() -> Result<()> {
    let flag = "--heartbeat-interval-seconds=1".to_owned();
    let Some(site) = Site::start("checks", |options| options.flags.push(flag))? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let asked = || {
        site.cloud
            .record()
            .requests()
            .iter()
            .filter(|request| request.path == "/readyz")
            .count()
    };
    let readyz = |check: &str| {
        let body = format!("[+]ping ok\n[-]{check} failed: reason withheld\nreadyz check failed\n");
        let fault = ServerFault::Exactly {
            code: 500,
            content_type: "text/plain".into(),
            body: body.into_bytes(),
        };
        site.cloud
            .server_faults()
            .add_rule(ServerFaultRule::new("GET", "/readyz", fault));
        asked()
    };
    let before = readyz("kms-providers");
    eventually(Duration::from_secs(8), "the cloud is asked", || {
        (asked() > before + 2).then_some(())
    })?;
    assert_eq!(state(&site.daemon)?, "connected");
    let written = admin.send_json("POST", MAPS, &config_map("written", 1))?;
    assert_eq!(written.status, 201, "{written:?}");
    site.cloud.server_faults().clear();
    readyz("etcd");
    until(&site.daemon, "disconnected", Duration::from_secs(5))?;
    site.cloud.server_faults().clear();
    until(&site.daemon, "connected", Duration::from_secs(8))
}

/// Before, a dead API server behind a live gateway counted as connected as long as requests came: each 503 of the
/// gateway during a probe was taken for a response of the cloud, and reads were not answered from the store.
#[test]
fn a_dead_server_behind_a_live_gateway_is_an_outage() -> Result<()> {
    let flag = "--heartbeat-interval-seconds=1".to_owned();
    let Some(site) = Site::start("gateway", |options| options.flags.push(flag))? else {
        return Ok(());
    };
    assert_eq!(site.admin_client()?.get(NODE)?.status, 200);
    site.fault.set(Fault::Delay(Duration::from_millis(40)))?;
    let nobody = ServerFault::Exactly {
        code: 503,
        content_type: "text/plain".into(),
        body: b"no healthy upstream".to_vec(),
    };
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("", "", nobody));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            let admin = client(&site, Duration::from_secs(10))?;
            let stop = &stop;
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = admin.get(NODE);
                }
            });
        }
        let away = until(&site.daemon, "disconnected", Duration::from_secs(10));
        stop.store(true, Ordering::Relaxed);
        away
    })?;
    let stored = site.admin_client()?.get(NODE)?;
    assert_eq!(
        (stored.status, source(&stored)),
        (200, "store"),
        "{stored:?}"
    );
    site.cloud.server_faults().clear();
    until(&site.daemon, "connected", Duration::from_secs(8))
}

/// Before, if only watches were open and no requests came, a black hole was noticed by the connection's pings after
/// 23 s, or over HTTP/1.1, which has no pings, never. Now a watch ends within a second of the failed probe.
#[test]
fn i5_idle_watches_end_soon_after_the_link_has_died() -> Result<()> {
    let interval = Duration::from_secs(3);
    for alpn in [vec!["h2", "http/1.1"], vec!["http/1.1"]] {
        let cloud = cloud::Options {
            alpn: alpn.clone(),
            ..Default::default()
        };
        let flag = format!("--heartbeat-interval-seconds={}", interval.as_secs());
        let Some(site) = Site::with_cloud("watches", cloud, |options| options.flags.push(flag))?
        else {
            return Ok(());
        };
        let admin = site.admin_client()?;
        let version = admin.get("/api/v1/nodes")?.json()["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned();
        let mut watch = admin.watch(&format!(
            "/api/v1/nodes?watch=true&resourceVersion={version}"
        ))?;
        assert_eq!(watch.headers["x-hublet-source"], "cloud");
        site.fault.set(Fault::Blackhole(None))?;
        let within = (interval + PROBE + Duration::from_secs(1)) * slowness_factor();
        assert_eq!(watch.next_event(within)?, None, "{alpn:?}: a clean end");
        assert_eq!(state(&site.daemon)?, "disconnected");
    }
    Ok(())
}

/// One of several connections is dead (its server is gone, and the load balancer reports nothing), while the cloud
/// answers on the others. A request that waits on it goes on waiting; new requests use other connections.
#[test]
fn a_single_dead_connection_is_no_longer_used() -> Result<()> {
    let Some(site) = Site::start("alone", |_| {})? else {
        return Ok(());
    };
    let admin = client(&site, PROBE * 2)?;
    assert_eq!(admin.get(NODE)?.status, 200);
    let asked = site
        .cloud
        .record()
        .wait_for(PROBE, |request| request.path == NODE)?;
    site.fault.set(Fault::Forget(asked.connection))?;
    std::thread::scope(|scope| {
        // Ends at its own timeout.
        scope.spawn(|| admin.get(NODE).is_ok());
        eventually(PROBE * 2, "another connection is taken", || {
            let mut options = site
                .daemon
                .client_options(Some(&site.cloud.admin_token))
                .ok()?;
            options.timeout = Duration::from_millis(500);
            let answer = Client::new(options).ok()?.get(NODE).ok()?;
            (source(&answer) == "cloud").then_some(())
        })
    })?;
    assert_eq!(state(&site.daemon)?, "connected");
    Ok(())
}

/// The proxy delays each direction by 650 ms. Before, a probe on a new connection took two such round trips, more
/// than its limit of two seconds, so that the state alternated between disconnected and recovering for ever.
#[test]
fn a_long_round_trip_stays_connected() -> Result<()> {
    if !require::root() {
        return Ok(());
    }
    let netns = Netns::new("satellite")?;
    let cloud = Cloud::start(cloud::Options {
        netns: Some(netns.clone()),
        ..Default::default()
    })?;
    let fault = FaultProxy::start(([127, 0, 0, 1], 0).into(), cloud.address, Some(&netns))?;
    let far = Fault::Delay(Duration::from_millis(650));
    fault.set(far)?;
    let daemon = Daemon::start(daemon::Options::new(
        &fault.url(),
        cloud.ca.pem(),
        Some(&netns),
    ))?;
    until(&daemon, "connected", Duration::from_secs(15))?;
    let admin = daemon.client(Some(&cloud.admin_token))?;
    for _ in 0..8 {
        let answer = admin.get(NODE)?;
        assert_eq!(
            (answer.status, source(&answer)),
            (200, "cloud"),
            "{answer:?}"
        );
        assert_eq!(state(&daemon)?, "connected");
    }
    fault.set(Fault::Refuse)?;
    let stored = admin.get(NODE)?;
    assert_eq!(
        (stored.status, source(&stored)),
        (200, "store"),
        "{stored:?}"
    );
    until(&daemon, "disconnected", Duration::from_secs(1))?;
    fault.set(far)?;
    until(&daemon, "connected", Duration::from_secs(12))?;
    for _ in 0..3 {
        assert_eq!(source(&admin.get(NODE)?), "cloud");
    }
    Ok(())
}
