//! Carries out a [`Route`]: asks the cloud, the store, or one after the other.

use std::sync::Arc;
use std::time::Duration;

use http::response::Parts as Head;
use http::{HeaderValue, Response};
use http_body_util::BodyExt;
use hublet_wire::request::{ApiRequest, Verb};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::body::{Admission, Body};
use super::call::{Call, Inbound, Standing};
use super::error::ProxyError;
use super::protocol::Protocol;
use super::request_body::{self, DryRun};
use super::route::Route;
use super::{Proxy, upgrade};
use crate::authz::decide::Answered;
use crate::cache::capture::Capture;
use crate::cache::exchange::{Exchange, is_unrecorded_write};
use crate::cache::not_stored::NotStored;
use crate::cloud::forward::{ForwardError, SendOptions, end_to_end_headers, is_retryable};
use crate::cloud::health::CloudState;
use crate::cloud::pool::ConnectionClass;
use crate::cloud::stream::CloudBody;
use crate::cloud::upload::{self, Upload};
use crate::config::WorkingMode;
use crate::local::SOURCE;
use crate::telemetry::Source;

/// Longest pause of a response that is fetched for the store alone.
const BACKGROUND_FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes that a forwarded request holds besides its own while nobody reads its response: a window of most connections to
/// the cloud, as much that was read ahead, and both streams. Of a watch half a window, since few are stuck at their fullest.
const UNREAD_RESPONSE: usize = 40 << 10;
const UNREAD_WATCH: usize = 8 << 10;

type Answer = Result<Response<Body>, ProxyError>;

impl Proxy {
    /// Answers a call by its route. An upgraded connection takes the admission along, which else stays for the response.
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        route: Route,
        call: &Arc<Call>,
        mut inbound: Inbound,
        admission: &mut Option<Admission>,
    ) -> Answer {
        match route {
            Route::Store => {
                request_body::drain_read(&mut inbound.body).await?;
                self.answer_from_store(call).await
            }
            Route::Refuse(refusal) => {
                Box::pin(request_body::drain(&mut inbound.body)).await;
                Err(ProxyError::refused(refusal, &call.request))
            }
            // Boxed: the way to the cloud is long, and the connection would keep room for it.
            _ if call.protocol == Protocol::Upgrade => {
                Box::pin(self.upgrade(route, call, inbound, admission)).await
            }
            _ => Box::pin(self.forward(route, call, inbound.body, admission)).await,
        }
    }

    async fn forward(
        self: &Arc<Self>,
        route: Route,
        call: &Arc<Call>,
        mut body: Incoming,
        admission: &mut Option<Admission>,
    ) -> Answer {
        let bytes = max_unread_bytes(call.verb());
        if !admission
            .as_mut()
            .is_some_and(|admission| admission.charge_more(bytes))
        {
            return Err(ProxyError::too_many_requests());
        }
        match route {
            Route::CloudThenStore(class) => {
                request_body::drain_read(&mut body).await?;
                self.fetch_or_fall_back(call, class).await
            }
            Route::StoreThenCloud(class) => {
                request_body::drain_read(&mut body).await?;
                self.answer_or_fetch(call, class).await
            }
            Route::CloudAfterProbe(class) => {
                if !self.is_connected_after_probe().await {
                    request_body::drain(&mut body).await;
                    return Err(ProxyError::write_unavailable(&call.request));
                }
                self.fetch_from_cloud(call, class, body).await
            }
            Route::Cloud(class) => self.fetch_from_cloud(call, class, body).await,
            Route::Store | Route::Refuse(_) => self.answer_from_store(call).await,
        }
    }

    /// Waits for the probe that a doubtful state has started.
    async fn is_connected_after_probe(&self) -> bool {
        self.stages.cloud.health.settled().await == CloudState::Connected
    }

    async fn upgrade(
        &self,
        route: Route,
        call: &Call,
        inbound: Inbound,
        admission: &mut Option<Admission>,
    ) -> Answer {
        let Ok(permit) = Arc::clone(&self.stages.limits.upgrades).try_acquire_owned() else {
            return Err(ProxyError::too_many_requests());
        };
        if matches!(route, Route::CloudAfterProbe(_)) && !self.is_connected_after_probe().await {
            return Err(ProxyError::not_upgraded(ForwardError::Disconnected));
        }
        let stages = &self.stages;
        let exchange = upgrade::forward(&stages.cloud, call, inbound, &stages.metrics);
        let upgraded = stages.cloud.or_disconnected(exchange).await;
        let (mut response, streams) = upgraded.map_err(ProxyError::not_upgraded)?;
        if let Some(admission) = admission.as_mut() {
            admission.hold_upgrade(permit);
        }
        if let Some(streams) = streams {
            if let Some(admission) = admission.as_mut() {
                admission.record().mark_upgraded();
                let status = response.status().as_u16();
                admission
                    .record()
                    .respond(Source::Cloud, status, || call.description());
            }
            tokio::spawn(streams.join(admission.take(), Arc::clone(&call.flow)));
        }
        response
            .headers_mut()
            .insert(SOURCE, HeaderValue::from_static("cloud"));
        Ok(response)
    }

    async fn answer_from_store(&self, call: &Call) -> Answer {
        let Some(request) = call.local_request() else {
            return Err(ProxyError::not_understood(&call.request));
        };
        Ok(self.stages.local.answer(request).await?.map(Body::from))
    }

    /// A read while the cloud is connected: its response, or the store's where it fails or stays silent (I11).
    async fn fetch_or_fall_back(
        self: &Arc<Self>,
        call: &Arc<Call>,
        class: ConnectionClass,
    ) -> Answer {
        let (this, shared) = (Arc::clone(self), Arc::clone(call));
        let mut fetch = Box::pin(async move { this.fetch_first_frame(&shared, class).await });
        let fetched = self.stages.cloud.health.unless_silent(&mut fetch).await;
        if let Some(Ok(response)) = fetched {
            return Ok(response);
        }
        let stored = self.answer_from_store(call).await;
        match (stored, fetched) {
            (Ok(response), None) => {
                self.drain_into_store(call.verb(), fetch);
                Ok(response)
            }
            (Ok(response), Some(_)) => Ok(response),
            (Err(unanswered), Some(Err(error))) => Err(unanswered.after_forwarding(error)),
            // Only the cloud can tell: wait for it, or for the news that it is away.
            (Err(unanswered), _) => fetch
                .await
                .map_err(|error| unanswered.after_forwarding(error)),
        }
    }

    /// A read while the cloud is silent: the store's answer at once, and the cloud's where the store has none.
    async fn answer_or_fetch(&self, call: &Call, class: ConnectionClass) -> Answer {
        let unanswered = match self.answer_from_store(call).await {
            Ok(response) => return Ok(response),
            Err(unanswered) => unanswered,
        };
        let fetch = self.fetch(call, class, None, DryRun::No);
        let fetched = self.stages.cloud.health.probe_while_silent(fetch).await;
        fetched.map_err(|error| unanswered.after_forwarding(error))
    }

    /// The response to a request that only the cloud can answer.
    async fn fetch_from_cloud(
        &self,
        call: &Call,
        class: ConnectionClass,
        body: Incoming,
    ) -> Answer {
        let (upload, dry_run) = request_body::for_cloud(&call.parts.method, body).await?;
        let progress = upload.as_ref().and_then(upload::progress);
        let fetch = self.fetch(call, class, upload, dry_run);
        tokio::select! {
            biased;
            fetched = self.stages.cloud.health.probe_while_silent(fetch) => {
                fetched.map_err(|error| ProxyError::not_forwarded(&call.request, error))
            }
            () = upload::until_stalled(progress) => {
                Err(ProxyError::upload_stalled(&call.request))
            }
        }
    }

    /// A response whose body has begun, so that the store can still answer in its place until then. A watch's head is
    /// enough: its first event may come tomorrow.
    async fn fetch_first_frame(
        &self,
        call: &Call,
        class: ConnectionClass,
    ) -> Result<Response<Body>, ForwardError> {
        let mut response = self.fetch(call, class, None, DryRun::No).await?;
        if call.verb() != Verb::Watch
            && let Some(body) = response.body_mut().as_cloud_mut()
        {
            self.stages.cloud.first_frame(body).await?;
        }
        Ok(response)
    }

    /// Lets a response into the store whose caller has been answered from there.
    fn drain_into_store(
        &self,
        verb: Verb,
        fetch: impl Future<Output = Result<Response<Body>, ForwardError>> + Send + 'static,
    ) {
        if verb == Verb::Watch {
            return;
        }
        let Ok(permit) = Arc::clone(&self.stages.limits.background_fetches).try_acquire_owned()
        else {
            return;
        };
        tokio::spawn(async move {
            if let Ok(Ok(mut response)) = timeout(BACKGROUND_FETCH_TIMEOUT, fetch).await {
                while let Ok(Some(Ok(_))) =
                    timeout(BACKGROUND_FETCH_TIMEOUT, response.body_mut().frame()).await
                {
                }
            }
            drop(permit);
        });
    }

    /// Sends a request to the cloud. The response is copied into the store as it passes.
    async fn fetch(
        &self,
        call: &Call,
        class: ConnectionClass,
        upload: Option<Upload>,
        dry_run: DryRun,
    ) -> Result<Response<Body>, ForwardError> {
        let stages = &self.stages;
        let asked_at = stages.cache.clock.now();
        let progress = upload.as_ref().and_then(upload::progress);
        let options = SendOptions {
            client: call.flow.client(),
            class,
            retryable: is_retryable(&call.request),
        };
        let (response, mut permit) = stages.cloud.send(&call.parts, upload, options).await?;
        let (head, body) = response.into_parts();
        let status = head.status.as_u16();
        self.record_verdict(call, Answered { status, asked_at });
        let is_proven = self.standing(&call.caller.credential) == Standing::Proven;
        if class == ConnectionClass::Dedicated && is_proven {
            stages.cloud.pool.mark_proven(&mut permit);
        }
        let is_watch = call.verb() == Verb::Watch && status == 200;
        let mut body = CloudBody::new(body, permit, Arc::clone(&stages.metrics))
            .with_tee(self.capture(call, dry_run, &head, asked_at))
            .with_watch_end(is_watch.then(|| stages.local.draining()))
            .with_upload(progress);
        if class == ConnectionClass::Dedicated && !is_proven && !is_watch {
            // Frees its connection, of which there are few, whether its client reads or not.
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

    /// Remembers what the cloud's status code says of the caller's rights.
    fn record_verdict(&self, call: &Call, answered: Answered) {
        // A backend's 401 says nothing about the token, which the API server does not pass on.
        if answered.status == 401 && call.request.is_proxied() {
            return;
        }
        match call.local_request() {
            Some(request) => self.stages.local.judge(&request, answered),
            None => self
                .stages
                .cache
                .observe_credential(&call.caller.credential, answered.status),
        }
    }

    /// Begins to copy a response into the store, or counts why it is not stored.
    fn capture(&self, call: &Call, dry_run: DryRun, head: &Head, asked_at: u64) -> Option<Capture> {
        match self.storable_exchange(call, dry_run, head, asked_at) {
            Ok(exchange) => self.stages.cache.capture(exchange),
            Err(reason) => {
                self.stages.cache.not_stored().increment(reason);
                None
            }
        }
    }

    fn storable_exchange(
        &self,
        call: &Call,
        dry_run: DryRun,
        head: &Head,
        asked_at: u64,
    ) -> Result<Exchange, NotStored> {
        if self.policy.working_mode == WorkingMode::Cloud {
            return Err(NotStored::WorkingMode);
        }
        let request = call.request.understood().ok_or(NotStored::UnknownRequest)?;
        if dry_run == DryRun::Perhaps {
            return Err(NotStored::DryRun);
        }
        let status = head.status.as_u16();
        let exchange = Exchange::of(request, status, &head.headers, asked_at)
            .inspect_err(|_| self.end_absence(call, request, status))?;
        Ok(Exchange {
            author: call.author(),
            ..exchange
        })
    }

    /// A write whose response is not stored may have made what was absent.
    fn end_absence(&self, call: &Call, request: &ApiRequest, status: u16) {
        if let Some(key) = call.key().filter(|_| is_unrecorded_write(request, status)) {
            self.stages.cache.appeared(key);
        }
    }
}

/// Bytes of a response that hublet may hold while its client does not read.
fn max_unread_bytes(verb: Verb) -> usize {
    match verb {
        Verb::Watch => UNREAD_WATCH,
        _ => UNREAD_RESPONSE,
    }
}
