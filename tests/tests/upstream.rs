//! Promise: clients share the connections to the cloud without affecting each other: what one client sends, doesn't
//! read or is refused changes nothing for the others. A write is sent once. When the cloud is found to be away,
//! everything that hangs in the dead link ends at once (I17).
//!
//! Before, eight clients that didn't read stopped the watches of all others, a rejected token ended the requests of
//! others by GOAWAY, and a request that hung made its connection unusable for ever.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Shutdown, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use bytes::Bytes;
use http::Request;
use hublet_tests::client::{Answer, Client};
use hublet_tests::cloud::{self, Cloud, ServerFault, ServerFaultRule};
use hublet_tests::daemon::{self, Daemon};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::kube::edge::Edge;
use hublet_tests::metrics::metric;
use hublet_tests::netns::Netns;
use hublet_tests::require;
use hublet_tests::site::Site;
use hublet_tests::worker::Worker;
use serde_json::json;

const NODES: &str = "/api/v1/nodes";
const NODE: &str = "/api/v1/nodes/edge-1";
/// A call to a service in the cluster: whatever its method, hublet can't know what it does.
const ORDER: &str = "/api/v1/namespaces/default/services/shop:80/proxy/order?item=1";
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
const SOON: Duration = Duration::from_secs(10);

fn state(site: &Site) -> String {
    let status = site.daemon.fetch_status().unwrap();
    status["cloud"]["state"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn until_state(site: &Site, wanted: &str) -> Result<()> {
    eventually(SOON, wanted, || (state(site) == wanted).then_some(()))
}

/// Before, watches outlived the link: aborting a connection's task left hyper's own task running, which ended only
/// when a ping failed (23 s), or after minutes over HTTP/1.1, which has no pings.
#[test]
fn a_watch_ends_when_the_cloud_is_found_away() -> Result<()> {
    for alpn in [vec!["h2", "http/1.1"], vec!["http/1.1"]] {
        let cloud = cloud::Options {
            alpn: alpn.clone(),
            ..Default::default()
        };
        let Some(site) = Site::with_cloud("verdict", cloud, |_| {})? else {
            return Ok(());
        };
        let admin = site.admin_client()?;
        let version = admin.get(NODES)?.json()["metadata"]["resourceVersion"]
            .as_str()
            .unwrap()
            .to_owned();
        let mut watch = admin.watch(&format!("{NODES}?watch=true&resourceVersion={version}"))?;
        assert_eq!(watch.headers["x-hublet-source"], "cloud");
        site.fault.set(Fault::Blackhole(None))?;
        // Somebody asks, and so it is noticed.
        let _stored = admin.get(NODES)?;
        until_state(&site, "disconnected")?;
        let verdict = Instant::now();
        assert_eq!(
            watch.next_event(Duration::from_secs(5))?,
            None,
            "a clean end"
        );
        let took = verdict.elapsed();
        assert!(
            took < Duration::from_secs(1),
            "{alpn:?}: the watch ended {took:?} after the verdict"
        );
    }
    Ok(())
}

fn protocols() -> [Vec<&'static str>; 2] {
    [vec!["h2", "http/1.1"], vec!["http/1.1"]]
}

fn ask(client: &Client, method: &str, uri: &str) -> Answer {
    client
        .send(
            Request::builder()
                .method(method)
                .uri(uri)
                .body(Vec::new())
                .unwrap(),
        )
        .unwrap()
}

fn taken(site: &Site, method: &str, uri: &str) -> usize {
    let path = uri.split('?').next().unwrap();
    site.cloud
        .record()
        .count_matching(|request| request.method == method && request.path == path)
}

/// Before, every request without a body was sent again when its connection broke, even if the server had carried it
/// out.
#[test]
fn a_request_that_the_server_may_have_done_is_sent_once() -> Result<()> {
    for alpn in protocols() {
        let cloud = cloud::Options {
            alpn: alpn.clone(),
            ..Default::default()
        };
        let Some(site) = Site::with_cloud("once", cloud, |_| {})? else {
            return Ok(());
        };
        let admin = site.daemon.client(Some(&site.cloud.admin_token))?;
        let map = format!("{MAPS}/m");
        let calls = [
            ("POST", ORDER),
            ("GET", ORDER),
            ("DELETE", &map),
            ("DELETE", MAPS),
            ("PUT", &map),
        ];
        for (method, uri) in calls {
            assert_eq!(admin.get(NODE)?.status, 200);
            until_state(&site, "connected")?;
            let path = uri.split('?').next().unwrap();
            site.cloud
                .server_faults()
                .add_rule(ServerFaultRule::new(method, path, ServerFault::Break).times(1));
            let answer = ask(&admin, method, uri);
            assert_eq!(
                taken(&site, method, uri),
                1,
                "{alpn:?} {method} {uri}: {answer:?}"
            );
            assert_eq!(answer.status, 504, "{alpn:?} {method} {uri}: {answer:?}");
        }
        // A read of the API's own data is asked again, and nobody notices.
        until_state(&site, "connected")?;
        let before = taken(&site, "GET", NODE);
        site.cloud
            .server_faults()
            .add_rule(ServerFaultRule::new("GET", NODE, ServerFault::Break).times(1));
        let answer = admin.get(NODE)?;
        assert_eq!(
            (answer.status, answer.header("x-hublet-source")),
            (200, "cloud"),
            "{answer:?}"
        );
        assert_eq!(taken(&site, "GET", NODE), before + 2);
    }
    Ok(())
}

/// A request that the server refuses before it processes it (RFC 9113 §8.7) can be sent again safely, whatever its
/// method.
#[test]
fn a_request_that_the_server_refused_unprocessed_is_sent_again() -> Result<()> {
    let Some(site) = Site::start("refused", |_| {})? else {
        return Ok(());
    };
    let admin = site.daemon.client(Some(&site.cloud.admin_token))?;
    site.cloud
        .put(json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}}))?;
    let map = format!("{MAPS}/m");
    assert_eq!(admin.get(&map)?.status, 200);
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("DELETE", MAPS, ServerFault::Refuse).times(1));
    assert_eq!(ask(&admin, "DELETE", &map).status, 200);
    assert_eq!(site.cloud.get(&map)?, None, "it was done");
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("DELETE", MAPS, ServerFault::Refuse).times(9));
    let answer = ask(&admin, "DELETE", &map);
    assert_eq!(answer.status, 503, "certainly not done: {answer:?}");
    Ok(())
}

/// Before, a client that left or aborted its upload counted as a failure of the cloud: each time, the writes of
/// others waited for a probe.
#[test]
fn an_aborted_upload_is_no_evidence_against_the_cloud() -> Result<()> {
    for alpn in protocols() {
        let cloud = cloud::Options {
            alpn: alpn.clone(),
            ..Default::default()
        };
        let Some(site) = Site::with_cloud("upload", cloud, |_| {})? else {
            return Ok(());
        };
        assert_eq!(site.admin_client()?.get(NODE)?.status, 200);
        let head = format!(
            "POST {MAPS} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nTransfer-Encoding: chunked\r\n\r\n",
            site.cloud.admin_token
        );
        let upload = |end: &[u8]| -> Result<String> {
            let mut stream = site.netns.run(|| TcpStream::connect("127.0.0.1:10261"))?;
            stream.write_all(format!("{head}2\r\n{{ \r\n").as_bytes())?;
            std::thread::park_timeout(Duration::from_millis(100));
            stream.write_all(end)?;
            stream.shutdown(Shutdown::Write)?;
            let mut answer = String::new();
            let _ended = stream.read_to_string(&mut answer);
            Ok(answer)
        };
        let answer = upload(b"no length\r\n")?;
        assert!(answer.starts_with("HTTP/1.1 400"), "{alpn:?}: {answer}");
        for _ in 0..5 {
            upload(b"")?;
        }
        std::thread::park_timeout(Duration::from_millis(100));
        let suspected = metric("hublet_cloud_transitions_total").label("state", "suspect");
        assert!(
            suspected.sum(&site.daemon.scrape_metrics()?) < 1.0,
            "{alpn:?}: {}",
            site.daemon.scrape_metrics()?
        );
    }
    Ok(())
}

/// Before, the Content-Length of a read's body was forwarded without the body, so the server took the next request
/// on the connection, of any client, for that body.
#[test]
fn a_content_length_is_forwarded_only_with_its_body() -> Result<()> {
    let cloud = cloud::Options {
        alpn: vec!["http/1.1"],
        ..Default::default()
    };
    let Some(site) = Site::with_cloud("length", cloud, |_| {})? else {
        return Ok(());
    };
    let answer = say(
        &site,
        &format!("GET {NODE}"),
        "Content-Length: 5\r\n\r\nhello",
    )?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let requested = site
        .cloud
        .record()
        .wait_for(SOON, |request| request.path == NODE)?;
    assert_eq!(requested.length, "");
    // A backend may read what comes with a GET (a search does).
    let search = "/api/v1/namespaces/default/services/shop:80/proxy/find";
    say(
        &site,
        &format!("GET {search}"),
        "Content-Length: 5\r\n\r\nhello",
    )?;
    let requested = site
        .cloud
        .record()
        .wait_for(SOON, |request| request.path == search)?;
    assert_eq!(requested.length, "5");
    Ok(())
}

/// Before, a client that announced the body of a read and left without sending it was not seen to leave: its watch
/// stayed open for ever, in hublet and at the cloud.
#[test]
fn a_read_whose_body_does_not_come_does_not_outlive_its_client() -> Result<()> {
    let Some(site) = Site::start("body", |_| {})? else {
        return Ok(());
    };
    assert_eq!(site.admin_client()?.get(NODE)?.status, 200);
    let answer = say(
        &site,
        &format!("GET {NODES}?watch=true"),
        "Content-Length: 5\r\n\r\n",
    )?;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    eventually(SOON, "nothing is left of it", || {
        let scrape = site.daemon.scrape_metrics().ok()?;
        (metric("hublet_requests_in_flight").sum(&scrape) < 1.0).then_some(())
    })
}

/// Before, when a client left, its response ended, but the upload that the server did not read stayed on the shared
/// connection without being counted: with as many of them as the server allows streams, all requests waited for
/// ever.
#[test]
fn an_upload_ends_with_its_answer() -> Result<()> {
    let cloud = cloud::Options {
        max_streams: 20,
        ..Default::default()
    };
    let Some(site) = Site::with_cloud("leaves", cloud, |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "POST",
        ORDER.split('?').next().unwrap(),
        ServerFault::StallUnread,
    ));
    for _ in 0..2 {
        let mut uploads = Vec::new();
        for _ in 0..16 {
            let client = site.daemon.client(Some(&site.cloud.admin_token))?;
            let answer = client.open_stream(Request::post(ORDER).body(vec![b'a'; 1 << 20])?)?;
            assert_eq!(answer.status, 200);
            uploads.push((answer, client));
        }
        stands_still(|| site.fault.stats().bytes_up)?;
    }
    for _ in 0..20 {
        let answer = ask(&admin, "DELETE", &format!("{MAPS}/m"));
        assert_eq!(
            (answer.status, answer.header("x-hublet-source")),
            (404, "cloud"),
            "{answer:?}"
        );
        assert!(answer.took < Duration::from_secs(1), "{:?}", answer.took);
    }
    Ok(())
}

/// Before, an HTTP/1.1 client that left during an upload which the server did not read was not seen to leave: its
/// endless response was never released.
#[test]
fn a_stalled_answer_beside_an_upload_does_not_outlive_its_client() -> Result<()> {
    let Some(site) = Site::start("still", |_| {})? else {
        return Ok(());
    };
    assert_eq!(site.admin_client()?.get(NODE)?.status, 200);
    let order = ORDER.split('?').next().unwrap();
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "POST",
        order,
        ServerFault::StallUnread,
    ));
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("PUT", order, ServerFault::Hang));
    let length = 1 << 20;
    let body = "a".repeat(length);
    let answer = say(
        &site,
        &format!("POST {ORDER}"),
        &format!("Content-Length: {length}\r\n\r\n{body}"),
    )?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let upgrade = "Connection: upgrade\r\nUpgrade: SPDY/3.1\r\n";
    let left = say(
        &site,
        &format!("PUT {ORDER}"),
        &format!("{upgrade}Content-Length: {length}\r\n\r\n{body}"),
    );
    assert!(left.is_err(), "{left:?}");
    eventually(Duration::from_secs(75), "nothing is left of them", || {
        let scrape = site.daemon.scrape_metrics().ok()?;
        (metric("hublet_requests_in_flight").sum(&scrape) < 1.0).then_some(())
    })
}

/// The beginning of the answer to a request by the administrator over plain HTTP, on a connection that is closed then.
fn say(site: &Site, line: &str, rest: &str) -> Result<String> {
    let token = &site.cloud.admin_token;
    let mut stream = site.netns.run(|| TcpStream::connect("127.0.0.1:10261"))?;
    stream.set_read_timeout(Some(SOON))?;
    stream.write_all(
        format!("{line} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n{rest}").as_bytes(),
    )?;
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..read]).into_owned())
}

/// Before, if new connections failed while the probe's connection worked (a full connection table), waiting
/// requests dialled one after the other: the last of 17 got no response for 170 s, even if the store had one.
#[test]
fn waiting_for_anothers_dial_takes_no_longer_than_dialling() -> Result<()> {
    let Some(site) = Site::start("dial", |_| {})? else {
        return Ok(());
    };
    let mut options = site.daemon.client_options(Some(&site.cloud.admin_token))?;
    options.timeout = Duration::from_secs(40);
    assert_eq!(Client::new(options.clone())?.get(NODE)?.status, 200);
    until_state(&site, "connected")?;
    site.fault.set(Fault::NoMore)?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let requested: Vec<_> = (0..4)
            .map(|_| {
                let options = options.clone();
                scope.spawn(move || Client::new(options)?.get(NODE))
            })
            .collect();
        for one in requested {
            let answer = one.join().expect("no panic")?;
            assert_eq!(
                (answer.status, answer.header("x-hublet-source")),
                (200, "store"),
                "{answer:?}"
            );
        }
        Ok::<_, anyhow::Error>(())
    })?;
    assert!(
        start.elapsed() < Duration::from_secs(15),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

/// Before, the response to an upgrade had no `X-Hublet-Source`, or kept the one that the server had sent.
#[test]
fn a_refused_upgrade_names_its_source() -> Result<()> {
    let Some(site) = Site::start("refusing", |_| {})? else {
        return Ok(());
    };
    until_state(&site, "connected")?;
    let upgrade = "Connection: upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 0\r\n\r\n";
    for (cut, source) in [(false, "cloud"), (true, "hublet")] {
        if cut {
            site.fault.set(Fault::Refuse)?;
            until_state(&site, "disconnected")?;
        }
        let answer = say(
            &site,
            "POST /api/v1/namespaces/default/pods/p/exec?command=ls",
            upgrade,
        )?;
        assert!(
            answer
                .to_lowercase()
                .contains(&format!("x-hublet-source: {source}\r\n")),
            "{answer}"
        );
    }
    Ok(())
}

/// Before, a stalled upgrade hung until its client gave up, and each of them occupied a connection to the cloud.
#[test]
fn an_unanswered_upgrade_ends_when_the_cloud_is_found_away() -> Result<()> {
    let Some(site) = Site::start("upgrade", |_| {})? else {
        return Ok(());
    };
    let admin = site.daemon.client(Some(&site.cloud.admin_token))?;
    assert_eq!(admin.get(NODE)?.status, 200);
    until_state(&site, "connected")?;
    let mut options = site.daemon.client_options(Some(&site.cloud.admin_token))?;
    options.alpn = vec!["http/1.1"];
    options.timeout = Duration::from_secs(20);
    let exec = Client::new(options)?;
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "POST",
        "/api/v1/namespaces/default/pods",
        ServerFault::Hang,
    ));
    let request = Request::post("/api/v1/namespaces/default/pods/p/exec?command=ls")
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1");
    let request = request.body(Vec::new())?;
    std::thread::scope(|scope| {
        let requested = scope.spawn(|| exec.send(request));
        eventually(SOON, "the cloud has the upgrade", || {
            site.cloud
                .record()
                .count_matching(|request| request.path.ends_with("/exec"))
                .checked_sub(1)
        })?;
        site.fault.set(Fault::Blackhole(None))?;
        let _stored = admin.get(NODE)?;
        until_state(&site, "disconnected")?;
        let verdict = Instant::now();
        let answer = requested.join().expect("no panic")?;
        assert_eq!(answer.status, 504, "{answer:?}");
        assert!(
            verdict.elapsed() < Duration::from_secs(1),
            "{:?} after the verdict",
            verdict.elapsed()
        );
        Ok(())
    })
}

/// Waits until no more bytes go.
fn stands_still(bytes: impl Fn() -> u64) -> Result<()> {
    let mut last = 0;
    eventually(SOON, "the bytes stand still", || {
        std::thread::park_timeout(Duration::from_millis(200));
        let now = bytes();
        (std::mem::replace(&mut last, now) == now).then_some(())
    })
}

/// Before, eight clients that requested a long list and did not read it filled the flow-control window of the
/// shared connection: the watches of others received nothing.
#[test]
fn stalled_readers_stop_no_streams_of_others() -> Result<()> {
    let Some(site) = Site::start("stuck", |_| {})? else {
        return Ok(());
    };
    site.cloud
        .server_faults()
        .add_rule(ServerFaultRule::new("list", MAPS, ServerFault::Endless));
    let admin = site.admin_client()?;
    let version = admin.get(NODES)?.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("{NODES}?watch=true&resourceVersion={version}");
    let mut before = admin.watch(&path)?;
    let mut stuck = Vec::new();
    for _ in 0..8 {
        let client = site.daemon.client(Some(&site.cloud.admin_token))?;
        stuck.push((client.watch(MAPS)?, client));
    }
    // Their windows fill up.
    stands_still(|| site.fault.stats().bytes_down)?;
    let mut node = site.cloud.get(NODE)?.unwrap();
    node["metadata"]["labels"]["seen"] = json!("yes");
    site.cloud.put(node)?;
    let event = before.next_event(Duration::from_secs(1))?.unwrap();
    assert_eq!(event["object"]["metadata"]["labels"]["seen"], "yes");
    let mut after = admin.watch(&path)?;
    assert_eq!(
        after.next_event(Duration::from_secs(1))?.unwrap()["object"]["metadata"]["labels"]["seen"],
        "yes"
    );
    let start = Instant::now();
    let answer = admin.get(NODES)?;
    assert_eq!(
        (answer.status, answer.header("x-hublet-source")),
        (200, "cloud")
    );
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

/// Before, requests beyond the number of streams that a server allows waited in hyper's queue, behind watches that
/// never end.
#[test]
fn a_server_that_allows_few_streams_gets_more_connections() -> Result<()> {
    let cloud = cloud::Options {
        max_streams: 20,
        ..Default::default()
    };
    let Some(site) = Site::with_cloud("streams", cloud, |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let version = admin.get(NODES)?.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("{NODES}?watch=true&resourceVersion={version}");
    let start = Instant::now();
    let mut watches = Vec::new();
    for number in 0..70 {
        let watch = admin
            .watch(&path)
            .inspect_err(|_| eprintln!("watch {number}"))?;
        assert_eq!(
            (watch.status, &watch.headers["x-hublet-source"]),
            (200, &"cloud".parse().unwrap())
        );
        watches.push(watch);
    }
    assert_eq!(admin.get(NODES)?.header("x-hublet-source"), "cloud");
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

/// Before, each request to a server that allowed no streams dialled up to three more connections, until all 64 were
/// open.
#[test]
fn a_server_that_allows_no_streams_is_not_dialled_for_each_request() -> Result<()> {
    let cloud = cloud::Options {
        max_streams: 0,
        ..Default::default()
    };
    let Some(site) = Site::with_cloud("none", cloud, |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(
        admin.get(NODE)?.status,
        200,
        "a new token has a connection of its own"
    );
    for _ in 0..20 {
        let answer = ask(&admin, "DELETE", &format!("{MAPS}/m"));
        // A request that meets the server's settings on its way is neither refused nor taken: not known, after 2 s.
        assert!(matches!(answer.status, 503 | 504), "{answer:?}");
        assert!(answer.took < Duration::from_secs(5), "{:?}", answer.took);
    }
    assert_eq!(admin.get(NODE)?.header("x-hublet-source"), "store");
    let connections = site.daemon.fetch_status()?["cloud"]["connections"]
        .as_u64()
        .unwrap();
    assert!(connections < 16, "{connections} connections");
    Ok(())
}

/// Before, a connection on which a request waited while others received data took no more requests, for ever: 64
/// requests that hung at the server (a log without lines, a slow service) occupied all connections, and everybody
/// else got 429.
#[test]
fn requests_that_hang_at_the_server_leave_connections_to_others() -> Result<()> {
    const ROUNDS: usize = 12;
    let Some(site) = Site::start("sits", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODE)?.status, 200);
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "GET",
        ORDER.split('?').next().unwrap(),
        ServerFault::Hang,
    ));
    let mut options = site.daemon.client_options(Some(&site.cloud.admin_token))?;
    options.timeout = Duration::from_secs(60);
    std::thread::scope(|scope| {
        for _ in 0..ROUNDS {
            let waiting = Client::new(options.clone())?;
            scope.spawn(move || waiting.get(ORDER));
            // Longer than the silence after which a connection is left.
            std::thread::park_timeout(Duration::from_millis(2250));
        }
        let status = site.daemon.fetch_status();
        // Ends them.
        site.cut_link()?;
        let connections = status?["cloud"]["connections"].as_u64().unwrap();
        // Each is pinged after 15 s, and used again once it has answered.
        assert!(
            connections < 10,
            "{connections} connections for {ROUNDS} requests"
        );
        Ok(())
    })
}

/// Before, connections to a server without HTTP/2 were dialled one after the other, each after the handshake of the
/// one before.
#[test]
fn connections_to_an_http1_server_are_dialled_at_once_and_used_again() -> Result<()> {
    let cloud = cloud::Options {
        alpn: vec!["http/1.1"],
        ..Default::default()
    };
    let Some(site) = Site::with_cloud("http1", cloud, |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(NODES)?.status, 200);
    let idle = site.fault.stats().connections;
    for _ in 0..10 {
        assert_eq!(admin.get(NODES)?.header("x-hublet-source"), "cloud");
    }
    assert!(
        site.fault.stats().connections <= idle + 2,
        "idle connections are used again"
    );
    site.fault.set(Fault::Delay(Duration::from_millis(60)))?;
    let start = Instant::now();
    std::thread::scope(|scope| {
        let ask = || ask(&admin, "DELETE", &format!("{MAPS}/none"));
        let requested: Vec<_> = (0..24).map(|_| scope.spawn(ask)).collect();
        for one in requested {
            assert_eq!(one.join().unwrap().status, 404);
        }
    });
    // A round trip takes 120 ms; each of them needs two or three.
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

/// Before, of a name with several addresses only the first was tried.
#[test]
fn a_name_whose_first_address_is_dead_is_reached_by_the_second() -> Result<()> {
    if !require::root() {
        return Ok(());
    }
    let (node, far) = (Netns::new("node")?, Netns::new("cloud")?);
    let near = node.link_to("203.0.113.1".parse()?, &far, "203.0.113.130".parse()?)?;
    let dead = node.link_to("192.0.2.1".parse()?, &far, "192.0.2.9".parse()?)?;
    // Packets leave for there, and nobody takes them. Resolvers put the nearer address first (RFC 6724, rule 9).
    node.run_ip(&format!(
        "neigh add 192.0.2.2 lladdr 02:00:00:00:00:99 dev {} nud permanent",
        dead.name()
    ))?;
    let cloud = Cloud::start(cloud::Options {
        listen: "203.0.113.130:6443".parse()?,
        names: vec!["api.test".into()],
        netns: Some(far),
        ..Default::default()
    })?;
    let folder = tempfile::tempdir()?;
    let (hosts, program) = (folder.path().join("hosts"), folder.path().join("hublet"));
    std::fs::write(
        &hosts,
        "127.0.0.1 localhost\n192.0.2.2 api.test\n203.0.113.130 api.test\n",
    )?;
    let script = format!(
        "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind {} /etc/hosts && exec \"$0\" \"$@\"' {} \"$@\"\n",
        hosts.display(),
        daemon::binary_under_test()?.display(),
    );
    std::fs::write(&program, script)?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))?;
    let mut options = daemon::Options::new("https://api.test:6443", cloud.ca.pem(), Some(&node));
    options.binary = Some(program);
    let daemon = Daemon::start(options)?;
    let client = daemon.client(Some(&cloud.admin_token))?;
    for _ in 0..3 {
        let start = Instant::now();
        let answer = client.get(NODES)?;
        assert_eq!(
            (answer.status, answer.header("x-hublet-source")),
            (200, "cloud"),
            "{answer:?}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "{:?}",
            start.elapsed()
        );
    }
    drop(near);
    Ok(())
}

/// Before, four source addresses with eight short unread responses each occupied all connections for unproven
/// credentials: a new token got 503 after 5 s, until they were disconnected after 30 s.
#[test]
fn unread_answers_leave_connections_to_new_tokens() -> Result<()> {
    let Some(site) = Site::start("apart", |_| {})? else {
        return Ok(());
    };
    let worker = Worker::start("unread", Some(&site.netns))?;
    let mut unread = Vec::new();
    for last in 2..=5 {
        unread.push(
            worker
                .spawner()
                .block_on(ask_and_read_nothing([127, 0, 0, last].into(), 8))?,
        );
    }
    let start = Instant::now();
    let answer = site
        .daemon
        .client(Some(&site.cloud.admin_token))?
        .get(NODES)?;
    assert_eq!(
        (answer.status, answer.header("x-hublet-source")),
        (200, "cloud"),
        "{answer:?}"
    );
    assert!(
        start.elapsed() < Duration::from_secs(2),
        "{:?}",
        start.elapsed()
    );
    Ok(())
}

/// So many anonymous requests on one HTTP/2 connection whose windows stay shut, until their answers' heads are there.
async fn ask_and_read_nothing(
    from: IpAddr,
    streams: usize,
) -> Result<(
    h2::client::SendRequest<Bytes>,
    Vec<http::Response<h2::RecvStream>>,
)> {
    let socket = tokio::net::TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    let stream = socket.connect(([127, 0, 0, 1], 10261).into()).await?;
    let (mut sender, connection) = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake(stream)
        .await?;
    tokio::spawn(connection);
    let mut answers = Vec::new();
    for _ in 0..streams {
        let request = Request::get("http://127.0.0.1:10261/readyz?verbose").body(())?;
        answers.push(sender.send_request(request, true)?.0.await?);
    }
    Ok((sender, answers))
}

/// The API server answers a rejected token with GOAWAY (`UnauthenticatedHTTP2DOSMitigation`). Before, that ended
/// the shared connection: with four such clients a fifth of the writes of others ended in 504, and valid tokens got
/// 401.
#[test]
fn invalid_tokens_do_not_affect_others() -> Result<()> {
    Edge::run(|edge| {
        let client = |token: &str| {
            let mut options = edge.daemon.client_options(Some(token))?;
            options.keep = true;
            Client::new(options)
        };
        let writer = client(edge.cloud.admin_token())?;
        let map = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "m"}});
        assert_eq!(writer.send_json("POST", MAPS, &map)?.status, 201);
        // Good once, and then no longer: its account is deleted.
        let admin = edge.cloud.admin();
        let account = "/api/v1/namespaces/default/serviceaccounts/leaver";
        admin.create(
            "/api/v1/namespaces/default/serviceaccounts",
            &json!({"metadata": {"name": "leaver"}}),
        )?;
        let leaver = client(&admin.request_token("default", "leaver")?)?;
        assert_eq!(leaver.get(MAPS)?.status, 403, "known, without rights");
        admin.delete(account)?;
        eventually(Duration::from_secs(30), "the token is refused", || {
            (leaver.get(MAPS).ok()?.status == 401).then_some(())
        })?;
        let junk = ["junk-1", "junk-2", "junk-3", "junk-4"].map(client);
        let over = AtomicBool::new(false);
        let failed = std::thread::scope(|scope| {
            for one in junk.iter().flatten().chain([&leaver]) {
                scope.spawn(|| {
                    while !over.load(Ordering::Relaxed) {
                        let _refused = one.get(MAPS);
                        std::thread::park_timeout(Duration::from_millis(200));
                    }
                });
            }
            let failed = beside(edge, &writer, &client);
            over.store(true, Ordering::Relaxed);
            failed
        })?;
        assert!(
            failed.is_empty(),
            "{} calls failed:\n{}",
            failed.len(),
            failed.join("\n")
        );
        assert_eq!(leaver.get(MAPS)?.status, 401);
        Ok(())
    })
}

/// The well-behaved clients' work meanwhile, 200 writes, and reads by tokens that the cloud sees for the first time: the failures,
/// five at the most.
fn beside(
    edge: &Edge,
    writer: &Client,
    client: &dyn Fn(&str) -> Result<Client>,
) -> Result<Vec<String>> {
    let mut failed = Vec::new();
    for number in 0..200 {
        if failed.len() == 5 {
            break;
        }
        let patch = json!({"data": {"n": number.to_string()}});
        let answer = writer.send_json("PATCH", &format!("{MAPS}/m"), &patch)?;
        if answer.status != 200 {
            failed.push(format!("write {number}: {}", answer.text()));
        }
        if number % 10 == 0 {
            let fresh = client(
                &edge
                    .cloud
                    .admin()
                    .request_token("kube-system", "hublet-tests-admin")?,
            )?;
            let answer = fresh.get(MAPS)?;
            if (answer.status, answer.header("x-hublet-source")) != (200, "cloud") {
                failed.push(format!("fresh token {number}: {}", answer.text()));
            }
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    Ok(failed)
}

/// Two clients, one over HTTP/1.1 and one over HTTP/2: hublet sends both on one HTTP/2 connection to the cloud, and counts
/// the bytes of each direction.
#[test]
fn i17_clients_share_one_http2_connection_and_bytes_are_counted() -> Result<()> {
    let Some(site) = Site::start("link", |_| {})? else {
        return Ok(());
    };
    let mut options = site.daemon.client_options(Some(&site.cloud.admin_token))?;
    // The first answer proves the token; from then on its requests share a connection.
    Client::new(options.clone())?.get(NODE)?;
    site.cloud.record().clear();
    for alpn in ["http/1.1", "h2"] {
        options.alpn = vec![alpn];
        let answer = Client::new(options.clone())?.get(NODES)?;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let requests = site.cloud.record().requests();
    let lists: Vec<_> = requests.iter().filter(|one| one.path == NODES).collect();
    assert_eq!(lists.len(), 2, "{requests:?}");
    assert!(
        lists.iter().all(|one| one.protocol == "HTTP/2.0"),
        "{lists:?}"
    );
    assert_eq!(lists[0].connection, lists[1].connection);
    let scrape = site.daemon.scrape_metrics()?;
    assert!(metric("hublet_cloud_bytes_total").sum(&scrape) > 0.0);
    for direction in ["up", "down"] {
        let bytes = metric("hublet_client_bytes_total").label("direction", direction);
        assert!(bytes.sum(&scrape) > 0.0, "{direction}");
    }
    Ok(())
}
