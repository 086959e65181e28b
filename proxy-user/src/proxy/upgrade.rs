//! Requests that leave HTTP (exec, attach, port-forward by SPDY or WebSocket): bytes both ways until either side ends.

use std::sync::Arc;

use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::{Admission, Body};
use super::call::{Call, Inbound};
use crate::budget::Flow;
use crate::cloud::forward::{Cloud, ForwardError};
use crate::cloud::pool::StreamPermit;
use crate::telemetry::Metrics;

/// Both sides of a request that has left HTTP.
pub(super) struct Streams {
    client: OnUpgrade,
    server: OnUpgrade,
    permit: StreamPermit,
    closing: WaitForCancellationFutureOwned,
}

impl Streams {
    /// Copies both ways until either side ends, the cloud is found to be away, or the client is cut off. Holds the
    /// request's admission as long.
    pub(super) async fn join(self, admission: Option<Admission>, flow: Arc<Flow>) {
        if let (Ok(client), Ok(server)) = tokio::join!(self.client, self.server) {
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::select! {
                _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = self.closing => {}
                () = flow.was_cut() => {}
            }
        }
        drop((admission, self.permit));
    }
}

/// Sends an upgrade to the cloud. [`Streams`] are there when the server switches protocols.
///
/// # Errors
/// See [`ForwardError`].
pub(super) async fn forward(
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
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = upstream.response.headers().clone();
    let streams = Streams {
        client,
        server: hyper::upgrade::on(&mut upstream.response),
        permit: upstream.permit,
        closing: upstream.closing,
    };
    Ok((response, Some(streams)))
}
