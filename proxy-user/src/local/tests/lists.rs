//! LIST of a collection.

use super::*;

const ALL_PODS: &str = "/api/v1/pods";
const ALL_PODS_JSON: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[{"metadata":{"name":"p","namespace":"d","uid":"u","resourceVersion":"5"}},{"metadata":{"name":"q","namespace":"e","uid":"v","resourceVersion":"6"}}]}"#;

#[tokio::test]
async fn the_list_of_a_namespace_is_cut_from_that_of_all_namespaces() {
    let bench = Bench::new();
    bench.respond(ALL_PODS, 200, ALL_PODS_JSON).await;
    let list = text(bench.read(PODS).await.expect("covered")).await;
    assert!(list.contains(r#""name":"p""#), "{list}");
    assert!(!list.contains(r#""name":"q""#), "{list}");
    assert!(list.contains(r#""resourceVersion":"9""#), "{list}");
}

#[tokio::test]
async fn i2_one_page_is_not_the_list() {
    let bench = Bench::new();
    let page = ALL_PODS_JSON.replace(
        r#""resourceVersion":"9""#,
        r#""resourceVersion":"12","continue":"c""#,
    );
    let first = "/api/v1/secrets?limit=2";
    bench
        .respond(first, 200, &page.replace("Pod", "Secret"))
        .await;
    let error = bench.read("/api/v1/secrets").await.expect_err("a page");
    assert!(matches!(error, LocalError::NotCached(_)), "{error}");
}

#[tokio::test]
async fn i2_a_selection_never_answers_for_another() {
    let bench = Bench::new();
    let selected = |label: &str| format!("{PODS}?labelSelector=app%3D{label}");
    bench.respond(PODS, 200, LIST_JSON).await;
    bench.respond(&selected("a"), 200, LIST_JSON).await;
    let list = text(bench.read(&selected("a")).await.expect("seen")).await;
    assert_eq!(list, format!("{LIST_JSON}\n"));
    let error = bench.read(&selected("b")).await.expect_err("never seen");
    assert!(matches!(error, LocalError::NotCached(_)), "{error}");
}

#[tokio::test]
async fn i2_a_member_that_may_have_left_its_selection_makes_it_unknown() {
    let bench = Bench::new();
    let selected = format!("{PODS}?labelSelector=app%3Da");
    let labelled = |label: &str, version: u64| {
        format!(
            r#""name":"p","namespace":"d","uid":"u","resourceVersion":"{version}","labels":{{"app":"{label}"}}"#
        )
    };
    let list = LIST_JSON.replace(
        r#""name":"p","namespace":"d","uid":"u","resourceVersion":"5""#,
        &labelled("a", 5),
    );
    bench.respond(&selected, 200, &list).await;
    assert!(bench.read(&selected).await.is_ok());
    let pod = POD_JSON.replace(
        r#""name":"p","namespace":"d","uid":"u","resourceVersion":"5""#,
        &labelled("b", 8),
    );
    bench.respond(POD, 200, &pod).await;
    let error = bench.read(&selected).await.expect_err("it has left");
    assert!(matches!(error, LocalError::NotCached(_)), "{error}");
}

/// The rest of one list must not be answered with another.
#[tokio::test]
async fn i4_a_stale_continue_token_is_410_and_no_first_page() {
    let bench = Bench::new();
    bench.respond(PODS, 200, LIST_JSON).await;
    bench.respond(PODS, 200, TABLE_JSON).await;
    for query in ["?continue=c", "?limit=1&continue=c"] {
        for headers in [HeaderMap::new(), table_headers()] {
            let rest = bench.read_with(&format!("{PODS}{query}"), &headers).await;
            assert!(matches!(rest, Err(LocalError::Expired(_))), "{query}");
        }
    }
}

#[tokio::test]
async fn copies_of_several_encodings_are_no_list_in_one_of_them() {
    let bench = Bench::new();
    bench.respond(PODS, 200, LIST_JSON).await;
    let mut headers = HeaderMap::new();
    let protobuf = HeaderValue::from_static("application/vnd.kubernetes.protobuf");
    headers.insert(header::ACCEPT, protobuf);
    let error = bench.read_with(PODS, &headers).await.expect_err("JSON");
    assert!(matches!(error, LocalError::NotAcceptable(_)), "{error}");
}
