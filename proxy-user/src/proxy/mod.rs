//! One request's way: client → request → route → cloud or local, and back as a response.

pub(crate) mod body;
pub(crate) mod connection;
pub(crate) mod error;
pub(crate) mod request_body;
pub(crate) mod route;
pub(crate) mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::response::Parts as Head;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::authz::caller::Client;
use crate::authz::decide::Answered;
use crate::authz::grants::Credential;
use crate::budget::{Budget, Flow};
use crate::cache::Cache;
use crate::cache::capture::Capture;
use crate::cache::exchange::{Exchange, is_unrecorded_write, may_be_stored};
use crate::cache::not_stored::NotStored;
use crate::cache::store::StoreError;
use crate::clock::Clock;
use crate::cloud::dial::{DialError, Dialer};
use crate::cloud::forward::{
    Cloud, Delivery, ForwardError, SendOptions, end_to_end_headers, is_retryable,
};
use crate::cloud::health::{CloudState, Health};
use crate::cloud::pool::{ConnectionClass, Pool};
use crate::cloud::stream::CloudBody;
use crate::cloud::upload::{self, Upload};
use crate::config::Config;
use crate::local::{Local, LocalRequest, SOURCE, encode_scope};
use crate::proxy::body::{Body, Place};
use crate::proxy::connection::Connection;
use crate::proxy::error::Refusal;
use crate::proxy::route::{Route, route};
use crate::proxy::upgrade::{forward_upgrade, is_upgrade};
use crate::telemetry::{Metrics, Source, Traffic};
use error::{cloud_only_read, write_unavailable_message};
use hublet_wire::media::{Accepts, Encoding};
use hublet_wire::request::{ApiRequest, RequestInfo, Verb};

/// Answers that came too late for their caller and still go into the store, at once.
const LATE: usize = 32;
/// The time for which such an answer may stand still.
const LATE_PATIENCE: Duration = Duration::from_secs(30);
/// Upgraded connections (exec, attach, port-forward, watches by WebSocket) that are open at once.
const UPGRADES: usize = 256;
/// How long a request waits for room where its client has too much under way.
const ROOM: Duration = Duration::from_secs(2);

/// Bytes that a request to the cloud holds beside its own while nobody reads its answer: a window of most connections
/// there, as much that was read ahead, and both streams; of a watch half a window, since few are stuck at their fullest.
const UNREAD: usize = 40 << 10;
const UNREAD_WATCH: usize = 8 << 10;

/// Answers requests. One for the whole process, shared by all connections.
#[derive(Debug)]
pub(crate) struct Handler {
    cache: Arc<Cache>,
    cloud: Cloud,
    local: Local,
    metrics: Arc<Metrics>,
    in_flight: Arc<Semaphore>,
    max_requests: usize,
    budget: Arc<Budget>,
    /// Places for upgraded connections.
    upgrades: Arc<Semaphore>,
    late: Arc<Semaphore>,
}

/// Why the handler could not start.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the host of --server-addr, {host:?}, is neither a DNS name nor an IP address")]
    Host { host: String },
    #[error("no API server is given: --server-addr=https://HOST:PORT")]
    NoServer,
}

/// A request, and who it is from.
struct Call {
    parts: Parts,
    info: RequestInfo,
    accepts: Accepts,
    /// The store may know the answer.
    may_be_stored: bool,
    credential: Credential,
    /// The store's key of what is asked for, where the request is understood.
    scope: Option<Vec<u8>>,
    flow: Arc<Flow>,
    /// A DELETE whose options say `dryRun`: its answer reads like a real one's.
    dry_run: bool,
}

impl Handler {
    /// Opens the store, starts the cloud's health task and the writer. Call on the traffic runtime.
    ///
    /// # Errors
    /// The store's directory can't be made or written, or the server's name isn't one.
    pub(crate) async fn start(
        config: &Config,
        roots: Arc<rustls::RootCertStore>,
    ) -> Result<Arc<Self>, HandleError> {
        Self::start_with(config, roots, Clock::default()).await
    }

    /// As [`Handler::start`], with a clock of the caller's.
    ///
    /// # Errors
    /// As [`Handler::start`].
    pub(crate) async fn start_with(
        config: &Config,
        roots: Arc<rustls::RootCertStore>,
        clock: Clock,
    ) -> Result<Arc<Self>, HandleError> {
        let server = config.cloud.servers.first().ok_or(HandleError::NoServer)?;
        let dialer =
            Dialer::new(server, &roots, config.cloud.mark).map_err(|_| HandleError::Host {
                host: server.host.clone(),
            })?;
        let metrics = Arc::new(Metrics::default());
        let cache = Arc::new(Cache::open(&config.cache, clock)?);
        let pool = Arc::new(Pool::new(dialer, Arc::clone(&metrics)));
        let activity = pool.dialer().activity();
        let health = Health::start(
            &config.cloud,
            Arc::clone(&pool),
            activity,
            Arc::clone(&metrics),
        );
        let local = Local::new(Arc::clone(&cache), &config.local, health.subscribe());
        Ok(Arc::new(Self {
            cache,
            cloud: Cloud { pool, health },
            local,
            metrics,
            in_flight: Arc::new(Semaphore::new(config.listen.max_requests)),
            max_requests: config.listen.max_requests,
            budget: Budget::new(config.listen.max_bytes_under_way),
            upgrades: Arc::new(Semaphore::new(UPGRADES)),
            late: Arc::new(Semaphore::new(LATE)),
        }))
    }

    /// A connection has been accepted and speaks a protocol that is served here; its bytes are to be counted there.
    pub(crate) fn accepted(&self, connection: &Connection) -> Arc<Traffic> {
        self.metrics
            .callers
            .accepted(connection, self.cache.clock.now())
    }

    /// The flow of a new connection's bytes.
    pub(crate) fn flow(&self, client: Client) -> Arc<Flow> {
        self.budget.flow(client)
    }

    /// Answers one request; never fails (an error is a `Status` answer).
    ///
    /// No `async fn`: that would hold its arguments twice, and hyper copies every request's future into its connection.
    pub(crate) fn handle(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        let (parts, mut body) = request.into_parts();
        async move {
            let flow = &connection.flow;
            let Some(mut place) = self.place(flow, &body).await else {
                return self.too_many(&parts.headers, flow);
            };
            if is_upgrade(&parts) {
                return Box::pin(self.upgrade(Request::from_parts(parts, body), place, flow)).await;
            }
            let (credential, accepts) = (
                connection.credential(&parts.headers),
                Accepts::of(&parts.headers),
            );
            let info = RequestInfo::parse(&parts.method, &parts.uri);
            let scope = info.understood().map(encode_scope);
            let verb = info.verb();
            let route = route(verb, self.cloud.health.state(), false);
            let may_be_stored = info.understood().is_some_and(is_known_to_the_store);
            // A proxied backend may read the body of a GET; the API server's own handlers do not.
            let unread = verb.is_read() && (may_be_stored || route == Route::Local);
            let answer = if unread && !request_body::of_a_read(&mut body).await {
                Err(request_body::no_end_of_a_read())
            } else if route == Route::Local {
                let (headers, credential) = (&parts.headers, &credential);
                let question = |(request, scope)| LocalRequest {
                    request,
                    headers,
                    accepts,
                    credential,
                    scope,
                    flow,
                };
                let understood = info.understood().zip(scope.as_deref());
                self.ask_store(&info, understood.map(question)).await
            } else if !place.charge.grow(if verb == Verb::Watch {
                UNREAD_WATCH
            } else {
                UNREAD
            }) {
                Err(Refusal::TooManyRequests)
            } else {
                let flow = Arc::clone(flow);
                let call = Call {
                    parts,
                    info,
                    accepts,
                    may_be_stored,
                    credential,
                    scope,
                    flow,
                    dry_run: false,
                };
                // Boxed: the way to the cloud is long, and the connection would keep room for it.
                Box::pin(self.routed(route, call, body)).await
            };
            let mut response = self.counted(verb, accepts.errors, answer);
            response.body_mut().hold(place, flow);
            response
        }
    }

    /// A place among the requests in flight, when the caller's client has room.
    async fn place(&self, flow: &Arc<Flow>, body: &Incoming) -> Option<Place> {
        let bytes = request_body::most_held(body);
        let mut charge = flow.request(bytes);
        if charge.is_none() && Box::pin(timeout(ROOM, flow.room_to_begin())).await == Ok(true) {
            charge = flow.request(bytes);
        }
        let charge = charge?;
        // Not before: a client that waits takes no place from others.
        let permit = Arc::clone(&self.in_flight).try_acquire_owned().ok()?;
        Some(Place {
            _permit: permit,
            charge,
            upgrade: None,
        })
    }

    fn too_many(&self, headers: &HeaderMap, flow: &Flow) -> Response<Body> {
        self.metrics.answered(Verb::Other, Source::Hublet);
        let mut response = Refusal::TooManyRequests.response(Accepts::of(headers).errors);
        response.body_mut().without_place(flow);
        response
    }

    async fn routed(
        self: &Arc<Self>,
        route: Route,
        call: Call,
        mut body: Incoming,
    ) -> Result<Response<Body>, Refusal> {
        match route {
            Route::Local => self.stored(&call).await,
            Route::Refuse => {
                request_body::swallow(&mut body).await;
                Err(Refusal::WriteWhileAway(call.away()))
            }
            Route::LocalThenCloud if call.may_be_stored => match self.stored(&call).await {
                Ok(response) => Ok(response),
                Err(refusal) => {
                    let answer = self
                        .cloud
                        .health
                        .probe_while_silent(self.fetch(&call, None))
                        .await;
                    answer.map_err(|_| refusal)
                }
            },
            Route::CloudThenLocal if call.may_be_stored => self.patiently(call).await,
            Route::CloudOnceJudged
                if self.cloud.health.settled().await != CloudState::Connected =>
            {
                request_body::swallow(&mut body).await;
                Err(Refusal::WriteWhileAway(call.away()))
            }
            Route::Cloud
            | Route::CloudOnceJudged
            | Route::CloudThenLocal
            | Route::LocalThenCloud => {
                let (body, dry_run) = request_body::take(&call.parts.method, body).await?;
                let call = Call { dry_run, ..call };
                self.fetch_alone(&call, body).await
            }
        }
    }

    /// The store's answer: only a request that is understood has one.
    async fn stored(&self, call: &Call) -> Result<Response<Body>, Refusal> {
        self.ask_store(&call.info, call.question()).await
    }

    async fn ask_store(
        &self,
        info: &RequestInfo,
        question: Option<LocalRequest<'_>>,
    ) -> Result<Response<Body>, Refusal> {
        match question {
            Some(question) => Ok(self.local.answer(question).await?.map(Body::from)),
            None => Err(Refusal::Unknown(format!(
                "hublet: the cloud is away, and only the cloud understands the path or a parameter of this request for {}",
                info.describe()
            ))),
        }
    }

    fn counted(
        &self,
        verb: Verb,
        errors: Encoding,
        answer: Result<Response<Body>, Refusal>,
    ) -> Response<Body> {
        match answer {
            Ok(response) => {
                let stored = response.headers().get(SOURCE).is_some_and(|v| v == "store");
                self.metrics
                    .answered(verb, if stored { Source::Store } else { Source::Cloud });
                response
            }
            Err(refusal) => {
                self.metrics.answered(verb, Source::Hublet);
                refusal.response(errors)
            }
        }
    }

    /// A read while the cloud is there: its answer, or the store's where it fails or meets silence (I11).
    async fn patiently(self: &Arc<Self>, call: Call) -> Result<Response<Body>, Refusal> {
        let call = Arc::new(call);
        let (this, mine) = (Arc::clone(self), Arc::clone(&call));
        let mut fetch = Box::pin(async move { this.fetch_begun(&mine).await });
        let error = match self.cloud.health.unless_silent(&mut fetch).await {
            Some(Ok(response)) => return Ok(response),
            Some(Err(error)) => Some(error),
            None => None,
        };
        match (self.stored(&call).await, error) {
            (Ok(response), None) => {
                self.take_late(call.info.verb(), fetch);
                Ok(response)
            }
            (Ok(response), Some(_)) => Ok(response),
            (Err(refusal), Some(_)) => Err(refusal),
            // Only the cloud can tell: wait for it, or for the news that it is away.
            (Err(refusal), None) => fetch.await.map_err(|_| refusal),
        }
    }

    /// An answer whose body has begun, or a watch's head: its first event may come tomorrow.
    async fn fetch_begun(&self, call: &Call) -> Result<Response<Body>, ForwardError> {
        let mut response = self.fetch(call, None).await?;
        if call.info.verb() != Verb::Watch
            && let Some(body) = response.body_mut().as_cloud_mut()
        {
            self.cloud.first_frame(body).await?;
        }
        Ok(response)
    }

    /// The answer to a request that the cloud alone can answer.
    async fn fetch_alone(
        &self,
        call: &Call,
        body: Option<Upload>,
    ) -> Result<Response<Body>, Refusal> {
        let progress = body.as_ref().and_then(upload::progress);
        tokio::select! {
            biased;
            answer = self.cloud.health.probe_while_silent(self.fetch(call, body)) => {
                answer.map_err(|error| refused(call, &error))
            }
            () = upload::until_stalled(progress) => Err(Refusal::OutcomeUnknown(format!(
                "hublet: the server has taken nothing of this {}'s body for {} s: whether it was done isn't known",
                call.info.verb().as_str(),
                upload::STALL_TIMEOUT.as_secs()
            ))),
        }
    }

    /// The caller has its answer; what the cloud says after all still goes into the store.
    fn take_late(
        &self,
        verb: Verb,
        fetch: impl Future<Output = Result<Response<Body>, ForwardError>> + Send + 'static,
    ) {
        let Ok(permit) = Arc::clone(&self.late).try_acquire_owned() else {
            return;
        };
        if verb == Verb::Watch {
            return;
        }
        tokio::spawn(async move {
            if let Ok(Ok(mut response)) = timeout(LATE_PATIENCE, fetch).await {
                while let Ok(Some(Ok(_))) =
                    timeout(LATE_PATIENCE, response.body_mut().frame()).await
                {}
            }
            drop(permit);
        });
    }

    /// Sends to the cloud; its answer is copied into the store as it passes.
    async fn fetch(
        &self,
        call: &Call,
        body: Option<Upload>,
    ) -> Result<Response<Body>, ForwardError> {
        let asked = self.cache.clock.now();
        let options = self.send_options(call);
        let upload = body.as_ref().and_then(upload::progress);
        let (response, mut place) = self.cloud.send(&call.parts, body, options).await?;
        let (head, body) = response.into_parts();
        let status = head.status.as_u16();
        match call.question() {
            // A backend's 401 tells nothing of the token, which the API server does not hand on.
            _ if status == 401 && call.info.is_proxied() => {}
            Some(question) => self.local.judge(
                &question,
                Answered {
                    status,
                    asked_at: asked,
                },
            ),
            None => self.cache.observe_credential(&call.credential, status),
        }
        let (apart, proven) = (
            options.class == ConnectionClass::Dedicated,
            self.has_proven_itself(&call.credential),
        );
        if apart && proven {
            self.cloud.pool.mark_proven(&mut place);
        }
        let capture = self.capture(call, &head, asked);
        let watch = call.info.verb() == Verb::Watch && status == 200;
        let ends = watch.then(|| self.local.draining());
        let mut body = CloudBody::new(body, place, Arc::clone(&self.metrics))
            .with_tee(capture)
            .with_watch_end(ends)
            .with_upload(upload);
        if apart && !proven && !watch {
            body.prefetch().await;
        }
        let mut response = Response::new(Body::cloud(body));
        *response.status_mut() = head.status;
        *response.headers_mut() = end_to_end_headers(&head.headers);
        response
            .headers_mut()
            .insert(SOURCE, HeaderValue::from_static("cloud"));
        Ok(response)
    }

    /// Begins to copy an answer into the store, where it tells something.
    fn capture(&self, call: &Call, head: &Head, asked: u64) -> Option<Capture> {
        let not_stored = |reason| {
            self.cache.not_stored().increment(reason);
            None
        };
        let Some(request) = call.info.understood() else {
            return not_stored(NotStored::UnknownRequest);
        };
        if call.dry_run {
            return not_stored(NotStored::DryRun);
        }
        let status = head.status.as_u16();
        let exchange = match Exchange::of(request, status, &head.headers, asked) {
            Ok(exchange) => exchange,
            Err(reason) => {
                if is_unrecorded_write(request, status) {
                    self.cache.appeared(call.scope.as_deref()?);
                }
                return not_stored(reason);
            }
        };
        self.cache.capture(Exchange {
            author: call.author(),
            ..exchange
        })
    }

    /// How the cloud may be asked: credentials that have not proven themselves keep off the shared connections.
    fn send_options(&self, call: &Call) -> SendOptions {
        let class = match call.info.verb() {
            _ if !self.has_proven_itself(&call.credential) => ConnectionClass::Dedicated,
            Verb::Watch => ConnectionClass::Watch,
            _ => ConnectionClass::Unary,
        };
        SendOptions {
            client: call.flow.client(),
            class,
            retryable: is_retryable(&call.info),
        }
    }

    fn has_proven_itself(&self, credential: &Credential) -> bool {
        let proven = |c| self.cache.grants.knows(c, self.cache.clock.now(), u64::MAX);
        *credential != Credential::Anonymous && proven(credential)
    }

    async fn upgrade(
        &self,
        request: Request<Incoming>,
        mut place: Place,
        flow: &Arc<Flow>,
    ) -> Response<Body> {
        let Ok(permit) = Arc::clone(&self.upgrades).try_acquire_owned() else {
            return self.too_many(request.headers(), flow);
        };
        place.upgrade = Some(permit);
        let errors = Accepts::of(request.headers()).errors;
        let route = route(Verb::Other, self.cloud.health.state(), true);
        let answer = match route {
            Route::Refuse => Err(ForwardError::Disconnected),
            Route::CloudOnceJudged
                if self.cloud.health.settled().await != CloudState::Connected =>
            {
                Err(ForwardError::Disconnected)
            }
            _ => {
                self.cloud
                    .or_disconnected(forward_upgrade(
                        &self.cloud,
                        request,
                        &self.metrics,
                        place,
                        flow,
                    ))
                    .await
            }
        };
        let answer = answer.map(|mut response| {
            response
                .headers_mut()
                .insert(SOURCE, HeaderValue::from_static("cloud"));
            response
        });
        let source = if answer.is_ok() {
            Source::Cloud
        } else {
            Source::Hublet
        };
        self.metrics.answered(Verb::Other, source);
        answer.unwrap_or_else(|error| {
            let what = format!("hublet: no stream to the cloud: {error}");
            let refusal = match error.delivery() {
                Delivery::Unknown => Refusal::OutcomeUnknown(what),
                _ => Refusal::Unknown(what),
            };
            refusal.response(errors)
        })
    }

    /// The store, for what it says about steering.
    pub(crate) fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// What is not ready yet; nothing when all is.
    pub(crate) fn waiting_for(&self) -> Option<&'static str> {
        (!self.cloud.health.is_known()).then_some("the first probe of the cloud has not ended")
    }

    /// The text of `/metrics`.
    pub(crate) fn render_metrics(&self) -> String {
        let set = |gauge: &prometheus_client::metrics::gauge::Gauge, n: u64| {
            gauge.set(i64::try_from(n).unwrap_or(i64::MAX));
        };
        set(
            &self.metrics.copies_given_up,
            self.cache.ingest().given_up(),
        );
        set(&self.metrics.store_failures, self.cache.ingest().failures());
        set(
            &self.metrics.store_writable,
            self.cache.is_writable().into(),
        );
        set(&self.metrics.store_bytes, self.cache.size());
        set(&self.metrics.store_evicted, self.cache.ingest().evicted());
        let in_flight = self
            .max_requests
            .saturating_sub(self.in_flight.available_permits());
        set(&self.metrics.in_flight, in_flight as u64);
        set(
            &self.metrics.upgrades,
            UPGRADES.saturating_sub(self.upgrades.available_permits()) as u64,
        );
        let (under_way, limit) = self.budget.figures();
        set(&self.metrics.bytes_under_way, under_way as u64);
        set(&self.metrics.bytes_under_way_limit, limit as u64);
        self.metrics.render()
    }

    /// Cloud state, store figures and the last callers, for `hublet status`.
    pub(crate) fn status(&self) -> serde_json::Value {
        let server = self.cloud.pool.dialer().server();
        serde_json::json!({
            "cloud": {
                "state": self.cloud.health.state(),
                "server": format!("https://{}:{}", server.host, server.port),
                "connections": self.cloud.pool.open_connections(),
                "latencySeconds": self.cloud.health.latency().as_secs_f64(),
                "patienceSeconds": self.cloud.health.fallback_timeout().as_secs_f64(),
            },
            "store": self.cache.status(),
            "callers": self.metrics.callers.list(),
        })
    }

    /// Ends all watches, forwarded and held open, so that a drain can finish; clients watch again elsewhere.
    pub(crate) fn end_streams(&self) {
        self.local.end_streams();
    }

    /// Commits what is pending and closes the store.
    pub(crate) async fn close(&self) {
        self.cloud.pool.close_all();
        self.cache.close().await;
    }
}

impl Call {
    /// The caller of a write, who is shown the object as written.
    fn author(&self) -> Option<Credential> {
        let writes = matches!(self.info.verb(), Verb::Create | Verb::Update | Verb::Patch);
        let whole = self
            .info
            .understood()
            .is_some_and(|request| request.subresource().is_empty());
        (writes && whole).then(|| self.credential.clone())
    }

    /// The question to the store, where the request is understood.
    fn question(&self) -> Option<LocalRequest<'_>> {
        let (request, scope) = (self.info.understood()?, self.scope.as_deref()?);
        let (headers, accepts, flow) = (&self.parts.headers, self.accepts, &self.flow);
        Some(LocalRequest {
            request,
            headers,
            accepts,
            credential: &self.credential,
            scope,
            flow,
        })
    }

    fn away(&self) -> String {
        write_unavailable_message(self.info.verb(), &self.info.describe())
    }
}

/// Of subresources the store never knows the answer.
fn is_known_to_the_store(request: &ApiRequest) -> bool {
    request.subresource().is_empty() && may_be_stored(request)
}

/// The refusal for a request that only the cloud can answer.
fn refused(call: &Call, error: &ForwardError) -> Refusal {
    let info = &call.info;
    match error {
        // A limit of our own says nothing about the cloud.
        ForwardError::Dial(DialError::Busy) => Refusal::TooManyRequests,
        ForwardError::Dial(_) | ForwardError::Disconnected if info.verb().is_read() => {
            cloud_only_read(&info.describe())
        }
        ForwardError::Dial(_) | ForwardError::Disconnected => Refusal::WriteWhileAway(call.away()),
        ForwardError::Upload(_) => Refusal::BadRequest(format!("hublet: {error}")),
        ForwardError::NotProcessed(_) => {
            Refusal::Unknown(format!("hublet: {error}: nothing was done"))
        }
        _ => Refusal::OutcomeUnknown(format!(
            "hublet: the link to the cloud broke before the answer: whether this {} was done isn't known",
            info.verb().as_str()
        )),
    }
}
