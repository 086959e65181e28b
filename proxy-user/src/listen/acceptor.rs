//! The state that all accepted connections share, and a connection that was just accepted.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use super::builders::HttpBuilders;
use super::counters::Counters;
use super::stall::StallTimeoutExecutor;
use super::table::ConnectionTable;
use crate::caller::Port;
use crate::drain::{DrainWatcher, Shared};
use crate::proxy::Proxy;
use crate::steer::Setup;

/// Connections that are accepted and not yet in the table: their callers are being identified.
const MAX_ARRIVALS: usize = 64;

/// Shared by all accepted connections.
pub(crate) struct Acceptor {
    pub(super) proxy: Arc<Proxy>,
    pub(super) setup: Shared<Setup>,
    pub(super) tls: TlsAcceptor,
    pub(super) http: HttpBuilders,
    pub(super) table: Arc<ConnectionTable>,
    pub(super) counters: Arc<Counters>,
    /// Cookie of the daemon's network namespace.
    pub(super) host_netns: Option<u64>,
    arrivals: Arc<Semaphore>,
}

/// A connection that was accepted and is not in the table yet.
pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) remote: SocketAddr,
    pub(super) port: Port,
    /// Dropped once the connection is in the table.
    pub(super) arrival: Arrival,
}

/// One of the connections that are not in the table yet.
pub(super) struct Arrival {
    _permit: OwnedSemaphorePermit,
    _drain: DrainWatcher,
}

impl Acceptor {
    pub(crate) fn new(
        proxy: Arc<Proxy>,
        setup: Shared<Setup>,
        tls: Arc<rustls::ServerConfig>,
        table: Arc<ConnectionTable>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let executor = StallTimeoutExecutor::new(table.reader_timeout());
        Arc::new(Self {
            proxy,
            host_netns: setup.netns(),
            setup,
            tls: TlsAcceptor::from(tls),
            http: HttpBuilders::new(executor),
            table,
            counters,
            arrivals: Arc::new(Semaphore::new(MAX_ARRIVALS)),
        })
    }

    /// Accepts one connection, once there is room for one more to be identified.
    pub(super) async fn accept(&self, listener: &TcpListener, port: Port) -> io::Result<Accepted> {
        // The semaphore is never closed.
        let permit = Arc::clone(&self.arrivals)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        let (stream, remote) = listener.accept().await?;
        let arrival = Arrival {
            _permit: permit,
            _drain: self.table.drain_watcher(),
        };
        Ok(Accepted {
            stream,
            remote,
            port,
            arrival,
        })
    }
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}
