//! One connection, from accept to its end: who calls, TLS or plain, which HTTP, and every request to the handler.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::Either;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;
use tracing::debug;

use super::Front;
use super::activity::{Activity, Answer, Open, Order, Watched};
use super::metered::Metered;
use super::tls::H2;
use crate::client::{Connection, Port};

/// A client that connects and says nothing.
const FIRST_BYTE: Duration = Duration::from_secs(30);
/// How long a drain waits for the first byte of a connection.
const LAST_WORD: Duration = Duration::from_millis(250);
const HANDSHAKE: Duration = Duration::from_secs(10);
/// While the first bytes could still become HTTP/2's preface.
const PREFACE_POLL: Duration = Duration::from_millis(5);

/// What Go's TLS server says to plain HTTP, so that YurtHub's users meet the same words.
const PLAIN_ON_SECURE: &[u8] =
    b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Tls,
    Http1,
    Http2,
    /// The peer closed without a word.
    Nothing,
}

/// Serves one accepted connection to its end.
pub(super) async fn serve(
    front: Arc<Front>,
    stream: TcpStream,
    (remote, port): (SocketAddr, Port),
    activity: Arc<Activity>,
) {
    let process = front.setup.identify(stream.as_fd());
    let Ok(local) = stream.local_addr() else { return };
    let Some(speech) = first_byte(&stream, &activity).await else { return };
    let tls = speech == Speech::Tls;
    let connection = Arc::new(Connection::new(port, local, remote, tls, process));
    if speech == Speech::Nothing {
        return;
    }
    // Plain HTTP on the secure port is the self-probe, or a mistake: no caller.
    if port == Port::Secure && !tls {
        front.counters.plain_on_secure();
        return refuse_plain(stream).await;
    }
    let stream = Metered::new(stream, front.handler.accepted(&connection));
    if tls {
        Box::pin(secure(&front, stream, connection, activity)).await;
    } else if speech == Speech::Http2 {
        http2(&front, stream, connection, activity).await;
    } else {
        http1(&front, stream, connection, activity).await;
    }
}

/// What the client begins with. One that has just connected when the drain begins is about to say something.
async fn first_byte(stream: &TcpStream, activity: &Activity) -> Option<Speech> {
    let first = timeout(FIRST_BYTE, listen_first(stream));
    let heard = match activity.unless_ordered(Order::Finish, first).await {
        Some(heard) => heard,
        None => activity.unless_ordered(Order::Drop, timeout(LAST_WORD, listen_first(stream))).await?,
    };
    heard.ok()?.ok()
}

/// Looks at the first bytes without taking them.
async fn listen_first(stream: &TcpStream) -> io::Result<Speech> {
    let mut first = [0; 3];
    loop {
        let seen = stream.peek(&mut first).await?;
        match speech(&first[..seen]) {
            Some(speech) => return Ok(speech),
            None => tokio::time::sleep(PREFACE_POLL).await,
        }
    }
}

/// No HTTP/1 method begins with `PRI`: that is HTTP/2's preface. `None`: too little to tell.
fn speech(first: &[u8]) -> Option<Speech> {
    match first {
        [] => Some(Speech::Nothing),
        [TLS_HANDSHAKE, ..] => Some(Speech::Tls),
        b"PRI" => Some(Speech::Http2),
        b"P" | b"PR" => None,
        _ => Some(Speech::Http1),
    }
}

async fn secure(front: &Front, stream: Metered, connection: Arc<Connection>, activity: Arc<Activity>) {
    let shaken = handshake(front, stream, &connection, &activity).await;
    // The stream must be gone from here before the long wait: a scope ends what a move does not.
    let serving = {
        let Some(stream) = shaken else { return };
        if stream.get_ref().1.alpn_protocol() == Some(H2) {
            Either::Left(http2(front, *stream, connection, activity))
        } else {
            Either::Right(http1(front, *stream, connection, activity))
        }
    };
    serving.await;
}

/// Boxed on both sides: a handshake is many times larger than what it leaves behind.
async fn handshake(
    front: &Front,
    stream: Metered,
    connection: &Connection,
    activity: &Activity,
) -> Option<Box<TlsStream<Metered>>> {
    let handshake = Box::pin(timeout(HANDSHAKE, front.tls.accept(stream)));
    let failure = match activity.unless_ordered(Order::Drop, handshake).await? {
        Ok(Ok(stream)) => return Some(Box::new(stream)),
        Ok(Err(error)) => format!("failed: {error}; does the client trust our CA?"),
        Err(_) => format!("took longer than {HANDSHAKE:?}"),
    };
    front.counters.handshake_error();
    debug!("TLS handshake with {} {failure}", connection.remote);
    None
}

/// hyper's service: one reference to handler and connection a request, nothing else.
macro_rules! requests {
    ($front:expr, $connection:expr, $activity:expr) => {{
        let (handler, connection, activity) =
            (Arc::clone(&$front.handler), $connection, Arc::clone(&$activity));
        service_fn(move |request| {
            let open = Open::new(&activity);
            let answer = Arc::clone(&handler).handle(Arc::clone(&connection), request);
            async move { Ok::<_, Infallible>(answer.await.map(|body| Answer { body, open })) }
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
    let requests = requests!(front, connection, activity);
    let stream =
        Watched { stream: TokioIo::new(stream), activity: Arc::clone(&activity), one_at_a_time: true };
    let serving = Box::pin(front.http1.serve_connection(stream, requests).with_upgrades());
    async move { ended(activity.drive(serving, |serving| serving.graceful_shutdown()).await) }
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
    let requests = requests!(front, connection, activity);
    let stream =
        Watched { stream: TokioIo::new(stream), activity: Arc::clone(&activity), one_at_a_time: false };
    let serving = Box::pin(front.http2.serve_connection(stream, requests));
    async move { ended(activity.drive(serving, |serving| serving.graceful_shutdown()).await) }
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

    #[test]
    fn the_first_bytes_tell_what_the_client_speaks() {
        for (bytes, heard) in [
            (&b""[..], Some(Speech::Nothing)),
            (b"\x16\x03\x01", Some(Speech::Tls)),
            (b"\x16", Some(Speech::Tls)),
            (b"GET", Some(Speech::Http1)),
            (b"POS", Some(Speech::Http1)),
            (b"PUT", Some(Speech::Http1)),
            (b"PAT", Some(Speech::Http1)),
            (b"PRO", Some(Speech::Http1)),
            (b"PRI", Some(Speech::Http2)),
            (b"P", None),
            (b"PR", None),
            (b"\x80\x2e\x01", Some(Speech::Http1)),
        ] {
            assert_eq!(speech(bytes), heard, "{bytes:?}");
        }
    }

    /// What a future takes in a task.
    fn size<A, B, C, D, F>(_: fn(A, B, C, D) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connections_task_is_small() {
        let bytes = size(serve);
        assert!(bytes <= 1280, "{bytes} bytes a connection, before what hyper and rustls allocate");
        let secure = size(secure);
        assert!(secure <= 768, "{secure} bytes more with TLS");
    }
}
