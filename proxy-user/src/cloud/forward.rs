//! Sends one request to the API server and waits for the head of its response, or until the cloud is found
//! to be disconnected.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, Response, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use super::dial::DialError;
use super::health::{Health, Signal};
use super::pool::connection::{SendError, set_request_target};
use super::pool::{ConnectionClass, Lease, Pool, Reuse, StreamPermit};
use super::stream::{BodyTee, CloudBody, CloudBodyError};
use super::upload::Upload;
use crate::caller::Client;
use crate::text::with_causes;
use hublet_wire::request::{ApiRequest, RequestInfo};

/// Attempts to send a request that the server has not processed.
const MAX_ATTEMPTS: u32 = 3;
/// Attempts to send a retryable request that it may have processed.
const MAX_ATTEMPTS_PROCESSED: u32 = 2;

/// The error of a request without a response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the cloud is away")]
    Disconnected,
    /// The server closed the connection, or the stream, without having processed the request.
    #[error("the cloud did not process the request: {}", with_causes(.0))]
    NotProcessed(#[source] hyper::Error),
    /// The client's upload broke off.
    #[error("the client's request body ended early: {}", with_causes(.0))]
    Upload(#[source] hyper::Error),
    #[error("the connection to the cloud broke after the request was sent: {}", with_causes(.0))]
    Broken(#[source] hyper::Error),
    /// The link was found dead while a request waited for the head of its response.
    #[error(
        "the connection to the cloud was found dead after the request was sent, before any response"
    )]
    NoResponse,
    /// The link was found dead behind the head of a response.
    #[error(
        "the connection to the cloud was found dead after the response's headers, before its body"
    )]
    NoBody,
    #[error("the connection to the cloud broke after the request was sent: {0}")]
    Body(#[from] CloudBodyError),
    #[error("the server has stopped reading the request's body")]
    UploadStalled,
}

/// The progress of a request without a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    NotSent,
    /// Sent, but the server certainly has not processed it.
    NotProcessed,
    /// Sent; its outcome isn't known.
    Unknown,
}

impl ForwardError {
    pub(crate) fn delivery(&self) -> Delivery {
        match self {
            Self::Dial(_) | Self::Disconnected => Delivery::NotSent,
            Self::NotProcessed(_) | Self::Upload(_) => Delivery::NotProcessed,
            Self::Broken(_)
            | Self::NoResponse
            | Self::NoBody
            | Self::Body(_)
            | Self::UploadStalled => Delivery::Unknown,
        }
    }
}

/// Headers of one connection rather than of the request (RFC 9110 §7.6.1).
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::HOST,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

/// All headers but the hop-by-hop ones, and those that `Connection` names.
pub(crate) fn end_to_end_headers(headers: &HeaderMap) -> HeaderMap {
    let named = connection_headers(headers);
    let mut out = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers {
        if !HOP_BY_HOP.contains(name) && !named.iter().any(|n| n == name.as_str()) {
            out.append(name, value.clone());
        }
    }
    out
}

fn connection_headers(headers: &HeaderMap) -> Vec<String> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect()
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct SendOptions {
    pub client: Client,
    pub class: ConnectionClass,
    /// It may be sent again though the server may have processed it: see [`is_retryable`].
    pub retryable: bool,
}

impl SendOptions {
    /// True if a request may be sent again after this many attempts.
    fn allows_retry(self, delivery: Delivery, attempts: u32) -> bool {
        match delivery {
            Delivery::NotSent | Delivery::NotProcessed => attempts < MAX_ATTEMPTS,
            Delivery::Unknown => self.retryable && attempts < MAX_ATTEMPTS_PROCESSED,
        }
    }
}

/// Subresources whose reads may have side effects: a proxied backend's, or those of a started program.
const UNSAFE_SUBRESOURCES: [&str; 4] = ["proxy", "exec", "attach", "portforward"];

/// True for reads of the API server's own data, which have no effect however often they are sent. A
/// request that isn't understood is none.
pub(crate) fn is_retryable(info: &RequestInfo) -> bool {
    info.verb().is_read() && info.understood().is_some_and(has_safe_reads)
}

fn has_safe_reads(request: &ApiRequest) -> bool {
    !UNSAFE_SUBRESOURCES.contains(&request.subresource())
}

/// The client side of the proxy: connections and health of the API server.
#[derive(Debug)]
pub(crate) struct Cloud {
    pub pool: Arc<Pool>,
    pub health: Arc<Health>,
}

impl Cloud {
    /// Sends a request and waits for the head of its response.
    ///
    /// # Errors
    /// See [`ForwardError`]; each has been signalled to [`Health`] already.
    pub(crate) async fn send(
        &self,
        parts: &Parts,
        body: Option<Upload>,
        options: SendOptions,
    ) -> Result<(Response<Incoming>, StreamPermit), ForwardError> {
        let sent = AtomicBool::new(false);
        tokio::select! {
            biased;
            response = self.send_with_retries(parts, body, options, &sent) => response,
            () = self.health.until_disconnected() => Err(if sent.into_inner() {
                ForwardError::NoResponse
            } else {
                ForwardError::Disconnected
            }),
        }
    }

    /// Waits for the first frame of a response's body. Until the head goes to the client the store can
    /// answer in its place, and the head alone is of no use to a client.
    ///
    /// # Errors
    /// The body broke off, or the link was found dead.
    pub(crate) async fn first_frame<T: BodyTee>(
        &self,
        body: &mut CloudBody<T>,
    ) -> Result<(), ForwardError> {
        tokio::select! {
            biased;
            first = body.first_frame() => {
                first.inspect_err(|_| self.health.signal(Signal::Failed))?;
                Ok(())
            }
            () = self.health.until_disconnected() => Err(ForwardError::NoBody),
        }
    }

    /// Ends an exchange with [`ForwardError::NoResponse`] when the cloud is found to be disconnected.
    /// While it waits in silence, the cloud is probed.
    pub(crate) async fn or_disconnected<T>(
        &self,
        exchange: Pin<&mut impl Future<Output = Result<T, ForwardError>>>,
    ) -> Result<T, ForwardError> {
        tokio::select! {
            biased;
            result = self.health.probe_while_silent(exchange) => result,
            () = self.health.until_disconnected() => Err(ForwardError::NoResponse),
        }
    }

    async fn send_with_retries(
        &self,
        parts: &Parts,
        body: Option<Upload>,
        options: SendOptions,
        sent: &AtomicBool,
    ) -> Result<(Response<Incoming>, StreamPermit), ForwardError> {
        let bodyless = body.is_none();
        let mut request = self.upstream_request(parts, body);
        let mut attempt = 0;
        loop {
            attempt += 1;
            let mut lease = self.acquire(options, attempt).await?;
            let copy = bodyless.then(|| clone_bodyless(&request));
            set_request_target(&mut request, &lease.sender);
            let began = Instant::now();
            sent.store(true, Ordering::Relaxed);
            let failed = match self.send_once(&mut lease, request).await {
                Ok(response) => {
                    self.health
                        .record_response(response.status(), began.elapsed());
                    return Ok((response, self.pool.release_sender(lease)));
                }
                Err(failed) => *failed,
            };
            let delivery = delivery_of(&failed);
            sent.store(delivery == Delivery::Unknown, Ordering::Relaxed);
            let retry = options.allows_retry(delivery, attempt);
            match failed.returned.or(copy).filter(|_| retry) {
                Some(again) => request = again,
                None => return Err(self.report_failure(failed.error, delivery)),
            }
        }
    }

    fn report_failure(&self, error: hyper::Error, delivery: Delivery) -> ForwardError {
        match delivery {
            // Neither of the first two is a failure of the cloud.
            _ if is_upload_error(&error) => ForwardError::Upload(error),
            Delivery::NotSent | Delivery::NotProcessed => ForwardError::NotProcessed(error),
            Delivery::Unknown => {
                self.health.signal(Signal::Failed);
                ForwardError::Broken(error)
            }
        }
    }

    async fn acquire(&self, options: SendOptions, attempt: u32) -> Result<Lease, DialError> {
        // A server may close an idle connection just when a request is on its way there, which only a
        // retryable one may be exposed to.
        let reuse = if options.retryable && attempt == 1 {
            Reuse::Allowed
        } else {
            Reuse::Forbidden
        };
        self.pool
            .acquire(options.client, options.class, reuse)
            .await
            .inspect_err(|error| self.signal_dial_error(error))
    }

    fn upstream_request(&self, parts: &Parts, body: Option<Upload>) -> Request<Upload> {
        let headers = upstream_headers(parts, body.as_ref());
        let mut request = Request::new(body.unwrap_or_else(|| Either::Right(Full::default())));
        let path = parts.uri.path_and_query();
        let path = path.map(http::uri::PathAndQuery::as_str);
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = self.pool.dialer().server_uri(path);
        *request.headers_mut() = headers;
        request
    }

    /// Sends a request once. While its connection alone stays silent, new requests are kept off that.
    async fn send_once(
        &self,
        lease: &mut Lease,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, Box<SendError>> {
        let Lease { sender, permit } = lease;
        let mut sending = std::pin::pin!(sender.try_send(request));
        tokio::select! {
            biased;
            result = &mut sending => result,
            () = self.health.until_silent_alone(permit.connection()) => {
                permit.quarantine();
                sending.await
            }
        }
    }

    fn signal_dial_error(&self, error: &DialError) {
        if error.is_local() {
            return;
        }
        self.health.signal(if error.is_refused() {
            Signal::Refused
        } else {
            Signal::Failed
        });
    }
}

fn upstream_headers(parts: &Parts, body: Option<&Upload>) -> HeaderMap {
    let mut headers = end_to_end_headers(&parts.headers);
    if body.is_none() {
        // A length without a body would be taken from the next request on the connection.
        headers.remove(header::CONTENT_LENGTH);
    }
    headers
}

fn delivery_of(failed: &SendError) -> Delivery {
    if failed.returned.is_some() || is_unprocessed(&failed.error) {
        Delivery::NotProcessed
    } else {
        Delivery::Unknown
    }
}

/// The server has not processed the request, by its own account: with a GOAWAY that excludes it, or with
/// `REFUSED_STREAM` (RFC 9113 §8.7).
pub(super) fn is_unprocessed(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    source
        .and_then(|source| source.downcast_ref::<h2::Error>())
        .is_some_and(|error| error.is_remote() && (error.is_go_away() || is_refused_stream(error)))
}

fn is_refused_stream(error: &h2::Error) -> bool {
    error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM)
}

/// The client's body broke off, or had another length than announced.
fn is_upload_error(error: &hyper::Error) -> bool {
    let Some(source) = std::error::Error::source(error) else {
        return false;
    };
    // hyper reports a connection task that is gone as a user error, too, but without this source.
    error.is_user() && source.is::<hyper::Error>()
        || source.downcast_ref().is_some_and(is_local_reset)
}

fn is_local_reset(error: &h2::Error) -> bool {
    error.is_reset() && !error.is_remote() && !error.is_library()
}

fn clone_bodyless(request: &Request<Upload>) -> Request<Upload> {
    let mut copy = Request::new(Either::Right(Full::default()));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reads_of_the_apis_own_data_are_retryable() {
        let table = [
            ("GET", "/api/v1/namespaces/a/pods/p", true),
            ("GET", "/api/v1/pods?watch=true", true),
            ("GET", "/version", true),
            (
                "POST",
                "/api/v1/namespaces/a/services/shop:80/proxy/order?item=1",
                false,
            ),
            (
                "GET",
                "/api/v1/namespaces/a/services/shop:80/proxy/order?item=1",
                false,
            ),
            ("GET", "/api/v1/namespaces/a/pods/p/proxy", false),
            ("GET", "/api/v1/nodes/n/proxy/run", false),
            ("GET", "/api/v1/namespaces/a/pods/p/exec?command=ls", false),
            ("GET", "/api/v1/namespaces/a/pods/p/attach", false),
            ("GET", "/api/v1/namespaces/a/pods/p/portforward", false),
            (
                "GET",
                "/api/v1/proxy/namespaces/a/services/shop/order",
                false,
            ),
            ("DELETE", "/api/v1/namespaces/a/pods/p", false),
            ("DELETE", "/api/v1/namespaces/a/pods", false),
            ("PUT", "/api/v1/namespaces/a/pods/p", false),
            ("PATCH", "/api/v1/namespaces/a/pods/p", false),
        ];
        for (method, uri, expected) in table {
            let (method, uri) = (method.parse().unwrap(), uri.parse().unwrap());
            let request = RequestInfo::parse(&method, &uri);
            assert_eq!(is_retryable(&request), expected, "{method} {uri}");
        }
    }

    #[test]
    fn a_request_that_may_have_been_processed_is_sent_again_once_and_only_if_retryable() {
        let options = |retryable| SendOptions {
            client: Client::Own,
            class: ConnectionClass::Unary,
            retryable,
        };
        for (retryable, delivery, expected) in [
            (false, Delivery::NotProcessed, [true, true, false]),
            (true, Delivery::NotProcessed, [true, true, false]),
            (false, Delivery::Unknown, [false, false, false]),
            (true, Delivery::Unknown, [true, false, false]),
        ] {
            let allowed = [1, 2, 3].map(|n| options(retryable).allows_retry(delivery, n));
            assert_eq!(allowed, expected, "{retryable} {delivery:?}");
        }
    }

    #[test]
    fn i3_only_hop_by_hop_headers_are_left_out() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Private"),
            ("x-private", "1"),
            ("upgrade", "h2c"),
            ("authorization", "Bearer t"),
            ("accept", "application/json"),
            ("impersonate-user", "u"),
        ] {
            headers.append(name, value.parse().unwrap());
        }
        let kept = end_to_end_headers(&headers);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "authorization", "impersonate-user"]);
    }
}
