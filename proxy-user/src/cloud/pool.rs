//! The connections to the API server. In: requests for a place on one. Out: [`Stream`], which gives its place back when
//! dropped.
//!
//! | connection | shared by | flow control |
//! |---|---|---|
//! | one wide | 16 requests at once, no watches | 1 MiB a stream |
//! | narrow ones, opened when needed | 90 requests each, or what the server allows | 128 KiB a stream on the first, then 16 KiB |
//! | HTTP/1.1 | nobody: one request at a time | TCP's |
//!
//! On each the connection's window holds the windows of all its streams, so that an answer that nobody reads stops no
//! other one, and so that what is received and not read yet is bounded.
//!
//! HTTP/1.1 connections are for servers that speak nothing else, for upgrades, and for credentials that have not proven
//! themselves: the API server answers a credential that it refuses with GOAWAY (its
//! `UnauthenticatedHTTP2DOSMitigation`), which would end the connection that all others share. The
//! probe has a connection of its own.

pub(crate) mod connection;
pub(crate) mod permits;
mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use hyper::client::conn::http1;
use tokio::sync::Notify;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::dial::{CloudStream, DIAL_TIMEOUT, DialError, Dialer};
use super::health::monitor::Link;
use super::health::probe::{Probe, ProbeError};
use crate::authz::caller::Client;
use crate::cloud::upload::Upload;
use crate::telemetry::Metrics;
use connection::Closing;
pub(crate) use connection::{Sender, set_host};
pub(crate) use permits::Place;
use permits::{Idle, Share, Shares};
use shared::{Dialling, Seat, Shared};

/// HTTP/1.1 connections at once, for credentials that have proven themselves.
const OWN: usize = 512;
/// The same for those that have not: in all, for one client, and kept for privileged ones.
const APART: (usize, usize, usize) = (32, 8, 8);
/// Upgraded connections (exec, port-forward): in all, for one client, and kept for privileged ones.
const UPGRADES: (usize, usize, usize) = (256, 64, 0);
/// Which connections a request may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The shared ones, for an answer that ends.
    Whole,
    /// The shared ones, for a watch.
    Watch,
    /// One of its own: the credential has not proven itself.
    Apart,
}

/// A place on a connection.
#[derive(Debug)]
pub(crate) struct Stream {
    /// To send the request by.
    pub sender: Sender,
    /// Gives the place back.
    pub place: Place,
}

/// All connections to one server.
#[derive(Debug)]
pub(crate) struct Upstreams {
    dialer: Dialer,
    shared: Arc<Shared>,
    /// The server has chosen HTTP/1.1 when it could have had HTTP/2.
    http1: AtomicBool,
    own: Shares,
    apart: Shares,
    upgrades: Shares,
    idle: Arc<Idle>,
    probe: Probe,
    /// A kept connection has ended: its pings went unanswered, it was reset, or closed in good order.
    lost: Arc<Notify>,
    closing: Closing,
    metrics: Arc<Metrics>,
}

impl Upstreams {
    /// To one server; nothing is opened yet.
    pub(crate) fn new(dialer: Dialer, metrics: Arc<Metrics>) -> Self {
        Self {
            probe: Probe::new(dialer.clone(), Arc::clone(&metrics)),
            dialer,
            shared: Arc::default(),
            http1: AtomicBool::new(false),
            own: Shares::new(OWN, OWN, 0),
            apart: Shares::new(APART.0, APART.1, APART.2),
            upgrades: Shares::new(UPGRADES.0, UPGRADES.1, UPGRADES.2),
            idle: Arc::default(),
            lost: Arc::new(Notify::new()),
            closing: Closing::default(),
            metrics,
        }
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// A place on a connection, opened where none has room. `reuse` allows an HTTP/1.1 connection that has been idle,
    /// which the server may be closing just now.
    ///
    /// # Errors
    /// None can be opened, in [`DIAL_TIMEOUT`] though others dial first, or the limit is reached.
    pub(crate) async fn stream(
        &self,
        client: Client,
        way: Way,
        reuse: bool,
    ) -> Result<Stream, DialError> {
        // Boxed: a handshake's state is large and rarely needed.
        if way == Way::Apart {
            let share = self.apart.take(client).await?;
            return Box::pin(self.own(share, reuse)).await;
        }
        let part = self.shared.count(client)?;
        let mut stream = match self.shared.seat(way == Way::Watch)? {
            Seat::Taken(stream) => stream,
            Seat::Dial(dialling) => Box::pin(self.open(client, dialling, reuse)).await?,
            Seat::Wait(waiting) => {
                drop(waiting);
                let wait = Box::pin(self.wait(client, way, reuse));
                tokio::time::timeout(DIAL_TIMEOUT, wait)
                    .await
                    .unwrap_or(Err(DialError::Timeout))?
            }
        };
        stream.place.count(part);
        Ok(stream)
    }

    async fn wait(&self, client: Client, way: Way, reuse: bool) -> Result<Stream, DialError> {
        loop {
            let mut room = std::pin::pin!(self.shared.room.notified());
            room.as_mut().enable();
            if self.http1.load(Ordering::Relaxed) {
                return self.own(self.own.try_take(client)?, reuse).await;
            }
            match self.shared.seat(way == Way::Watch)? {
                Seat::Taken(stream) => return Ok(stream),
                Seat::Dial(dialling) => return self.open(client, dialling, reuse).await,
                Seat::Wait(_waiting) => room.await,
            }
        }
    }

    async fn open(
        &self,
        client: Client,
        dialling: Dialling,
        reuse: bool,
    ) -> Result<Stream, DialError> {
        if self.http1.load(Ordering::Relaxed) {
            drop(dialling);
            return self.own(self.own.try_take(client)?, reuse).await;
        }
        let closing = self.closing.subscribe();
        let tls = self.dialer.dial(false).await?;
        self.metrics.cloud_connects.inc();
        if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
            return self.share(tls, closing, dialling).await;
        }
        self.http1.store(true, Ordering::Relaxed);
        drop(dialling);
        Self::on(tls, closing, self.own.try_take(client)?).await
    }

    /// HTTP/2, shared from now on.
    async fn share(
        &self,
        tls: CloudStream,
        closing: WaitForCancellationFutureOwned,
        dialling: Dialling,
    ) -> Result<Stream, DialError> {
        let lost = Arc::clone(&self.lost);
        let ended = move |broken: Option<hyper::Error>| {
            if let Some(error) = broken {
                tracing::debug!(%error, "a connection to the cloud broke");
            }
            lost.notify_waiters();
        };
        let (wide, windows) = (dialling.wide, dialling.windows);
        let line = Arc::clone(tls.get_ref().0.line());
        let http2 = connection::http2(tls, windows, closing, Box::new(dialling), ended).await?;
        Ok(self.shared.add(http2, &line, wide))
    }

    /// An HTTP/1.1 connection of one's own.
    async fn own(&self, share: Share, reuse: bool) -> Result<Stream, DialError> {
        if reuse && let Some((connection, line)) = self.idle.take() {
            return Ok(Stream {
                sender: Sender::H1(connection),
                place: Place::own(&line, share),
            });
        }
        let closing = self.closing.subscribe();
        let tls = self.dialer.dial(true).await?;
        self.metrics.cloud_connects.inc();
        Self::on(tls, closing, share).await
    }

    async fn on(
        tls: CloudStream,
        closing: WaitForCancellationFutureOwned,
        share: Share,
    ) -> Result<Stream, DialError> {
        let line = Arc::clone(tls.get_ref().0.line());
        let sender = Sender::H1(connection::http1(tls, closing).await?);
        Ok(Stream {
            sender,
            place: Place::own(&line, share),
        })
    }

    /// The answer has begun: what remains of the stream is its place.
    pub(crate) fn answered(&self, stream: Stream) -> Place {
        let Stream { sender, mut place } = stream;
        if let Sender::H1(connection) = sender {
            place.keep(connection, &self.idle);
        }
        place
    }

    /// The credential that has this place has just proven itself.
    pub(crate) fn proven(&self, place: &mut Place) {
        place.proven(&self.own);
    }

    /// A connection for one upgrade, HTTP/1.1; the bytes after it end with the third value.
    ///
    /// # Errors
    /// None can be opened, or the limit is reached.
    pub(crate) async fn upgrade(
        &self,
        client: Client,
    ) -> Result<
        (
            http1::SendRequest<Upload>,
            Place,
            WaitForCancellationFutureOwned,
        ),
        DialError,
    > {
        let share = self.upgrades.try_take(client)?;
        let (connection, bytes) = (self.closing.subscribe(), self.closing.subscribe());
        let tls = self.dialer.dial(true).await?;
        self.metrics.cloud_connects.inc();
        let line = Arc::clone(tls.get_ref().0.line());
        Ok((
            connection::http1(tls, connection).await?,
            Place::own(&line, share),
            bytes,
        ))
    }

    /// Ends every connection (shared, for one request, upgraded), and with it every stream: clients turn to the other
    /// side at once.
    pub(crate) fn close_all(&self) {
        self.shared.close();
        self.idle.clear();
        self.closing.close();
        self.probe.close();
        // Another server may be there when the cloud is back.
        self.http1.store(false, Ordering::Relaxed);
    }

    /// Shared connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.shared.open()
    }
}

impl Link for Upstreams {
    async fn ask_kept(&self) -> Option<Result<(), ProbeError>> {
        self.probe.ask_kept().await
    }

    async fn ask_anew(&self) -> Result<(), ProbeError> {
        self.probe.ask_anew().await
    }

    async fn lost(&self) {
        self.lost.notified().await;
    }

    /// Requests under way go on.
    fn retire_all(&self) {
        self.idle.clear();
        self.shared.retire();
    }

    fn close_all(&self) {
        Self::close_all(self);
    }
}

/// The absolute URI of a path on a server.
pub(crate) fn uri(server: &crate::config::Server, path_and_query: Option<&str>) -> http::Uri {
    let host = if server.host.contains(':') {
        format!("[{}]", server.host)
    } else {
        server.host.clone()
    };
    http::Uri::builder()
        .scheme("https")
        .authority(format!("{host}:{}", server.port))
        .path_and_query(path_and_query.unwrap_or("/"))
        .build()
        .unwrap_or_default()
}
