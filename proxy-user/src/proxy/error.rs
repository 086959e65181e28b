//! Failures of requests: the side that failed, the delivery to the cloud, and the `Status` for the client.

use std::borrow::Cow;
use std::error::Error;

use http::{HeaderValue, Response, StatusCode, header};
use hublet_wire::media::Encoding;
use hublet_wire::request::RequestInfo;
use hublet_wire::status::Status;

use super::body::Body;
use super::route::Refusal;
use crate::authz::authorizer::Denied;
use crate::cloud::dial::DialError;
use crate::cloud::forward::{Delivery, ForwardError};
use crate::cloud::upload::STALL_TIMEOUT;
use crate::local::SOURCE;
use crate::local::error::LocalError;
use crate::text::with_causes;

/// A failed request.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct ProxyError {
    kind: ErrorKind,
    sent: Sent,
    /// The `message` of the `Status`.
    message: Cow<'static, str>,
    #[source]
    source: Option<Box<dyn Error + Send + Sync>>,
}

/// The class of a failure: it determines status code, `reason` and side.
///
/// Source of codes and reasons: `k8s.io/apimachinery/pkg/api/errors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ErrorKind {
    /// The request is malformed (400).
    BadRequest,
    /// The cloud has rejected the credential (401).
    Unauthorized,
    /// The cloud has refused this to the caller, or has not been seen to allow it to anonymous callers (403).
    Forbidden,
    /// A resourceVersion or continue token that cannot be resumed from (410).
    Expired,
    /// A limit of hublet's is reached (429).
    TooManyRequests,
    /// The store failed (500).
    StoreFailed,
    /// The cloud is away and the store does not know the answer (503).
    NotCached,
    /// The stored copy is in an encoding or version that the request does not accept (503).
    NotAcceptable,
    /// The cloud is away and this is a write (503).
    WriteUnavailable,
    /// The cloud did not process the request, so nothing was changed (503).
    NotTaken,
    /// The cloud did not respond after it was sent the request: the outcome of a write is not known (504).
    OutcomeUnknown,
}

/// The party that a failure comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Side {
    Client,
    Cloud,
    Store,
    Hublet,
}

/// Delivery of a request to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    No,
    Perhaps,
}

impl ErrorKind {
    /// HTTP status code and `metav1.StatusReason`.
    ///
    /// No 503 has a `Retry-After`, so that callers fail fast and use the data that they have.
    fn status(self) -> (StatusCode, &'static str) {
        match self {
            Self::BadRequest => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::Forbidden => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::Expired => (StatusCode::GONE, "Expired"),
            Self::TooManyRequests => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::StoreFailed => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::NotCached | Self::NotAcceptable | Self::WriteUnavailable | Self::NotTaken => {
                (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable")
            }
            Self::OutcomeUnknown => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
        }
    }

    fn side(self) -> Side {
        match self {
            Self::BadRequest => Side::Client,
            Self::Unauthorized | Self::Forbidden | Self::TooManyRequests => Side::Hublet,
            Self::Expired | Self::StoreFailed | Self::NotCached | Self::NotAcceptable => {
                Side::Store
            }
            Self::WriteUnavailable | Self::NotTaken | Self::OutcomeUnknown => Side::Cloud,
        }
    }

    /// The name of the kind in logs, metrics and `hublet status`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::Unauthorized => "unauthorized",
            Self::Forbidden => "forbidden",
            Self::Expired => "expired",
            Self::TooManyRequests => "too-many-requests",
            Self::StoreFailed => "store-failed",
            Self::NotCached => "not-cached",
            Self::NotAcceptable => "not-acceptable",
            Self::WriteUnavailable => "write-unavailable",
            Self::NotTaken => "not-taken",
            Self::OutcomeUnknown => "outcome-unknown",
        }
    }
}

impl ProxyError {
    fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            sent: Sent::No,
            message: message.into(),
            source: None,
        }
    }

    /// Adds the cause, for the log.
    fn caused_by(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Box::new(source));
        self
    }

    pub(crate) fn too_many_requests() -> Self {
        Self::new(
            ErrorKind::TooManyRequests,
            "hublet: too many requests at once, please try again later",
        )
    }

    pub(crate) fn bad_request(message: String) -> Self {
        Self::new(ErrorKind::BadRequest, message)
    }

    /// A write, or a request that leaves HTTP, while the cloud is away.
    pub(crate) fn write_unavailable(request: &RequestInfo) -> Self {
        let (verb, object) = (request.verb().as_str(), request.describe());
        Self::new(
            ErrorKind::WriteUnavailable,
            format!("hublet: the cloud is away; this node can't {verb} {object} now"),
        )
    }

    /// A read that only the cloud can answer, since hublet does not understand all of its path and query.
    pub(crate) fn not_understood(request: &RequestInfo) -> Self {
        Self::new(
            ErrorKind::NotCached,
            format!(
                "hublet: the cloud is away, and only the cloud understands the path or a parameter of this request for {}",
                request.describe()
            ),
        )
    }

    /// The server stopped reading the request's body before it responded.
    pub(crate) fn upload_stalled(request: &RequestInfo) -> Self {
        let (verb, seconds) = (request.verb().as_str(), STALL_TIMEOUT.as_secs());
        Self::outcome_unknown(format!(
            "hublet: the server has read none of this {verb}'s body for {seconds} s: its outcome is unknown"
        ))
    }

    /// A request that its route refuses.
    pub(crate) fn refused(refusal: Refusal, request: &RequestInfo) -> Self {
        match refusal {
            Refusal::WriteUnavailable => Self::write_unavailable(request),
            Refusal::NotUnderstood => Self::not_understood(request),
            Refusal::NoStore => Self::new(
                ErrorKind::NotCached,
                "hublet: the cloud is away, and --working-mode=cloud has no store to answer from",
            ),
            Refusal::UpgradeUnavailable => Self::not_upgraded(ForwardError::Disconnected),
        }
    }

    /// A request that was to be forwarded and got no response.
    pub(crate) fn not_forwarded(request: &RequestInfo, error: ForwardError) -> Self {
        let failed = match &error {
            // A limit of hublet's own is no failure of the cloud.
            ForwardError::Dial(DialError::Busy) => Self::too_many_requests(),
            ForwardError::Upload(_) => Self::bad_request(format!("hublet: {error}")),
            _ => Self::not_delivered(request, &error),
        };
        failed.caused_by(error)
    }

    fn not_delivered(request: &RequestInfo, error: &ForwardError) -> Self {
        let verb = request.verb();
        match error.delivery() {
            Delivery::NotSent if verb.is_read() => {
                LocalError::from(Denied::CloudOnly(request.describe())).into()
            }
            Delivery::NotSent => Self::write_unavailable(request),
            Delivery::NotProcessed => Self::new(
                ErrorKind::NotTaken,
                format!("hublet: {error}; nothing was changed"),
            ),
            Delivery::Unknown => Self::outcome_unknown(format!(
                "hublet: the link to the cloud broke before the response: the outcome of this {} is unknown",
                verb.as_str()
            )),
        }
    }

    /// An upgrade (exec, attach, port-forward) that was not established.
    pub(crate) fn not_upgraded(error: ForwardError) -> Self {
        let message = format!("hublet: can't open a stream to the cloud: {error}");
        let failed = match error.delivery() {
            Delivery::Unknown => Self::outcome_unknown(message),
            _ => Self::new(ErrorKind::NotTaken, message),
        };
        failed.caused_by(error)
    }

    fn outcome_unknown(message: String) -> Self {
        Self {
            sent: Sent::Perhaps,
            ..Self::new(ErrorKind::OutcomeUnknown, message)
        }
    }

    /// Adds the cloud's error as the cause of the store's: the client gets only the store's, the log both.
    pub(crate) fn after_forwarding(self, error: ForwardError) -> Self {
        self.caused_by(error)
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// Logs the error with its causes; `describe` names the request.
    pub(crate) fn log(&self, describe: impl FnOnce() -> String) {
        tracing::debug!(
            kind = self.kind.as_str(),
            side = ?self.kind.side(),
            sent = ?self.sent,
            "{}: {}",
            describe(),
            with_causes(self)
        );
    }

    /// The response that the client gets.
    pub(crate) fn to_response(&self, encoding: Encoding) -> Response<Body> {
        let status = Status::from(self);
        let mut response = Response::new(Body::full(status.encode(encoding)));
        *response.status_mut() = self.kind.status().0;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static(encoding.content_type()),
        );
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        headers.insert(SOURCE, HeaderValue::from_static("hublet"));
        if self.kind == ErrorKind::TooManyRequests {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl<'a> From<&'a ProxyError> for Status<'a> {
    fn from(error: &'a ProxyError) -> Self {
        let (code, reason) = error.kind.status();
        Self {
            code: code.as_u16(),
            reason,
            message: &error.message,
            details: None,
        }
    }
}

impl From<LocalError> for ProxyError {
    fn from(error: LocalError) -> Self {
        Self::new(ErrorKind::from(&error), error.to_string()).caused_by(error)
    }
}

impl From<&LocalError> for ErrorKind {
    fn from(error: &LocalError) -> Self {
        match error {
            LocalError::Denied(Denied::Unauthorized) => Self::Unauthorized,
            LocalError::Denied(Denied::Forbidden { .. }) => Self::Forbidden,
            LocalError::Denied(_) | LocalError::NotCached(_) => Self::NotCached,
            LocalError::NotAcceptable(_) => Self::NotAcceptable,
            LocalError::Expired(_) => Self::Expired,
            LocalError::NoRoom => Self::TooManyRequests,
            LocalError::Store(_) => Self::StoreFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;

    fn request(method: &str, path: &str) -> RequestInfo {
        let method: Method = method.parse().unwrap();
        RequestInfo::parse(&method, &path.parse().unwrap())
    }

    #[test]
    fn only_hublets_own_limits_have_a_retry_after() {
        let patch = request("PATCH", "/api/v1/namespaces/a/pods/p");
        let away = ProxyError::write_unavailable(&patch).to_response(Encoding::Json);
        assert_eq!(away.status(), 503);
        assert!(!away.headers().contains_key("retry-after"));
        let busy = ProxyError::too_many_requests().to_response(Encoding::Json);
        assert_eq!(busy.status(), 429);
        assert!(busy.headers().contains_key("retry-after"));
    }

    #[test]
    fn i1_only_a_request_that_the_cloud_may_have_has_an_unknown_outcome() {
        let patch = request("PATCH", "/api/v1/namespaces/a/pods/p");
        let away = ProxyError::not_forwarded(&patch, ForwardError::Disconnected);
        assert_eq!(
            (away.kind(), away.sent),
            (ErrorKind::WriteUnavailable, Sent::No)
        );
        let lost = ProxyError::not_forwarded(&patch, ForwardError::NoResponse);
        assert_eq!(
            (lost.kind(), lost.sent),
            (ErrorKind::OutcomeUnknown, Sent::Perhaps)
        );
        assert_eq!(lost.to_response(Encoding::Json).status(), 504);
        assert!(lost.source().unwrap().to_string().contains("found dead"));
    }
}
