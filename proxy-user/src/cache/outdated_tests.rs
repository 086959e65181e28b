//! Writes whose responses hold a resourceVersion, but not the object as it is stored: a client knows of a later state.

use super::tests::{Bench, POD, PODS, event, gone, list, pod};
use crate::cache::store::Lookup;

const RESIZE: &str = "PATCH /api/v1/namespaces/d/pods/a/resize";
const WATCH: &str = "GET /api/v1/namespaces/d/pods?watch=true&resourceVersion=8";

/// Pods `a` (7) and `b` (5), listed at version 8.
async fn listed() -> Bench {
    let bench = Bench::new();
    let pods = list(8, "", &[("a", 7), ("b", 5)]);
    bench.respond(PODS, 200, pods.as_bytes(), 0).await;
    bench
}

impl Bench {
    async fn is_list_whole(&self) -> bool {
        self.collection("/pods/d/").await.unwrap().is_whole()
    }
}

/// Such a list stayed unknown until it was listed again, but a client with a watch doesn't list again.
#[tokio::test]
async fn i2_a_watch_completes_the_list_after_a_write_of_which_only_the_version_is_known() {
    for (write, status, name, version) in [
        (RESIZE, 200, "a", 10),
        ("PUT /api/v1/namespaces/d/pods/a?pretty=true", 200, "a", 10),
        ("POST /api/v1/namespaces/d/pods?pretty=true", 201, "c", 10),
    ] {
        let (bench, key) = (listed().await, format!("/pods/d/{name}"));
        let read = format!("{}/{name}", PODS);
        bench.respond(&read, 404, gone("c").as_bytes(), 0).await;
        let written = pod(name, version);
        bench.respond(write, status, written.as_bytes(), 0).await;
        assert_eq!(bench.object(&key).await, Lookup::Unknown, "{write}");
        assert_eq!(bench.version("/pods/d/b").await, Some(5));
        assert!(!bench.is_list_whole().await, "{write}");
        let earlier = event("MODIFIED", "b", 9);
        bench.respond(WATCH, 200, earlier.as_bytes(), 0).await;
        assert!(!bench.is_list_whole().await, "{write}: not there yet");
        let watch = WATCH.replace("=8", "=9");
        let shown = event("MODIFIED", name, version);
        bench.respond(&watch, 200, shown.as_bytes(), 0).await;
        assert_eq!(bench.version(&key).await, Some(version));
        assert!(bench.is_list_whole().await, "{write}");
    }
}

#[tokio::test]
async fn a_write_that_the_watch_has_shown_already_changes_nothing() {
    for (kind, version) in [("MODIFIED", 10), ("MODIFIED", 12), ("DELETED", 12)] {
        let bench = listed().await;
        let shown = event(kind, "a", version);
        bench.respond(WATCH, 200, shown.as_bytes(), 0).await;
        let before = bench.object("/pods/d/a").await;
        bench
            .respond(RESIZE, 200, pod("a", 10).as_bytes(), 50)
            .await;
        assert_eq!(bench.object("/pods/d/a").await, before);
        assert!(bench.is_list_whole().await, "{kind} {version}");
    }
}

/// A list from a watch cache that lags, in the place of the one that the write had made incomplete, counted as whole.
#[tokio::test]
async fn i2_a_list_from_before_the_write_does_not_complete_it() {
    let bench = listed().await;
    bench.respond(RESIZE, 200, pod("a", 10).as_bytes(), 0).await;
    let lagging = list(9, "", &[("a", 7), ("b", 9)]);
    let cached = format!("{PODS}?resourceVersion=0");
    bench.respond(&cached, 200, lagging.as_bytes(), 0).await;
    assert!(!bench.is_list_whole().await);
    let shown = event("MODIFIED", "a", 10);
    let watch = WATCH.replace("=8", "=9");
    bench.respond(&watch, 200, shown.as_bytes(), 0).await;
    assert!(bench.is_list_whole().await);
}

/// After the cluster was restored from a backup, its resourceVersions are lower than the write's.
#[tokio::test]
async fn a_consistent_list_after_the_write_is_whole_whatever_its_version() {
    let bench = listed().await;
    bench
        .respond(RESIZE, 200, pod("a", 100).as_bytes(), 1_000)
        .await;
    assert!(!bench.is_list_whole().await);
    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    let restored = list(9, "", &[("b", 5)]);
    bench.respond(PODS, 200, restored.as_bytes(), 0).await;
    assert!(bench.is_list_whole().await);
}

#[tokio::test]
async fn a_delete_in_an_unusual_form_is_still_one() {
    let success = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Success"}"#;
    let pretty = "DELETE /api/v1/namespaces/d/pods/a?pretty=true";
    let bench = listed().await;
    bench.respond(pretty, 200, success.as_bytes(), 0).await;
    assert!(bench.is_absent("/pods/d/a").await);
    // The object as it was before may be deleted by now.
    let bench = listed().await;
    bench.respond(pretty, 200, pod("a", 7).as_bytes(), 0).await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
}

/// The update that removes the last finalizer deletes the object, and is answered with it. It was served as before.
#[tokio::test]
async fn i2_an_object_is_gone_with_its_last_finalizer() {
    let marked = |fields: &str| {
        let mark = format!(r#""deletionTimestamp":"2026-01-01T00:00:00Z",{fields}"uid""#);
        pod("a", 8).replace(r#""uid""#, &mark)
    };
    let put = "PUT /api/v1/namespaces/d/pods/a";
    let bench = listed().await;
    for held in [
        r#""finalizers":["x"],"#,
        r#""deletionGracePeriodSeconds":30,"#,
    ] {
        bench.respond(put, 200, marked(held).as_bytes(), 0).await;
        assert_eq!(bench.version("/pods/d/a").await, Some(8), "{held}");
    }
    bench.respond(put, 200, marked("").as_bytes(), 0).await;
    assert!(bench.is_absent("/pods/d/a").await);
    bench.respond(POD, 404, gone("a").as_bytes(), 0).await;
    assert!(bench.is_absent("/pods/d/a").await);
}

/// The finalizers of a namespace are in its spec.
#[tokio::test]
async fn a_namespace_without_finalizers_in_its_metadata_is_unknown_after_an_update() {
    let bench = Bench::new();
    let namespace = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"d","deletionTimestamp":"2026-01-01T00:00:00Z","resourceVersion":"8"}}"#;
    for update in [
        "PUT /api/v1/namespaces/d",
        "PUT /api/v1/namespaces/d/finalize",
    ] {
        let read = "GET /api/v1/namespaces/d";
        bench.respond(read, 200, namespace.as_bytes(), 0).await;
        assert_eq!(bench.version("/namespaces/d").await, Some(8));
        bench.respond(update, 200, namespace.as_bytes(), 0).await;
        assert_eq!(bench.object("/namespaces/d").await, Lookup::Unknown);
    }
}

const PRETTY_PUT: &str = "PUT /api/v1/namespaces/d/pods/a?pretty=true";

/// A response to an earlier request, or a watch that lags, shows the object as it was before the write.
#[tokio::test]
async fn i2_a_copy_from_before_the_write_does_not_replace_it() {
    let cached = format!("{POD}?resourceVersion=0");
    let (earlier, lagging) = (event("MODIFIED", "a", 9), list(9, "", &[("a", 7)]));
    let all = "GET /api/v1/pods?resourceVersion=0";
    for (call, body, ago) in [
        (POD, pod("a", 7), 1_000),
        ("PUT /api/v1/namespaces/d/pods/a", pod("a", 9), 1_000),
        (&cached, pod("a", 7), 0),
        (WATCH, earlier, 0),
        (all, lagging, 0),
    ] {
        let bench = listed().await;
        bench
            .respond(PRETTY_PUT, 200, pod("a", 10).as_bytes(), 0)
            .await;
        bench.respond(call, 200, body.as_bytes(), ago).await;
        assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown, "{call}");
        bench.respond(POD, 200, pod("a", 10).as_bytes(), 0).await;
        assert_eq!(bench.version("/pods/d/a").await, Some(10), "{call}");
    }
}

/// A 404 that was requested before the write, and a deletion that preceded it.
#[tokio::test]
async fn i2_an_absence_from_before_the_write_does_not_count() {
    let (create, lost) = ("POST /api/v1/namespaces/d/pods?pretty=true", gone("c"));
    let (read, deleted) = (format!("{PODS}/c"), event("DELETED", "c", 9));
    for (call, status, body) in [(read.as_str(), 404, lost), (WATCH, 200, deleted)] {
        let bench = listed().await;
        bench.respond(create, 201, pod("c", 10).as_bytes(), 0).await;
        bench.respond(call, status, body.as_bytes(), 1_000).await;
        assert_eq!(bench.object("/pods/d/c").await, Lookup::Unknown, "{call}");
        let deleted = event("DELETED", "c", 11);
        bench.respond(WATCH, 200, deleted.as_bytes(), 0).await;
        assert!(bench.is_absent("/pods/d/c").await, "{call}");
    }
}

/// The list was under way while a client wrote; before, no list had been stored that the write could make incomplete.
#[tokio::test]
async fn i2_the_first_list_from_before_the_write_is_not_whole() {
    let bench = Bench::new();
    let create = "POST /api/v1/namespaces/d/pods?pretty=true";
    bench.respond(create, 201, pod("c", 10).as_bytes(), 0).await;
    let before = list(8, "", &[("a", 7), ("b", 5)]);
    bench.respond(PODS, 200, before.as_bytes(), 1_000).await;
    assert!(!bench.is_list_whole().await);
    let shown = event("ADDED", "c", 10);
    bench.respond(WATCH, 200, shown.as_bytes(), 0).await;
    assert!(bench.is_list_whole().await);
}

/// The object may match the selectors now.
#[tokio::test]
async fn i2_a_selection_that_may_hold_the_written_object_is_unknown() {
    let whole = async |bench: &Bench, key: &str| bench.collection(key).await.unwrap().is_whole();
    let labelled = format!("{PODS}?labelSelector=x");
    let (by_label, by_name) = ("/pods/d/?l=x&f=", "/pods/d/?l=&f=metadata.name=b");
    let bench = listed().await;
    let named = format!("{PODS}?fieldSelector=metadata.name=b");
    for selection in [&labelled, &named] {
        let items = list(8, "", &[("b", 5)]);
        bench.respond(selection, 200, items.as_bytes(), 0).await;
    }
    bench
        .respond(PRETTY_PUT, 200, pod("a", 10).as_bytes(), 0)
        .await;
    assert!(!whole(&bench, by_label).await);
    assert!(whole(&bench, by_name).await, "of another object");
    let watch = format!("{labelled}&watch=true&resourceVersion=8");
    let shown = event("ADDED", "a", 10);
    bench.respond(&watch, 200, shown.as_bytes(), 0).await;
    assert!(whole(&bench, by_label).await);
}

/// The answer shows it as it goes on to exist: its finalizers are in its spec.
#[tokio::test]
async fn i2_a_namespace_that_is_terminating_is_not_absent() {
    let bench = Bench::new();
    let namespace = r#"{"kind":"Namespace","apiVersion":"v1","metadata":{"name":"d","deletionTimestamp":"2026-01-01T00:00:00Z","resourceVersion":"8"},"spec":{"finalizers":["kubernetes"]}}"#;
    let delete = "DELETE /api/v1/namespaces/d";
    bench.respond(delete, 200, namespace.as_bytes(), 0).await;
    assert_eq!(bench.object("/namespaces/d").await, Lookup::Unknown);
}
