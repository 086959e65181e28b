//! The store when answers contradict each other: lagging API servers, clocks that jump, a cluster that was
//! restored or replaced.

use super::tests::{Bench, GONE, POD, PODS, event, gone, list, pod};
use crate::cache::change::Change;
use crate::cache::grant_rows::{GrantKey, Verdict};
use crate::cache::store::Lookup;
use hublet_wire::meta::Timestamp;

const SECOND: i64 = 1_000;
const MINUTE: i64 = 60 * SECOND;
const CACHED: &str = "GET /api/v1/namespaces/d/pods/a?resourceVersion=0";

/// [`pod`] of another uid.
fn record_replacement(name: &str, version: u64) -> String {
    pod(name, version).replace("\"u-", "\"other-")
}

fn namespace(uid: &str, version: u64) -> String {
    format!(
        r#"{{"kind":"Namespace","apiVersion":"v1","metadata":{{"name":"kube-system","uid":"{uid}","resourceVersion":"{version}"}}}}"#
    )
}

impl Bench {
    async fn grants(&self) -> usize {
        self.cache.snapshot().await.unwrap().grants().unwrap().len()
    }

    /// [`Bench::respond`], a second after all earlier responses.
    async fn then(&self, call: &str, status: u16, body: &str) {
        self.cache.clock.advance(SECOND);
        self.respond(call, status, body.as_bytes(), 0).await;
    }
}

/// A 404 from a watch cache that lags was stored with the resourceVersion of the copy that it replaced, so that no later
/// response of the same resourceVersion counted.
#[tokio::test]
async fn a_404_from_a_lagging_server_gives_way_to_later_answers() {
    for later in [CACHED, POD] {
        let bench = Bench::new();
        bench.then(POD, 200, &pod("a", 7)).await;
        bench.then(CACHED, 404, GONE).await;
        assert!(
            bench.is_absent("/pods/d/a").await,
            "what the cloud observed last"
        );
        bench.then(later, 200, &pod("a", 7)).await;
        assert_eq!(bench.version("/pods/d/a").await, Some(7), "{later}");
    }
}

#[tokio::test]
async fn a_404_from_etcd_outlives_lagging_answers_and_no_fresh_one() {
    let bench = Bench::new();
    bench.then(POD, 200, &pod("a", 7)).await;
    bench.then(POD, 404, GONE).await;
    bench.then(CACHED, 200, &pod("a", 7)).await;
    assert!(
        bench.is_absent("/pods/d/a").await,
        "a watch cache may lag so long"
    );
    bench.cache.clock.advance(2 * MINUTE);
    bench.then(CACHED, 200, &pod("a", 7)).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7), "but not so long");
    bench.then(POD, 404, GONE).await;
    bench.then(POD, 200, &pod("a", 7)).await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(7),
        "etcd itself says so now"
    );
}

/// A 404 from before the clock was set back refused what the cloud observed afterwards, for as long as the clock had jumped.
#[tokio::test]
async fn a_404_from_the_future_is_of_unknown_age() {
    let bench = Bench::new();
    bench.then(POD, 404, GONE).await;
    bench.cache.clock.advance(-60 * MINUTE);
    bench.then(POD, 200, &pod("a", 7)).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
    bench.cache.clock.advance(-60 * MINUTE);
    bench.then(POD, 404, GONE).await;
    assert!(
        bench.is_absent("/pods/d/a").await,
        "nor does a copy from the future refuse a 404"
    );
    bench
        .respond(PODS, 200, list(20, "", &[("b", 19)]).as_bytes(), 0)
        .await;
    bench.cache.clock.advance(-60 * MINUTE);
    bench.then(PODS, 200, &list(20, "", &[("b", 19)])).await;
    let collection = bench.collection("/pods/d/").await.unwrap();
    assert!(
        collection.at <= bench.cache.clock.now(),
        "its age counts again"
    );
}

#[tokio::test]
async fn a_lagging_list_removes_nothing() {
    let bench = Bench::new();
    let cached = format!("{PODS}?resourceVersion=0");
    bench
        .then(PODS, 200, &list(10, "", &[("a", 7), ("b", 9)]))
        .await;
    bench.then(&cached, 200, &list(8, "", &[("a", 5)])).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
    assert_eq!(bench.version("/pods/d/b").await, Some(9));
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        10
    );
    let watch = format!("{PODS}?watch=true&resourceVersion=10");
    bench.then(&watch, 200, &event("DELETED", "a", 12)).await;
    for lag in [&cached, CACHED] {
        let body = if lag == CACHED {
            pod("a", 7)
        } else {
            list(11, "", &[("a", 7)])
        };
        bench.then(lag, 200, &body).await;
        assert!(bench.is_absent("/pods/d/a").await, "deleted since: {lag}");
    }
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        12
    );
}

#[tokio::test]
async fn a_lower_version_of_one_object_counts_once_it_is_confirmed() {
    let bench = Bench::new();
    bench.then(POD, 200, &pod("a", 9)).await;
    for _ in 0..3 {
        bench.then(CACHED, 200, &pod("a", 7)).await;
    }
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(9),
        "a watch cache lags"
    );
    bench.then(POD, 200, &pod("a", 7)).await;
    bench.then(POD, 200, &pod("a", 9)).await;
    bench.then(POD, 200, &pod("a", 7)).await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(9),
        "never twice in a row"
    );
    bench
        .respond(POD, 200, pod("a", 7).as_bytes(), 30_000)
        .await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(9),
        "asked before the newer one came"
    );
    bench.then(POD, 200, &pod("a", 7)).await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(7),
        "etcd was restored from a backup"
    );
    bench.cache.clock.advance(2 * MINUTE);
    for _ in 0..2 {
        bench.then(CACHED, 200, &pod("a", 6)).await;
    }
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(6),
        "no watch cache lags so long"
    );
}

/// The further pages of a list, and a list at an exact resourceVersion, show a state from before their request.
#[tokio::test]
async fn older_lists_override_nothing() {
    let bench = Bench::new();
    bench.then(POD, 200, &pod("a", 9)).await;
    for round in 0..4 {
        bench.cache.clock.advance(2 * MINUTE);
        let first = format!("next-{round}");
        bench
            .then(
                &format!("{PODS}?limit=1"),
                200,
                &list(8, &first, &[("0", 5)]),
            )
            .await;
        bench
            .then(
                &format!("{PODS}?limit=1&continue={first}"),
                200,
                &list(8, "", &[("a", 7)]),
            )
            .await;
        let exact = format!("{PODS}?resourceVersion=8&resourceVersionMatch=Exact");
        bench
            .then(&exact, 200, &list(8, "", &[("0", 5), ("a", 7)]))
            .await;
        assert_eq!(bench.version("/pods/d/a").await, Some(9), "round {round}");
    }
}

/// A cluster whose etcd was restored from a backup goes on with the same uids and lower resourceVersions.
#[tokio::test]
async fn a_restored_cluster_is_followed() {
    let bench = Bench::new();
    bench
        .then(PODS, 200, &list(100, "", &[("a", 90), ("b", 95)]))
        .await;
    let watch = |from: u64| format!("{PODS}?watch=true&resourceVersion={from}");
    bench
        .then(&watch(100), 200, &event("DELETED", "b", 110))
        .await;
    bench
        .then(PODS, 200, &list(50, "", &[("a", 40), ("b", 45)]))
        .await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        110,
        "once is no proof"
    );
    bench
        .then(PODS, 200, &list(50, "", &[("a", 40), ("b", 45)]))
        .await;
    let collection = bench.collection("/pods/d/").await.unwrap();
    assert!(
        collection.is_whole() && collection.version.get() == 50,
        "{collection:?}"
    );
    assert_eq!(bench.version("/pods/d/a").await, Some(40));
    assert_eq!(
        bench.version("/pods/d/b").await,
        Some(45),
        "its deletion never was"
    );
    bench
        .then(&watch(50), 200, &event("MODIFIED", "a", 51))
        .await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(51),
        "and watches carry it on"
    );
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        51
    );
}

/// Objects of the former cluster were served for ever, since the new one counts its resourceVersions from the start.
#[tokio::test]
async fn a_replaced_cluster_is_told_by_its_objects() {
    let bench = Bench::new();
    let former = list(1_000, "", &[("a", 900), ("b", 950), ("c", 990)]);
    bench.then(PODS, 200, &former).await;
    bench
        .then("GET /api/v1/namespaces/d/pods/x", 404, &gone("x"))
        .await;
    bench.cache.ingest().submit(vec![Change::PutGrant {
        key: GrantKey([0; 48]),
        verdict: Verdict::allowed_at(Timestamp::from_millis(1)),
    }]);
    let cluster = bench.cache.cluster_generation();
    assert_eq!(bench.grants().await, 1);
    for _ in 0..3 {
        bench.then(CACHED, 200, &record_replacement("a", 20)).await;
    }
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(900),
        "it was made anew, and the watch cache lags"
    );
    bench.then(POD, 200, &record_replacement("a", 20)).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(20));
    assert!(
        !bench.collection("/pods/d/").await.unwrap().is_whole(),
        "the list is another cluster's"
    );
    assert_eq!(
        bench.version("/pods/d/c").await,
        Some(990),
        "one object is no cluster"
    );
    bench
        .then(
            "GET /api/v1/namespaces/d/pods/b",
            200,
            &record_replacement("b", 21),
        )
        .await;
    assert_eq!(bench.version("/pods/d/a").await, Some(20), "seen since");
    assert_eq!(bench.version("/pods/d/b").await, Some(21));
    assert_eq!(bench.object("/pods/d/c").await, Lookup::Unknown);
    assert_eq!(
        bench.object("/pods/d/x").await,
        Lookup::Unknown,
        "nor is it known what the new one lacks"
    );
    assert_eq!(bench.grants().await, 0, "nor what it allows");
    assert_eq!(cluster.current(), 1, "grants in memory are void, too");
    bench
        .then(PODS, 200, &list(30, "", &[("a", 20), ("b", 21)]))
        .await;
    assert!(bench.collection("/pods/d/").await.unwrap().is_whole());
}

#[tokio::test]
async fn a_replaced_cluster_is_told_by_its_kube_system() {
    let bench = Bench::new();
    let call = "GET /api/v1/namespaces/kube-system";
    bench.then(call, 200, &namespace("one", 4)).await;
    bench.then(POD, 200, &pod("a", 900)).await;
    bench.then(call, 200, &namespace("one", 4)).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(900));
    bench
        .respond(call, 200, namespace("two", 5).as_bytes(), 10_000)
        .await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(900),
        "asked before: whatever it was, it is past"
    );
    bench.then(call, 200, &namespace("two", 5)).await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    assert_eq!(bench.version("/namespaces/kube-system").await, Some(5));
    bench.then(POD, 200, &record_replacement("a", 30)).await;
    bench.then(call, 200, &namespace("two", 5)).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(30));
}

#[tokio::test]
async fn events_are_not_kept_longer_than_the_cloud_keeps_them() {
    let bench = Bench::new();
    let event = pod("e", 7).replace("Pod", "Event");
    bench
        .then("POST /api/v1/namespaces/d/events", 201, &event)
        .await;
    assert_eq!(
        bench.object("/events/d/e").await,
        Lookup::Unknown,
        "nobody reads its own events again"
    );
    bench
        .then("GET /api/v1/namespaces/d/events/e", 200, &event)
        .await;
    assert_eq!(bench.version("/events/d/e").await, Some(7));
    bench.cache.clock.advance(61 * MINUTE);
    bench.then(POD, 200, &pod("a", 9)).await;
    assert_eq!(bench.object("/events/d/e").await, Lookup::Unknown);
    assert_eq!(bench.version("/pods/d/a").await, Some(9));
    let custom = pod("r", 8)
        .replace("\"v1\"", "\"x.io/v1\"")
        .replace("Pod", "Preview");
    bench
        .then("POST /apis/x.io/v1/namespaces/d/previews", 201, &custom)
        .await;
    assert_eq!(
        bench.version("x.io/previews/d/r").await,
        Some(8),
        "a thing, whatever its plural ends with"
    );
}

/// An empty list of metadata, by a watch in protobuf, was stored as the empty list of the objects themselves.
#[tokio::test]
async fn a_response_is_classified_by_its_own_bytes() {
    use hublet_wire::meta::TypeMeta;
    use hublet_wire::protobuf::{encode_envelope, put_bytes};
    let bench = Bench::new();
    let call =
        format!("{PODS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
    let mut entry = Vec::new();
    put_bytes(
        &mut entry,
        1,
        hublet_wire::meta::INITIAL_EVENTS_END.as_bytes(),
    );
    put_bytes(&mut entry, 2, b"true");
    let (mut meta, mut raw, mut object, mut frame) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    put_bytes(&mut meta, 6, b"20");
    put_bytes(&mut meta, 12, &entry);
    put_bytes(&mut raw, 1, &meta);
    put_bytes(
        &mut object,
        1,
        &encode_envelope(
            TypeMeta {
                api_version: "meta.k8s.io/v1",
                kind: "PartialObjectMetadata",
            },
            &raw,
        ),
    );
    put_bytes(&mut frame, 1, b"BOOKMARK");
    put_bytes(&mut frame, 2, &object);
    let body = [
        u32::try_from(frame.len()).unwrap().to_be_bytes().as_slice(),
        &frame,
    ]
    .concat();
    bench
        .respond_in(
            "application/vnd.kubernetes.protobuf;stream=watch",
            &call,
            &body,
        )
        .await;
    assert_eq!(bench.collection("/pods/d/").await, None);
    let json = String::from_utf8_lossy(&body);
    assert!(json.contains("PartialObjectMetadata"));
}

#[tokio::test]
async fn a_table_in_pages_is_stored_once_it_is_whole_and_a_plain_list_instead_of_it_at_once() {
    let bench = Bench::new();
    let row = |name: &str| format!(r#"[{{"cells":["{name}"]}}]"#);
    let page = |rows: &str, next: &str| {
        let meta = format!(r#"{{"resourceVersion":"12","continue":"{next}"}}"#);
        format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{meta},"columnDefinitions":[],"rows":{rows}}}"#
        )
    };
    let key = "/pods/d/\nv1 application/json;as=Table;g=meta.k8s.io;v=v1";
    let document = async || {
        let snapshot = bench.cache.snapshot().await.unwrap();
        snapshot
            .document(key.as_bytes(), |d| {
                String::from_utf8_lossy(d.body).into_owned()
            })
            .unwrap()
    };
    bench
        .then(&format!("{PODS}?limit=1"), 200, &page(&row("a"), "next"))
        .await;
    assert_eq!(document().await, None);
    bench
        .then(
            &format!("{PODS}?limit=1&continue=next"),
            200,
            &page(&row("b"), ""),
        )
        .await;
    let whole = document().await.unwrap();
    assert!(
        whole.contains(r#""rows":[{"cells":["a"]},{"cells":["b"]}]"#)
            && !whole.contains("continue")
    );
    assert_eq!(
        bench.collection("/pods/d/").await,
        None,
        "it is no list of pods"
    );
    bench.then(PODS, 200, &list(13, "", &[("a", 7)])).await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        13
    );
}

/// The event by which an object left a selection removed the copy of the same version that a watch without selectors had
/// just stored, and made the whole list incomplete.
#[tokio::test]
async fn leaving_a_selection_takes_no_copy_of_the_same_version_away() {
    let bench = Bench::new();
    bench.then(PODS, 200, &list(10, "", &[("a", 7)])).await;
    bench
        .then(
            &format!("{PODS}?watch=true&resourceVersion=10"),
            200,
            &event("MODIFIED", "a", 20),
        )
        .await;
    let selected = format!("{PODS}?labelSelector=app%3Dx&watch=true&resourceVersion=10");
    bench.then(&selected, 200, &event("DELETED", "a", 20)).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(20));
    assert!(bench.collection("/pods/d/").await.unwrap().is_whole());
    bench.then(&selected, 200, &event("DELETED", "a", 21)).await;
    assert_eq!(
        bench.object("/pods/d/a").await,
        Lookup::Unknown,
        "changed or deleted since"
    );
}

/// An extension API server that keeps its objects in memory, or an etcd of SnapshotLeases that was lost, begins with new uids
/// and low resourceVersions: two such objects emptied the store of everything else, grants included.
#[tokio::test]
async fn resources_stored_apart_from_the_cluster_are_reset_alone() {
    for (group, resource, kind) in [
        ("x.io", "things", "Thing"),
        ("coordination.k8s.io", "leases", "Lease"),
    ] {
        let bench = Bench::new();
        bench
            .then(PODS, 200, &list(1_000, "", &[("a", 900), ("b", 950)]))
            .await;
        let of_group = |text: String| {
            text.replace("\"v1\"", &format!("\"{group}/v1\""))
                .replace("Pod", kind)
        };
        let call = |name: &str| format!("GET /apis/{group}/v1/namespaces/d/{resource}/{name}");
        for (name, version) in [("m", 500), ("n", 501)] {
            bench
                .then(&call(name), 200, &of_group(pod(name, version)))
                .await;
        }
        for (name, version) in [("m", 1), ("n", 2)] {
            bench
                .then(
                    &call(name),
                    200,
                    &of_group(record_replacement(name, version)),
                )
                .await;
            assert_eq!(
                bench.version(&format!("{group}/{resource}/d/{name}")).await,
                Some(version),
                "followed"
            );
        }
        assert_eq!(bench.version("/pods/d/a").await, Some(900), "{group}");
        assert!(
            bench.collection("/pods/d/").await.unwrap().is_whole(),
            "{group}"
        );
    }
}
