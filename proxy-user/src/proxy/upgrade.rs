//! Requests that leave HTTP (exec, attach, port-forward by SPDY or WebSocket): a connection of their own to the cloud,
//! and bytes both ways until either side ends. In: the client's request. Out: the server's 101, or its answer.

use std::sync::Arc;

use http::request::Parts;
use http::{Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::budget::Flow;
use crate::cloud::forward::{Cloud, ForwardError, end_to_end};
use crate::cloud::pool::uri;
use crate::cloud::stream::CloudBody;
use crate::cloud::upload::{self, Noted, Upload};
use crate::proxy::body::{Body, Place};
use crate::telemetry::Metrics;
use hublet_wire::request::{ApiRequest, Verb};

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
    let reading = ApiRequest::parse(&request.method, &request.uri);
    // A subresource's parameters need not be understood here.
    let streams =
        |request: &ApiRequest<'_>| !matches!(request.subresource.as_ref(), "" | "status" | "scale");
    match reading.verb {
        Verb::Watch => websocket,
        _ if reading.understood().is_none_or(streams) => {
            websocket || has(header::UPGRADE, "SPDY/3.1")
        }
        _ => false,
    }
}

impl Cloud {
    /// Sends an upgrade; on 101 joins both sides in a task of its own, which holds its place until it ends. Any other
    /// answer is passed on and holds it as long.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub(crate) async fn upgrade(
        &self,
        mut request: Request<Incoming>,
        metrics: &Arc<Metrics>,
        place: Place,
        flow: &Arc<Flow>,
    ) -> Result<Response<Body>, ForwardError> {
        let (mut sender, connection, closing) = self.upstreams.upgrade(flow.client()).await?;
        let client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let upstream = upstream_request(self, &parts, body);
        let lost = |error: hyper::Error| ForwardError::Lost(error.to_string());
        let upload = upload::progress_of(Some(upstream.body()));
        let mut answer = tokio::select! {
            biased;
            answer = sender.send_request(upstream) => answer.map_err(lost)?,
            () = upload::stalled(upload.clone()) => {
                return Err(ForwardError::Lost("the server takes nothing of the request's body".into()));
            }
        };
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = answer.into_parts();
            let body = CloudBody::new(body, None, Some(connection), None, Arc::clone(metrics))
                .beside(upload);
            let mut response = Response::new(Body::cloud(body));
            response.body_mut().hold(place, flow);
            *response.status_mut() = head.status;
            *response.headers_mut() = end_to_end(&head.headers);
            return Ok(response);
        }
        let server = hyper::upgrade::on(&mut answer);
        let flow = Arc::clone(flow);
        tokio::spawn(async move {
            if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                tokio::select! {
                    _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = closing => {}
                    () = flow.was_cut() => {}
                }
            }
            drop((place, connection));
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        Ok(response)
    }
}

/// The same request, with the headers that ask for the upgrade.
fn upstream_request(cloud: &Cloud, parts: &Parts, body: Incoming) -> Request<Upload> {
    let server = cloud.upstreams.dialer().server();
    let target = uri(server, None);
    let has_body = parts.headers.contains_key(header::CONTENT_LENGTH)
        || parts.headers.contains_key(header::TRANSFER_ENCODING);
    let mut upstream = Request::new(if has_body {
        Either::Left(Noted::new(body))
    } else {
        Either::Right(Full::default())
    });
    *upstream.method_mut() = parts.method.clone();
    if let Some(path) = parts.uri.path_and_query() {
        *upstream.uri_mut() = http::Uri::from(path.clone());
    }
    let headers = upstream.headers_mut();
    *headers = end_to_end(&parts.headers);
    for name in [header::CONNECTION, header::UPGRADE] {
        if let Some(value) = parts.headers.get(&name) {
            headers.insert(name, value.clone());
        }
    }
    if let Some(Ok(host)) = target
        .authority()
        .map(|a| http::HeaderValue::from_str(a.as_str()))
    {
        headers.insert(header::HOST, host);
    }
    upstream
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
