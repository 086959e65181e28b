//! The sockets that clients reach: bind, accept, detect TLS and HTTP version, serve, drain.
//!
//! ```text
//! socket → accept → connection: identify, first byte ─┬→ TLS → ALPN ─┬→ HTTP/1.1 → proxy
//!                                                     └→ plain ──────┴→ HTTP/2   → proxy
//! table: every open connection: limit, sweeps, drain     probe: does accept work?
//! ```
//!
//! Per request this stage adds one reference to the connection and two atomic updates: no lock, no
//! timer, no allocation of its own.

mod accept;
mod acceptor;
mod builders;
mod connection;
mod counters;
mod metered;
mod probe;
mod protocol;
mod socket;
mod stall;
mod status;
mod table;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;

pub(crate) use acceptor::Acceptor;
#[cfg(test)]
pub(crate) use counters::{AcceptedConnections, ClosedConnections};
pub(crate) use counters::{ConnectionsStatus, Counters};
pub(crate) use probe::{INTERVAL as PROBE_INTERVAL, probe};
pub(crate) use socket::{Purpose, bind};
pub(crate) use status::{ListenerState, ListenerStatus};
pub(crate) use table::ConnectionTable;
pub(crate) use tls::server_config;

use crate::caller::Port;

/// The error of a listener that can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("can't listen on {address}: {reason}")]
    Bind {
        address: SocketAddr,
        /// The obstacle, and the remedy.
        reason: String,
        source: std::io::Error,
    },
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A bound socket, not yet accepting.
#[derive(Debug)]
pub(crate) struct Listener {
    pub port: Port,
    /// Shared: eBPF needs its descriptor while it accepts.
    pub socket: Arc<TcpListener>,
}

/// Accepts on this listener until the table drains. Call on the traffic runtime.
pub(crate) fn spawn(acceptor: &Arc<Acceptor>, listener: &Listener) -> tokio::task::JoinHandle<()> {
    tokio::spawn(accept::accept_until_drain(
        Arc::clone(acceptor),
        Arc::clone(&listener.socket),
        listener.port,
        acceptor.table.drain_watcher(),
    ))
}
