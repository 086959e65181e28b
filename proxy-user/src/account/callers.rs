//! The last callers, one line a process. In: accepted connections. Out: [`Caller`]s, latest first.

use std::collections::VecDeque;
use std::net::SocketAddr;

use parking_lot::Mutex;
use serde::Serialize;

use crate::client::{Connection, Port, Process};

/// Most callers remembered.
const MAX: usize = 32;

/// One process (or, where it isn't attested, one address) that has called.
#[derive(Debug, Clone, Serialize)]
pub struct Caller {
    /// What eBPF attests; none is "unknown".
    pub process: Option<Process>,
    /// Its address.
    pub address: SocketAddr,
    /// Where it called.
    pub port: Port,
    /// Connections so far.
    pub connections: u64,
    /// When last, milliseconds since the epoch.
    pub last: u64,
}

/// The last callers.
#[derive(Debug, Default)]
pub struct Callers(Mutex<VecDeque<Caller>>);

impl Callers {
    /// Remembers a connection: once when it is accepted.
    pub fn accepted(&self, connection: &Connection, now: u64) {
        let mut callers = self.0.lock();
        let same = |c: &Caller| match (&c.process, &connection.process) {
            (Some(a), Some(b)) => a.pid == b.pid && a.command == b.command && a.cgroup_id == b.cgroup_id,
            (None, None) => c.address.ip() == connection.remote.ip() && c.port == connection.port,
            _ => false,
        };
        let before = callers.iter().position(same).and_then(|at| callers.remove(at));
        callers.push_front(Caller {
            process: connection.process.clone(),
            address: connection.remote,
            port: connection.port,
            connections: before.map_or(0, |c| c.connections) + 1,
            last: now,
        });
        callers.truncate(MAX);
    }

    /// Latest first.
    pub fn list(&self) -> Vec<Caller> {
        self.0.lock().iter().cloned().collect()
    }
}
