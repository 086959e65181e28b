//! What the listeners count. Fixed slots, relaxed atomics; rendered into `/metrics` and `/v1/status`.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde_json::json;

use super::failures::Failures;
use crate::proxy::connection::Port;

/// Counters of all listeners.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    plain: AtomicU64,
    secure: AtomicU64,
    over_limit: AtomicU64,
    accept_errors: AtomicU64,
    handshake_errors: AtomicU64,
    plain_on_secure: AtomicU64,
    slow: AtomicU64,
    stalled: AtomicU64,
    idle: AtomicU64,
    probes_failed: AtomicU64,
    /// Where the self-probe under way comes from.
    probe: Mutex<Option<SocketAddr>>,
    pub(super) failures: Failures,
}

/// A self-probe under way, until it is dropped.
pub(super) struct Probing<'a>(&'a Counters);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        *self.0.probe.lock() = None;
    }
}

impl Counters {
    pub(super) fn accepted(&self, port: Port) {
        let slot = match port {
            Port::Plain => &self.plain,
            Port::Secure => &self.secure,
        };
        slot.fetch_add(1, Relaxed);
    }
    /// Returns how many have been closed for the limit's sake.
    pub(super) fn over_limit(&self) -> u64 {
        self.over_limit.fetch_add(1, Relaxed) + 1
    }
    pub(super) fn accept_error(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }
    pub(super) fn handshake_error(&self) {
        self.handshake_errors.fetch_add(1, Relaxed);
    }
    pub(super) fn plain_on_secure(&self) {
        self.plain_on_secure.fetch_add(1, Relaxed);
    }
    pub(super) fn slow(&self) {
        self.slow.fetch_add(1, Relaxed);
    }
    pub(super) fn stalled(&self) {
        self.stalled.fetch_add(1, Relaxed);
    }
    pub(super) fn idle(&self) {
        self.idle.fetch_add(1, Relaxed);
    }
    /// A self-probe comes from this address.
    pub(super) fn probing(&self, from: SocketAddr) -> Probing<'_> {
        *self.probe.lock() = Some(from);
        Probing(self)
    }
    /// Is it the self-probe that comes from there? It is nobody's call, and no mistake of anybody's.
    pub(super) fn is_probe(&self, from: SocketAddr) -> bool {
        *self.probe.lock() == Some(from)
    }
    /// A self-probe went unanswered.
    pub(crate) fn probe_failed(&self) {
        self.probes_failed.fetch_add(1, Relaxed);
    }

    /// OpenMetrics families, without the closing `# EOF`.
    pub(crate) fn render(&self, open: usize, limit: usize) -> String {
        let mut text = String::with_capacity(2048);
        family(
            &mut text,
            "hublet_connections_open",
            "gauge",
            "Connections open, the self-probe's included.",
        );
        sample(&mut text, "hublet_connections_open", "", open as u64);
        family(
            &mut text,
            "hublet_connections_limit",
            "gauge",
            "Connections that may be open (--max-connections).",
        );
        sample(&mut text, "hublet_connections_limit", "", limit as u64);
        family(
            &mut text,
            "hublet_connections_accepted",
            "counter",
            "Connections accepted, by port.",
        );
        for (label, count) in [
            ("{port=\"plain\"}", &self.plain),
            ("{port=\"secure\"}", &self.secure),
        ] {
            sample(
                &mut text,
                "hublet_connections_accepted_total",
                label,
                count.load(Relaxed),
            );
        }
        family(
            &mut text,
            "hublet_connections_closed",
            "counter",
            "Connections that hublet closed, by cause.",
        );
        for (cause, count) in self.closed() {
            sample(
                &mut text,
                "hublet_connections_closed_total",
                &format!("{{cause=\"{cause}\"}}"),
                count,
            );
        }
        family(
            &mut text,
            "hublet_accept_errors",
            "counter",
            "Failures of accept, such as no free descriptor.",
        );
        sample(
            &mut text,
            "hublet_accept_errors_total",
            "",
            self.accept_errors.load(Relaxed),
        );
        family(
            &mut text,
            "hublet_self_probe_failures",
            "counter",
            "Self-probes without an answer in time.",
        );
        sample(
            &mut text,
            "hublet_self_probe_failures_total",
            "",
            self.probes_failed.load(Relaxed),
        );
        text
    }

    /// The same for `/v1/status`.
    pub(crate) fn status(&self, open: usize, limit: usize) -> serde_json::Value {
        json!({
            "open": open,
            "limit": limit,
            "accepted_plain": self.plain.load(Relaxed),
            "accepted_secure": self.secure.load(Relaxed),
            "closed": self.closed().into_iter().map(|(k, v)| (k.to_owned(), v.into())).collect::<serde_json::Map<_, _>>(),
            "accept_errors": self.accept_errors.load(Relaxed),
            "self_probe_failures": self.probes_failed.load(Relaxed),
        })
    }

    fn closed(&self) -> [(&'static str, u64); 6] {
        [
            ("limit", self.over_limit.load(Relaxed)),
            ("tls_handshake", self.handshake_errors.load(Relaxed)),
            ("plain_on_secure", self.plain_on_secure.load(Relaxed)),
            ("slow_head", self.slow.load(Relaxed)),
            ("stalled", self.stalled.load(Relaxed)),
            ("idle", self.idle.load(Relaxed)),
        ]
    }
}

fn family(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn sample(text: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(text, "{name}{labels} {value}");
}
