//! Tables, as the cloud encoded them.

use super::*;

#[tokio::test]
async fn a_table_is_answered_while_nothing_has_changed_since() {
    let bench = Bench::new();
    bench.respond(PODS, 200, TABLE_JSON).await;
    let response = bench.read_with(PODS, &table_headers()).await;
    assert_eq!(text(response.expect("stored")).await, TABLE_JSON);
    let newer = POD_JSON.replace(r#""resourceVersion":"5""#, r#""resourceVersion":"8""#);
    bench.respond(POD, 200, &newer).await;
    let error = bench
        .read_with(PODS, &table_headers())
        .await
        .expect_err("its row is older than the object");
    assert!(matches!(error, LocalError::NotCached(_)), "{error}");
}

#[tokio::test]
async fn a_table_is_no_answer_to_another_request() {
    let bench = Bench::new();
    bench.respond(PODS, 200, TABLE_JSON).await;
    for query in [
        "?includeObject=Object",
        "?resourceVersion=8",
        "?resourceVersion=6&resourceVersionMatch=Exact",
    ] {
        let answer = bench
            .read_with(&format!("{PODS}{query}"), &table_headers())
            .await;
        assert!(answer.is_err(), "{query}");
    }
    assert!(bench.read(PODS).await.is_err(), "not a list of objects");
}
