//! The connections to the API server: a few HTTP/2 ones, shared by all requests, opened when needed. In: requests for
//! a place on one. Out: [`Stream`], which gives its place back when dropped.
//!
//! A server that speaks HTTP/1.1 only gets one connection a request, and so does a request without a credential: the API
//! server answers those with GOAWAY (its `UnauthenticatedHTTP2DOSMitigation`), which would end the connection that all
//! others share. The probe has a connection of its own.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hyper::client::conn::{http1, http2};
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::AbortHandle;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::connection::{self, Closing, Windows};
pub use super::connection::{Sender, set_host};
use super::dial::{CloudStream, DialError, Dialer};
use super::heard::Line;
use super::judge::Link;
use super::probe::{Probe, ProbeError};
use crate::account::Metrics;
use crate::upload::Upload;

/// Requests on one connection: under the 100 streams that the API server allows.
const STREAMS: usize = 90;
/// Connections at once.
const CONNECTIONS: usize = 64;
/// Connections for one request each, at once.
const APART: usize = 32;
/// Retired connections that go on for the sake of their streams; beyond it the oldest is closed.
const RETIRED: usize = 8;
/// Flow control windows of a stream and of a connection, in bytes.
const WINDOWS: Windows = Windows { stream: 1 << 20, connection: 4 << 20 };

#[derive(Debug)]
struct Kept {
    sender: http2::SendRequest<Upload>,
    active: Arc<AtomicUsize>,
    line: Arc<Line>,
    driver: AbortHandle,
}

/// A place on a connection.
#[derive(Debug)]
pub struct Stream {
    /// To send the request by.
    pub sender: Sender,
    /// Gives the place back.
    pub place: Place,
}

/// One request's place on a connection, given back when dropped.
#[derive(Debug)]
pub struct Place {
    active: Arc<AtomicUsize>,
    /// The connection.
    pub line: Arc<Line>,
    _apart: Option<OwnedSemaphorePermit>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All connections to one server.
#[derive(Debug)]
pub struct Upstreams {
    dialer: Dialer,
    kept: Mutex<Vec<Kept>>,
    /// One dials, the others wait for its connection.
    dialing: tokio::sync::Mutex<()>,
    apart: Arc<Semaphore>,
    probe: Probe,
    /// A kept connection has ended: its pings went unanswered, it was reset, or closed in good order.
    lost: Arc<Notify>,
    closing: Closing,
    metrics: Arc<Metrics>,
}

impl Upstreams {
    /// To one server; nothing is opened yet.
    pub fn new(dialer: Dialer, metrics: Arc<Metrics>) -> Self {
        Self {
            probe: Probe::new(dialer.clone(), Arc::clone(&metrics)),
            dialer,
            kept: Mutex::new(Vec::new()),
            dialing: tokio::sync::Mutex::new(()),
            apart: Arc::new(Semaphore::new(APART)),
            lost: Arc::new(Notify::new()),
            closing: Closing::default(),
            metrics,
        }
    }

    /// Opens connections.
    pub fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// A place on a connection, opened where none has room.
    ///
    /// # Errors
    /// None can be opened, or the limit is reached.
    pub async fn stream(&self) -> Result<Stream, DialError> {
        if let Some(stream) = self.find()? {
            return Ok(stream);
        }
        let _dialing = self.dialing.lock().await;
        if let Some(stream) = self.find()? {
            return Ok(stream);
        }
        // Boxed: a handshake's state is large and rarely needed.
        Box::pin(self.open()).await
    }

    /// A place on an open connection; `None` where a new one is needed.
    fn find(&self) -> Result<Option<Stream>, DialError> {
        let mut kept = self.kept.lock();
        kept.retain(|k| !k.is_over());
        let usable = |k: &&Kept| !k.line.is_left() && k.active.load(Ordering::Relaxed) < STREAMS;
        if let Some(found) = kept.iter().find(usable) {
            return Ok(Some(found.place()));
        }
        if kept.len() >= CONNECTIONS { Err(DialError::Busy) } else { Ok(None) }
    }

    async fn open(&self) -> Result<Stream, DialError> {
        let closing = self.closing.subscribe();
        let tls = self.dialer.dial(false).await?;
        self.metrics.cloud_connects.inc();
        if tls.get_ref().1.alpn_protocol() != Some(b"h2") {
            return Self::single(tls, closing, None).await;
        }
        let lost = Arc::clone(&self.lost);
        let ended = move |broken: Option<hyper::Error>| {
            if let Some(error) = broken {
                tracing::debug!(%error, "a connection to the cloud broke");
            }
            lost.notify_waiters();
        };
        let line = Arc::clone(tls.get_ref().0.line());
        let connection = connection::http2(tls, WINDOWS, closing, ended).await?;
        let kept = Kept {
            sender: connection.sender,
            active: Arc::new(AtomicUsize::new(0)),
            line,
            driver: connection.task,
        };
        let stream = kept.place();
        self.kept.lock().push(kept);
        Ok(stream)
    }

    /// A connection for one request, HTTP/1.1.
    ///
    /// # Errors
    /// None can be opened, or the limit is reached.
    pub async fn apart(&self) -> Result<Stream, DialError> {
        let permit = Arc::clone(&self.apart).try_acquire_owned().map_err(|_| DialError::Busy)?;
        let closing = self.closing.subscribe();
        let tls = self.dialer.dial(true).await?;
        self.metrics.cloud_connects.inc();
        Self::single(tls, closing, Some(permit)).await
    }

    /// A connection for one upgrade, HTTP/1.1; the bytes after it end with `closing`.
    ///
    /// # Errors
    /// None can be opened.
    pub async fn upgrade(
        &self,
    ) -> Result<(http1::SendRequest<Upload>, WaitForCancellationFutureOwned), DialError> {
        let (connection, bytes) = (self.closing.subscribe(), self.closing.subscribe());
        let tls = self.dialer.dial(true).await?;
        self.metrics.cloud_connects.inc();
        Ok((connection::http1(tls, connection).await?, bytes))
    }

    async fn single(
        tls: CloudStream,
        closing: WaitForCancellationFutureOwned,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Stream, DialError> {
        let line = Arc::clone(tls.get_ref().0.line());
        Ok(Stream {
            sender: Sender::H1(connection::http1(tls, closing).await?),
            place: Place { active: Arc::new(AtomicUsize::new(1)), line, _apart: permit },
        })
    }

    /// Ends every connection (shared, for one request, upgraded), and with it every stream: clients turn to the other
    /// side at once.
    pub fn close_all(&self) {
        self.kept.lock().clear();
        self.closing.close();
        self.probe.close();
    }

    /// Shared connections that are open.
    pub fn open_connections(&self) -> usize {
        let mut kept = self.kept.lock();
        kept.retain(|k| !k.sender.is_closed());
        kept.len()
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

    /// What runs goes on.
    fn retire_all(&self) {
        let mut kept = self.kept.lock();
        kept.retain(|k| !k.sender.is_closed());
        for one in kept.iter() {
            one.line.leave();
        }
        while kept.len() > RETIRED {
            kept.remove(0).driver.abort();
        }
    }

    fn close_all(&self) {
        Self::close_all(self);
    }
}

impl Kept {
    /// It takes no more requests, and none runs on it.
    fn is_over(&self) -> bool {
        self.sender.is_closed() || self.line.is_left() && self.active.load(Ordering::Relaxed) == 0
    }

    fn place(&self) -> Stream {
        self.active.fetch_add(1, Ordering::Relaxed);
        Stream {
            sender: Sender::H2(self.sender.clone()),
            place: Place { active: Arc::clone(&self.active), line: Arc::clone(&self.line), _apart: None },
        }
    }
}

/// The absolute URI of a path on a server.
pub fn uri(server: &crate::config::Server, path_and_query: Option<&str>) -> http::Uri {
    let host = if server.host.contains(':') { format!("[{}]", server.host) } else { server.host.clone() };
    http::Uri::builder()
        .scheme("https")
        .authority(format!("{host}:{}", server.port))
        .path_and_query(path_and_query.unwrap_or("/"))
        .build()
        .unwrap_or_default()
}
