//! GET of one object.

use super::*;

const WIDGET_JSON: &str = r#"{"apiVersion":"x.io/v1","kind":"Widget","metadata":{"name":"w","namespace":"d","uid":"u","resourceVersion":"5"}}"#;

#[tokio::test]
async fn i2_another_api_version_is_not_answered_with_the_stored_one() {
    let bench = Bench::new();
    let path = |version: &str| format!("/apis/x.io/{version}/namespaces/d/widgets/w");
    bench.respond(&path("v1"), 200, WIDGET_JSON).await;
    assert!(bench.read(&path("v1")).await.is_ok());
    let error = bench.read(&path("v2")).await.expect_err("v1 is stored");
    assert!(error.to_string().contains("apiVersion x.io/v1"), "{error}");
}

#[tokio::test]
async fn i7_the_author_of_a_write_may_read_it_after_a_404() {
    let bench = Bench::new();
    bench.respond("/api", 200, "{}").await;
    bench.respond(POD, 404, NOT_FOUND_JSON).await;
    let create = format!("POST {PODS}");
    bench.respond(&create, 201, POD_JSON).await;
    let response = bench.read(POD).await.expect("its own");
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn i7_a_404_does_not_allow_reading_an_object_created_since() {
    let bench = Bench::new();
    bench.respond("/api", 200, "{}").await;
    bench.respond(POD, 404, NOT_FOUND_JSON).await;
    bench.cache.clear_absence(POD_KEY);
    bench.cache.settle().await;
    let error = bench.read(POD).await.expect_err("may exist by now");
    assert!(
        matches!(error, LocalError::Denied(Denied::Undecided(_))),
        "{error}"
    );
}

#[tokio::test]
async fn an_event_is_known_no_longer_than_the_api_server_keeps_it() {
    let bench = Bench::new();
    let (path, event) = (
        "/api/v1/namespaces/d/events/e",
        r#"{"kind":"Event","apiVersion":"v1","metadata":{"name":"e","namespace":"d","uid":"u","resourceVersion":"5"}}"#,
    );
    bench.respond(path, 200, event).await;
    bench.clock.advance(3_599_000);
    assert!(bench.read(path).await.is_ok());
    bench.clock.advance(1_000);
    let error = bench.read(path).await.expect_err("deleted by now");
    assert!(matches!(error, LocalError::NotCached(_)), "{error}");
}

/// Reads that waited together for the writer, or for room, each found the room that was there for one:
/// their answers took eight times the budget.
#[tokio::test]
async fn answers_that_begin_at_once_stay_within_the_clients_room() {
    const BUDGET: usize = 1 << 20;
    let mut bench = Bench::new();
    bench.flow = Budget::new(BUDGET).open_flow(bench.flow.client());
    let large = POD_JSON.replace("}}", &format!(r#"}},"data":"{}"}}"#, "x".repeat(200 << 10)));
    bench.respond(POD, 200, &large).await;
    bench.observe(POD, 200, &large).await;
    tokio::time::pause();
    let reads = (0..20).map(|_| async {
        let body = text(bench.read(POD).await?).await;
        Ok::<_, LocalError>(bench.flow.charge_chunk(body.into()))
    });
    let answers = futures_util::future::join_all(reads).await;
    let pending = bench.flow.write_progress().pending;
    assert!((1..BUDGET).contains(&pending), "{pending} bytes");
    let refused = |answer: &&Result<_, LocalError>| matches!(answer, Err(LocalError::NoRoom));
    assert!(answers.iter().filter(refused).count() > 10);
}

#[tokio::test]
async fn a_read_goes_on_once_its_client_has_room() {
    let mut bench = Bench::new();
    bench.flow = Budget::new(1 << 20).open_flow(bench.flow.client());
    bench.respond(POD, 200, POD_JSON).await;
    let unread = bench.flow.charge_chunk(vec![0; 1 << 20].into());
    let read_others = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(unread);
    };
    let (answer, ()) = tokio::join!(bench.read(POD), read_others);
    assert_eq!(answer.expect("stored").status(), StatusCode::OK);
}
