//! Requests through all phases, over an in-memory connection: what is admitted, refused and sent, in each state of the cloud.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::*;
use crate::authz::authorizer::Authorizer;
use crate::authz::reader::StoreReader;
use crate::budget::{Budget, Flow};
use crate::cache::Cache;
use crate::caller::{Client, Port};
use crate::clock::Clock;
use crate::cloud::dial::Dialer;
use crate::cloud::forward::Cloud;
use crate::cloud::health::{CloudState, Health};
use crate::cloud::pool::Pool;
use crate::config::{CacheConfig, LocalConfig, Server, WorkingMode};
use crate::local::Local;
use stages::Limits;

const POD: &str = "/api/v1/namespaces/d/pods/p";
const BUDGET: usize = 1 << 20;

/// A proxy whose cloud can't be dialled, and a client's connection to it.
struct Bench {
    proxy: Arc<Proxy>,
    health: Arc<Health>,
    flow: Arc<Flow>,
    client: SendRequest<Full<Bytes>>,
    _directory: tempfile::TempDir,
}

impl Bench {
    async fn start(state: CloudState) -> Self {
        Self::start_with(state, 8).await
    }

    async fn start_with(state: CloudState, max_requests: usize) -> Self {
        let directory = tempfile::tempdir().expect("directory");
        let health = Health::in_state(state);
        let stages = stages(&health, directory.path(), max_requests);
        let flow = stages.open_flow(Client::Pod(1));
        let policy = Policy {
            working_mode: WorkingMode::Edge,
        };
        let proxy = Arc::new(Proxy::new(stages, policy));
        let remote = ([10, 0, 0, 1], 1).into();
        let connection = Connection::new(Port::Plain, remote, None, Arc::clone(&flow));
        let client = connect(Arc::clone(&proxy), Arc::new(connection)).await;
        Self {
            proxy,
            health,
            flow,
            client,
            _directory: directory,
        }
    }

    async fn send(&mut self, request: http::request::Builder, body: &'static str) -> Reply {
        let request = request.body(Full::from(body)).expect("request");
        self.client.ready().await.expect("an open connection");
        let response = self.client.send_request(request).await.expect("response");
        Reply::read(response).await
    }

    fn free_places(&self) -> usize {
        self.proxy.stages.limits.in_flight.available_permits()
    }
}

/// A response that hublet itself gave.
struct Reply {
    code: u16,
    headers: http::HeaderMap,
    status: Value,
}

impl Reply {
    async fn read(response: Response<Incoming>) -> Self {
        let (head, body) = response.into_parts();
        let body = body.collect().await.expect("body").to_bytes();
        assert_eq!(head.headers["x-hublet-source"], "hublet");
        assert_eq!(head.headers["content-type"], "application/json");
        Self {
            code: head.status.as_u16(),
            headers: head.headers,
            status: serde_json::from_slice(&body).expect("JSON"),
        }
    }

    fn message(&self) -> &str {
        self.status["message"].as_str().expect("message")
    }

    fn expect(&self, code: u16, reason: &str, message: &str) {
        assert_eq!(self.code, code, "{}", self.message());
        assert_eq!(self.status["code"], code);
        assert_eq!(self.status["reason"], reason);
        assert!(self.message().contains(message), "{}", self.message());
    }
}

fn stages(health: &Arc<Health>, directory: &std::path::Path, max_requests: usize) -> Stages {
    let cache = CacheConfig {
        dir: directory.to_owned(),
        page_cache: 1 << 20,
        max_bytes: 512 << 20,
    };
    let cache = Arc::new(Cache::open(&cache, Clock::default()).expect("store"));
    let local = LocalConfig {
        grant_max_age: Duration::from_secs(7 * 86_400),
        min_request_timeout: Duration::from_secs(1800),
    };
    let authorizer = Authorizer::load(Arc::clone(&cache), local.grant_max_age);
    let authorizer = Arc::new(authorizer.expect("grants"));
    let (_, connected) = watch::channel(false);
    // Nothing listens there.
    let server = Server {
        host: "127.0.0.1".into(),
        port: 1,
    };
    let roots = Arc::new(rustls::RootCertStore::empty());
    let dialer = Dialer::new(&server, &roots, 0).expect("a host");
    Stages {
        local: Local::new(
            Arc::clone(&authorizer),
            StoreReader::new(Arc::clone(&cache)),
            &local,
            connected,
        ),
        cache,
        authorizer,
        cloud: Cloud {
            pool: Arc::new(Pool::new(dialer, Arc::default())),
            health: Arc::clone(health),
        },
        metrics: Arc::default(),
        budget: Budget::new(BUDGET),
        limits: Limits::new(max_requests),
    }
}

async fn connect(proxy: Arc<Proxy>, connection: Arc<Connection>) -> SendRequest<Full<Bytes>> {
    let (ours, theirs) = tokio::io::duplex(1 << 20);
    let service = service_fn(move |request| {
        let response = Arc::clone(&proxy).handle(Arc::clone(&connection), request);
        async move { Ok::<_, Infallible>(response.await) }
    });
    let server = hyper::server::conn::http1::Builder::new()
        .header_read_timeout(None)
        .serve_connection(TokioIo::new(theirs), service)
        .with_upgrades();
    tokio::spawn(server);
    let (sender, client) = hyper::client::conn::http1::handshake(TokioIo::new(ours))
        .await
        .expect("handshake");
    tokio::spawn(client);
    sender
}

#[tokio::test(start_paused = true)]
async fn a_read_is_answered_by_the_store_alone_while_the_cloud_is_away() {
    let mut bench = Bench::start(CloudState::Disconnected).await;
    let reply = bench.send(Request::get(POD), "").await;
    reply.expect(403, "Forbidden", "not been seen to allow");
    let token = Request::get(POD).header("authorization", "Bearer unheard-of");
    let reply = bench.send(token, "").await;
    reply.expect(503, "ServiceUnavailable", "");
    assert!(!reply.headers.contains_key("retry-after"));
    let unknown = bench.send(Request::get("/api/v1/pods?unheard=1"), "").await;
    unknown.expect(503, "ServiceUnavailable", "only the cloud understands");
}

#[tokio::test(start_paused = true)]
async fn a_write_is_refused_while_the_cloud_is_away_and_leaves_its_connection_usable() {
    let mut bench = Bench::start(CloudState::Disconnected).await;
    for _ in 0..2 {
        let reply = bench.send(Request::patch(POD), "{}").await;
        reply.expect(503, "ServiceUnavailable", "can't patch");
    }
}

#[tokio::test(start_paused = true)]
async fn i1_a_write_that_waits_for_a_probe_is_not_sent_if_that_fails() {
    let mut bench = Bench::start(CloudState::Suspect).await;
    let health = Arc::clone(&bench.health);
    let began = Instant::now();
    let probe = async {
        sleep(Duration::from_secs(2)).await;
        health.enter(CloudState::Silent);
        sleep(Duration::from_secs(2)).await;
        health.enter(CloudState::Disconnected);
    };
    let (reply, ()) = tokio::join!(bench.send(Request::put(POD), "{}"), probe);
    reply.expect(503, "ServiceUnavailable", "can't update");
    assert_eq!(began.elapsed(), Duration::from_secs(4));
}

#[tokio::test(start_paused = true)]
async fn a_write_that_reached_no_server_has_a_known_outcome() {
    let mut bench = Bench::start(CloudState::Connected).await;
    let reply = bench.send(Request::delete(POD), "").await;
    reply.expect(503, "ServiceUnavailable", "can't delete");
}

#[tokio::test(start_paused = true)]
async fn a_read_that_reached_no_server_gets_the_stores_error() {
    let mut bench = Bench::start(CloudState::Connected).await;
    let reply = bench.send(Request::get(POD), "").await;
    reply.expect(403, "Forbidden", "not been seen to allow");
    let mut silent = Bench::start(CloudState::Silent).await;
    let reply_while_silent = silent.send(Request::get(POD), "").await;
    assert_eq!(reply.message(), reply_while_silent.message());
}

#[tokio::test(start_paused = true)]
async fn an_upgrade_is_refused_while_the_cloud_is_away_or_has_too_many() {
    let exec = || {
        Request::get(format!("{POD}/exec?command=ls"))
            .header("connection", "Upgrade")
            .header("upgrade", "SPDY/3.1")
    };
    let mut away = Bench::start(CloudState::Recovering).await;
    let reply = away.send(exec(), "").await;
    reply.expect(503, "ServiceUnavailable", "stream to the cloud");
    let mut full = Bench::start(CloudState::Connected).await;
    let upgrades = Arc::clone(&full.proxy.stages.limits.upgrades);
    let places = u32::try_from(upgrades.available_permits()).expect("few");
    let _taken = upgrades.acquire_many_owned(places).await.expect("open");
    full.send(exec(), "")
        .await
        .expect(429, "TooManyRequests", "");
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_place_is_refused_and_may_come_back() {
    let mut bench = Bench::start_with(CloudState::Connected, 0).await;
    let reply = bench.send(Request::get(POD), "").await;
    reply.expect(429, "TooManyRequests", "try again later");
    assert_eq!(reply.headers["retry-after"], "1");
}

#[tokio::test(start_paused = true)]
async fn a_client_with_too_many_bytes_waits_before_it_is_refused() {
    let mut bench = Bench::start(CloudState::Disconnected).await;
    let held = bench.flow.charge_chunk(Bytes::from(vec![0; BUDGET]));
    let began = Instant::now();
    let reply = bench.send(Request::get(POD), "").await;
    reply.expect(429, "TooManyRequests", "");
    assert_eq!(began.elapsed(), Duration::from_secs(2));
    drop(held);
    let reply = bench.send(Request::put(POD), "").await;
    reply.expect(503, "ServiceUnavailable", "can't update");
}

#[tokio::test(start_paused = true)]
async fn a_request_gives_its_place_back_with_the_end_of_its_response() {
    let mut bench = Bench::start_with(CloudState::Disconnected, 3).await;
    for _ in 0..5 {
        bench.send(Request::get(POD), "").await;
    }
    sleep(Duration::from_millis(1)).await;
    assert_eq!(bench.free_places(), 3);
}
