//! The last callers: one entry for each process, or for each address where none is attested.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

use hublet_wire::meta::Timestamp;
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::warnings::{Suppressed, WarningKey, WarningKind, WarningLimits};
use crate::caller::{Port, Process};
use crate::clock::to_datetime;

const MAX_CALLERS: usize = 32;

/// Bytes on all clients' connections, as TCP carries them: TLS and HTTP included.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClientBytes {
    /// From clients.
    pub(super) up: Counter,
    /// To clients.
    pub(super) down: Counter,
}

/// A caller and its counters. Shared by its connections and requests.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Attested by eBPF; `None` where it is not known.
    pub(crate) process: Option<Process>,
    /// The address of its first connection.
    pub(crate) address: SocketAddr,
    pub(crate) port: Port,
    connections: AtomicU64,
    requests: AtomicU64,
    /// Responses with a status of 400 or more.
    errors: AtomicU64,
    /// [`Timestamp`] in milliseconds.
    last_connect: AtomicU64,
    bytes_up: AtomicU64,
    bytes_down: AtomicU64,
    all: ClientBytes,
    warnings: Arc<WarningLimits>,
}

/// Counters of a caller at one time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallerCounts {
    pub(crate) connections: u64,
    pub(crate) requests: u64,
    /// Responses with a status of 400 or more.
    pub(crate) errors: u64,
    pub(crate) bytes_up: u64,
    pub(crate) bytes_down: u64,
}

impl Caller {
    /// Counts bytes that came from the client.
    pub(crate) fn add_received(&self, bytes: u64) {
        self.bytes_up.fetch_add(bytes, Relaxed);
        self.all.up.inc_by(bytes);
    }

    /// Counts bytes that went to the client's socket.
    pub(crate) fn add_sent(&self, bytes: u64) {
        self.bytes_down.fetch_add(bytes, Relaxed);
        self.all.down.inc_by(bytes);
    }

    pub(super) fn add_request(&self, status: u16) {
        self.requests.fetch_add(1, Relaxed);
        if status >= 400 {
            self.errors.fetch_add(1, Relaxed);
        }
    }

    /// Admits a warning of this caller; see [`WarningLimits`].
    pub(crate) fn admit_warning(&self, kind: WarningKind) -> Option<Suppressed> {
        self.warnings
            .admit(kind, self.warning_key(), Instant::now())
    }

    /// The same for all processes of one command at one address: a command that is started again
    /// and again is one caller.
    fn warning_key(&self) -> WarningKey {
        let mut hasher = DefaultHasher::new();
        let command = self.process.as_ref().map(|process| &process.command);
        (self.address.ip(), command).hash(&mut hasher);
        hasher.finish()
    }

    /// The attested process in parentheses, or nothing.
    pub(crate) fn process_label(&self) -> String {
        let Some(process) = &self.process else {
            return String::new();
        };
        let executable = process.executable.as_deref().unwrap_or(&process.command);
        format!(
            " (process {}, user {}, {executable}{})",
            process.pid,
            process.uid,
            pod_label(process)
        )
    }

    pub(crate) fn counts(&self) -> CallerCounts {
        CallerCounts {
            connections: self.connections.load(Relaxed),
            requests: self.requests.load(Relaxed),
            errors: self.errors.load(Relaxed),
            bytes_up: self.bytes_up.load(Relaxed),
            bytes_down: self.bytes_down.load(Relaxed),
        }
    }

    fn status(&self) -> CallerStatus {
        CallerStatus {
            process: self.process.clone(),
            address: self.address,
            port: self.port,
            last_connect_time: to_datetime(Timestamp::from_millis(self.last_connect.load(Relaxed))),
            counts: self.counts(),
        }
    }

    fn is(&self, process: Option<&Process>, address: SocketAddr, port: Port) -> bool {
        match (&self.process, process) {
            (Some(known), Some(process)) => is_same_process(known, process),
            (None, None) => self.address.ip() == address.ip() && self.port == port,
            _ => false,
        }
    }
}

fn pod_label(process: &Process) -> String {
    let uid = process.pod_uid.as_ref();
    uid.map_or_else(String::new, |uid| format!(", pod {uid}"))
}

/// Compares more than the pid, which may be reused.
fn is_same_process(a: &Process, b: &Process) -> bool {
    a.pid == b.pid && a.command == b.command && a.cgroup_id == b.cgroup_id
}

/// A caller in `/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CallerStatus {
    /// Attested by eBPF; `None` where it is not known.
    pub(crate) process: Option<Process>,
    /// The address of its first connection.
    pub(crate) address: SocketAddr,
    pub(crate) port: Port,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) last_connect_time: OffsetDateTime,
    #[serde(flatten)]
    pub(crate) counts: CallerCounts,
}

/// For logs: the address, and the process where it is attested.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.address.ip(), self.process_label())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Callers {
    /// Latest first.
    last: Mutex<VecDeque<Arc<Caller>>>,
    all: ClientBytes,
    warnings: Arc<WarningLimits>,
}

impl Callers {
    pub(super) fn new(all: ClientBytes) -> Self {
        Self {
            all,
            ..Self::default()
        }
    }

    /// Remembers the caller of a connection.
    pub(crate) fn accepted(
        &self,
        process: Option<&Process>,
        address: SocketAddr,
        port: Port,
        now: Timestamp,
    ) -> Arc<Caller> {
        let mut last = self.last.lock();
        let known = last
            .iter()
            .position(|caller| caller.is(process, address, port))
            .and_then(|index| last.remove(index));
        let caller = known.unwrap_or_else(|| Arc::new(self.create(process, address, port)));
        caller.connections.fetch_add(1, Relaxed);
        caller.last_connect.store(now.as_millis(), Relaxed);
        last.push_front(Arc::clone(&caller));
        last.truncate(MAX_CALLERS);
        caller
    }

    fn create(&self, process: Option<&Process>, address: SocketAddr, port: Port) -> Caller {
        Caller {
            process: process.cloned(),
            address,
            port,
            connections: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            last_connect: AtomicU64::new(0),
            bytes_up: AtomicU64::new(0),
            bytes_down: AtomicU64::new(0),
            all: self.all.clone(),
            warnings: Arc::clone(&self.warnings),
        }
    }

    /// Latest first.
    pub(crate) fn status(&self) -> Vec<CallerStatus> {
        let last = self.last.lock();
        last.iter().map(|caller| caller.status()).collect()
    }

    /// Latest first.
    #[cfg(test)]
    fn list(&self) -> Vec<Arc<Caller>> {
        self.last.lock().iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> SocketAddr {
        ([10, 0, 0, last], 40_000).into()
    }

    #[test]
    fn connections_of_one_address_are_one_caller_and_the_latest_is_first() {
        let callers = Callers::default();
        let first = callers.accepted(None, address(1), Port::Plain, Timestamp::from_millis(1));
        callers.accepted(None, address(2), Port::Plain, Timestamp::from_millis(2));
        callers.accepted(None, address(1), Port::Secure, Timestamp::from_millis(3));
        let again = callers.accepted(None, address(1), Port::Plain, Timestamp::from_millis(4));
        assert!(Arc::ptr_eq(&first, &again));
        let list = callers.list();
        assert_eq!(list.len(), 3);
        assert!(Arc::ptr_eq(&list[0], &first));
        assert_eq!(first.counts().connections, 2);
        assert_eq!(first.last_connect.load(Relaxed), 4);
    }

    #[test]
    fn callers_are_bounded_and_bytes_of_forgotten_ones_still_count() {
        let callers = Callers::default();
        let first = callers.accepted(None, address(0), Port::Plain, Timestamp::EPOCH);
        for last in 1..=u8::MAX {
            callers.accepted(None, address(last), Port::Plain, Timestamp::EPOCH);
        }
        assert_eq!(callers.list().len(), MAX_CALLERS);
        first.add_received(7);
        first.add_sent(9);
        assert_eq!((first.counts().bytes_up, first.counts().bytes_down), (7, 9));
        assert_eq!((callers.all.up.get(), callers.all.down.get()), (7, 9));
    }

    #[test]
    fn responses_of_400_and_more_are_errors() {
        let caller = Callers::default().accepted(None, address(1), Port::Plain, Timestamp::EPOCH);
        for status in [200, 304, 404, 503] {
            caller.add_request(status);
        }
        assert_eq!((caller.counts().requests, caller.counts().errors), (4, 2));
    }

    #[test]
    fn a_caller_is_warned_of_once_whatever_its_port() {
        let callers = Callers::default();
        let plain = callers.accepted(None, address(1), Port::Plain, Timestamp::EPOCH);
        let secure = callers.accepted(None, address(1), Port::Secure, Timestamp::EPOCH);
        let first = plain.admit_warning(WarningKind::Forbidden);
        assert_eq!(first, Some(Suppressed(0)));
        assert_eq!(secure.admit_warning(WarningKind::Forbidden), None);
        assert_eq!(plain.to_string(), "10.0.0.1");
    }
}
