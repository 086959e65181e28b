//! The protocol of a request: HTTP, or a stream that leaves HTTP.

use http::{HeaderMap, HeaderName, header};
use hublet_wire::request::{RequestInfo, Verb};

/// The protocol of a request's connection after its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Http,
    /// SPDY or WebSocket: exec, attach, port-forward, watches by WebSocket.
    Upgrade,
}

impl Protocol {
    /// The protocol that a request asks for. It leaves HTTP where the API server would let it: by SPDY or WebSocket to a
    /// subresource (exec, attach, port-forward, proxy, and those of aggregated servers), or by WebSocket to a watch. Elsewhere
    /// the API server ignores `Upgrade`.
    ///
    /// Source: `k8s.io/apimachinery/pkg/util/httpstream`, `k8s.io/apiserver/pkg/endpoints/handlers/watch.go`.
    pub(super) fn of(headers: &HeaderMap, request: &RequestInfo) -> Self {
        if !headers.contains_key(header::UPGRADE)
            || !has_token(headers, &header::CONNECTION, "upgrade")
        {
            return Self::Http;
        }
        let is_websocket = has_token(headers, &header::UPGRADE, "websocket")
            && headers.contains_key(header::SEC_WEBSOCKET_KEY);
        let is_upgrade = if request.verb() == Verb::Watch {
            is_websocket
        } else {
            may_stream(request)
                && (is_websocket || has_token(headers, &header::UPGRADE, "SPDY/3.1"))
        };
        if is_upgrade {
            Self::Upgrade
        } else {
            Self::Http
        }
    }
}

/// True if a list header (RFC 9110 §5.6.1) has this token.
fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// True of most subresources, and of a request that is not understood, which may be to one.
fn may_stream(request: &RequestInfo) -> bool {
    request
        .understood()
        .is_none_or(|request| !matches!(request.subresource(), "" | "status" | "scale"))
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
        Protocol::of(request.headers(), &info) == Protocol::Upgrade
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
