//! One connection, from accept to its end: the caller, TLS or plain, the HTTP version, and every
//! request to the proxy.

use std::convert::Infallible;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Either;
use http::{Response, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::acceptor::{Accepted, Acceptor};
use super::metered::{Meter, MeteredStream};
use super::protocol::{FirstBytes, Protocol};
use super::table::{Activity, Directive, HttpVersion, InFlight, TrackedBody, TrackedIo};
use super::tls::H2;
use crate::caller::{Client, Port};
use crate::proxy::body::Body;
use crate::proxy::connection::Connection;
use crate::telemetry::WarningKind;

/// Longest wait for the first byte of a connection.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(30);
/// The same during a drain.
const DRAIN_FIRST_BYTE_TIMEOUT: Duration = Duration::from_millis(250);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that TLS buffers for a client that does not read: one record's.
const TLS_BUFFER: usize = 16 << 10;
/// The same with large buffers: a response of two records is written at once.
const LARGE_TLS_BUFFER: usize = 32 << 10;

/// The response of Go's TLS server to plain HTTP, which YurtHub's users know.
const PLAIN_ON_SECURE: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// Serves one accepted connection to its end.
pub(super) async fn serve(acceptor: Arc<Acceptor>, accepted: Accepted) {
    let Some((activity, mut connection)) = admit(&acceptor, &accepted) else {
        return;
    };
    let Accepted {
        stream,
        remote,
        port,
        arrival,
    } = accepted;
    drop(arrival);
    let mut first_bytes = FirstBytes::default();
    let protocol = match peek_protocol(&mut first_bytes, &stream, &activity).await {
        None | Some(Protocol::Closed) => return,
        Some(protocol) => protocol,
    };
    let tls = protocol == Protocol::Tls;
    // Plain HTTP on the secure port is the self-probe, or a mistake: no caller.
    if port == Port::Secure && !tls {
        acceptor.counters.count_plain_on_secure(remote);
        return refuse_plain(stream).await;
    }
    let caller = acceptor.proxy.stages().record_connection(&connection);
    // No other reference exists yet.
    if let Some(connection) = Arc::get_mut(&mut connection) {
        connection.tls = tls;
        connection.caller = Some(Arc::clone(&caller));
    }
    let meter = Meter {
        first_bytes,
        caller,
    };
    let stream = MeteredStream::new(stream, meter);
    match protocol {
        Protocol::Tls => Box::pin(serve_tls(&acceptor, stream, connection, activity)).await,
        Protocol::Http2 => serve_http2(&acceptor, stream, connection, activity).await,
        _ => serve_http1(&acceptor, stream, connection, activity).await,
    }
}

/// Identifies the caller and acquires a slot for the connection.
fn admit(acceptor: &Acceptor, accepted: &Accepted) -> Option<(Arc<Activity>, Arc<Connection>)> {
    let &Accepted { remote, port, .. } = accepted;
    let process = acceptor.setup.identify(accepted.stream.as_fd());
    let client = Client::of(process.as_ref(), remote.ip(), acceptor.host_netns);
    let flow = acceptor.proxy.stages().open_flow(client);
    let activity = acceptor.table.acquire(client, &flow, &acceptor.counters)?;
    Some((
        activity,
        Arc::new(Connection::new(port, remote, process, flow)),
    ))
}

/// Detects the protocol. During a drain, connections get [`DRAIN_FIRST_BYTE_TIMEOUT`] for it.
async fn peek_protocol(
    first_bytes: &mut FirstBytes,
    stream: &TcpStream,
    activity: &Activity,
) -> Option<Protocol> {
    let peek = timeout(FIRST_BYTE_TIMEOUT, first_bytes.peek_protocol(stream));
    let peeked = match activity.until_directive(Directive::Drain, peek).await {
        Some(peeked) => peeked,
        None => {
            let peek = timeout(DRAIN_FIRST_BYTE_TIMEOUT, first_bytes.peek_protocol(stream));
            activity.until_directive(Directive::Close, peek).await?
        }
    };
    peeked.ok()?.ok()
}

async fn serve_tls(
    acceptor: &Acceptor,
    stream: MeteredStream,
    connection: Arc<Connection>,
    activity: Arc<Activity>,
) {
    let handshake = handshake(acceptor, stream, &connection, &activity).await;
    let large_buffers = connection.flow.charge_large_buffers();
    // Scope the TLS stream so that it is not part of this future across the await.
    let serving = {
        let Some(mut stream) = handshake else { return };
        if large_buffers.is_some() {
            stream.get_mut().1.set_buffer_limit(Some(LARGE_TLS_BUFFER));
        }
        if stream.get_ref().1.alpn_protocol() == Some(H2) {
            Either::Left(serve_http2(acceptor, *stream, connection, activity))
        } else {
            Either::Right(serve_http1(acceptor, *stream, connection, activity))
        }
    };
    serving.await;
    drop(large_buffers);
}

/// Future and result are boxed: a handshake is many times larger than what remains of it.
async fn handshake(
    acceptor: &Acceptor,
    stream: MeteredStream,
    connection: &Connection,
    activity: &Activity,
) -> Option<Box<TlsStream<MeteredStream>>> {
    let handshake = acceptor
        .tls
        .accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
    let handshake = Box::pin(timeout(HANDSHAKE_TIMEOUT, handshake));
    let failure = match activity
        .until_directive(Directive::Close, handshake)
        .await?
    {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(error)) => format!("failed: {error}; does the client trust our CA?"),
        Err(_) => format!("took longer than {HANDSHAKE_TIMEOUT:?}"),
    };
    acceptor.counters.count_handshake_error();
    log_handshake(connection, &failure);
    None
}

/// Warns of a failed handshake where the caller's limit admits it.
fn log_handshake(connection: &Connection, failure: &str) {
    let Some(caller) = &connection.caller else {
        return;
    };
    // The port as well: it finds the connection in a capture.
    let (remote, process) = (connection.remote, caller.process_label());
    match caller.admit_warning(WarningKind::Handshake) {
        Some(suppressed) => warn!("TLS handshake with {remote}{process} {failure}{suppressed}"),
        None => debug!("TLS handshake with {remote}{process} {failure}"),
    }
}

/// hyper's service: one reference to handler and connection a request, nothing else.
macro_rules! request_service {
    ($acceptor:expr, $connection:expr, $activity:expr) => {{
        let proxy = Arc::clone(&$acceptor.proxy);
        let connection = $connection;
        let activity = Arc::clone(&$activity);
        service_fn(move |request| {
            let in_flight = InFlight::new(&activity);
            // Boxed: a stream of HTTP/2 keeps the room of this future until its body has ended, a connection of
            // HTTP/1.1 until it closes.
            let response = Box::pin(Arc::clone(&proxy).handle(Arc::clone(&connection), request));
            response.map(move |response| track(response, in_flight))
        })
    }};
}

fn track(
    response: Response<Body>,
    in_flight: InFlight,
) -> Result<Response<TrackedBody>, Infallible> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        in_flight.mark_upgraded();
    }
    Ok(response.map(|body| TrackedBody::new(body, in_flight)))
}

fn serve_http1<T>(
    acceptor: &Acceptor,
    stream: T,
    connection: Arc<Connection>,
    activity: Arc<Activity>,
) -> impl Future<Output = ()> + Send + 'static + use<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = acceptor.http.http1_for(&connection.flow);
    let service = request_service!(acceptor, connection, activity);
    let stream = TrackedIo {
        stream: TokioIo::new(stream),
        activity: Arc::clone(&activity),
        version: HttpVersion::Http1,
    };
    let serving = Box::pin(builder.serve_connection(stream, service).with_upgrades());
    async move {
        let end = activity
            .run(serving, |serving| serving.graceful_shutdown())
            .await;
        log_end(end);
    }
}

fn serve_http2<T>(
    acceptor: &Acceptor,
    stream: T,
    connection: Arc<Connection>,
    activity: Arc<Activity>,
) -> impl Future<Output = ()> + Send + 'static + use<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let builder = acceptor.http.http2_for(&connection.flow);
    let service = request_service!(acceptor, connection, activity);
    let stream = TrackedIo {
        stream: TokioIo::new(stream),
        activity: Arc::clone(&activity),
        version: HttpVersion::Http2,
    };
    let serving = Box::pin(builder.serve_connection(stream, service));
    async move {
        let end = activity
            .run(serving, |serving| serving.graceful_shutdown())
            .await;
        log_end(end);
    }
}

fn log_end(end: Option<hyper::Result<()>>) {
    if let Some(Err(error)) = end {
        debug!("connection ended: {error}");
    }
}

/// Refuses plain HTTP on the TLS port. The request is read first: closing over unread bytes would
/// reset the connection, and the response with it.
async fn refuse_plain(mut stream: TcpStream) {
    {
        let mut request = [0; 4096];
        let _ = stream.try_read(&mut request);
    }
    let _ = timeout(HANDSHAKE_TIMEOUT, async {
        stream.write_all(PLAIN_ON_SECURE).await?;
        stream.shutdown().await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;
    use tokio::time::{Instant, sleep};

    use super::*;
    use crate::budget::Budget;
    use crate::listen::{ConnectionTable, Counters};
    use crate::proxy::Proxy;

    /// An accepted connection in the table, whose client has sent nothing.
    struct Bench {
        table: Arc<ConnectionTable>,
        activity: Arc<Activity>,
        stream: TcpStream,
        client: TcpStream,
    }

    impl Bench {
        async fn connect() -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
            let address = listener.local_addr().expect("address");
            let client = TcpStream::connect(address).await.expect("connected");
            let (stream, _) = listener.accept().await.expect("accepted");
            let table = ConnectionTable::new(4, Duration::from_secs(30));
            let flow = Budget::new(1 << 20).open_flow(Client::Pod(1));
            let activity = table.acquire(Client::Pod(1), &flow, &Counters::default());
            Self {
                table,
                activity: activity.expect("a slot"),
                stream,
                client,
            }
        }

        /// The protocol, and the time until it was known or the wait ended.
        async fn peek(&self) -> (Option<Protocol>, Duration) {
            let began = Instant::now();
            let mut first_bytes = FirstBytes::default();
            let protocol = peek_protocol(&mut first_bytes, &self.stream, &self.activity).await;
            (protocol, began.elapsed())
        }

        async fn peek_while(
            &self,
            event: impl Future<Output = ()>,
        ) -> (Option<Protocol>, Duration) {
            tokio::join!(self.peek(), event).0
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_sends_nothing_is_given_up_after_the_timeout() {
        let bench = Bench::connect().await;
        assert_eq!(bench.peek().await, (None, FIRST_BYTE_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_leaves_a_silent_client_little_time() {
        let bench = Bench::connect().await;
        let drain = async {
            sleep(Duration::from_secs(1)).await;
            bench.table.drain();
        };
        let expected = Duration::from_secs(1) + DRAIN_FIRST_BYTE_TIMEOUT;
        assert_eq!(bench.peek_while(drain).await, (None, expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_closed_at_once_with_all_others() {
        let bench = Bench::connect().await;
        let close = async {
            sleep(Duration::from_secs(1)).await;
            bench.table.close_all();
        };
        assert_eq!(
            bench.peek_while(close).await,
            (None, Duration::from_secs(1))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_arrived_before_the_drain_is_served() {
        let mut bench = Bench::connect().await;
        bench.client.write_all(b"GET / ").await.expect("written");
        bench.table.drain();
        bench.stream.readable().await.expect("readable");
        assert_eq!(bench.peek().await, (Some(Protocol::Http1), Duration::ZERO));
    }

    fn size_of_future<A, B, F>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }
    fn size_of_future_4<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connections_task_is_small() {
        let bytes = size_of_future(serve);
        assert!(
            bytes <= 1280,
            "{bytes} bytes a connection, before what hyper and rustls allocate"
        );
        let tls = size_of_future_4(serve_tls);
        assert!(tls <= 768, "{tls} bytes more with TLS");
    }

    fn size_of_future_3<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// hyper keeps room for one such future for as long as an HTTP/1.1 connection lasts.
    #[test]
    fn the_future_of_a_request_is_small() {
        let bytes = size_of_future_3(Proxy::handle);
        assert!(bytes <= 2048, "{bytes} bytes a request");
    }
}
