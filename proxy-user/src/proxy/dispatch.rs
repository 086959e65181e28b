//! Carries out a [`Route`]: to the cloud, to the store, or to one after the other.

use std::pin::pin;
use std::sync::Arc;

use http::Response;
use hublet_wire::request::Verb;
use hyper::body::Incoming;

use super::Proxy;
use super::admission::Admission;
use super::answer::{Answer, FallbackReason};
use super::body::Body;
use super::call::{Call, Inbound};
use super::error::ProxyError;
use super::request_body::{self, DryRun};
use super::route::{Forward, Route, SendTime};
use crate::cloud::health::CloudState;
use crate::cloud::pool::ConnectionClass;
use crate::cloud::upload;
use crate::telemetry::CountedBody;

/// Bytes held for a forwarded request whose client reads nothing, besides those of the request itself: a flow-control
/// window (16 KiB on most connections to the cloud), as much again that was read ahead, and the state of both streams.
const UNREAD_RESPONSE: usize = 40 << 10;
/// The same for a watch: half a window, since few watches ever fill one.
const UNREAD_WATCH: usize = 8 << 10;

impl Proxy {
    /// Answers a call by its route. An upgraded connection takes the admission; otherwise it is left for the response.
    pub(super) async fn dispatch(
        self: &Arc<Self>,
        route: Route,
        call: &Arc<Call>,
        mut inbound: Inbound,
        admission: &mut Option<Admission>,
    ) -> Result<Answer, ProxyError> {
        match route {
            // Boxed: this future is large, and the connection would reserve room for it.
            Route::Forward(forward, class) => {
                charge_unread(call, admission)?;
                Box::pin(self.forward(forward, class, call, inbound.body)).await
            }
            Route::Upgrade(time) => Box::pin(self.upgrade(time, call, inbound, admission)).await,
            Route::Store => {
                request_body::drain_read(&mut inbound.body).await?;
                let response = self.answer_from_store(call).await?;
                Ok(Answer::Store(response, FallbackReason::Away))
            }
            Route::Refuse(refusal) => {
                Box::pin(request_body::drain(&mut inbound.body)).await;
                Err(ProxyError::refused(refusal, &call.request))
            }
        }
    }

    async fn forward(
        self: &Arc<Self>,
        forward: Forward,
        class: ConnectionClass,
        call: &Arc<Call>,
        mut body: CountedBody<Incoming>,
    ) -> Result<Answer, ProxyError> {
        match forward {
            Forward::CloudOnly(time) if self.may_send(time).await => {
                self.send(call, class, body).await.map(Answer::Cloud)
            }
            Forward::CloudOnly(_) => {
                request_body::drain(&mut body).await;
                Err(ProxyError::write_unavailable(&call.request))
            }
            Forward::CloudThenStore => {
                request_body::drain_read(&mut body).await?;
                self.fetch_or_fall_back(call, class).await
            }
            Forward::StoreThenCloud => {
                request_body::drain_read(&mut body).await?;
                self.answer_or_fetch(call, class).await
            }
        }
    }

    /// Waits until a request may be sent; false if the probe that it waited for did not reach the cloud.
    pub(super) async fn may_send(&self, time: SendTime) -> bool {
        match time {
            SendTime::Now => true,
            SendTime::AfterProbe => {
                self.stages.cloud.health.settled().await == CloudState::Connected
            }
        }
    }

    async fn answer_from_store(&self, call: &Call) -> Result<Response<Body>, ProxyError> {
        let Some(request) = call.local_request() else {
            return Err(ProxyError::not_understood(&call.request));
        };
        Ok(self.stages.local.answer(request).await?.map(Body::from))
    }

    /// Sends a request that only the cloud can answer, with its body.
    async fn send(
        &self,
        call: &Call,
        class: ConnectionClass,
        body: CountedBody<Incoming>,
    ) -> Result<Response<Body>, ProxyError> {
        let (upload, dry_run) = request_body::for_cloud(&call.parts.method, body).await?;
        let progress = upload.as_ref().and_then(upload::progress);
        let fetch = pin!(self.fetch(call, class, upload, dry_run));
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

    /// A read while the cloud is connected: the cloud's response, or the store's if the cloud fails or stays silent (I11).
    async fn fetch_or_fall_back(
        self: &Arc<Self>,
        call: &Arc<Call>,
        class: ConnectionClass,
    ) -> Result<Answer, ProxyError> {
        let (this, shared) = (Arc::clone(self), Arc::clone(call));
        let mut fetch = Box::pin(async move { this.fetch_first_frame(&shared, class).await });
        let fetched = self.stages.cloud.health.unless_silent(&mut fetch).await;
        if let Some(Ok(response)) = fetched {
            return Ok(Answer::Cloud(response));
        }
        match (self.answer_from_store(call).await, fetched) {
            (Ok(stored), fetched) => {
                if fetched.is_none() {
                    self.drain_into_store(call.verb(), fetch);
                }
                Ok(Answer::Store(stored, FallbackReason::Unanswered))
            }
            (Err(not_stored), Some(Err(error))) => Err(not_stored.after_forwarding(error)),
            // Only the cloud can tell: wait for it, or until it is found to be disconnected.
            (Err(not_stored), _) => match fetch.await {
                Ok(response) => Ok(Answer::Cloud(response)),
                Err(error) => Err(not_stored.after_forwarding(error)),
            },
        }
    }

    /// A read while the cloud is silent: the store's answer at once, or the cloud's if the store has none.
    async fn answer_or_fetch(
        &self,
        call: &Call,
        class: ConnectionClass,
    ) -> Result<Answer, ProxyError> {
        let not_stored = match self.answer_from_store(call).await {
            Ok(stored) => return Ok(Answer::Store(stored, FallbackReason::Silent)),
            Err(not_stored) => not_stored,
        };
        let fetch = pin!(self.fetch(call, class, None, DryRun::No));
        match self.stages.cloud.health.probe_while_silent(fetch).await {
            Ok(response) => Ok(Answer::Cloud(response)),
            Err(error) => Err(not_stored.after_forwarding(error)),
        }
    }
}

/// Charges the bytes of a response that hublet may hold while its client does not read it.
fn charge_unread(call: &Call, admission: &mut Option<Admission>) -> Result<(), ProxyError> {
    let bytes = max_unread_bytes(call.verb());
    match admission.as_mut().map(|held| held.charge_more(bytes)) {
        Some(true) => Ok(()),
        _ => Err(ProxyError::too_many_requests()),
    }
}

fn max_unread_bytes(verb: Verb) -> usize {
    match verb {
        Verb::Watch => UNREAD_WATCH,
        _ => UNREAD_RESPONSE,
    }
}
