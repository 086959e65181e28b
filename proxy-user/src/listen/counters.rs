//! Counters of the listeners: fixed slots, relaxed atomics.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::caller::Port;
use crate::telemetry::registry::{
    Instrumented, LabeledValues, Registry, ValueKind, register_counter,
};

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
    /// Source address of the self-probe in progress.
    probe: Mutex<Option<SocketAddr>>,
}

/// Clients' connections in `/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionsStatus {
    pub(crate) open: usize,
    pub(crate) limit: usize,
    pub(crate) accepted: AcceptedConnections,
    pub(crate) closed: ClosedConnections,
    pub(crate) accept_errors: u64,
    pub(crate) self_probe_failures: u64,
}

/// Accepted connections, by port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AcceptedConnections {
    pub(crate) plain: u64,
    pub(crate) secure: u64,
}

/// Connections that hublet closed, by cause.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ClosedConnections {
    pub(crate) limit: u64,
    pub(crate) tls_handshake: u64,
    pub(crate) plain_on_secure: u64,
    pub(crate) slow_head: u64,
    pub(crate) stalled: u64,
    pub(crate) idle: u64,
}

/// A self-probe in progress, until it is dropped.
pub(super) struct Probing<'a>(&'a Counters);

impl Drop for Probing<'_> {
    fn drop(&mut self) {
        *self.0.probe.lock() = None;
    }
}

impl Counters {
    /// Counts a connection, unless it is the self-probe's.
    pub(super) fn count_accepted(&self, from: SocketAddr, port: Port) {
        if self.is_probe(from) {
            return;
        }
        let slot = match port {
            Port::Plain => &self.plain,
            Port::Secure => &self.secure,
        };
        slot.fetch_add(1, Relaxed);
    }

    /// Returns the number of connections closed at the limit so far.
    pub(super) fn count_over_limit(&self) -> u64 {
        self.over_limit.fetch_add(1, Relaxed) + 1
    }

    pub(super) fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }

    pub(super) fn count_handshake_error(&self) {
        self.handshake_errors.fetch_add(1, Relaxed);
    }

    /// Counts plain HTTP on the secure port, unless it is the self-probe.
    pub(super) fn count_plain_on_secure(&self, from: SocketAddr) {
        if !self.is_probe(from) {
            self.plain_on_secure.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn count_slow_head(&self) {
        self.slow.fetch_add(1, Relaxed);
    }

    pub(super) fn count_stalled(&self) {
        self.stalled.fetch_add(1, Relaxed);
    }

    pub(super) fn count_idle(&self) {
        self.idle.fetch_add(1, Relaxed);
    }

    /// Begins a self-probe from this source address.
    pub(super) fn begin_probe(&self, from: SocketAddr) -> Probing<'_> {
        *self.probe.lock() = Some(from);
        Probing(self)
    }

    /// True for the self-probe's connection, which counts neither as a client's nor as one's mistake.
    pub(super) fn is_probe(&self, from: SocketAddr) -> bool {
        *self.probe.lock() == Some(from)
    }

    pub(crate) fn count_probe_failure(&self) {
        self.probes_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn status(&self, open: usize, limit: usize) -> ConnectionsStatus {
        ConnectionsStatus {
            open,
            limit,
            accepted: AcceptedConnections {
                plain: self.plain.load(Relaxed),
                secure: self.secure.load(Relaxed),
            },
            closed: ClosedConnections {
                limit: self.over_limit.load(Relaxed),
                tls_handshake: self.handshake_errors.load(Relaxed),
                plain_on_secure: self.plain_on_secure.load(Relaxed),
                slow_head: self.slow.load(Relaxed),
                stalled: self.stalled.load(Relaxed),
                idle: self.idle.load(Relaxed),
            },
            accept_errors: self.accept_errors.load(Relaxed),
            self_probe_failures: self.probes_failed.load(Relaxed),
        }
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

impl Instrumented for Counters {
    fn register_metrics(&self, registry: &mut Registry) {
        let accepted = [("plain", &self.plain), ("secure", &self.secure)];
        registry.register(
            "connections_accepted",
            "Connections accepted, by port",
            LabeledValues {
                label: "port",
                kind: ValueKind::Counter,
                values: accepted
                    .map(|(port, count)| (port.into(), count.load(Relaxed)))
                    .to_vec(),
            },
        );
        registry.register(
            "connections_closed",
            "Connections closed by hublet, by cause",
            LabeledValues {
                label: "cause",
                kind: ValueKind::Counter,
                values: self
                    .closed()
                    .map(|(cause, count)| (cause.into(), count))
                    .to_vec(),
            },
        );
        register_counter(
            registry,
            "accept_errors",
            "Failures of accept, such as no free descriptor",
            self.accept_errors.load(Relaxed),
        );
        register_counter(
            registry,
            "self_probe_failures",
            "Self-probes without an answer in time",
            self.probes_failed.load(Relaxed),
        );
    }
}
