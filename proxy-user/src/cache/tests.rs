//! The store's guarantees, with a real redb file: reads return the newest state, in whatever order the responses arrived.
//! One file, since all of them share the store, clock and shorthand below.

use http::{HeaderMap, Method, Uri};

use super::*;
use crate::cache::exchange::Exchange;
use crate::cache::keys::{CollectionKey, ObjectKey};
use crate::cache::record::Collection;
use crate::cache::store::Lookup;
use hublet_wire::request::RequestInfo;

pub(super) struct Bench {
    pub(super) cache: Cache,
    pub(super) _dir: tempfile::TempDir,
}

impl Bench {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = CacheConfig {
            dir: dir.path().to_owned(),
            page_cache: 1 << 20,
            max_bytes: 512 << 20,
        };
        Self {
            cache: Cache::open(&config, Clock::default()).unwrap(),
            _dir: dir,
        }
    }

    /// One exchange with the cloud: `METHOD uri`, the status, the body (cut into small chunks), requested this long ago.
    pub(super) async fn respond(&self, call: &str, status: u16, body: &[u8], ago: u64) {
        let protobuf = body.starts_with(b"k8s\0");
        let kind = if protobuf {
            "application/vnd.kubernetes.protobuf"
        } else {
            "application/json"
        };
        self.answered((call, status, ago), kind, body).await;
    }

    /// An answer of 200 in this `Content-Type`.
    pub(super) async fn respond_in(&self, kind: &str, call: &str, body: &[u8]) {
        self.answered((call, 200, 0), kind, body).await;
    }

    /// As [`Bench::respond`], without waiting for the disk.
    pub(super) async fn pass(&self, call: &str, status: u16, body: &[u8], ago: u64) {
        self.copy((call, status, ago), "application/json", body)
            .await;
    }

    async fn answered(&self, exchange: (&str, u16, u64), kind: &str, body: &[u8]) {
        self.copy(exchange, kind, body).await;
        self.cache.settle().await;
    }

    async fn copy(&self, (call, status, ago): (&str, u16, u64), kind: &str, body: &[u8]) {
        let (method, uri) = call.split_once(' ').unwrap();
        let (method, uri): (Method, Uri) = (method.parse().unwrap(), uri.parse().unwrap());
        let mut headers = HeaderMap::new();
        headers.insert("content-type", kind.parse().unwrap());
        if body.starts_with(&[0x1f, 0x8b]) {
            headers.insert("content-encoding", "gzip".parse().unwrap());
        }
        let info = RequestInfo::parse(&method, &uri);
        let request = info.understood().unwrap();
        let asked = self.cache.clock.now() - Duration::from_millis(ago);
        if let Ok(exchange) = Exchange::of(request, status, &headers, asked) {
            let mut capture = self.cache.capture(exchange).unwrap();
            for chunk in body.chunks(100) {
                let chunk = bytes::Bytes::copy_from_slice(chunk);
                std::future::poll_fn(|cx| capture.poll_push(cx, &chunk)).await;
            }
            capture.end();
        }
    }

    pub(super) async fn object(&self, key: &str) -> Lookup<String> {
        let snapshot = self.cache.snapshot().await.unwrap();
        snapshot
            .object(ObjectKey::new(key.as_bytes()), |r| {
                String::from_utf8_lossy(r.body).into_owned()
            })
            .unwrap()
    }

    pub(super) async fn version(&self, key: &str) -> Option<u64> {
        let snapshot = self.cache.snapshot().await.unwrap();
        match snapshot
            .object(ObjectKey::new(key.as_bytes()), |r| r.version.get())
            .unwrap()
        {
            Lookup::Found(version) => Some(version),
            _ => None,
        }
    }

    pub(super) async fn is_absent(&self, key: &str) -> bool {
        matches!(self.object(key).await, Lookup::Absent(_))
    }

    pub(super) async fn collection(&self, key: &str) -> Option<Collection> {
        self.cache
            .snapshot()
            .await
            .unwrap()
            .collection(CollectionKey::new(key.as_bytes()))
            .unwrap()
    }

    pub(super) async fn names(&self, prefix: &str) -> usize {
        let mut walk = self
            .cache
            .snapshot()
            .await
            .unwrap()
            .walk(prefix.as_bytes())
            .unwrap();
        let mut n = 0;
        while walk.next(|_| ()).unwrap().is_some() {
            n += 1;
        }
        n
    }
}

pub(super) fn pod(name: &str, version: u64) -> String {
    format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"d","uid":"u-{name}","resourceVersion":"{version}"}}}}{}"#,
        "\n"
    )
}

pub(super) fn list(version: u64, token: &str, names: &[(&str, u64)]) -> String {
    let item = |(n, v): &(&str, u64)| {
        format!(
            r#"{{"metadata":{{"name":"{n}","namespace":"d","uid":"u-{n}","resourceVersion":"{v}"}}}}"#
        )
    };
    let items: Vec<String> = names.iter().map(item).collect();
    let next = if token.is_empty() {
        String::new()
    } else {
        format!(r#","continue":"{token}""#)
    };
    format!(
        r#"{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"{next}}},"items":[{}]}}{}"#,
        items.join(","),
        "\n"
    )
}

pub(super) fn event(kind: &str, name: &str, version: u64) -> String {
    format!(
        r#"{{"type":"{kind}","object":{}}}{}"#,
        pod(name, version).trim_end(),
        "\n"
    )
}

fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    out.write_all(body).unwrap();
    out.finish().unwrap()
}

pub(super) const POD: &str = "GET /api/v1/namespaces/d/pods/a";
pub(super) const PODS: &str = "GET /api/v1/namespaces/d/pods";
pub(super) const GONE: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"a\" not found","reason":"NotFound","details":{"name":"a","kind":"pods"},"code":404}"#;

/// [`GONE`] for another pod.
pub(super) fn gone(name: &str) -> String {
    GONE.replace("\\\"a\\\"", &format!("\\\"{name}\\\""))
        .replace("\"a\"", &format!("\"{name}\""))
}

#[tokio::test]
async fn the_newest_copy_wins_in_whatever_order_and_way_it_came() {
    let bench = Bench::new();
    bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Found(pod("a", 7)));
    bench
        .respond(
            "PATCH /api/v1/namespaces/d/pods/a/status",
            200,
            pod("a", 9).as_bytes(),
            0,
        )
        .await;
    bench
        .respond(PODS, 200, list(8, "", &[("a", 7), ("b", 5)]).as_bytes(), 0)
        .await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(9),
        "an older list changes nothing"
    );
    bench
        .respond(
            "PUT /api/v1/namespaces/d/pods/a?dryRun=All",
            200,
            pod("a", 11).as_bytes(),
            0,
        )
        .await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(9),
        "a dry run is no write"
    );
    bench
        .respond(
            "GET /api/v1/namespaces/d/pods/a",
            200,
            pod("b", 99).as_bytes(),
            0,
        )
        .await;
    assert_eq!(
        bench.version("/pods/d/b").await,
        Some(5),
        "another object than was asked for is not believed"
    );
}

#[tokio::test]
async fn i2_only_a_404_of_the_cloud_makes_a_name_absent() {
    let bench = Bench::new();
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    bench.respond(POD, 404, b"404 page not found\n", 0).await;
    assert_eq!(
        bench.object("/pods/d/a").await,
        Lookup::Unknown,
        "an unknown group is no absent object"
    );
    bench.respond(POD, 404, GONE.as_bytes(), 0).await;
    assert!(bench.is_absent("/pods/d/a").await);
    bench
        .respond(
            "POST /api/v1/namespaces/d/pods",
            201,
            pod("a", 7).as_bytes(),
            0,
        )
        .await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
    bench.respond(POD, 404, GONE.as_bytes(), 5_000).await;
    assert_eq!(
        bench.version("/pods/d/a").await,
        Some(7),
        "a 404 asked for before the object was seen"
    );
    let success = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success","details":{"name":"a","kind":"pods","uid":"u-a"}}"#;
    bench
        .respond(
            "DELETE /api/v1/namespaces/d/pods/a",
            200,
            success.as_bytes(),
            0,
        )
        .await;
    assert!(bench.is_absent("/pods/d/a").await);
    bench
        .respond(PODS, 200, list(7, "", &[("a", 7)]).as_bytes(), 0)
        .await;
    assert!(
        bench.is_absent("/pods/d/a").await,
        "an old list does not bring it back"
    );
    bench
        .respond(PODS, 200, list(20, "", &[("a", 19)]).as_bytes(), 0)
        .await;
    assert_eq!(bench.version("/pods/d/a").await, Some(19), "made anew");
}

/// The API server answers with the objects as they were before it deleted them. Some of them may still exist, for their
/// finalizers or a grace period, but GETs of them were answered 404.
#[tokio::test]
async fn i2_what_a_deleted_collection_held_is_unknown() {
    let bench = Bench::new();
    let pods = list(10, "", &[("a", 7), ("b", 8)]);
    bench.respond(PODS, 200, pods.as_bytes(), 0).await;
    let delete = "DELETE /api/v1/namespaces/d/pods?labelSelector=x";
    let deleted = list(10, "", &[("a", 7)]);
    bench.respond(delete, 200, deleted.as_bytes(), 0).await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    assert_eq!(bench.version("/pods/d/b").await, Some(8));
    assert!(!bench.collection("/pods/d/").await.unwrap().complete);
}

#[tokio::test]
async fn a_delete_that_waits_for_finalizers_or_a_grace_period_is_no_deletion() {
    let bench = Bench::new();
    let held = pod("a", 8).replace(
        "\"uid\"",
        "\"deletionTimestamp\":\"2026-01-01T00:00:00Z\",\"deletionGracePeriodSeconds\":30,\"uid\"",
    );
    bench
        .respond(
            "DELETE /api/v1/namespaces/d/pods/a",
            200,
            held.as_bytes(),
            0,
        )
        .await;
    assert_eq!(bench.version("/pods/d/a").await, Some(8));
    let now = held.replace(
        "\"deletionGracePeriodSeconds\":30",
        "\"deletionGracePeriodSeconds\":0",
    );
    bench
        .respond("DELETE /api/v1/namespaces/d/pods/a", 200, now.as_bytes(), 0)
        .await;
    assert!(bench.is_absent("/pods/d/a").await);
}

#[tokio::test]
async fn i2_a_list_counts_only_when_it_is_whole() {
    let bench = Bench::new();
    let whole = list(8, "", &[("a", 7), ("b", 5)]);
    bench
        .respond(PODS, 200, &whole.as_bytes()[..whole.len() - 4], 0)
        .await;
    assert_eq!(bench.collection("/pods/d/").await, None);
    bench
        .respond(PODS, 200, list(8, "next", &[("a", 7)]).as_bytes(), 0)
        .await;
    assert_eq!(bench.collection("/pods/d/").await, None);
    let second = format!("{PODS}?limit=1&continue=next");
    bench
        .respond(&second, 200, list(8, "", &[("b", 5)]).as_bytes(), 0)
        .await;
    assert_eq!(bench.collection("/pods/d/").await.unwrap().version.get(), 8);
    bench
        .respond(PODS, 200, list(10, "", &[("b", 5)]).as_bytes(), 0)
        .await;
    assert_eq!(
        bench.object("/pods/d/a").await,
        Lookup::Unknown,
        "no longer listed, but nobody observed 404"
    );
    assert_eq!(bench.names("/pods/d/").await, 1);
    let table = r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"12"},"rows":[]}"#;
    bench.respond(PODS, 200, table.as_bytes(), 0).await;
    let partial = list(13, "", &[]).replace("PodList", "PartialObjectMetadataList");
    bench.respond(PODS, 200, partial.as_bytes(), 0).await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        10,
        "another form of it is not the list"
    );
}

/// Each of these was stored as the whole collection, down to an empty one.
#[tokio::test]
async fn i2_a_list_of_something_else_or_of_a_part_is_not_stored() {
    let bench = Bench::new();
    for names in [&[("a", 7)][..], &[]] {
        for (from, to) in [
            (r#""8""#, r#""8","remainingItemCount":1"#),
            ("\"items\"", "\"Items\""),
            ("PodList", "ConfigMapList"),
            ("PodList", "List"),
            ("\"v1\"", "\"v2\""),
        ] {
            let body = list(8, "", names).replacen(from, to, 1);
            bench.respond(PODS, 200, body.as_bytes(), 0).await;
            assert_eq!(bench.collection("/pods/d/").await, None, "{body}");
        }
    }
    let table = r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"8","remainingItemCount":1},"rows":null}"#;
    let whole = table.replace("remaining", "other");
    let stored = async |body: &str| {
        bench.respond(PODS, 200, body.as_bytes(), 0).await;
        let snapshot = bench.cache.snapshot().await.unwrap();
        snapshot.documents("/pods/d/").unwrap().len()
    };
    assert_eq!(stored(table).await, 0);
    assert_eq!(stored(&whole.replace("rows", "Rows")).await, 0);
    assert_eq!(stored(&whole).await, 1);
}

/// These bytes may hide a part of the list.
#[tokio::test]
async fn i2_a_compressed_list_needs_its_end() {
    let bench = Bench::new();
    let member = gzip(list(8, "", &[("a", 7)]).as_bytes());
    let cut = &member[..member.len() - 1];
    for body in [cut, &[&member[..], b"garbage"].concat()] {
        bench.respond(PODS, 200, body, 0).await;
        assert_eq!(bench.collection("/pods/d/").await, None);
    }
    bench.respond(PODS, 200, &member, 0).await;
    assert_eq!(bench.collection("/pods/d/").await.unwrap().version.get(), 8);
}

#[tokio::test]
async fn watches_carry_a_list_on_and_a_gap_stops_it() {
    let bench = Bench::new();
    bench
        .respond(PODS, 200, list(10, "", &[("a", 7)]).as_bytes(), 0)
        .await;
    let watch = |from: u64| format!("{PODS}?watch=true&resourceVersion={from}");
    let events = event("ADDED", "b", 11) + &event("DELETED", "a", 12);
    bench.respond(&watch(10), 200, events.as_bytes(), 0).await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        12
    );
    assert!(bench.is_absent("/pods/d/a").await);
    assert_eq!(bench.names("/pods/d/").await, 1);
    bench
        .respond(&watch(50), 200, event("ADDED", "c", 51).as_bytes(), 0)
        .await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        12,
        "events between 12 and 50 were missed"
    );
    assert_eq!(
        bench.version("/pods/d/c").await,
        Some(51),
        "the object itself is known all the same"
    );
    let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"60"}}}"#;
    bench.respond(&watch(12), 200, bookmark.as_bytes(), 0).await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        60
    );
}

#[tokio::test]
async fn i2_initial_events_are_a_list_once_their_bookmark_has_come() {
    let bench = Bench::new();
    let call =
        format!("{PODS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan");
    let end = r#"{"type":"BOOKMARK","object":{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"20","annotations":{"k8s.io/initial-events-end":"true"}}}}"#;
    bench
        .respond(
            &call,
            200,
            (event("ADDED", "a", 15) + &event("ADDED", "b", 9)).as_bytes(),
            0,
        )
        .await;
    assert_eq!(bench.collection("/pods/d/").await, None);
    let elsewhere = event("ADDED", "a", 15).replace("\"d\"", "\"e\"") + end;
    let of_a_kind = end.replace("\"Pod\"", "\"ConfigMap\"");
    for body in [elsewhere, of_a_kind] {
        bench.respond(&call, 200, body.as_bytes(), 0).await;
        assert_eq!(bench.collection("/pods/d/").await, None, "{body}");
    }
    let events = event("ADDED", "a", 15) + end + &event("ADDED", "c", 21);
    bench.respond(&call, 200, events.as_bytes(), 0).await;
    let collection = bench.collection("/pods/d/").await.unwrap();
    assert_eq!(
        (collection.version.get(), &*collection.kind),
        (20, "PodList")
    );
    assert_eq!(
        bench.object("/pods/d/b").await,
        Lookup::Unknown,
        "not among the initial events"
    );
}

#[tokio::test]
async fn an_object_that_leaves_a_selector_is_unknown_and_one_that_leaves_its_node_is_gone() {
    let bench = Bench::new();
    bench
        .respond(
            "GET /api/v1/pods",
            200,
            list(10, "", &[("a", 7), ("b", 7)]).as_bytes(),
            0,
        )
        .await;
    let by_label = "GET /api/v1/pods?labelSelector=x%3Dy";
    bench
        .respond(by_label, 200, list(10, "", &[("a", 7)]).as_bytes(), 0)
        .await;
    let watch = format!("{by_label}&watch=true&resourceVersion=10");
    bench
        .respond(&watch, 200, event("DELETED", "a", 12).as_bytes(), 0)
        .await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    assert!(
        !bench.collection("/pods/").await.unwrap().is_whole(),
        "it may be there still: the whole list isn't known"
    );
    let by_node = "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dn&watch=true&resourceVersion=10";
    bench
        .respond(by_node, 200, event("DELETED", "b", 13).as_bytes(), 0)
        .await;
    assert!(bench.is_absent("/pods/d/b").await);
}

#[tokio::test]
async fn gzip_is_decoded_for_the_store_up_to_a_limit() {
    let bench = Bench::new();
    bench
        .respond(PODS, 200, &gzip(list(8, "", &[("a", 7)]).as_bytes()), 0)
        .await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
    let bomb = pod("a", 9).replace("u-a", &"x".repeat(hublet_wire::MAX_OBJECT));
    bench.respond(POD, 200, &gzip(bomb.as_bytes()), 0).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
}

#[tokio::test]
async fn i15_a_store_reads_back_and_a_damaged_one_is_set_aside() {
    let made = tempfile::tempdir().unwrap();
    let dir = made.path().join("cache");
    let config = CacheConfig {
        dir: dir.clone(),
        page_cache: 1 << 20,
        max_bytes: 512 << 20,
    };
    let open = || Cache::open(&config, Clock::default()).unwrap();
    let bench = Bench {
        cache: open(),
        _dir: tempfile::tempdir().unwrap(),
    };
    bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
    let second = Cache::open(&config, Clock::default());
    assert!(
        matches!(second, Err(StoreError::InUse(_))),
        "two daemons over one store"
    );
    let closed = bench;
    let held = closed.cache.stored().unwrap();
    closed.cache.close().await;
    let bench = Bench {
        cache: open(),
        _dir: tempfile::tempdir().unwrap(),
    };
    assert!(
        matches!(closed.cache.stored(), Err(StoreError::Closed)),
        "closed, whoever still holds it"
    );
    assert!(
        held.object(ObjectKey::new(b"/pods/d/a"), |_| ()).is_err(),
        "and its snapshots read nothing of another's"
    );
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
    bench.cache.close().await;
    drop(bench);
    std::fs::write(dir.join("hublet.redb"), vec![0x5a; 200_000]).unwrap();
    let bench = Bench {
        cache: open(),
        _dir: tempfile::tempdir().unwrap(),
    };
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    let aside = std::fs::read_dir(&dir)
        .unwrap()
        .filter(|e| {
            e.as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains("aside")
        })
        .count();
    assert_eq!(aside, 1, "kept for whoever wants to look");
    let mode = |p: &std::path::Path| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::metadata(p).unwrap().permissions().mode() & 0o777
    };
    assert_eq!((mode(&dir), mode(&dir.join("hublet.redb"))), (0o700, 0o600));
}

#[tokio::test]
async fn a_repeated_response_costs_no_write() {
    let bench = Bench::new();
    let written = || bench.cache.ingest().commits();
    let gone = gone("b");
    let say = async || {
        bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
        bench
            .respond(PODS, 200, list(8, "", &[("a", 7)]).as_bytes(), 0)
            .await;
        bench
            .respond("GET /api/v1/namespaces/d/pods/b", 404, gone.as_bytes(), 0)
            .await;
    };
    say().await;
    let before = written();
    for _ in 0..3 {
        say().await;
    }
    assert_eq!(written(), before);
    bench.respond(POD, 200, pod("a", 9).as_bytes(), 0).await;
    assert_eq!(written(), before + 1);
}

/// The Calico plugin reads a handle (404) and creates it at once, faster than the writer reads either answer.
#[tokio::test]
async fn a_create_right_after_a_404_is_not_taken_for_older() {
    let bench = Bench::new();
    for n in 0..50 {
        let clock = &bench.cache.clock;
        let asked = |clock: &Clock| clock.now();
        let (get, create) = (
            format!("/api/v1/namespaces/d/pods/p{n}"),
            "/api/v1/namespaces/d/pods",
        );
        let gone = gone(&format!("p{n}"));
        for (method, path, status, body) in [
            (Method::GET, get.as_str(), 404, gone),
            (Method::POST, create, 201, pod(&format!("p{n}"), 7 + n)),
        ] {
            let uri: Uri = path.parse().unwrap();
            let mut headers = HeaderMap::new();
            headers.insert("content-type", "application/json".parse().unwrap());
            let info = RequestInfo::parse(&method, &uri);
            let request = info.understood().unwrap();
            let exchange = Exchange::of(request, status, &headers, asked(clock)).unwrap();
            let mut capture = bench.cache.capture(exchange).unwrap();
            let body = bytes::Bytes::from(body);
            std::future::poll_fn(|cx| capture.poll_push(cx, &body)).await;
            capture.end();
        }
    }
    for n in 0..50 {
        assert_eq!(
            bench.version(&format!("/pods/d/p{n}")).await,
            Some(7 + n),
            "p{n}"
        );
    }
}

/// Where an object left a selection and the selection's watch reported it first, the whole collection became incomplete, and
/// stayed so even after its own watch had reported the change.
#[tokio::test]
async fn a_collection_is_whole_again_once_its_own_watch_has_told_what_left_a_selection() {
    let bench = Bench::new();
    let selected = format!("{PODS}?labelSelector=x&watch=true&resourceVersion=10");
    let all = format!("{PODS}?watch=true&resourceVersion=10");
    bench
        .respond(PODS, 200, list(10, "", &[("a", 7), ("b", 8)]).as_bytes(), 0)
        .await;
    bench
        .respond(&selected, 200, event("DELETED", "a", 12).as_bytes(), 0)
        .await;
    assert!(
        !bench.collection("/pods/d/").await.unwrap().is_whole(),
        "a may be gone or not"
    );
    bench
        .respond(&all, 200, event("MODIFIED", "b", 11).as_bytes(), 0)
        .await;
    assert!(
        !bench.collection("/pods/d/").await.unwrap().is_whole(),
        "not told yet"
    );
    bench
        .respond(&all, 200, event("MODIFIED", "a", 12).as_bytes(), 0)
        .await;
    assert!(bench.collection("/pods/d/").await.unwrap().is_whole());
    assert_eq!(bench.version("/pods/d/a").await, Some(12));
}

/// A document that was requested earlier, and arrived late, replaced a newer one.
#[tokio::test]
async fn a_document_that_was_asked_for_earlier_is_the_older_one() {
    let bench = Bench::new();
    bench
        .respond("GET /version", 200, br#"{"minor":"36"}"#, 0)
        .await;
    bench
        .respond("GET /version", 200, br#"{"minor":"35"}"#, 30_000)
        .await;
    let snapshot = bench.cache.snapshot().await.unwrap();
    let body = snapshot
        .document(b"/version\napplication/json", |d| d.body.to_vec())
        .unwrap();
    assert_eq!(body.as_deref(), Some(br#"{"minor":"36"}"#.as_slice()));
}
