//! One connection, from accept to its end: who calls, TLS or plain, which HTTP, and every request to the handler.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::Either;
use http::StatusCode;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tracing::{debug, warn};

use super::Front;
use super::activity::{Activity, Answer, Open, Order, Watched};
use super::first::{First, Speech};
use super::metered::Metered;
use super::tls::H2;
use crate::authz::caller::Client;
use crate::proxy::connection::{Connection, Port};

/// A client that connects and says nothing.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// How long a drain waits for the first byte of a connection.
const LAST_WORD: Duration = Duration::from_millis(250);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Bytes that TLS keeps for a client that doesn't read: one record's.
const TLS_BUFFER: usize = 16 << 10;
/// The same with large buffers: an answer of two records goes out in one write.
const LARGE_TLS_BUFFER: usize = 32 << 10;

/// What Go's TLS server says to plain HTTP, so that YurtHub's users meet the same words.
const PLAIN_ON_SECURE: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// Serves one accepted connection to its end. `arrival` is given back as soon as it has a place.
pub(super) async fn serve(
    front: Arc<Front>,
    stream: TcpStream,
    (remote, port): (SocketAddr, Port),
    arrival: OwnedSemaphorePermit,
) {
    let Some((activity, mut connection)) = admit(&front, &stream, (remote, port)) else {
        return;
    };
    drop(arrival);
    let mut first = First::default();
    let Some(speech) = first_byte(&mut first, &stream, &activity).await else {
        return;
    };
    let tls = speech == Speech::Tls;
    if speech == Speech::Nothing {
        return;
    }
    // Nobody else has it yet.
    if let Some(connection) = Arc::get_mut(&mut connection) {
        connection.tls = tls;
    }
    // Plain HTTP on the secure port is the self-probe, or a mistake: no caller.
    if port == Port::Secure && !tls {
        if !front.counters.is_probe(remote) {
            front.counters.plain_on_secure();
        }
        return refuse_plain(stream).await;
    }
    let stream = Metered::new(stream, first, front.handler.accepted(&connection));
    if tls {
        Box::pin(secure(&front, stream, connection, activity)).await;
    } else if speech == Speech::Http2 {
        http2(&front, stream, connection, activity).await;
    } else {
        http1(&front, stream, connection, activity).await;
    }
}

/// Finds out who calls, and a place.
fn admit(
    front: &Front,
    stream: &TcpStream,
    (remote, port): (SocketAddr, Port),
) -> Option<(Arc<Activity>, Arc<Connection>)> {
    let process = front.setup.identify(stream.as_fd());
    let client = Client::of(process.as_ref(), remote.ip(), front.host);
    let flow = front.handler.flow(client);
    let activity = front.registry.enter(client, &flow, &front.counters)?;
    Some((
        activity,
        Arc::new(Connection::new(port, remote, process, flow)),
    ))
}

/// What the client begins with. One that has just connected when the drain begins is about to say something.
async fn first_byte(first: &mut First, stream: &TcpStream, activity: &Activity) -> Option<Speech> {
    let waiting = timeout(FIRST_BYTE, first.listen(stream));
    let heard = match activity.unless_ordered(Order::Finish, waiting).await {
        Some(heard) => heard,
        None => {
            activity
                .unless_ordered(Order::Drop, timeout(LAST_WORD, first.listen(stream)))
                .await?
        }
    };
    heard.ok()?.ok()
}

async fn secure(
    front: &Front,
    stream: Metered,
    connection: Arc<Connection>,
    activity: Arc<Activity>,
) {
    let shaken = handshake(front, stream, &connection, &activity).await;
    let large = connection.flow.large_buffers();
    // The stream must be gone from here before the long wait: a scope ends what a move does not.
    let serving = {
        let Some(mut stream) = shaken else { return };
        if large.is_some() {
            stream.get_mut().1.set_buffer_limit(Some(LARGE_TLS_BUFFER));
        }
        if stream.get_ref().1.alpn_protocol() == Some(H2) {
            Either::Left(http2(front, *stream, connection, activity))
        } else {
            Either::Right(http1(front, *stream, connection, activity))
        }
    };
    serving.await;
    drop(large);
}

/// Boxed on both sides: a handshake is many times larger than what it leaves behind.
async fn handshake(
    front: &Front,
    stream: Metered,
    connection: &Connection,
    activity: &Activity,
) -> Option<Box<TlsStream<Metered>>> {
    let handshake = front
        .tls
        .accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
    let handshake = Box::pin(timeout(HANDSHAKE, handshake));
    let failure = match activity.unless_ordered(Order::Drop, handshake).await? {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(error)) => format!("failed: {error}; does the client trust our CA?"),
        Err(_) => format!("took longer than {HANDSHAKE:?}"),
    };
    front.counters.handshake_error();
    tell(front, connection, &failure);
    None
}

/// Warns of a caller's first failure in a while; the others are for the debug level.
fn tell(front: &Front, connection: &Connection, failure: &str) {
    let (remote, process) = (connection.remote, connection.process.as_ref());
    let caller = (remote.ip(), process.map(|process| process.command.clone()));
    let by = process.map_or_else(String::new, |process| {
        let executable = process.executable.as_deref().unwrap_or(&process.command);
        format!(
            " (process {}, user {}, {executable})",
            process.pid, process.uid
        )
    });
    match front.counters.failures.one_more(caller, Instant::now()) {
        None => debug!("TLS handshake with {remote}{by} {failure}"),
        Some(0) => warn!("TLS handshake with {remote}{by} {failure}"),
        Some(more) => {
            warn!(
                "TLS handshake with {remote}{by} {failure}; {more} more failed since the last warning"
            )
        }
    }
}

/// hyper's service: one reference to handler and connection a request, nothing else.
macro_rules! requests {
    ($front:expr, $connection:expr, $activity:expr) => {{
        let (handler, connection, activity) = (
            Arc::clone(&$front.handler),
            $connection,
            Arc::clone(&$activity),
        );
        service_fn(move |request| {
            let open = Open::new(&activity);
            let answer = Arc::clone(&handler).handle(Arc::clone(&connection), request);
            async move {
                let answer = answer.await;
                if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
                    open.for_good();
                }
                Ok::<_, Infallible>(answer.map(|body| Answer { body, open }))
            }
        })
    }};
}

fn http1<T>(
    front: &Front,
    stream: T,
    connection: Arc<Connection>,
    activity: Arc<Activity>,
) -> impl Future<Output = ()> + Send + 'static + use<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http1 = front.http1(&connection.flow);
    let requests = requests!(front, connection, activity);
    let stream = Watched {
        stream: TokioIo::new(stream),
        activity: Arc::clone(&activity),
        one_at_a_time: true,
    };
    let serving = Box::pin(http1.serve_connection(stream, requests).with_upgrades());
    async move {
        ended(
            activity
                .drive(serving, |serving| serving.graceful_shutdown())
                .await,
        )
    }
}

fn http2<T>(
    front: &Front,
    stream: T,
    connection: Arc<Connection>,
    activity: Arc<Activity>,
) -> impl Future<Output = ()> + Send + 'static + use<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let http2 = front.http2(&connection.flow);
    let requests = requests!(front, connection, activity);
    let stream = Watched {
        stream: TokioIo::new(stream),
        activity: Arc::clone(&activity),
        one_at_a_time: false,
    };
    let serving = Box::pin(http2.serve_connection(stream, requests));
    async move {
        ended(
            activity
                .drive(serving, |serving| serving.graceful_shutdown())
                .await,
        )
    }
}

fn ended(end: Option<hyper::Result<()>>) {
    if let Some(Err(error)) = end {
        debug!("connection ended: {error}");
    }
}

/// Answers plain HTTP on the TLS port. What the client sent is read first: closing over unread bytes would reset the
/// connection, and the answer with it.
async fn refuse_plain(mut stream: TcpStream) {
    {
        let mut request = [0; 4096];
        let _ = stream.try_read(&mut request);
    }
    let _ = timeout(HANDSHAKE, async {
        stream.write_all(PLAIN_ON_SECURE).await?;
        stream.shutdown().await
    })
    .await;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a future takes in a task.
    fn size<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connections_task_is_small() {
        let bytes = size(serve);
        assert!(
            bytes <= 1280,
            "{bytes} bytes a connection, before what hyper and rustls allocate"
        );
        let secure = size(secure);
        assert!(secure <= 768, "{secure} bytes more with TLS");
    }
}
