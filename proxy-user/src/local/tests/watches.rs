//! WATCH of a collection.

use super::*;
use crate::local::watch::MAX_TIMEOUT;

fn watch_from(version: u64) -> String {
    format!("{PODS}?watch=true&resourceVersion={version}")
}

fn event(kind: &str, version: u64) -> String {
    let pod = POD_JSON.replace(
        r#""resourceVersion":"5""#,
        &format!(r#""resourceVersion":"{version}""#),
    );
    format!("{{\"type\":\"{kind}\",\"object\":{pod}}}\n")
}

impl Bench {
    /// The store has the list at version 7, which a watch has carried on with these events.
    async fn followed(events: &str) -> Self {
        let bench = Self::new();
        bench.respond(PODS, 200, LIST_JSON).await;
        bench.respond(&watch_from(7), 200, events).await;
        // Every watch ends once it has sent what there is.
        bench.connected.send_replace(true);
        bench
    }

    async fn resume(&self, version: u64) -> String {
        text(self.read(&watch_from(version)).await.expect("a watch")).await
    }
}

#[tokio::test]
async fn i5_a_watch_resumes_with_the_changes_since() {
    let bench = Bench::followed(&event("MODIFIED", 9)).await;
    assert_eq!(bench.resume(7).await, event("MODIFIED", 9));
    for later in [9, 50] {
        assert_eq!(bench.resume(later).await, "", "{later}");
    }
    let older = bench.resume(6).await;
    assert!(older.contains(r#""code":410"#), "{older}");
}

#[tokio::test]
async fn i5_a_deletion_can_not_be_resumed_over() {
    let bench = Bench::followed(&event("DELETED", 9)).await;
    let before = bench.resume(7).await;
    assert!(before.contains(r#""code":410"#), "{before}");
    assert_eq!(bench.resume(9).await, "");
}

#[tokio::test]
async fn i2_a_watch_from_the_beginning_needs_the_whole_collection() {
    let bench = Bench::new();
    bench.respond(&watch_from(7), 200, "").await;
    bench.connected.send_replace(true);
    let error = bench
        .read(&format!("{PODS}?watch=true"))
        .await
        .expect_err("no list was seen");
    assert!(matches!(error, LocalError::NotCached(_)), "{error}");
    let response = bench.read(&watch_from(7)).await.expect("nothing changed");
    assert_eq!(age(&response), None, "there is no list that has one");
    assert_eq!(text(response).await, "");
}

#[tokio::test]
async fn a_watch_lasts_as_long_as_its_client_or_the_api_server_says() {
    let local = Bench::new().local;
    let seconds = Duration::from_secs;
    assert_eq!(local.watch_timeout(Some(5)), seconds(5));
    assert_eq!(local.watch_timeout(Some(u64::MAX)), MAX_TIMEOUT);
    for unset in [None, Some(0)] {
        let timeout = local.watch_timeout(unset);
        assert!((seconds(1800)..=seconds(3600)).contains(&timeout));
    }
}

/// The events of a resumed watch are copied out at once, up to a megabyte of them.
#[tokio::test]
async fn a_watch_begins_only_once_its_client_has_room() {
    let mut bench = Bench::followed(&event("MODIFIED", 9)).await;
    bench.flow = Budget::new(1 << 20).open_flow(bench.flow.client());
    let unread = bench.flow.charge_chunk(vec![0; 1 << 20].into());
    tokio::time::pause();
    let refused = bench.read(&watch_from(7)).await.expect_err("no room");
    assert!(matches!(refused, LocalError::NoRoom), "{refused}");
    drop(unread);
    assert_eq!(bench.resume(7).await, event("MODIFIED", 9));
}
