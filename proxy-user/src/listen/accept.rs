//! The accept loop: one a listener, a place in the registry for each connection, patience when descriptors run out.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::pace::Pace;
use super::{Counters, Registry, connection};
use crate::budget::Flow;
use crate::proxy::Handler;
use crate::proxy::connection::Port;
use crate::proxy::request_body as upload;
use crate::steer::Setup;

/// Pause after accept has failed, doubled up to the second.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Largest request head, and largest piece of a body that is read at once.
const BUFFER: usize = 64 * 1024;
/// The same for a client with hundreds of connections: heads that don't end take memory.
const SMALL_BUFFER: usize = 16 * 1024;
/// Requests at once on an HTTP/2 connection, as the API server allows.
const STREAMS: u32 = 250;
/// The same for a client with dozens of connections: each answer whose head can't be written takes memory.
const FEW_STREAMS: u32 = 8;
/// Connections of a client up to which each may have [`STREAMS`].
const DOZENS: usize = 32;
/// Bytes of all uploads on an HTTP/2 connection that are held at most; of one, [`upload::HELD`].
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of an answer that wait in a stream for its client to read, but for the piece that goes over it.
const SEND_BUFFER: usize = 32 * 1024;
/// Connections that have been accepted and have no place yet: it is found out who calls.
const ARRIVALS: u32 = 64;
/// Pings find peers that vanished with their network namespace.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(15));

/// What every connection needs.
pub(crate) struct Front {
    pub(super) handler: Arc<Handler>,
    pub(super) setup: Arc<Setup>,
    pub(super) tls: TlsAcceptor,
    http1: [http1::Builder; 2],
    http2: [http2::Builder<Pace>; 2],
    pub(super) registry: Arc<Registry>,
    pub(super) counters: Arc<Counters>,
    /// Cookie of the daemon's network namespace.
    pub(super) host: Option<u64>,
    arrivals: Arc<Semaphore>,
}

impl Front {
    /// Puts the parts together.
    pub(crate) fn new(
        handler: Arc<Handler>,
        setup: Arc<Setup>,
        tls: Arc<rustls::ServerConfig>,
        registry: Arc<Registry>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let http1 = [BUFFER, SMALL_BUFFER].map(|buffer| {
            let mut http1 = http1::Builder::new();
            // At most 100 header fields, hyper's own limit: another number would cost an allocation a request. So would its
            // timer, which ends idle connections after half a minute; the registry finds slow heads.
            http1.header_read_timeout(None).max_buf_size(buffer);
            http1
        });
        let http2 = [STREAMS, FEW_STREAMS].map(|streams| {
            let mut http2 = http2::Builder::new(Pace::new(registry.reader_timeout()));
            http2
                .timer(TokioTimer::new())
                .max_concurrent_streams(streams)
                .initial_stream_window_size(upload::HELD)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .max_header_list_size(BUFFER as u32)
                .keep_alive_interval(PING.0)
                .keep_alive_timeout(PING.1);
            http2
        });
        let (host, tls) = (setup.netns(), TlsAcceptor::from(tls));
        let arrivals = Arc::new(Semaphore::new(ARRIVALS as usize));
        Arc::new(Self {
            handler,
            setup,
            tls,
            http1,
            http2,
            registry,
            counters,
            host,
            arrivals,
        })
    }

    /// Waits until listeners that were told to stop have stopped, and all that they accepted is in the registry.
    pub(crate) async fn arrived(&self) {
        // Each listener holds one while it accepts. It is never closed.
        let _all = self.arrivals.acquire_many(ARRIVALS).await;
    }

    /// HTTP/1.1 as this connection gets it.
    pub(super) fn http1(&self, flow: &Flow) -> &http1::Builder {
        &self.http1[usize::from(flow.is_one_of_many())]
    }

    /// HTTP/2 as this connection gets it.
    pub(super) fn http2(&self, flow: &Flow) -> &http2::Builder<Pace> {
        &self.http2[usize::from(flow.connections() > DOZENS)]
    }
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

/// Accepts until told to stop; what is in the backlog by then is still accepted.
pub(super) async fn accept(
    front: Arc<Front>,
    listener: Arc<TcpListener>,
    port: Port,
    stop: CancellationToken,
) {
    let mut pause = PAUSE.0;
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = arrive(&front.arrivals, &listener) => accepted,
            () = stop.cancelled() => return,
        };
        match accepted {
            Ok((stream, remote, arrival)) => {
                pause = PAUSE.0;
                if !front.counters.is_probe(remote) {
                    front.counters.accepted(port);
                }
                tokio::spawn(connection::serve(
                    Arc::clone(&front),
                    stream,
                    (remote, port),
                    arrival,
                ));
            }
            Err(error) if concerns_one_connection(&error) => front.counters.accept_error(),
            Err(error) => {
                front.counters.accept_error();
                if pause == PAUSE.0 {
                    warn!(
                        "accept failed: {error}; trying again, up to a second apart (raise the limit of open files?)"
                    );
                }
                tokio::select! {
                    () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE.1),
                    () = stop.cancelled() => return,
                }
            }
        }
    }
}

async fn arrive(
    arrivals: &Arc<Semaphore>,
    listener: &TcpListener,
) -> io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    // It is never closed.
    let arrival = Arc::clone(arrivals)
        .acquire_owned()
        .await
        .map_err(io::Error::other)?;
    let (stream, remote) = listener.accept().await?;
    Ok((stream, remote, arrival))
}

/// The peer gave up before we came, as opposed to a want of our own.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset | ErrorKind::Interrupted
    )
}
