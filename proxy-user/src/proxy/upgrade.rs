//! Requests that leave HTTP (exec, attach, port-forward by SPDY or WebSocket): a connection of their own to the cloud,
//! and bytes both ways until either side ends. In: the client's request. Out: the server's 101, or its answer.

use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::budget::Flow;
use crate::cloud::forward::{Cloud, ForwardError};
use crate::proxy::body::{Body, Place};
use crate::telemetry::Metrics;
use hublet_wire::request::{ApiRequest, RequestInfo, Verb};

/// The request asks to leave HTTP, by a protocol that the API server speaks, where it may: to a subresource (exec,
/// attach, port-forward, proxy, and those of aggregated servers), or to watch by WebSocket. Elsewhere the API server
/// ignores `Upgrade`, and so the request is one like any other.
///
/// Source: `k8s.io/apimachinery/pkg/util/httpstream`, `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.
pub(crate) fn is_upgrade(request: &Parts) -> bool {
    let headers = &request.headers;
    let has = |name, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|v| v.to_str().ok());
        values
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case(word))
    };
    if !headers.contains_key(header::UPGRADE) || !has(header::CONNECTION, "upgrade") {
        return false;
    }
    let websocket =
        has(header::UPGRADE, "websocket") && headers.contains_key(header::SEC_WEBSOCKET_KEY);
    let info = RequestInfo::parse(&request.method, &request.uri);
    // A subresource's parameters need not be understood here.
    let streams = |request: &ApiRequest| !matches!(request.subresource(), "" | "status" | "scale");
    match info.verb() {
        Verb::Watch => websocket,
        _ if info.understood().is_none_or(streams) => websocket || has(header::UPGRADE, "SPDY/3.1"),
        _ => false,
    }
}

/// Sends an upgrade to the cloud. On 101 a task joins both sides and holds `place` until it ends; any other
/// response is passed on and holds it as long.
///
/// # Errors
/// See [`ForwardError`].
pub(crate) async fn forward_upgrade(
    cloud: &Cloud,
    mut request: Request<Incoming>,
    metrics: &Arc<Metrics>,
    place: Place,
    flow: &Arc<Flow>,
) -> Result<Response<Body>, ForwardError> {
    let client = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let mut upstream = cloud.send_upgrade(flow.client(), &parts, body).await?;
    if upstream.response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let mut response = upstream.into_response(metrics).map(Body::cloud);
        response.body_mut().hold(place, flow);
        return Ok(response);
    }
    let server = hyper::upgrade::on(&mut upstream.response);
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = upstream.response.headers().clone();
    let flow = Arc::clone(flow);
    tokio::spawn(async move {
        if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
            let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
            tokio::select! {
                _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                () = upstream.closing => {}
                () = flow.was_cut() => {}
            }
        }
        drop((place, upstream.permit));
    });
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(path: &str, connection: &str, upgrade: &str) -> bool {
        let request = Request::get(path)
            .header("connection", connection)
            .header("upgrade", upgrade)
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .body(())
            .unwrap();
        is_upgrade(&request.into_parts().0)
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
                asks(&path, connection, upgrade),
                expected,
                "{path} {connection} {upgrade}"
            );
        }
    }
}
