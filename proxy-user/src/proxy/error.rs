//! Every error that hublet itself answers, as a Kubernetes `Status` with its HTTP code: one table.
//! Source: `k8s.io/apimachinery/pkg/api/errors`, wire forms as recorded from kube-apiserver 1.34.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use hublet_wire::status::{Status, StatusDetails};

use crate::local::SOURCE;
use crate::local::authorize::Denied;
use crate::local::error::LocalError;
use crate::proxy::body::Body;
use hublet_wire::media::Encoding;
use hublet_wire::request::Verb;

/// What hublet refuses, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The cloud is away and the store does not know: 503. No `Retry-After`, so that callers fail fast.
    Unknown(String),
    /// The cloud is away and this is a write: 503.
    WriteWhileAway(String),
    /// The cloud did not answer after the request was sent, so a write's outcome is not known: 504.
    OutcomeUnknown(String),
    /// The stored copy is in an encoding or version that the caller does not take: 503.
    Encoding(String),
    /// The cloud has refused the credential: 401.
    Unauthorized,
    /// The cloud has refused this, or has not been seen to allow it to anonymous callers: 403.
    Forbidden(String),
    /// The cloud said 404, remembered: 404.
    NotFound {
        group: String,
        resource: String,
        name: String,
    },
    /// A limit of ours is reached: 429 with `Retry-After: 1`.
    TooManyRequests,
    /// The store failed: 500.
    Store(String),
    /// A resourceVersion that can't be resumed from: 410 `Expired`.
    Expired(String),
    /// The request is malformed: 400.
    BadRequest(String),
}

impl From<LocalError> for Refusal {
    fn from(error: LocalError) -> Self {
        let message = error.to_string();
        match error {
            LocalError::Denied(Denied::Unauthorized) => Self::Unauthorized,
            LocalError::Denied(Denied::Forbidden { .. }) => Self::Forbidden(message),
            LocalError::Denied(_) | LocalError::NotCached(_) => Self::Unknown(message),
            LocalError::NotAcceptable(_) => Self::Encoding(message),
            LocalError::Expired(_) => Self::Expired(message),
            LocalError::Store(_) => Self::Store(message),
        }
    }
}

/// The refusal for a read that only the cloud can answer: logs, a scale and other subresources are never stored.
pub(crate) fn cloud_only_read(object: &str) -> Refusal {
    Refusal::from(LocalError::from(Denied::CloudOnly(object.to_owned())))
}

/// The message of a refused write.
pub(crate) fn write_unavailable_message(verb: Verb, object: &str) -> String {
    format!(
        "hublet: the cloud is away; this node can't {} {object} now",
        verb.as_str()
    )
}

impl Refusal {
    /// HTTP code, `reason` and message.
    fn parts(&self) -> (StatusCode, &'static str, String) {
        match self {
            Self::Unknown(what) | Self::WriteWhileAway(what) | Self::Encoding(what) => (
                StatusCode::SERVICE_UNAVAILABLE,
                "ServiceUnavailable",
                what.clone(),
            ),
            Self::OutcomeUnknown(what) => (StatusCode::GATEWAY_TIMEOUT, "Timeout", what.clone()),
            Self::Unauthorized => (
                StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "Unauthorized".to_owned(),
            ),
            Self::Forbidden(what) => (StatusCode::FORBIDDEN, "Forbidden", what.clone()),
            Self::NotFound {
                group,
                resource,
                name,
            } => {
                let dot = if group.is_empty() { "" } else { "." };
                (
                    StatusCode::NOT_FOUND,
                    "NotFound",
                    format!("{resource}{dot}{group} \"{name}\" not found"),
                )
            }
            Self::TooManyRequests => (
                StatusCode::TOO_MANY_REQUESTS,
                "TooManyRequests",
                "hublet: too many requests at once, please try again later".to_owned(),
            ),
            Self::Store(what) => (
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                what.clone(),
            ),
            Self::Expired(what) => (StatusCode::GONE, "Expired", what.clone()),
            Self::BadRequest(what) => (StatusCode::BAD_REQUEST, "BadRequest", what.clone()),
        }
    }

    /// The `Status` object in the given encoding, as the API server writes it.
    pub(crate) fn body(&self, encoding: Encoding) -> Bytes {
        let (code, reason, message) = self.parts();
        let details = match self {
            Self::NotFound {
                group,
                resource,
                name,
            } => Some(StatusDetails {
                name,
                group,
                resource,
            }),
            _ => None,
        };
        let status = Status {
            code: code.as_u16(),
            reason,
            message: &message,
            details,
        };
        status.encode(encoding).into()
    }

    pub(crate) fn response(&self, encoding: Encoding) -> Response<Body> {
        let mut response = Response::new(Body::full(self.body(encoding)));
        *response.status_mut() = self.parts().0;
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
        if *self == Self::TooManyRequests {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn not_found() -> Refusal {
        let (group, resource) = ("crd.projectcalico.org".into(), "ipamconfigs".into());
        Refusal::NotFound {
            group,
            resource,
            name: "default".into(),
        }
    }

    #[test]
    fn a_remembered_404_reads_as_the_api_server_wrote_it() {
        let expected = concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"#,
            r#""ipamconfigs.crd.projectcalico.org \"default\" not found","reason":"NotFound","details":"#,
            r#"{"name":"default","group":"crd.projectcalico.org","kind":"ipamconfigs"},"code":404}"#,
            "\n"
        );
        assert_eq!(not_found().body(Encoding::Json), expected);
    }

    /// Recorded: GET ipamconfigs/default with Accept protobuf,json at kube-apiserver 1.34.4.
    #[test]
    fn a_remembered_404_in_protobuf_is_the_recorded_one() {
        let hex = "6b3873000a0c0a0276311206537461747573128801\
            0a060a0012001a0012074661696c7572651a356970616d636f6e666967732e6372642e70726f6a65637463616c\
            69636f2e6f7267202264656661756c7422206e6f7420666f756e6422084e6f74466f756e642a310a0764656661756c74\
            12156372642e70726f6a65637463616c69636f2e6f72671a0b6970616d636f6e6669677328003200309403\
            1a002200";
        let hex: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let bytes: Vec<u8> = hex
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(not_found().body(Encoding::Protobuf), bytes);
    }

    #[test]
    fn only_a_limit_of_ours_says_when_to_come_back() {
        let away = Refusal::WriteWhileAway("x".into()).response(Encoding::Json);
        assert_eq!(away.status(), 503);
        assert!(!away.headers().contains_key("retry-after"));
        assert!(
            Refusal::TooManyRequests
                .response(Encoding::Json)
                .headers()
                .contains_key("retry-after")
        );
    }
}
