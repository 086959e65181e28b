//! One HTTP connection over an established TLS stream: the handshake, and the task that drives it until
//! it ends or [`CloseSignal`] fires.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::budget::MAX_UPLOAD_BUFFER;
use crate::cloud::upload::{self, Upload, UploadProgress};

/// HTTP/2 pings find dead connections.
const PING_INTERVAL: Duration = Duration::from_secs(15);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest header section of a response, in bytes.
const MAX_HEADER_BYTES: u32 = 64 << 10;
/// Bytes of an HTTP/1.1 connection that are received and not yet read; a header section must fit.
const HTTP1_BUFFER_BYTES: usize = 64 << 10;

pub(crate) type Http1Sender = http1::SendRequest<Upload>;
pub(crate) type Http2Sender = http2::SendRequest<Upload>;

#[derive(Debug)]
pub(crate) enum RequestSender {
    /// One request at a time.
    Http1(Http1Sender),
    Http2(Http2Sender),
}

impl RequestSender {
    pub(crate) async fn try_send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, Box<SendError>> {
        let result = match self {
            Self::Http1(sender) => sender.try_send_request(request).await,
            Self::Http2(sender) => sender.try_send_request(request).await,
        };
        result.map_err(|mut failed| {
            let returned = failed.take_message();
            let error = failed.into_error();
            Box::new(SendError { error, returned })
        })
    }
}

/// A request without a response.
#[derive(Debug)]
pub(crate) struct SendError {
    pub error: hyper::Error,
    /// The request, if the connection gave it back unsent.
    pub returned: Option<Request<Upload>>,
}

/// Flow-control windows for what the server sends, in bytes (RFC 9113 §5.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FlowWindows {
    pub stream: u32,
    pub connection: u32,
}

/// Closes all connections that were opened before the signal, and none that is opened after it.
#[derive(Debug, Default)]
pub(crate) struct CloseSignal(Mutex<CancellationToken>);

impl CloseSignal {
    /// Done when the connections of now are to close. Subscribe before dialing: a dial that began
    /// before the signal must not outlive it.
    pub(crate) fn subscribe(&self) -> WaitForCancellationFutureOwned {
        self.0.lock().clone().cancelled_owned()
    }

    pub(crate) fn close(&self) {
        std::mem::take(&mut *self.0.lock()).cancel();
    }
}

/// The server's `SETTINGS_MAX_CONCURRENT_STREAMS`, once it has been received.
#[derive(Debug)]
pub(crate) struct StreamLimit(AtomicUsize);

impl StreamLimit {
    /// Also the value that h2 is configured to assume, so that its value changes with the first SETTINGS frame.
    const UNKNOWN: usize = usize::MAX - 1;

    fn unknown() -> Self {
        Self(AtomicUsize::new(Self::UNKNOWN))
    }

    pub(crate) fn get(&self) -> Option<usize> {
        let limit = self.0.load(Ordering::Relaxed);
        (limit != Self::UNKNOWN).then_some(limit)
    }

    fn set(&self, limit: usize) {
        self.0.store(limit, Ordering::Relaxed);
    }

    /// The server takes no requests on this connection.
    pub(crate) fn is_zero(&self) -> bool {
        self.get() == Some(0)
    }
}

#[derive(Debug)]
pub(crate) struct Http2Connection {
    pub sender: Http2Sender,
    pub stream_limit: Arc<StreamLimit>,
    /// Aborts the connection with every stream on it.
    pub driver: AbortHandle,
}

/// Speaks HTTP/2. `until_settings` is dropped as soon as the server's SETTINGS frame has arrived or the
/// connection has ended; `on_end` is called with the error when the connection breaks.
///
/// # Errors
/// The connection broke before its preface was written.
pub(crate) async fn handshake_http2<IO, G>(
    io: IO,
    windows: FlowWindows,
    closing: WaitForCancellationFutureOwned,
    until_settings: G,
    on_end: impl FnOnce(Option<hyper::Error>) + Send + 'static,
) -> Result<Http2Connection, hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    G: Send + Unpin + 'static,
{
    let executor = DriverExecutor::default();
    let (sender, requests) = http2_builder(&executor, windows)
        .handshake(TokioIo::new(io))
        .await?;
    let stream_limit = Arc::new(StreamLimit::unknown());
    let driver = ConnectionDriver {
        requests: Some(requests),
        transport: executor.take_transport(),
        stream_limit: Arc::clone(&stream_limit),
        until_settings: Some(until_settings),
        error: None,
    };
    let task = tokio::spawn(async move {
        let error = tokio::select! {
            biased;
            () = closing => None,
            error = driver => error,
        };
        on_end(error);
    });
    Ok(Http2Connection {
        sender,
        stream_limit,
        driver: task.abort_handle(),
    })
}

fn http2_builder(
    executor: &DriverExecutor,
    windows: FlowWindows,
) -> http2::Builder<DriverExecutor> {
    let mut builder = http2::Builder::new(executor.clone());
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .initial_max_send_streams(StreamLimit::UNKNOWN)
        .max_send_buf_size(MAX_UPLOAD_BUFFER as usize)
        .max_header_list_size(MAX_HEADER_BYTES);
    builder
}

/// Speaks HTTP/1.1, with support for upgrades.
///
/// # Errors
/// The connection broke.
pub(crate) async fn handshake_http1<IO>(
    io: IO,
    closing: WaitForCancellationFutureOwned,
) -> Result<Http1Sender, hyper::Error>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_buf_size(HTTP1_BUFFER_BYTES)
        .handshake(TokioIo::new(io))
        .await?;
    // An upgrade takes the transport out of this task: its copy loop must watch `closing` itself.
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

type BoxedTask = Pin<Box<dyn Future<Output = ()> + Send>>;
type Requests<IO> = http2::Connection<TokioIo<IO>, Upload, DriverExecutor>;

/// hyper's executor for one HTTP/2 connection. The first future that hyper hands over moves the
/// connection's bytes and goes to [`ConnectionDriver`]. The others become tasks: one waits for a
/// response, one sends a streamed request body until its response has ended.
#[derive(Clone, Default)]
struct DriverExecutor(Arc<OnceLock<Mutex<Option<BoxedTask>>>>);

impl DriverExecutor {
    fn take_transport(&self) -> Option<BoxedTask> {
        self.0.get().and_then(|transport| transport.lock().take())
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for DriverExecutor {
    fn execute(&self, future: F) {
        let mut future = Some(future);
        self.0
            .get_or_init(|| Mutex::new(future.take().map(|first| Box::pin(first) as BoxedTask)));
        let Some(future) = future else { return };
        match upload::take_last_polled() {
            Some(upload) => drop(tokio::spawn(send_until_cancelled(upload, future))),
            None => drop(tokio::spawn(future)),
        }
    }
}

async fn send_until_cancelled(upload: Arc<UploadProgress>, send_body: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = upload.cancelled() => {}
        () = send_body => {}
    }
}

/// Drives a connection's requests and its transport in one task.
///
/// hyper would drive the transport in a task of its own, which lives as long as there are streams: the
/// connection could not be closed. Besides, nothing may run between a request's entry into h2 and the
/// look at its outcome, so that a request which the server's GOAWAY excludes is known as one that was
/// not processed (RFC 9113 §6.8).
struct ConnectionDriver<IO, G>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    requests: Option<Requests<IO>>,
    transport: Option<BoxedTask>,
    stream_limit: Arc<StreamLimit>,
    until_settings: Option<G>,
    error: Option<hyper::Error>,
}

impl<IO, G> ConnectionDriver<IO, G>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Ready when the connection takes no more requests. Those that it has taken may still run.
    fn poll_requests(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(requests) = &mut self.requests {
            // An upload that another task polled on this thread belongs to no request begun here.
            drop(upload::take_last_polled());
            self.error = ready!(Pin::new(requests).poll(cx)).err();
            // Senders observe the end when this is dropped.
            self.requests = None;
        }
        Poll::Ready(())
    }

    fn update_stream_limit(&mut self) {
        let Some(requests) = &self.requests else {
            return;
        };
        self.stream_limit.set(requests.current_max_send_streams());
        if self.stream_limit.get().is_some() {
            self.until_settings = None;
        }
    }
}

impl<IO, G> Future for ConnectionDriver<IO, G>
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    G: Unpin,
{
    /// The error of a connection that broke.
    type Output = Option<hyper::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // Before the transport, so that new requests' frames are written in this turn.
        let _requests = self.poll_requests(cx);
        if let Some(transport) = &mut self.transport {
            let ended = transport.as_mut().poll(cx);
            self.update_stream_limit();
            // Behind it, so that a GOAWAY just read closes the senders at once.
            let _requests = self.poll_requests(cx);
            ready!(ended);
            self.transport = None;
        }
        ready!(self.poll_requests(cx));
        Poll::Ready(self.error.take())
    }
}

/// Rewrites a request for its connection: HTTP/1.1 wants the host in a header and only the path in the
/// request line (RFC 9112 §3.2.1).
pub(crate) fn set_request_target(request: &mut Request<Upload>, sender: &RequestSender) {
    if matches!(sender, RequestSender::Http2(_)) {
        return;
    }
    let authority = request.uri().authority().map(http::uri::Authority::as_str);
    if let Ok(host) = http::HeaderValue::from_str(authority.unwrap_or_default()) {
        request.headers_mut().insert(http::header::HOST, host);
    }
    if let Some(path) = request.uri().path_and_query().cloned() {
        *request.uri_mut() = http::Uri::from(path);
    }
}
