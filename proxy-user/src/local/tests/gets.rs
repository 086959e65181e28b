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
