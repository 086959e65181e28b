//! Sends one request to the cloud. In: the client's request. Out: the head of the answer and its body, or why there is
//! none. Ends at once when the cloud is found to be away.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderName, Request, Response, header};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use super::dial::DialError;
use super::health::{Health, Signal};
use super::pool::{Place, Sender, Stream, Upstreams, Way, set_host, uri};
use crate::authz::caller::Client;
use crate::cloud::upload::Upload;
use crate::proxy::body::{Body, BodyError};
use crate::text::with_causes;
use hublet_wire::request::{ApiRequest, Reading};

/// Attempts to send a request that connections gave back untouched.
const TRIES: u32 = 3;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    /// Nothing has been sent.
    #[error("{0}")]
    NotSent(#[from] DialError),
    /// The cloud is away; nothing has been sent.
    #[error("the cloud is away")]
    Away,
    /// The server closed the connection without taking the request: nothing was done.
    #[error("the cloud did not take the request: {0}")]
    NotTaken(String),
    /// Sent, and then the link broke: what became of it isn't known.
    #[error("the cloud's connection broke after the request was sent: {0}")]
    Lost(String),
    /// The caller's upload broke off before its end, and the request with it.
    #[error("the request's body broke off: {0}")]
    Upload(String),
}

/// Headers that belong to one connection, not to the request (RFC 9110 §7.6.1).
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

/// Everything but the hop-by-hop headers, those that `Connection` names among them.
pub(crate) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    let mut out = HeaderMap::with_capacity(headers.len() + 2);
    for (name, value) in headers {
        if !HOP_BY_HOP.contains(name) && !named.iter().any(|n| n == name.as_str()) {
            out.append(name, value.clone());
        }
    }
    out
}

/// How a request may be sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    /// Whose it is.
    pub client: Client,
    /// Which connections it may take.
    pub way: Way,
    /// It may be sent once more although the server may have taken it: see [`is_repeatable`].
    pub repeatable: bool,
}

/// A read of the API's own data, which does nothing however often it is asked. What is behind a proxy, or starts a
/// program, is none, whatever its method; nor is what isn't understood.
pub(crate) fn is_repeatable(reading: &Reading<'_>) -> bool {
    let beyond = ["proxy", "exec", "attach", "portforward"];
    let data = |request: &ApiRequest<'_>| !beyond.contains(&request.subresource.as_ref());
    reading.verb.is_read() && reading.understood().is_some_and(data)
}

#[derive(Debug)]
pub(crate) struct Cloud {
    /// The connections.
    pub upstreams: Arc<Upstreams>,
    /// The state.
    pub health: Arc<Health>,
}

impl Cloud {
    /// Sends a request and waits for the head of its answer.
    ///
    /// # Errors
    /// See [`ForwardError`]; each has already been told to [`Health`].
    pub(crate) async fn send(
        &self,
        parts: &Parts,
        body: Option<Upload>,
        terms: Terms,
    ) -> Result<(Response<Incoming>, Place), ForwardError> {
        let sent = AtomicBool::new(false);
        tokio::select! {
            biased;
            answer = self.exchange(parts, body, terms, &sent) => answer,
            () = self.health.away() => Err(match sent.into_inner() {
                true => ForwardError::Lost("no answer before the link was found dead".into()),
                false => ForwardError::Away,
            }),
        }
    }

    /// Waits until the body of a read's answer has begun. The head alone is of no use to who asked, and while it isn't
    /// passed on, the store can still answer in its place.
    ///
    /// # Errors
    /// The answer broke off, or the link was found dead.
    pub(crate) async fn begun(&self, body: &mut Body) -> Result<(), ForwardError> {
        let broken = |error: BodyError| {
            self.health.signal(Signal::Failed);
            ForwardError::Lost(error.to_string())
        };
        tokio::select! {
            biased;
            begun = body.begin() => begun.map_err(broken),
            () = self.health.away() => {
                Err(ForwardError::Lost("nothing behind the answer's head before the link was found dead".into()))
            }
        }
    }

    /// The result of an upgrade, which ends at once when the cloud is found to be away, as every request does.
    ///
    /// # Errors
    /// The upgrade's own, or [`ForwardError::Lost`].
    pub(crate) async fn until_away<T>(
        &self,
        answer: impl Future<Output = Result<T, ForwardError>>,
    ) -> Result<T, ForwardError> {
        tokio::select! {
            biased;
            answer = self.health.attended(answer) => answer,
            () = self.health.away() => Err(ForwardError::Lost("no answer before the link was found dead".into())),
        }
    }

    async fn exchange(
        &self,
        parts: &Parts,
        body: Option<Upload>,
        terms: Terms,
        sent: &AtomicBool,
    ) -> Result<(Response<Incoming>, Place), ForwardError> {
        let whole = body.is_none();
        let mut request = self.outgoing(parts, body);
        let mut tries = 0;
        loop {
            tries += 1;
            // A server that closes an idle connection may do so with the request on its way: that is for reads only.
            let reuse = terms.repeatable && tries == 1;
            let stream = self.upstreams.stream(terms.client, terms.way, reuse).await;
            let mut stream = stream.inspect_err(|error| self.failed(error))?;
            let copy = whole.then(|| copy(&request));
            set_host(&mut request, &stream.sender);
            let began = Instant::now();
            sent.store(true, Ordering::Relaxed);
            let failed = match self.once(&mut stream, request).await {
                Ok(response) => {
                    self.health.head(response.status(), began.elapsed());
                    return Ok((response, self.upstreams.answered(stream)));
                }
                Err(failed) => *failed,
            };
            let (error, back) = failed;
            let taken = back.is_none() && !was_not_taken(&error);
            sent.store(taken, Ordering::Relaxed);
            let again = if taken {
                terms.repeatable && tries < 2
            } else {
                tries < TRIES
            };
            match back.or(copy) {
                Some(same) if again => request = same,
                _ if was_broken_by_its_caller(&error) => {
                    return Err(ForwardError::Upload(with_causes(&error)));
                }
                _ if taken => {
                    self.health.signal(Signal::Failed);
                    return Err(ForwardError::Lost(error.to_string()));
                }
                _ => return Err(ForwardError::NotTaken(error.to_string())),
            }
        }
    }

    /// The request that goes to the cloud.
    fn outgoing(&self, parts: &Parts, body: Option<Upload>) -> Request<Upload> {
        let server = self.upstreams.dialer().server();
        let mut headers = end_to_end(&parts.headers);
        if body.is_none() {
            // A length without a body would be taken from the next request on the connection.
            headers.remove(header::CONTENT_LENGTH);
        }
        let mut request = Request::new(body.unwrap_or_else(|| Either::Right(Full::default())));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = uri(
            server,
            parts
                .uri
                .path_and_query()
                .map(http::uri::PathAndQuery::as_str),
        );
        *request.headers_mut() = headers;
        request
    }

    /// Sends it. Where its connection alone stays silent, others are kept off that: it may have died by itself.
    async fn once(
        &self,
        stream: &mut Stream,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, Box<(hyper::Error, Option<Request<Upload>>)>> {
        let Stream { sender, place } = stream;
        let mut tried = std::pin::pin!(async {
            match sender {
                Sender::H2(sender) => sender.try_send_request(request).await,
                Sender::H1(sender) => sender.try_send_request(request).await,
            }
        });
        let tried = tokio::select! {
            biased;
            tried = &mut tried => tried,
            () = self.health.alone(&place.line) => {
                place.leave();
                tried.await
            }
        };
        tried.map_err(|mut failed| {
            let back = failed.take_message();
            Box::new((failed.into_error(), back))
        })
    }

    fn failed(&self, error: &DialError) {
        match error {
            error if error.is_ours() => {}
            error if error.is_refused() => self.health.signal(Signal::Refused),
            _ => self.health.signal(Signal::Failed),
        }
    }
}

/// The server says itself that it has done nothing with the request: a GOAWAY that leaves it out, or `REFUSED_STREAM`
/// (RFC 9113 §8.7).
fn was_not_taken(error: &hyper::Error) -> bool {
    let Some(error) = std::error::Error::source(error).and_then(|e| e.downcast_ref::<h2::Error>())
    else {
        return false;
    };
    error.is_remote()
        && (error.is_go_away()
            || error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM))
}

/// The caller's body broke off, or took another length than was said: that tells nothing of the cloud.
fn was_broken_by_its_caller(error: &hyper::Error) -> bool {
    let Some(cause) = std::error::Error::source(error) else {
        return false;
    };
    let reset = |e: &h2::Error| e.is_reset() && !e.is_remote() && !e.is_library();
    // hyper calls it the user's error, too, when a connection's task is gone.
    error.is_user() && cause.is::<hyper::Error>() || cause.downcast_ref().is_some_and(reset)
}

/// The same request again; it has no body.
fn copy(request: &Request<Upload>) -> Request<Upload> {
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
    fn only_reads_of_the_apis_own_data_are_repeated() {
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
            let request = ApiRequest::parse(&method, &uri);
            assert_eq!(is_repeatable(&request), expected, "{method} {uri}");
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
        let kept = end_to_end(&headers);
        let mut names: Vec<&str> = kept.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["accept", "authorization", "impersonate-user"]);
    }
}
