//! The last callers, one line a process. In: accepted connections. Out: [`Caller`]s, latest first, and where the bytes
//! of each are counted.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Serialize, Serializer};

use super::traffic::{Totals, Traffic};
use crate::authz::caller::Process;
use crate::proxy::connection::{Connection, Port};

const MAX: usize = 32;

/// One process (or, where it isn't attested, one address) that has called.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Caller {
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
    /// `bytes_up` and `bytes_down`, of connections that are still open, too.
    #[serde(flatten, serialize_with = "bytes")]
    pub traffic: Arc<Traffic>,
}

fn bytes<S: Serializer>(traffic: &Arc<Traffic>, to: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Bytes {
        bytes_up: u64,
        bytes_down: u64,
    }
    let (bytes_up, bytes_down) = traffic.bytes();
    Bytes {
        bytes_up,
        bytes_down,
    }
    .serialize(to)
}

#[derive(Debug, Default)]
pub(crate) struct Callers {
    last: Mutex<VecDeque<Caller>>,
    /// Bytes of all of them, and of those that were forgotten.
    totals: Totals,
}

impl Callers {
    /// Nobody yet; what they all send and get is summed here.
    pub(crate) fn new(totals: Totals) -> Self {
        Self {
            last: Mutex::default(),
            totals,
        }
    }

    /// Remembers a connection, once when it is accepted; hands out where its bytes are to be counted.
    pub(crate) fn accepted(&self, connection: &Connection, now: u64) -> Arc<Traffic> {
        let mut callers = self.last.lock();
        let same = |c: &Caller| match (&c.process, &connection.process) {
            (Some(a), Some(b)) => {
                a.pid == b.pid && a.command == b.command && a.cgroup_id == b.cgroup_id
            }
            (None, None) => c.address.ip() == connection.remote.ip() && c.port == connection.port,
            _ => false,
        };
        let before = callers
            .iter()
            .position(same)
            .and_then(|at| callers.remove(at));
        let (connections, traffic) = before.map_or_else(
            || (0, Arc::new(Traffic::new(self.totals.clone()))),
            |before| (before.connections, before.traffic),
        );
        callers.push_front(Caller {
            process: connection.process.clone(),
            address: connection.remote,
            port: connection.port,
            connections: connections + 1,
            last: now,
            traffic: Arc::clone(&traffic),
        });
        callers.truncate(MAX);
        traffic
    }

    pub(crate) fn list(&self) -> Vec<Caller> {
        self.last.lock().iter().cloned().collect()
    }
}
