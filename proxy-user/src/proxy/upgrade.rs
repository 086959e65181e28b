//! Requests that leave HTTP (exec, attach, port-forward by SPDY or WebSocket): bytes both ways until either side ends.

use std::sync::Arc;

use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use hublet_wire::request::{RequestInfo, Verb};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::body::{Admission, Body};
use super::call::{Call, Inbound, Protocol};
use crate::budget::Flow;
use crate::cloud::forward::{Cloud, ForwardError};
use crate::cloud::pool::StreamPermit;
use crate::telemetry::Metrics;

/// The protocol that a request asks for. It leaves HTTP where the API server would let it: by SPDY or WebSocket to a
/// subresource (exec, attach, port-forward, proxy, and those of aggregated servers), or by WebSocket to a watch. Elsewhere
/// the API server ignores `Upgrade`.
///
/// Source: `k8s.io/apimachinery/pkg/util/httpstream`, `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.
pub(super) fn protocol(headers: &HeaderMap, request: &RequestInfo) -> Protocol {
    if !headers.contains_key(header::UPGRADE) || !has_token(headers, &header::CONNECTION, "upgrade")
    {
        return Protocol::Http;
    }
    let is_websocket = has_token(headers, &header::UPGRADE, "websocket")
        && headers.contains_key(header::SEC_WEBSOCKET_KEY);
    let is_upgrade = if request.verb() == Verb::Watch {
        is_websocket
    } else {
        may_stream(request) && (is_websocket || has_token(headers, &header::UPGRADE, "SPDY/3.1"))
    };
    if is_upgrade {
        Protocol::Upgrade
    } else {
        Protocol::Http
    }
}

/// A list header (RFC 9110 §5.6.1) has this token.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// A subresource may stream. Its parameters need not be understood here.
fn may_stream(request: &RequestInfo) -> bool {
    request
        .understood()
        .is_none_or(|request| !matches!(request.subresource(), "" | "status" | "scale"))
}

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

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn is_upgrade(path: &str, connection: &str, upgrade: &str) -> bool {
        let request = Request::get(path)
            .header("connection", connection)
            .header("upgrade", upgrade)
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        let info = RequestInfo::parse(request.method(), request.uri());
        protocol(request.headers(), &info) == Protocol::Upgrade
    }

    #[test]
    fn only_what_the_api_server_upgrades_leaves_http() {
        const POD: &str = "/api/v1/namespaces/default/pods/p";
        for (path, connection, upgrade, expected) in [
            (
                format!("{POD}/exec?command=ls"),
                "Upgrade",
                "SPDY/3.1",
                true,
            ),
            (
                format!("{POD}/exec?command=ls"),
                "keep-alive, Upgrade",
                "websocket",
                true,
            ),
            (format!("{POD}/portforward"), "upgrade", "WebSocket", true),
            (format!("{POD}/proxy/path"), "Upgrade", "websocket", true),
            (
                "/api/v1/pods?watch=true".into(),
                "Upgrade",
                "websocket",
                true,
            ),
            (
                "/api/v1/pods?watch=true".into(),
                "Upgrade",
                "SPDY/3.1",
                false,
            ),
            (format!("{POD}/exec"), "Upgrade", "x", false),
            (format!("{POD}/exec"), "keep-alive", "SPDY/3.1", false),
            (POD.into(), "Upgrade", "websocket", false),
            (format!("{POD}/status"), "Upgrade", "websocket", false),
            ("/version".into(), "Upgrade", "websocket", false),
            ("/api/v1/pods".into(), "Upgrade", "h2c", false),
        ] {
            assert_eq!(
                is_upgrade(&path, connection, upgrade),
                expected,
                "{path} {connection} {upgrade}"
            );
        }
    }
}
