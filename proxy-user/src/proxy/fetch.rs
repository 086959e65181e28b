//! One request to the cloud, whose response is copied into the store as it passes.

use std::sync::Arc;
use std::time::Duration;

use http::response::Parts as Head;
use http::{HeaderValue, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hublet_wire::meta::Timestamp;
use hublet_wire::request::{ApiRequest, RequestInfo, Verb};
use tokio::time::timeout;

use super::Proxy;
use super::body::Body;
use super::call::{Acceptance, Call};
use super::request_body::DryRun;
use crate::authz::authorizer::ObservedResponse;
use crate::cache::capture::Capture;
use crate::cache::exchange::{Exchange, may_create, superseded_by};
use crate::cache::keys;
use crate::cache::not_stored::NotStored;
use crate::cloud::forward::{
    Delivery, ForwardError, SendOptions, end_to_end_headers, is_retryable,
};
use crate::cloud::pool::{ConnectionClass, StreamPermit};
use crate::cloud::stream::CloudBody;
use crate::cloud::upload::{self, Upload};
use crate::config::WorkingMode;
use crate::local::{SOURCE, encode_scope};

/// Longest wait for the head, and then for each frame, of a response that is fetched for the store alone.
const BACKGROUND_FETCH_TIMEOUT: Duration = Duration::from_secs(30);

/// A write that has no response yet. If it is dropped as such, since its client has left or the link has died, it may still
/// have created its object.
struct UnansweredWrite<'a> {
    proxy: &'a Proxy,
    /// `None` for a read, and once there is nothing to clear.
    call: Option<&'a Call>,
}

impl Drop for UnansweredWrite<'_> {
    fn drop(&mut self) {
        if let Some(call) = self.call {
            self.proxy.record_possible_creation(call);
        }
    }
}

impl Proxy {
    /// Sends a request. Returns the head of its response, with a body that streams.
    pub(super) async fn fetch(
        &self,
        call: &Call,
        class: ConnectionClass,
        upload: Option<Upload>,
        dry_run: DryRun,
    ) -> Result<Response<Body>, ForwardError> {
        let stages = &self.stages;
        let requested_at = stages.cache.clock.now();
        let progress = upload.as_ref().and_then(upload::progress);
        let options = send_options(call, class);
        let mut unanswered = UnansweredWrite {
            proxy: self,
            call: (!call.verb().is_read()).then_some(call),
        };
        let sent = stages.cloud.send(&call.parts, upload, options).await;
        if !matches!(&sent, Err(error) if error.delivery() == Delivery::Unknown) {
            unanswered.call = None;
        }
        drop(unanswered);
        let (response, mut permit) = sent?;
        let (head, body) = response.into_parts();
        let observed = ObservedResponse {
            status: head.status.as_u16(),
            requested_at,
        };
        self.record_decision(call, observed);
        let is_pending = class == ConnectionClass::Dedicated && self.is_pending(call, &mut permit);
        let is_watch = call.verb() == Verb::Watch && head.status == StatusCode::OK;
        let mut body = CloudBody::new(body, permit, Arc::clone(&stages.metrics))
            .with_tee(self.capture(call, dry_run, &head, requested_at))
            .with_watch_end(is_watch.then(|| stages.local.draining()))
            .with_upload(progress);
        if is_pending && !is_watch {
            // Frees its connection, of which there are few, even if its client doesn't read.
            body.prefetch().await;
        }
        Ok(forwarded_response(&head, Body::cloud(body)))
    }

    /// As [`Self::fetch`], but waits until the body has begun: until then the store can still answer instead. For a watch
    /// the head is enough: its first event may come tomorrow.
    pub(super) async fn fetch_first_frame(
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

    /// Reads a response to its end for the store, after its caller was answered from there.
    pub(super) fn drain_into_store(
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
            if let Ok(Ok(response)) = timeout(BACKGROUND_FETCH_TIMEOUT, fetch).await {
                drain_response(response.into_body()).await;
            }
            drop(permit);
        });
    }

    /// True while the cloud has not accepted the credential. Once it has, the connection counts among those of accepted
    /// ones.
    fn is_pending(&self, call: &Call, permit: &mut StreamPermit) -> bool {
        match Acceptance::of(&call.caller.credential, &self.stages.authorizer) {
            Acceptance::Pending => true,
            Acceptance::Accepted => {
                self.stages.cloud.pool.mark_accepted(permit);
                false
            }
        }
    }

    /// Records the cloud's decision on the caller's rights, by the status code of its response.
    pub(super) fn record_decision(&self, call: &Call, response: ObservedResponse) {
        // A backend's 401 says nothing about the token, since the API server does not pass it on.
        if response.status == 401 && call.request.is_proxied() {
            return;
        }
        let authorizer = &self.stages.authorizer;
        match call.attributes() {
            Some(attributes) => authorizer.observe_response(&attributes, response),
            None => authorizer.observe_status(&call.caller.credential, response.status),
        }
    }

    /// Begins to copy a response into the store, or counts the reason against it.
    fn capture(
        &self,
        call: &Call,
        dry_run: DryRun,
        head: &Head,
        requested_at: Timestamp,
    ) -> Option<Capture> {
        match self.storable_exchange(call, dry_run, head, requested_at) {
            Ok(exchange) => {
                if let Some(reason) = exchange.version_only {
                    self.stages.cache.not_stored().increment(reason);
                }
                let capture = self.stages.cache.capture(exchange);
                if capture.is_none() {
                    self.record_unstored_write(call, dry_run, head.status);
                }
                capture
            }
            Err(reason) => {
                self.record_unstored_write(call, dry_run, head.status);
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
        requested_at: Timestamp,
    ) -> Result<Exchange, NotStored> {
        if self.policy.working_mode == WorkingMode::Cloud {
            return Err(NotStored::WorkingMode);
        }
        let Some(request) = call.request.understood() else {
            return opaque_write(call, dry_run, head, requested_at);
        };
        if dry_run == DryRun::Perhaps {
            return Err(NotStored::DryRun);
        }
        let exchange = Exchange::of(request, head.status.as_u16(), &head.headers, requested_at)?;
        Ok(Exchange {
            author: call
                .author()
                .map(|author| self.stages.authorizer.author(author)),
            ..exchange
        })
    }

    /// A write was answered, and the response can't be stored: what is stored of its object no longer counts.
    fn record_unstored_write(&self, call: &Call, dry_run: DryRun, status: StatusCode) {
        let is_dry_run = dry_run == DryRun::Perhaps || call.request.may_be_dry_run();
        let is_failure = status.is_server_error() || status == StatusCode::CONFLICT;
        if is_failure || (status.is_success() && is_dry_run) {
            self.record_possible_creation(call);
        } else if status.is_success() && !call.verb().is_read() {
            with_named(call, |request| {
                if let Some(extent) = superseded_by(request) {
                    let key = encode_scope(request);
                    let key = keys::without_selectors(&key);
                    self.stages.cache.supersede(key, extent);
                }
            });
        }
    }

    /// A write may have created its object, whose absence no longer counts. A write by a caller whom the cloud has not
    /// accepted has no such effect: otherwise anyone could make known absences unknown with requests that it breaks off.
    /// If such a write did create its object, no client has been told.
    fn record_possible_creation(&self, call: &Call) {
        let authorizer = &self.stages.authorizer;
        if call.verb().is_read() || !authorizer.has_accepted(&call.caller.credential) {
            return;
        }
        with_named(call, |request| {
            if may_create(request) {
                self.stages.cache.clear_absence(&encode_scope(request));
            }
        });
    }
}

/// The response to a write that isn't understood to its last parameter: it still has the object's new resourceVersion.
fn opaque_write(
    call: &Call,
    dry_run: DryRun,
    head: &Head,
    requested_at: Timestamp,
) -> Result<Exchange, NotStored> {
    let reason = NotStored::UnknownRequest;
    let may_be_dry_run = dry_run == DryRun::Perhaps || call.request.may_be_dry_run();
    if call.verb().is_read() || may_be_dry_run {
        return Err(reason);
    }
    let (status, headers) = (head.status.as_u16(), &head.headers);
    with_named(call, |request| {
        Exchange::of_version(request, status, headers, requested_at, reason)
    })
    .unwrap_or(Err(reason))
}

/// Calls `record` with the request as far as it is understood, by its path alone if need be: parameters that aren't
/// understood don't change which object is written.
fn with_named<T>(call: &Call, record: impl FnOnce(&ApiRequest) -> T) -> Option<T> {
    let path = call.request.path().parse::<Uri>();
    let request = path.map(|path| RequestInfo::parse(&call.parts.method, &path));
    let by_path = request.as_ref().ok().and_then(RequestInfo::understood);
    call.request.understood().or(by_path).map(record)
}

fn send_options(call: &Call, class: ConnectionClass) -> SendOptions {
    SendOptions {
        client: call.flow.client(),
        class,
        retryable: is_retryable(&call.request),
    }
}

async fn drain_response(mut body: Body) {
    while let Ok(Some(Ok(_))) = timeout(BACKGROUND_FETCH_TIMEOUT, body.frame()).await {}
}

/// A response with the cloud's head, except for the headers of its connection.
fn forwarded_response(head: &Head, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = head.status;
    *response.headers_mut() = end_to_end_headers(&head.headers);
    response
        .headers_mut()
        .insert(SOURCE, HeaderValue::from_static("cloud"));
    response
}
