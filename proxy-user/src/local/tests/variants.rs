//! Tables, as the cloud encoded them.

use super::*;
use crate::cache::change::Extent;

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

/// Once a write that can't be stored had made its object unknown on disk, Tables that showed it counted again.
#[tokio::test]
async fn i2_no_table_outlasts_a_write_that_cant_be_stored() {
    let others = ["/api/v1/nodes", "/api/v1/namespaces/e/pods"];
    for written in ["/pods/d/p", "/pods/d/"] {
        let bench = Bench::new();
        for path in [PODS, POD, "/api/v1/pods"].iter().chain(&others) {
            bench.respond(path, 200, TABLE_JSON).await;
        }
        bench.cache.supersede(written.as_bytes(), Extent::Copies);
        bench.cache.settle().await;
        for path in [PODS, POD, "/api/v1/pods"] {
            let answer = bench.read_with(path, &table_headers()).await;
            assert!(matches!(answer, Err(LocalError::NotCached(_))), "{path}");
        }
        for path in others {
            assert!(bench.read_with(path, &table_headers()).await.is_ok());
        }
    }
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
