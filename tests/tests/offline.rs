//! Promise: what the README shows. Online, the cloud answers. After the link is cut, the same call is answered at once
//! from the store, with its age, for callers that the cloud has allowed it (I2, I4, I5, I11); a write is refused (I1).
//! After the link is restored, the cloud answers again within five seconds.
//!
//! Also here: every metric is documented, and the modes without a store.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::{Duration, Instant};

use anyhow::Result;
use http::Request;
use hublet_tests::client::{Answer, Client};
use hublet_tests::cloud::{ServerFault, ServerFaultRule};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::metrics::metric;
use hublet_tests::site::Site;
use serde_json::json;

const INFORMATION: &str = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
const ABSENT: &str = "/apis/crd.projectcalico.org/v1/ipamconfigs/default";
const NODES: &str = "/api/v1/nodes";

fn source(answer: &Answer) -> &str {
    answer.header("x-hublet-source")
}

fn post(client: &Client) -> Answer {
    client
        .send_json(
            "POST",
            "/apis/crd.projectcalico.org/v1/ipamhandles",
            &json!({"metadata": {"name": "x"}}),
        )
        .unwrap()
}

fn walk(fault: Fault, first: Duration) -> Result<()> {
    let Some(site) = Site::start("offline", |_| {})? else {
        return Ok(());
    };
    let calico = site.daemon.client(Some(&site.cloud.calico_token))?;
    let online = calico.get(INFORMATION)?;
    assert_eq!(
        (online.status, source(&online)),
        (200, "cloud"),
        "{online:?}"
    );
    assert_eq!(calico.get(ABSENT)?.status, 404);

    site.fault.set(fault)?;
    let cut = Instant::now();
    let stored = calico.get(INFORMATION)?;
    let took = cut.elapsed();
    assert_eq!(
        (stored.status, source(&stored)),
        (200, "store"),
        "{stored:?}"
    );
    assert_eq!(stored.body, online.body, "the same bytes");
    assert!(stored.header("age").parse::<u64>()? < 60);
    assert!(took < first, "the first answer took {took:?}");
    for _ in 0..20 {
        let again = calico.get(INFORMATION)?;
        assert_eq!((again.status, source(&again)), (200, "store"));
    }
    let missing = calico.get(ABSENT)?;
    assert_eq!(
        (missing.status, source(&missing)),
        (404, "store"),
        "what the cloud said 404 to: {missing:?}"
    );

    let stranger = site
        .daemon
        .client(Some("another-token"))?
        .get(INFORMATION)?;
    assert_eq!(
        (stranger.status, source(&stranger)),
        (503, "hublet"),
        "unknown, not refused: {stranger:?}"
    );
    let nobody = site.daemon.client(None)?.get(INFORMATION)?;
    assert_eq!(
        nobody.status, 403,
        "anonymous was never allowed this: {nobody:?}"
    );
    let write = post(&calico);
    assert_eq!(
        (write.status, write.json()["kind"].as_str()),
        (503, Some("Status")),
        "{write:?}"
    );
    assert_eq!(write.header("retry-after"), "", "callers fail fast");
    let unknown = calico.get("/apis/crd.projectcalico.org/v1/ipamblocks/10-0-0-0-26")?;
    assert_eq!(unknown.status, 503, "not knowing is no 404: {unknown:?}");
    let list = calico.get("/apis/crd.projectcalico.org/v1/ipamblocks")?;
    assert_eq!(list.status, 503, "and no empty list: {list:?}");
    metric("hublet_requests_total")
        .label("verb", "get")
        .label("source", "store")
        .assert_in(&site.daemon.scrape_metrics()?);

    site.fault.set(Fault::None)?;
    eventually(Duration::from_secs(5), "the cloud answers again", || {
        calico
            .get(INFORMATION)
            .ok()
            .filter(|answer| source(answer) == "cloud")
    })?;
    Ok(())
}

#[test]
fn i11_a_refused_link_is_noticed_at_once() -> Result<()> {
    walk(Fault::Refuse, Duration::from_millis(500))
}

#[test]
fn i11_a_silent_link_costs_the_first_caller_less_than_a_second() -> Result<()> {
    walk(Fault::Blackhole(None), Duration::from_secs(1))
}

#[test]
fn i11_a_link_that_dies_within_an_answer_costs_its_caller_nothing() -> Result<()> {
    for path in [INFORMATION, NODES] {
        let Some(site) = Site::start("offline", |_| {})? else {
            return Ok(());
        };
        let client = site.daemon.client(Some(&site.cloud.admin_token))?;
        let online = client.get(path)?;
        assert_eq!(
            (online.status, source(&online)),
            (200, "cloud"),
            "{online:?}"
        );
        site.cloud
            .server_faults()
            .add_rule(ServerFaultRule::new("GET", path, ServerFault::Stall).times(1));
        let stored = std::thread::scope(|scope| {
            let asked = scope.spawn(|| client.get(path));
            // The head is out, and what follows it never comes.
            eventually(
                Duration::from_secs(5),
                "the cloud has taken the call",
                || site.cloud.server_faults().rules().is_empty().then_some(()),
            )?;
            site.fault.set(Fault::Blackhole(None))?;
            asked.join().expect("the client doesn't panic")
        })?;
        assert_eq!(
            (stored.status, source(&stored)),
            (200, "store"),
            "{stored:?}"
        );
        assert_eq!(
            stored.json()["items"].as_array(),
            online.json()["items"].as_array(),
            "the same items"
        );
        assert_eq!(
            stored.json()["spec"],
            online.json()["spec"],
            "the same object"
        );
    }
    Ok(())
}

#[test]
fn i5_a_watch_stays_open_over_the_cut_and_sees_later_changes() -> Result<()> {
    let Some(site) = Site::start("watch", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let version = admin.get(NODES)?.json()["metadata"]["resourceVersion"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("{NODES}?watch=true&resourceVersion={version}&allowWatchBookmarks=true");
    let mut online = admin.watch(&path)?;
    site.cut_link()?;
    let deadline = Duration::from_secs(10);
    while online.next_event(deadline)?.is_some() {}
    let mut offline = admin.watch(&path)?;
    assert_eq!(offline.headers["x-hublet-source"], "store");
    let silent = offline.next_event(Duration::from_millis(300));
    assert!(silent.is_err(), "open, and nothing to say: {silent:?}");
    let mut node = site.cloud.get("/api/v1/nodes/edge-1")?.unwrap();
    node["metadata"]["labels"]["seen"] = json!("after");
    site.cloud.put(node)?;
    site.fault.set(Fault::None)?;
    assert_eq!(
        offline.next_event(deadline)?,
        None,
        "ends when the cloud is back"
    );
    let mut back = admin.watch(&path)?;
    let event = back.next_event(deadline)?.unwrap();
    assert_eq!(
        event["object"]["metadata"]["labels"]["seen"], "after",
        "{event}"
    );
    Ok(())
}

#[test]
fn i2_lists_pages_and_initial_events_are_whole_or_unknown() -> Result<()> {
    let Some(site) = Site::start("lists", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    for n in 0..25 {
        let name = format!("paged-{n:02}");
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "default"}});
        site.cloud.put(map)?;
    }
    let maps = "/api/v1/namespaces/default/configmaps";
    let first = admin.get(&format!("{maps}?limit=10"))?.json();
    let mut token = first["metadata"]["continue"].as_str().unwrap().to_owned();
    while !token.is_empty() {
        let page = admin
            .get(&format!("{maps}?limit=10&continue={token}"))?
            .json();
        token = page["metadata"]["continue"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
    }
    let whole = admin.get("/api/v1/namespaces")?;
    // Informers watch after they have listed: so the cloud has allowed it.
    assert_eq!(
        admin
            .watch(&format!(
                "{maps}?watch=true&resourceVersion={}",
                site.cloud.version()
            ))?
            .status,
        200
    );
    site.cut_link()?;
    let stored = admin.get(maps)?;
    assert_eq!(
        stored.json()["items"].as_array().map(Vec::len),
        Some(25),
        "{stored:?}"
    );
    assert_eq!(
        admin.get("/api/v1/namespaces")?.body,
        whole.body,
        "the same list, byte for byte"
    );
    assert_eq!(
        admin.get("/api/v1/configmaps")?.status,
        503,
        "all namespaces were never listed"
    );
    let mut watch = admin.watch(&format!(
        "{maps}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    ))?;
    let mut seen = 0;
    loop {
        let event = watch.next_event(Duration::from_secs(5))?.unwrap();
        if event["type"] == "BOOKMARK" {
            assert_eq!(
                event["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
                "true"
            );
            break;
        }
        seen += 1;
    }
    assert_eq!(seen, 25);
    Ok(())
}

#[test]
fn a_malformed_answer_is_passed_on_and_not_stored() -> Result<()> {
    let Some(site) = Site::start("lies", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let good = admin.get(INFORMATION)?;
    site.cloud.server_faults().add_rule(
        ServerFaultRule::new(
            "GET",
            INFORMATION,
            ServerFault::Status {
                code: 500,
                retry_after: 0,
            },
        )
        .times(1),
    );
    assert_eq!(admin.get(INFORMATION)?.status, 500, "passed on as it came");
    site.cut_link()?;
    let stored = admin.get(INFORMATION)?;
    assert_eq!((stored.status, &stored.body), (200, &good.body));
    Ok(())
}

#[test]
fn i2_an_older_copy_is_never_served_in_another_encoding() -> Result<()> {
    let Some(site) = Site::start("encoding", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    assert_eq!(admin.get(INFORMATION)?.status, 200);
    site.cut_link()?;
    let only_protobuf =
        Request::get(INFORMATION).header("accept", "application/vnd.kubernetes.protobuf");
    let refused = admin.send(only_protobuf.body(Vec::new())?)?;
    assert_eq!(refused.status, 503, "stored in JSON: {refused:?}");
    Ok(())
}

/// The families of a scrape: their names as `# TYPE` says them, with the suffix that their samples have.
fn families(scrape: &str) -> Vec<String> {
    let kind = |line: &str| -> Option<String> {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        Some(format!("{name}{suffix}"))
    };
    scrape.lines().filter_map(kind).collect()
}

#[test]
fn every_metric_is_documented_and_every_documented_one_is_there() -> Result<()> {
    let Some(site) = Site::start("metrics", |_| {})? else {
        return Ok(());
    };
    let mut said = families(&site.daemon.scrape_metrics()?);
    let page = include_str!("../../docs/metrics.md");
    let mut written: Vec<String> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split(['`', '{']).next().map(str::to_owned))
        .collect();
    said.sort();
    written.sort();
    assert_eq!(said, written);
    Ok(())
}

#[test]
fn i1_http2_clients_get_the_answer_to_a_refused_write() -> Result<()> {
    let Some(site) = Site::start("refused", |_| {})? else {
        return Ok(());
    };
    let path = "/apis/crd.projectcalico.org/v1/clusterinformations/default";
    assert_eq!(site.admin_client()?.get(path)?.status, 200);
    site.cut_link()?;
    let token = format!("Authorization: Bearer {}", site.cloud.admin_token);
    let url = format!("{}{path}", hublet_tests::daemon::SECURE);
    let said = || -> Result<String> {
        let mut curl = std::process::Command::new("curl");
        curl.args([
            "-sk",
            "--http2",
            "-X",
            "POST",
            "-d",
            "{}",
            "-H",
            "content-type: application/json",
            "-H",
            &token,
        ]);
        curl.args(["-o", "/dev/null", "-w", "%{http_code} %{errormsg}", &url]);
        Ok(String::from_utf8_lossy(&site.netns.run(|| curl.output())?.stdout).into_owned())
    };
    let away = || {
        said()
            .is_ok_and(|said| said.starts_with("503"))
            .then_some(())
    };
    eventually(
        Duration::from_secs(5),
        "the cloud is known to be away",
        away,
    )?;
    for _ in 0..30 {
        assert_eq!(said()?, "503 ", "an answer, and no reset of its stream");
    }
    Ok(())
}

/// A client keeps the resourceVersion of a list that the store gave it, and goes on from there once the cloud is back.
/// The version is the cloud's own: the watch delivers exactly what has changed since, or 410 after a compaction.
#[test]
fn i4_a_version_from_the_store_is_valid_at_the_cloud() -> Result<()> {
    let Some(site) = Site::start("versions", |_| {})? else {
        return Ok(());
    };
    let admin = site.admin_client()?;
    let online = admin.get(NODES)?.json()["metadata"]["resourceVersion"].clone();
    site.cut_link()?;
    let stored = admin.get(NODES)?;
    assert_eq!(source(&stored), "store");
    let version = stored.json()["metadata"]["resourceVersion"].clone();
    assert_eq!(version, online, "the store hands out the cloud's version");
    let mut node = site.cloud.get("/api/v1/nodes/edge-1")?.unwrap();
    node["metadata"]["labels"]["changed"] = json!("while-away");
    site.cloud.put(node)?;

    site.fault.set(Fault::None)?;
    let path = format!(
        "{NODES}?watch=true&resourceVersion={}",
        version.as_str().unwrap()
    );
    let watch = |what: &str| {
        eventually(Duration::from_secs(5), what, || {
            let stream = admin.watch(&path).ok()?;
            (stream.headers["x-hublet-source"] == "cloud").then_some(stream)
        })
    };
    let event = watch("a watch at the cloud")?.next_event(Duration::from_secs(5))?;
    let event = event.unwrap();
    assert_eq!(event["type"], "MODIFIED", "{event}");
    assert_eq!(
        event["object"]["metadata"]["labels"]["changed"],
        "while-away"
    );

    site.cloud.compact();
    let event = watch("a watch after the compaction")?.next_event(Duration::from_secs(5))?;
    assert_eq!(event.unwrap()["object"]["code"], 410);
    Ok(())
}

/// `--working-mode=cloud` stores nothing: what was forwarded is not answered from the store.
#[test]
fn the_working_mode_cloud_forwards_and_keeps_nothing() -> Result<()> {
    let with_mode = |options: &mut hublet_tests::daemon::Options| {
        options.flags.push("--working-mode=cloud".into());
    };
    let Some(site) = Site::start("cloud-mode", with_mode)? else {
        return Ok(());
    };
    let calico = site.daemon.client(Some(&site.cloud.calico_token))?;
    let online = calico.get(INFORMATION)?;
    assert_eq!((online.status, source(&online)), (200, "cloud"));
    site.fault.set(Fault::Refuse)?;
    // Until the state is decided, a request that fails says only that the cloud can't be reached.
    eventually(
        Duration::from_secs(10),
        "a refusal that names the mode",
        || {
            let refused = calico.get(INFORMATION).ok().filter(|a| a.status == 503)?;
            String::from_utf8_lossy(&refused.body)
                .contains("--working-mode=cloud")
                .then_some(())
        },
    )
}
