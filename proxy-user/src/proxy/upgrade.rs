//! Requests that leave HTTP (exec, attach, port-forward by SPDY or WebSocket): bytes both ways until either side ends.

use std::pin::pin;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue, Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::Proxy;
use super::admission::Admission;
use super::answer::Answer;
use super::body::Body;
use super::call::{Call, Inbound};
use super::error::ProxyError;
use super::route::SendTime;
use crate::authz::authorizer::ObservedResponse;
use crate::budget::Flow;
use crate::cloud::forward::{Cloud, ForwardError};
use crate::cloud::pool::StreamPermit;
use crate::local::SOURCE;
use crate::telemetry::{Metrics, ObservedStream, Source, StreamBytes};

impl Proxy {
    /// Upgrades a connection. Its streams take the admission if the server switches protocols.
    pub(super) async fn upgrade(
        &self,
        time: SendTime,
        call: &Call,
        inbound: Inbound,
        admission: &mut Option<Admission>,
    ) -> Result<Answer, ProxyError> {
        let permit = Arc::clone(&self.stages.limits.upgrades)
            .try_acquire_owned()
            .map_err(|_| ProxyError::too_many_requests())?;
        if !self.may_send(time).await {
            return Err(ProxyError::not_upgraded(ForwardError::Disconnected));
        }
        let stages = &self.stages;
        let requested_at = stages.cache.clock.now();
        let exchange = pin!(forward(&stages.cloud, call, inbound, &stages.metrics));
        let upgraded = stages.cloud.or_disconnected(exchange).await;
        let (mut response, streams) = upgraded.map_err(ProxyError::not_upgraded)?;
        let observed = ObservedResponse {
            status: response.status().as_u16(),
            requested_at,
        };
        self.record_decision(call, observed);
        if let Some(admission) = admission {
            admission.hold_upgrade(permit);
        }
        if let Some(streams) = streams {
            streams.spawn(call, response.status(), admission.take());
        }
        response
            .headers_mut()
            .insert(SOURCE, HeaderValue::from_static("cloud"));
        Ok(Answer::Cloud(response))
    }
}

/// Both sides of a request that has left HTTP.
struct Streams {
    client: OnUpgrade,
    server: OnUpgrade,
    permit: StreamPermit,
    closing: WaitForCancellationFutureOwned,
}

impl Streams {
    /// Records the response, and joins both sides in a task of its own.
    fn spawn(self, call: &Call, status: StatusCode, mut admission: Option<Admission>) {
        if let Some(record) = admission.as_mut().map(Admission::record) {
            record.mark_upgraded();
            record.respond(Source::Cloud, status.as_u16(), || call.description());
        }
        tokio::spawn(self.join(admission, Arc::clone(&call.flow)));
    }

    /// Copies both ways until either side ends, the cloud is found to be away, or the client is cut off. Holds the
    /// request's admission until then.
    async fn join(self, mut admission: Option<Admission>, flow: Arc<Flow>) {
        if let (Ok(client), Ok(server)) = tokio::join!(self.client, self.server) {
            let mut client = ObservedStream::new(TokioIo::new(client), StreamBytes::default());
            let mut server = TokioIo::new(server);
            tokio::select! {
                _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = self.closing => {}
                () = flow.until_cut_off() => {}
            }
            if let Some(admission) = &mut admission {
                admission.record().add_stream(*client.observer());
            }
        }
        drop((admission, self.permit));
    }
}

/// Sends an upgrade to the cloud. Returns [`Streams`] if the server switches protocols.
///
/// # Errors
/// See [`ForwardError`].
async fn forward(
    cloud: &Cloud,
    call: &Call,
    inbound: Inbound,
    metrics: &Arc<Metrics>,
) -> Result<(Response<Body>, Option<Streams>), ForwardError> {
    let client = call.flow.client();
    let mut upstream = cloud
        .send_upgrade(client, &call.parts, inbound.body)
        .await?;
    let is_switched = upstream.response.status() == StatusCode::SWITCHING_PROTOCOLS;
    let Some(client) = inbound.upgraded.filter(|_| is_switched) else {
        return Ok((upstream.into_response(metrics).map(Body::cloud), None));
    };
    let response = switched_response(upstream.response.headers());
    let streams = Streams {
        client,
        server: hyper::upgrade::on(&mut upstream.response),
        permit: upstream.permit,
        closing: upstream.closing,
    };
    Ok((response, Some(streams)))
}

fn switched_response(headers: &HeaderMap) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = headers.clone();
    response
}
