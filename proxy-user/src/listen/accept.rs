//! The accept loop of a listener, and what every accepted connection needs.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tracing::warn;

use super::stall::StallTimeoutExecutor;
use super::{ConnectionTable, Counters, connection};
use crate::budget::{Flow, MAX_UPLOAD_BUFFER};
use crate::caller::Port;
use crate::drain::{DrainWatcher, Shared};
use crate::proxy::Proxy;
use crate::steer::Setup;

/// Pause after accept has failed, doubled up to [`MAX_ACCEPT_BACKOFF`].
const MIN_ACCEPT_BACKOFF: Duration = Duration::from_millis(10);
const MAX_ACCEPT_BACKOFF: Duration = Duration::from_secs(1);

/// Largest request head, and largest part of a body that is read at once.
const BUFFER: usize = 64 * 1024;
/// The same for a client with hundreds of connections: incomplete heads take memory.
const SMALL_BUFFER: usize = 16 * 1024;
/// Concurrent requests of an HTTP/2 connection, as the API server allows.
const MAX_STREAMS: u32 = 250;
/// The same for a client with many connections: each response whose head can't be written takes
/// memory.
const REDUCED_MAX_STREAMS: u32 = 8;
/// Connections of a client above which each is limited to [`REDUCED_MAX_STREAMS`].
const MANY_CONNECTIONS: usize = 32;
/// Bytes buffered of all uploads on an HTTP/2 connection; of one, [`MAX_UPLOAD_BUFFER`].
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a response buffered in its stream, beside the frame that crosses the limit.
const SEND_BUFFER: usize = 32 * 1024;
/// Connections that are accepted and not yet in the table: their callers are being identified.
const MAX_ARRIVALS: usize = 64;
/// HTTP/2 pings find peers that vanished with their network namespace.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// Shared by all accepted connections.
pub(crate) struct Acceptor {
    pub(super) proxy: Arc<Proxy>,
    pub(super) setup: Shared<Setup>,
    pub(super) tls: TlsAcceptor,
    /// Each with a variant for clients with many connections.
    http1: http1::Builder,
    small_http1: http1::Builder,
    http2: http2::Builder<StallTimeoutExecutor>,
    small_http2: http2::Builder<StallTimeoutExecutor>,
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
            http1: http1_builder(BUFFER),
            small_http1: http1_builder(SMALL_BUFFER),
            http2: http2_builder(executor.clone(), MAX_STREAMS),
            small_http2: http2_builder(executor, REDUCED_MAX_STREAMS),
            table,
            counters,
            arrivals: Arc::new(Semaphore::new(MAX_ARRIVALS)),
        })
    }

    pub(super) fn http1_for(&self, flow: &Flow) -> &http1::Builder {
        if flow.is_one_of_many() {
            &self.small_http1
        } else {
            &self.http1
        }
    }

    pub(super) fn http2_for(&self, flow: &Flow) -> &http2::Builder<StallTimeoutExecutor> {
        if flow.connections() > MANY_CONNECTIONS {
            &self.small_http2
        } else {
            &self.http2
        }
    }

    async fn accept_one(&self, listener: &TcpListener, port: Port) -> io::Result<Accepted> {
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

    fn spawn_connection(self: &Arc<Self>, accepted: Accepted) {
        if !self.counters.is_probe(accepted.remote) {
            self.counters.accepted(accepted.port);
        }
        tokio::spawn(connection::serve(Arc::clone(self), accepted));
    }
}

fn http1_builder(buffer: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // hyper's own limit of 100 header fields stays: another number would cost an allocation a
    // request. So would its timer, which also ends idle connections after half a minute; the
    // table's sweep finds slow heads.
    builder.header_read_timeout(None).max_buf_size(buffer);
    builder
}

fn http2_builder(
    executor: StallTimeoutExecutor,
    max_streams: u32,
) -> http2::Builder<StallTimeoutExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams)
        .initial_stream_window_size(MAX_UPLOAD_BUFFER)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(BUFFER as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Acceptor")
            .field("table", &self.table)
            .finish_non_exhaustive()
    }
}

/// Accepts until the drain; the backlog at that time is still accepted.
pub(super) async fn run(
    acceptor: Arc<Acceptor>,
    listener: Arc<TcpListener>,
    port: Port,
    mut drain: DrainWatcher,
) {
    let mut backoff = MIN_ACCEPT_BACKOFF;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = acceptor.accept_one(&listener, port) => accepted,
            () = drain.started() => return,
        };
        let error = match accepted {
            Ok(accepted) => {
                backoff = MIN_ACCEPT_BACKOFF;
                acceptor.spawn_connection(accepted);
                continue;
            }
            Err(error) => error,
        };
        acceptor.counters.accept_error();
        if is_of_one_connection(&error) {
            continue;
        }
        if backoff == MIN_ACCEPT_BACKOFF {
            warn!(
                "accept failed: {error}; retrying, up to a second apart (raise the limit of open files?)"
            );
        }
        tokio::select! {
            () = tokio::time::sleep(backoff) => backoff = (backoff * 2).min(MAX_ACCEPT_BACKOFF),
            () = drain.started() => return,
        }
    }
}

/// The peer gave up before accept, as opposed to a shortage on this node.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_shortages_of_the_node_pause_accept() {
        for (error, expected) in [
            (io::Error::from_raw_os_error(103), true), // ECONNABORTED
            (io::Error::from_raw_os_error(104), true), // ECONNRESET
            (io::Error::from_raw_os_error(4), true),   // EINTR
            (io::Error::from_raw_os_error(24), false), // EMFILE
            (io::Error::from_raw_os_error(23), false), // ENFILE
        ] {
            assert_eq!(is_of_one_connection(&error), expected, "{error}");
        }
    }
}
