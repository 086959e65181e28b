//! The probe: `GET /readyz` on a connection of its own, so that a lack of permits for requests is never
//! taken for a disconnected cloud.
//!
//! The connection is kept, so that a probe costs one round trip and some hundred bytes. It speaks
//! HTTP/1.1: the API server answers HTTP/2 requests without a credential with GOAWAY (its
//! `UnauthenticatedHTTP2DOSMitigation`).

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use crate::cloud::dial::{Alpn, DialError, Dialer};
use crate::telemetry::Metrics;
use crate::text::with_causes;

/// Longest body of `/readyz`, in bytes, behind which the connection is kept.
const MAX_BODY_BYTES: usize = 64 << 10;
/// Longest time from the head of the response to the end of its body.
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProbeError {
    #[error(transparent)]
    Dial(#[from] DialError),
    #[error("the probe failed: {}", with_causes(.0))]
    Http(#[from] hyper::Error),
    #[error("the server's /readyz answered {0}")]
    NotReady(StatusCode),
    #[error("the cloud sent nothing for {} s after a probe", .0.as_secs_f32())]
    Timeout(Duration),
}

impl ProbeError {
    /// True for an error of this node rather than of the cloud: see [`DialError::is_local`].
    pub(crate) fn is_local(&self) -> bool {
        matches!(self, Self::Dial(error) if error.is_local())
    }
}

type Sender = SendRequest<Empty<Bytes>>;

#[derive(Debug)]
pub(crate) struct Prober {
    dialer: Dialer,
    kept: Mutex<Option<Sender>>,
    metrics: Arc<Metrics>,
}

impl Prober {
    pub(crate) fn new(dialer: Dialer, metrics: Arc<Metrics>) -> Self {
        Self {
            dialer,
            kept: Mutex::default(),
            metrics,
        }
    }

    /// Probes on the kept connection; `None` if there is none, or it was closed while idle, which is
    /// no failure of the cloud.
    pub(crate) async fn probe_kept(&self) -> Option<Result<(), ProbeError>> {
        let kept = self.kept.lock().take()?;
        let result = self.probe_on(kept).await;
        (!matches!(result, Err(ProbeError::Http(_)))).then_some(result)
    }

    /// Probes on a new connection, which is kept.
    ///
    /// # Errors
    /// The server can't be reached, or isn't ready.
    pub(crate) async fn probe_new(&self) -> Result<(), ProbeError> {
        let tls = Box::pin(self.dialer.dial(Alpn::Http1Only)).await?;
        self.metrics.cloud_connects.inc();
        let (sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
        // Ends when the sender is dropped.
        tokio::spawn(connection);
        self.probe_on(sender).await
    }

    /// Closes the kept connection.
    pub(crate) fn close(&self) {
        drop(self.kept.lock().take());
    }

    async fn probe_on(&self, mut sender: Sender) -> Result<(), ProbeError> {
        sender.ready().await?;
        let began = Instant::now();
        let response = sender.send_request(self.readyz_request()).await?;
        self.dialer.activity().record_round_trip(began.elapsed());
        let status = response.status();
        let body = read_body(response.into_body()).await;
        if body.is_some() {
            *self.kept.lock() = Some(sender);
        }
        if is_ready(status, body.as_deref()) {
            Ok(())
        } else {
            Err(ProbeError::NotReady(status))
        }
    }

    fn readyz_request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = Uri::from_static("/readyz");
        if let Some(host) = self.dialer.host_header() {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }
}

/// The body, if it is short and arrives in time.
async fn read_body(body: Incoming) -> Option<Bytes> {
    let body = Limited::new(body, MAX_BODY_BYTES).collect();
    let body = timeout(BODY_TIMEOUT, body).await.ok()?.ok()?;
    Some(body.to_bytes())
}

/// Anything but a 5xx comes from a living server: 401 and 403 from one that lets nobody look.
fn is_ready(status: StatusCode, body: Option<&[u8]>) -> bool {
    !status.is_server_error() || body.is_some_and(serves_despite_failed_checks)
}

/// Checks of `/readyz` without which requests would hang or be refused: of the storage, and of the
/// start (`autoregister-completion` before which not all API groups are served).
const ESSENTIAL_CHECKS: [&str; 4] = [
    "etcd",
    "poststarthook/",
    "autoregister-completion",
    "informer-sync",
];

/// True if the API server lists its checks (`k8s.io/apiserver/pkg/server/healthz`) and none of those that
/// failed stops requests: a key management service, or a shutdown, which is announced before it
/// begins. A proxy in front of a dead server lists nothing.
fn serves_despite_failed_checks(body: &[u8]) -> bool {
    let text = String::from_utf8_lossy(body);
    let failed = text.lines().filter_map(|line| line.strip_prefix("[-]"));
    let mut failed = failed.peekable();
    failed.peek().is_some() && text.contains("[+]ping ok") && !failed.any(is_essential)
}

fn is_essential(check: &str) -> bool {
    ESSENTIAL_CHECKS.iter().any(|name| check.starts_with(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_is_no_outage_unless_requests_would_fail_as_well() {
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
            let body = list(check);
            assert_eq!(
                serves_despite_failed_checks(body.as_bytes()),
                serves,
                "{check}"
            );
        }
        let two = format!("{}[-]etcd failed\n", list("shutdown"));
        assert!(!serves_despite_failed_checks(two.as_bytes()));
        for body in ["", "no healthy upstream", "[+]ping ok\n", "[-]ping failed"] {
            assert!(!serves_despite_failed_checks(body.as_bytes()), "{body:?}");
        }
    }

    #[test]
    fn a_status_below_500_comes_from_a_living_server() {
        let shutdown = b"[+]ping ok\n[-]shutdown failed\n".as_slice();
        for (status, body, ready) in [
            (200, None, true),
            (401, None, true),
            (403, None, true),
            (404, None, true),
            (429, None, true),
            (500, None, false),
            (500, Some(shutdown), true),
            (500, Some(b"".as_slice()), false),
            (502, None, false),
            (503, None, false),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(is_ready(status, body), ready, "{status} {body:?}");
        }
    }
}
