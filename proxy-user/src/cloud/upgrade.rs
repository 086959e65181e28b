//! Requests that leave HTTP (exec, attach, port-forward by SPDY or WebSocket): a connection of their own to the cloud,
//! and bytes both ways until either side ends. In: the client's request. Out: the server's 101, or its answer.

use std::sync::Arc;

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use super::forward::{Cloud, ForwardError, end_to_end};
use super::stream::CloudBody;
use super::upstreams::uri;
use crate::account::Metrics;
use crate::body::Body;
use crate::upload::Upload;

/// The request asks to leave HTTP.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    let names = headers.get(header::CONNECTION).and_then(|v| v.to_str().ok()).unwrap_or_default();
    headers.contains_key(header::UPGRADE)
        && names.split(',').any(|n| n.trim().eq_ignore_ascii_case("upgrade"))
}

impl Cloud {
    /// Sends an upgrade; on 101 joins both sides in a task of its own, which holds `keep` until it ends.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub async fn upgrade<K: Send + 'static>(
        &self,
        mut request: Request<Incoming>,
        metrics: &Arc<Metrics>,
        keep: K,
    ) -> Result<Response<Body>, ForwardError> {
        let (mut sender, closing) = self.upstreams.upgrade().await?;
        let client = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let upstream = upstream_request(self, &parts, body);
        let lost = |error: hyper::Error| ForwardError::Lost(error.to_string());
        let mut answer = sender.send_request(upstream).await.map_err(lost)?;
        if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
            let (head, body) = answer.into_parts();
            let body = CloudBody::new(body, None, None, None, Arc::clone(metrics));
            let mut response = Response::new(Body::cloud(body));
            *response.status_mut() = head.status;
            *response.headers_mut() = end_to_end(&head.headers);
            return Ok(response);
        }
        let server = hyper::upgrade::on(&mut answer);
        tokio::spawn(async move {
            if let (Ok(client), Ok(server)) = tokio::join!(client, server) {
                let (mut client, mut server) = (TokioIo::new(client), TokioIo::new(server));
                tokio::select! {
                    _ended = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                    () = closing => {}
                }
            }
            drop(keep);
        });
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = answer.headers().clone();
        Ok(response)
    }
}

/// The same request, with the headers that ask for the upgrade.
fn upstream_request(cloud: &Cloud, parts: &http::request::Parts, body: Incoming) -> Request<Upload> {
    let server = cloud.upstreams.dialer().server();
    let target = uri(server, None);
    let has_body = parts.headers.contains_key(header::CONTENT_LENGTH)
        || parts.headers.contains_key(header::TRANSFER_ENCODING);
    let mut upstream =
        Request::new(if has_body { Either::Left(body) } else { Either::Right(Full::default()) });
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
    if let Some(Ok(host)) = target.authority().map(|a| http::HeaderValue::from_str(a.as_str())) {
        headers.insert(header::HOST, host);
    }
    upstream
}
