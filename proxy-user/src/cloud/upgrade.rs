//! Sends requests that leave HTTP (exec, attach, port-forward) on a connection of their own.

use std::sync::Arc;

use http::request::Parts;
use http::{HeaderMap, Request, Response, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::dial::Dialer;
use super::forward::{Cloud, ForwardError, end_to_end_headers};
use super::pool::{StreamPermit, UpgradeLease};
use super::stream::{BodyTee, CloudBody};
use super::upload::{self, TrackedBody, UploadProgress};
use crate::caller::Client;
use crate::telemetry::{CountedBody, Metrics};

/// The server's response to an upgrade, and its connection.
#[derive(Debug)]
pub(crate) struct UpgradeResponse {
    pub response: Response<Incoming>,
    /// Held until the upgraded stream, or the response's body, has ended.
    pub permit: StreamPermit,
    /// Done when the upgraded stream is to end.
    pub closing: WaitForCancellationFutureOwned,
    upload: Option<Arc<UploadProgress>>,
}

impl UpgradeResponse {
    /// The response of a server that did not switch protocols.
    pub(crate) fn into_response<T: BodyTee>(
        self,
        metrics: &Arc<Metrics>,
    ) -> Response<CloudBody<T>> {
        let (head, body) = self.response.into_parts();
        let body = CloudBody::new(body, self.permit, Arc::clone(metrics)).with_upload(self.upload);
        let mut response = Response::new(body);
        *response.status_mut() = head.status;
        *response.headers_mut() = end_to_end_headers(&head.headers);
        response
    }
}

impl Cloud {
    /// Sends a request with the headers that ask for an upgrade.
    ///
    /// # Errors
    /// See [`ForwardError`].
    pub(crate) async fn send_upgrade(
        &self,
        client: Client,
        parts: &Parts,
        body: CountedBody<Incoming>,
    ) -> Result<UpgradeResponse, ForwardError> {
        // Boxed: a handshake's state is large.
        let lease = Box::pin(self.pool.acquire_upgrade(client)).await?;
        let UpgradeLease {
            mut sender,
            permit,
            closing,
        } = lease;
        let request = upgrade_request(self.pool.dialer(), parts, body);
        let upload = upload::progress(request.body());
        let response = tokio::select! {
            biased;
            response = sender.send_request(request) => response.map_err(ForwardError::Broken)?,
            () = upload::until_stalled(upload.clone()) => return Err(ForwardError::UploadStalled),
        };
        Ok(UpgradeResponse {
            response,
            permit,
            closing,
            upload,
        })
    }
}

fn upgrade_request<B>(
    dialer: &Dialer,
    parts: &Parts,
    body: B,
) -> Request<Either<TrackedBody<B>, Full<bytes::Bytes>>> {
    let mut request = Request::new(if has_body(&parts.headers) {
        Either::Left(TrackedBody::new(body))
    } else {
        Either::Right(Full::default())
    });
    *request.method_mut() = parts.method.clone();
    if let Some(path) = parts.uri.path_and_query() {
        *request.uri_mut() = http::Uri::from(path.clone());
    }
    *request.headers_mut() = upgrade_headers(dialer, &parts.headers);
    request
}

fn has_body(headers: &HeaderMap) -> bool {
    headers.contains_key(header::CONTENT_LENGTH) || headers.contains_key(header::TRANSFER_ENCODING)
}

/// The end-to-end headers, and the two hop-by-hop ones that ask for the upgrade.
fn upgrade_headers(dialer: &Dialer, headers: &HeaderMap) -> HeaderMap {
    let mut upstream = end_to_end_headers(headers);
    for name in [header::CONNECTION, header::UPGRADE] {
        if let Some(value) = headers.get(&name) {
            upstream.insert(name, value.clone());
        }
    }
    if let Some(host) = dialer.host_header() {
        upstream.insert(header::HOST, host);
    }
    upstream
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Server;

    fn upstream(headers: &[(&'static str, &'static str)]) -> Request<bool> {
        let server = Server {
            host: "api.example".into(),
            port: 6443,
        };
        let roots = Arc::new(rustls::RootCertStore::empty());
        let dialer = Dialer::new(&server, &roots, 0).unwrap();
        let mut request = Request::post("https://node/exec?command=ls");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        upgrade_request(&dialer, &parts, ()).map(|body| matches!(body, Either::Left(_)))
    }

    #[test]
    fn an_upgrade_keeps_the_headers_that_ask_for_it() {
        let request = upstream(&[
            ("host", "169.254.2.1"),
            ("connection", "Upgrade, X-Private"),
            ("upgrade", "SPDY/3.1"),
            ("x-private", "1"),
            ("x-stream-protocol-version", "v4.channel.k8s.io"),
        ]);
        assert_eq!(request.method(), http::Method::POST);
        assert_eq!(request.uri(), "/exec?command=ls");
        let headers = request.headers();
        assert_eq!(headers["host"], "api.example:6443");
        assert_eq!(headers["connection"], "Upgrade, X-Private");
        assert_eq!(headers["upgrade"], "SPDY/3.1");
        assert_eq!(headers["x-stream-protocol-version"], "v4.channel.k8s.io");
        assert!(!headers.contains_key("x-private"));
    }

    #[test]
    fn an_upgrade_without_a_length_has_no_body() {
        assert!(!*upstream(&[]).body());
        assert!(*upstream(&[("content-length", "1")]).body());
        assert!(*upstream(&[("transfer-encoding", "chunked")]).body());
    }
}
