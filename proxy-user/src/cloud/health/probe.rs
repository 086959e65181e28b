//! The probe: `GET /readyz` on a connection of its own, so that no want of places among requests is ever taken for the
//! cloud's absence. In: a question. Out: whether the server is ready, or why not.
//!
//! The connection is kept, so that a question costs one round trip and some hundred bytes. It speaks HTTP/1.1: the API
//! server answers HTTP/2 requests without a credential with GOAWAY (its `UnauthenticatedHTTP2DOSMitigation`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cloud::dial::{DialError, Dialer};
use crate::cloud::pool::uri;
use crate::telemetry::Metrics;
use crate::text::with_causes;

/// Longest body of `/readyz` behind which the connection is kept, in bytes, and in time behind its head.
const BODY: (usize, Duration) = (64 << 10, Duration::from_secs(1));

/// Why a probe says that the cloud isn't there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the probe failed: {}", with_causes(.0))]
    Http(#[from] hyper::Error),
    /// A server that isn't ready.
    #[error("the server's /readyz answered {0}")]
    NotReady(http::StatusCode),
    /// Nothing was heard in time.
    #[error("nothing heard for {} s after a probe", .0.as_secs_f32())]
    Timeout(Duration),
}

impl ProbeError {
    /// This node lacks something (a file descriptor, a port): that tells nothing of the cloud.
    pub(crate) fn is_ours(&self) -> bool {
        matches!(self, Self::Dial(error) if error.is_ours())
    }
}

type Sender = SendRequest<Empty<Bytes>>;

#[derive(Debug)]
pub(crate) struct Probe {
    dialer: Dialer,
    kept: Mutex<Option<Sender>>,
    metrics: Arc<Metrics>,
}

impl Probe {
    /// Of one server; nothing is opened yet.
    pub(crate) fn new(dialer: Dialer, metrics: Arc<Metrics>) -> Self {
        Self {
            dialer,
            kept: Mutex::new(None),
            metrics,
        }
    }

    /// Asks on the kept connection; `None` when there is none, or it was closed while it lay idle, which tells nothing.
    pub(crate) async fn ask_kept(&self) -> Option<Result<(), ProbeError>> {
        let kept = self.kept.lock().take()?;
        let answer = self.exchange(kept).await;
        (!matches!(answer, Err(ProbeError::Http(_)))).then_some(answer)
    }

    /// Asks on a new connection, and keeps that.
    ///
    /// # Errors
    /// The server isn't there, or isn't ready.
    pub(crate) async fn ask_anew(&self) -> Result<(), ProbeError> {
        let tls = Box::pin(self.dialer.dial(true)).await?;
        self.metrics.cloud_connects.inc();
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        // Ends when the sender is dropped.
        tokio::spawn(connection);
        self.exchange(sender).await
    }

    /// Closes the kept connection.
    pub(crate) fn close(&self) {
        drop(self.kept.lock().take());
    }

    async fn exchange(&self, mut sender: Sender) -> Result<(), ProbeError> {
        sender.ready().await?;
        let asked = Instant::now();
        let response = sender.send_request(self.question()).await?;
        self.dialer.heard().took(asked.elapsed());
        let status = response.status();
        let body = Limited::new(response.into_body(), BODY.0).collect();
        let body = tokio::time::timeout(BODY.1, body)
            .await
            .ok()
            .and_then(Result::ok);
        let body = body.map(|body| body.to_bytes());
        if body.is_some() {
            *self.kept.lock() = Some(sender);
        }
        // 401 and 403 come from a living server that lets nobody look.
        if status.is_server_error() && !body.is_some_and(|body| serves_nevertheless(&body)) {
            return Err(ProbeError::NotReady(status));
        }
        Ok(())
    }

    fn question(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = http::Uri::from_static("/readyz");
        let authority = uri(self.dialer.server(), None)
            .authority()
            .map(ToString::to_string);
        if let Some(Ok(host)) = authority.map(http::HeaderValue::try_from) {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }
}

/// An API server that lists its checks (`k8s.io/apiserver/pkg/server/healthz`), of which some fail that leave most requests
/// served: a key management service's, or that of a shutdown, which is announced before it begins. While the storage
/// fails, or the start has not ended, requests would hang or be refused; and what stands in front of a dead server lists
/// nothing.
fn serves_nevertheless(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let mut failed = text
        .lines()
        .filter_map(|line| line.strip_prefix("[-]"))
        .peekable();
    // `autoregister-completion` is of the start, too: not all API groups are served before.
    let stopping = [
        "etcd",
        "poststarthook/",
        "autoregister-completion",
        "informer-sync",
    ];
    let stops = |check: &str| stopping.iter().any(|name| check.starts_with(name));
    failed.peek().is_some() && text.contains("[+]ping ok") && !failed.any(stops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_fails_is_no_absence_unless_requests_would_fail_as_well() {
        let list = |check: &str| {
            format!(
                "[+]ping ok\n[+]log ok\n[-]{check} failed: reason withheld\nreadyz check failed\n"
            )
        };
        for (check, serves) in [
            ("kms-providers", true),
            ("shutdown", true),
            ("etcd", false),
            ("etcd-readiness", false),
            ("informer-sync", false),
            ("poststarthook/rbac/bootstrap-roles", false),
            ("autoregister-completion", false),
        ] {
            assert_eq!(
                serves_nevertheless(list(check).as_bytes()),
                serves,
                "{check}"
            );
        }
        for body in ["", "no healthy upstream", "[+]ping ok\n", "[-]ping failed"] {
            assert!(!serves_nevertheless(body.as_bytes()), "{body:?}");
        }
    }
}
