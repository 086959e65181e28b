//! Reads from a real store: the answer, its age, and the reason where there is none.

mod gets;
mod lists;
mod variants;
mod watches;

use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use http_body_util::BodyExt;
use tokio::sync::watch;

use super::*;
use crate::authz::authorizer::{Denied, ObservedResponse};
use crate::authz::identity::Credential;
use crate::budget::Budget;
use crate::cache::Cache;
use crate::cache::exchange::Exchange;
use crate::cache::not_stored::NotStored;
use crate::caller::Client;
use crate::clock::Clock;
use crate::config::CacheConfig;
use hublet_wire::request::RequestInfo;

const PODS: &str = "/api/v1/namespaces/d/pods";
const POD: &str = "/api/v1/namespaces/d/pods/p";
const POD_JSON: &str = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p","namespace":"d","uid":"u","resourceVersion":"5"}}"#;
const POD_KEY: &[u8] = b"/pods/d/p";
const NOT_FOUND_JSON: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"pods \"p\" not found","reason":"NotFound","details":{"name":"p","kind":"pods"},"code":404}"#;
const LIST_JSON: &str = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"p","namespace":"d","uid":"u","resourceVersion":"5"}}]}"#;

const TABLE_JSON: &str = r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"7"},"columnDefinitions":[],"rows":[{"cells":["p"],"object":{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"p","namespace":"d","uid":"u","resourceVersion":"5"}}}]}"#;

fn table_headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    let table = HeaderValue::from_static("application/json;as=Table;v=v1;g=meta.k8s.io");
    headers.insert(header::ACCEPT, table);
    headers
}

struct Bench {
    cache: Arc<Cache>,
    authorizer: Arc<Authorizer>,
    local: Local,
    connected: watch::Sender<bool>,
    clock: Clock,
    flow: Arc<Flow>,
    credential: Credential,
    _directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let clock = Clock::default();
        let config = CacheConfig {
            dir: directory.path().to_owned(),
            page_cache: 1 << 20,
            max_bytes: 512 << 20,
        };
        let cache = Arc::new(Cache::open(&config, clock.clone()).expect("store"));
        let connected = watch::Sender::new(false);
        let config = LocalConfig {
            grant_max_age: Duration::from_secs(7 * 86_400),
            min_request_timeout: Duration::from_secs(1800),
        };
        let authorizer = Authorizer::load(Arc::clone(&cache), config.grant_max_age);
        let authorizer = Arc::new(authorizer.expect("grants"));
        let local = Local::new(
            Arc::clone(&authorizer),
            StoreReader::new(Arc::clone(&cache)),
            &config,
            connected.subscribe(),
        );
        let client = Client::of(None, [127, 0, 0, 1].into(), None);
        let mut headers = HeaderMap::new();
        headers.insert("authorization", HeaderValue::from_static("Bearer me"));
        Self {
            cache,
            authorizer,
            local,
            connected,
            clock,
            flow: Budget::new(64 << 20).open_flow(client),
            credential: Credential::from_headers(&headers),
            _directory: directory,
        }
    }

    fn with_request<T>(
        &self,
        uri: &str,
        headers: &HeaderMap,
        then: impl FnOnce(LocalRequest<'_>) -> T,
    ) -> T {
        let (method, uri) = uri.split_once(' ').unwrap_or(("GET", uri));
        let (method, uri): (Method, Uri) =
            (method.parse().expect("method"), uri.parse().expect("URI"));
        let info = RequestInfo::parse(&method, &uri);
        let request = info.understood().expect("a known request");
        let scope = encode_scope(request);
        then(LocalRequest {
            attributes: Attributes {
                credential: &self.credential,
                request,
                key: &scope,
            },
            headers,
            accepts: Accepts::from_headers(headers),
            flow: &self.flow,
        })
    }

    /// The cloud answers a request of this caller: a path, or a method and a path.
    async fn respond(&self, uri: &str, status: u16, body: &str) {
        self.observe(uri, status, body).await;
        self.cache.settle().await;
    }

    /// The same, without waiting for the writer.
    async fn observe(&self, uri: &str, status: u16, body: &str) {
        let mut headers = HeaderMap::new();
        headers.insert("content-type", HeaderValue::from_static("application/json"));
        let requested_at = self.clock.now();
        let exchange = self.with_request(uri, &HeaderMap::new(), |request| {
            let response = ObservedResponse {
                status,
                requested_at,
            };
            self.authorizer
                .observe_response(&request.attributes, response);
            let is_write = !request.request().verb().is_read();
            let exchange = Exchange::of(request.request(), status, &headers, requested_at)?;
            Ok::<_, NotStored>(Exchange {
                author: is_write.then(|| self.authorizer.author(&self.credential)),
                ..exchange
            })
        });
        if let Ok(exchange) = exchange
            && let Some(mut capture) = self.cache.capture(exchange)
        {
            let body = bytes::Bytes::copy_from_slice(body.as_bytes());
            std::future::poll_fn(|cx| capture.poll_push(cx, &body)).await;
            capture.end();
        }
    }

    async fn read_with(
        &self,
        uri: &str,
        headers: &HeaderMap,
    ) -> Result<Response<LocalBody>, LocalError> {
        let uri: Uri = uri.parse().expect("URI");
        let info = RequestInfo::parse(&Method::GET, &uri);
        let request = info.understood().expect("a known request");
        let scope = encode_scope(request);
        let request = LocalRequest {
            attributes: Attributes {
                credential: &self.credential,
                request,
                key: &scope,
            },
            headers,
            accepts: Accepts::from_headers(headers),
            flow: &self.flow,
        };
        self.local.answer(request).await
    }

    async fn read(&self, uri: &str) -> Result<Response<LocalBody>, LocalError> {
        self.read_with(uri, &HeaderMap::new()).await
    }
}

fn age(response: &Response<LocalBody>) -> Option<&str> {
    response.headers().get(header::AGE)?.to_str().ok()
}

async fn text(response: Response<LocalBody>) -> String {
    let body = response.into_body().collect().await.expect("a whole body");
    String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8")
}

#[tokio::test]
async fn an_object_is_answered_with_its_bytes_and_age() {
    let bench = Bench::new();
    bench.respond(POD, 200, POD_JSON).await;
    bench.clock.advance(90_000);
    let response = bench.read(POD).await.expect("stored");
    assert_eq!(age(&response), Some("90"));
    assert_eq!(response.headers()[SOURCE], "store");
    assert_eq!(text(response).await, format!("{POD_JSON}\n"));
}

#[tokio::test]
async fn i2_an_unknown_object_is_never_404() {
    let bench = Bench::new();
    bench.respond(POD, 200, POD_JSON).await;
    for newer in ["?resourceVersion=6", "?resourceVersion=999"] {
        let error = bench.read(&format!("{POD}{newer}")).await;
        assert!(matches!(error, Err(LocalError::NotCached(_))), "{newer}");
    }
    let error = bench.read(PODS).await.expect_err("no list was seen");
    assert!(matches!(error, LocalError::Denied(_)), "{error}");
}

#[tokio::test]
async fn a_remembered_404_is_the_api_servers() {
    let bench = Bench::new();
    bench.respond("/apis", 200, "{}").await;
    bench.respond(POD, 404, NOT_FOUND_JSON).await;
    bench.clock.advance(5_000);
    let response = bench.read(POD).await.expect("remembered");
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    assert_eq!(age(&response), Some("5"));
    assert_eq!(text(response).await, format!("{NOT_FOUND_JSON}\n"));
    let newer = bench.read(&format!("{POD}?resourceVersion=9")).await;
    assert!(
        matches!(newer, Err(LocalError::NotCached(_))),
        "it may have been created since"
    );
}

#[tokio::test]
async fn an_encoding_that_is_not_stored_is_named() {
    let bench = Bench::new();
    bench.respond(POD, 200, POD_JSON).await;
    let mut headers = HeaderMap::new();
    let protobuf = HeaderValue::from_static("application/vnd.kubernetes.protobuf");
    headers.insert(header::ACCEPT, protobuf);
    let error = bench.read_with(POD, &headers).await.expect_err("JSON only");
    assert!(error.to_string().contains("application/json"), "{error}");
}

#[tokio::test]
async fn a_complete_list_is_answered_as_the_api_server_writes_it() {
    let bench = Bench::new();
    bench.respond(PODS, 200, LIST_JSON).await;
    let response = bench.read(PODS).await.expect("complete");
    assert_eq!(text(response).await, format!("{LIST_JSON}\n"));
    for (query, is_answered) in [
        ("?resourceVersion=0", true),
        ("?resourceVersion=7&resourceVersionMatch=Exact", true),
        ("?resourceVersion=6&resourceVersionMatch=Exact", false),
        ("?resourceVersion=8", false),
    ] {
        let answer = bench.read(&format!("{PODS}{query}")).await;
        assert_eq!(answer.is_ok(), is_answered, "{query}");
    }
    let rest = bench.read(&format!("{PODS}?continue=x")).await;
    assert!(
        matches!(rest, Err(LocalError::Expired(_))),
        "pages begin anew"
    );
}

#[tokio::test]
async fn i5_a_watch_has_the_age_of_the_list_it_is_based_on() {
    let bench = Bench::new();
    bench.respond(PODS, 200, LIST_JSON).await;
    bench
        .respond(&format!("{PODS}?watch=true&resourceVersion=7"), 200, "")
        .await;
    bench.clock.advance(42_000);
    let uri = format!("{PODS}?watch=true&resourceVersion=7&allowWatchBookmarks=true");
    let response = bench.read(&uri).await.expect("held");
    assert_eq!(age(&response), Some("42"));
    bench.connected.send_replace(true);
    assert_eq!(text(response).await, "", "nothing has changed");
}

#[tokio::test]
async fn a_watch_begins_with_the_collection_or_with_410() {
    let bench = Bench::new();
    bench.respond(PODS, 200, LIST_JSON).await;
    bench
        .respond(&format!("{PODS}?watch=true&resourceVersion=7"), 200, "")
        .await;
    bench.connected.send_replace(true);
    let all = bench
        .read(&format!("{PODS}?watch=true"))
        .await
        .expect("held");
    let events = text(all).await;
    assert!(
        events.starts_with(r#"{"type":"ADDED","object":{"#),
        "{events}"
    );
    let initial = format!(
        "{PODS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
    );
    let events = text(bench.read(&initial).await.expect("held")).await;
    assert!(events.contains("k8s.io/initial-events-end"), "{events}");
    let old = bench
        .read(&format!("{PODS}?watch=true&resourceVersion=3"))
        .await;
    let events = text(old.expect("an event")).await;
    assert!(events.contains(r#""code":410"#), "{events}");
}

#[tokio::test]
async fn a_nonresource_path_honours_if_none_match() {
    let bench = Bench::new();
    bench
        .respond("/api", 200, r#"{"kind":"APIVersions"}"#)
        .await;
    let response = bench.read("/api").await.expect("stored");
    assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    assert_eq!(response.headers()[header::VARY], "Accept");
    let mut headers = HeaderMap::new();
    headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static("\"x\""));
    let response = bench.read_with("/api", &headers).await.expect("stored");
    assert_eq!(response.status(), StatusCode::OK, "it has no ETag");
}

#[tokio::test]
async fn i7_a_credential_that_was_never_accepted_learns_nothing() {
    let bench = Bench::new();
    for uri in [POD, PODS, "/api/v1/namespaces/d/secrets/s"] {
        let error = bench.read(uri).await.expect_err("never accepted");
        assert!(matches!(error, LocalError::Denied(_)), "{uri}: {error}");
    }
}
