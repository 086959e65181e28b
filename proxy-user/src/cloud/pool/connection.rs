//! One connection to the API server, from the moment TLS is up. In: a TLS stream. Out: a sender of requests, and a task
//! that moves the bytes until the connection has ended, or until all connections are told to close.

use std::any::Any;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Request;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::cloud::dial::CloudStream;
use crate::cloud::upload::{self, Upload};

/// Dead links are found by pings.
const PING: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(10));
/// Longest header section of an answer, in bytes.
const HEADERS: u32 = 64 << 10;
/// Most bytes of an HTTP/1.1 connection that are received and not read yet; its header section must fit.
const BUFFER: usize = 64 << 10;

/// Sends requests on one connection.
#[derive(Debug)]
pub(crate) enum Sender {
    H2(http2::SendRequest<Upload>),
    /// For one request at a time.
    H1(http1::SendRequest<Upload>),
}

/// Flow-control windows for what the server sends, in bytes (RFC 9113 §5.2).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows {
    /// Of each stream.
    pub stream: u32,
    /// Of the connection.
    pub connection: u32,
}

/// Ends connections: those that were opened under it, all at once.
#[derive(Debug, Default)]
pub(crate) struct Closing(Mutex<CancellationToken>);

impl Closing {
    /// Done when the connections that are open now are to end. Take it before dialling: a connection that was begun
    /// before the end must not outlive it.
    pub(crate) fn subscribe(&self) -> WaitForCancellationFutureOwned {
        self.0.lock().clone().cancelled_owned()
    }

    pub(crate) fn close(&self) {
        std::mem::take(&mut *self.0.lock()).cancel();
    }
}

#[derive(Debug)]
pub(crate) struct Http2 {
    /// To send requests by.
    pub sender: http2::SendRequest<Upload>,
    /// The server's `SETTINGS_MAX_CONCURRENT_STREAMS`; [`UNKNOWN`] until it has said.
    pub streams: Arc<AtomicUsize>,
    /// Ends it, and every stream on it.
    pub task: AbortHandle,
}

/// The server hasn't said yet how many streams it allows.
pub(crate) const UNKNOWN: usize = usize::MAX - 1;

/// Speaks HTTP/2. `opening` is dropped as soon as the server has said how many streams it allows; `ended` is called once,
/// with why, if it broke.
///
/// # Errors
/// The handshake failed.
pub(crate) async fn http2(
    tls: CloudStream,
    windows: Windows,
    closing: WaitForCancellationFutureOwned,
    opening: Box<dyn Any + Send>,
    ended: impl FnOnce(Option<hyper::Error>) + Send + 'static,
) -> Result<Http2, hyper::Error> {
    let joined = Joined::default();
    let (sender, requests) = http2::Builder::new(joined.clone())
        .timer(TokioTimer::new())
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .initial_max_send_streams(UNKNOWN)
        .max_send_buf_size(upload::HELD as usize)
        .max_header_list_size(HEADERS)
        .handshake(TokioIo::new(tls))
        .await?;
    let streams = Arc::new(AtomicUsize::new(UNKNOWN));
    let driver = Driver {
        requests: Some(requests),
        bytes: joined.take(),
        streams: Arc::clone(&streams),
        opening: Some(opening),
        broken: None,
    };
    let task = tokio::spawn(async move {
        let broken = tokio::select! {
            biased;
            () = closing => None,
            broken = driver => broken,
        };
        ended(broken);
    });
    Ok(Http2 {
        sender,
        streams,
        task: task.abort_handle(),
    })
}

/// Speaks HTTP/1.1.
///
/// # Errors
/// The handshake failed.
pub(crate) async fn http1(
    tls: CloudStream,
    closing: WaitForCancellationFutureOwned,
) -> Result<http1::SendRequest<Upload>, hyper::Error> {
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(BUFFER)
        .handshake(TokioIo::new(tls))
        .await?;
    // After an upgrade the bytes are no longer the connection's; whoever copies them listens to `closing` as well.
    let connection = connection.with_upgrades();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = closing => {}
            _ended = connection => {}
        }
    });
    Ok(sender)
}

type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
type Requests = http2::Connection<TokioIo<CloudStream>, Upload, Joined>;

/// hyper's executor for one connection: the first future that it hands over moves the connection's bytes and goes to
/// [`Driver`], the others become tasks: one that waits for an answer, and one that sends a body, until its upload is over.
#[derive(Clone, Default)]
struct Joined(Arc<OnceLock<Mutex<Option<Work>>>>);

impl Joined {
    fn take(&self) -> Option<Work> {
        self.0.get().and_then(|work| work.lock().take())
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Joined {
    fn execute(&self, future: F) {
        let mut future = Some(future);
        self.0
            .get_or_init(|| Mutex::new(future.take().map(|first| Box::pin(first) as Work)));
        let Some(future) = future else { return };
        match upload::asked() {
            Some(upload) => drop(tokio::spawn(async move {
                tokio::select! {
                    biased;
                    () = upload.over() => {}
                    () = future => {}
                }
            })),
            None => drop(tokio::spawn(future)),
        }
    }
}

/// A connection's requests and its bytes in one task. hyper would move the bytes in a task of their own, which goes on
/// for as long as there are streams: the connection could not be closed. And nothing comes in between a request's way
/// into h2 and the look at what came of it, so that a request which the server's GOAWAY excludes is one that was not
/// taken (RFC 9113 §6.8).
struct Driver {
    requests: Option<Requests>,
    bytes: Option<Work>,
    streams: Arc<AtomicUsize>,
    opening: Option<Box<dyn Any + Send>>,
    broken: Option<hyper::Error>,
}

impl Driver {
    /// Takes requests; done when no more can be taken. What has been taken may still go on.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(requests) = &mut self.requests {
            // One that another task asked here is none of those that are begun now.
            drop(upload::asked());
            self.broken = ready!(Pin::new(requests).poll(cx)).err();
            // Senders see that it is closed once it is gone.
            self.requests = None;
        }
        Poll::Ready(())
    }

    fn look_at_settings(&mut self) {
        let Some(requests) = &self.requests else {
            return;
        };
        let streams = requests.current_max_send_streams();
        self.streams.store(streams, Ordering::Relaxed);
        if streams != UNKNOWN {
            self.opening = None;
        }
    }
}

impl Future for Driver {
    /// Why it broke, if it did.
    type Output = Option<hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Frames that requests have put into h2 are written in the same turn.
        let _taken = self.poll_requests(cx);
        if let Some(bytes) = &mut self.bytes {
            let moved = bytes.as_mut().poll(cx);
            self.look_at_settings();
            // A GOAWAY that has come closes the senders at once.
            let _taken = self.poll_requests(cx);
            ready!(moved);
            self.bytes = None;
        }
        ready!(self.poll_requests(cx));
        Poll::Ready(self.broken.take())
    }
}

/// HTTP/1.1 wants the host in a header and the path alone in the request line.
pub(crate) fn set_host(request: &mut Request<Upload>, sender: &Sender) {
    if matches!(sender, Sender::H1(_)) {
        let authority = request
            .uri()
            .authority()
            .map(ToString::to_string)
            .unwrap_or_default();
        if let Ok(value) = http::HeaderValue::from_str(&authority) {
            request.headers_mut().insert(http::header::HOST, value);
        }
        if let Some(path) = request.uri().path_and_query().cloned() {
            *request.uri_mut() = http::Uri::from(path);
        }
    }
}
