//! The sockets that clients reach: bind, accept, tell TLS from plain HTTP, serve HTTP/1.1 and HTTP/2, drain.
//!
//! In: [`ListenConfig`](crate::config::ListenConfig)'s addresses and a rustls configuration. Out: each request, with
//! its [`Connection`](crate::proxy::connection::Connection), to [`Handler::handle`](crate::proxy::Handler::handle).
//!
//! ```text
//! socket → accept (limit) → connection: identify, first byte ─┬→ TLS → ALPN ─┬→ HTTP/1.1 → handler
//!                                                             └→ plain ──────┴→ HTTP/2   → handler
//! registry: every open connection; slow heads, idle ones and the drain     probe: is all this alive?
//! ```
//!
//! Per request this stage adds one reference to the connection and two counter updates: no lock, no timer, no
//! allocation of its own.

mod accept;
mod activity;
mod connection;
mod counters;
mod failures;
mod first;
mod metered;
mod pace;
mod probe;
mod registry;
mod seats;
mod socket;
mod tls;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub(crate) use accept::Front;
pub(crate) use counters::Counters;
pub(crate) use probe::{INTERVAL as PROBE_INTERVAL, probe};
pub(crate) use registry::Registry;
pub(crate) use socket::{Purpose, bind};
pub(crate) use tls::server_config;

use crate::proxy::connection::Port;

/// Why a socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("can't listen on {address}: {reason}")]
    Bind {
        address: SocketAddr,
        /// What is in the way, and what to do.
        reason: String,
        /// The error as the kernel gave it.
        source: std::io::Error,
    },
    /// TLS can't be set up.
    #[error("TLS can't be set up: {0}")]
    Tls(#[from] rustls::Error),
}

/// A bound socket, not yet accepting.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Which of our ports it is.
    pub port: Port,
    /// The socket; shared, because eBPF wants its descriptor while it accepts.
    pub socket: Arc<TcpListener>,
}

/// Accepts on this listener until `stop`. Call on the traffic runtime.
pub(crate) fn serve(
    front: &Arc<Front>,
    listener: &Listener,
    stop: CancellationToken,
) -> tokio::task::JoinHandle<()> {
    tokio::spawn(accept::accept(
        Arc::clone(front),
        Arc::clone(&listener.socket),
        listener.port,
        stop,
    ))
}
