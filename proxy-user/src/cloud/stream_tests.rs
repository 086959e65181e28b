//! Response bodies that a scripted HTTP/1.1 server sends.

use http::Request;
use http_body_util::{BodyExt, Either, Full};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cloud::health::activity::ConnectionActivity;
use crate::cloud::pool::connection::{CloseSignal, handshake_http1};
use crate::cloud::upload::TrackedBody;

const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

#[derive(Debug, Default)]
struct Copy {
    bytes: Vec<u8>,
    finished: bool,
    /// No room: the copy holds the response back.
    blocked: bool,
}

#[derive(Debug, Default, Clone)]
struct RecordingTee(Arc<Mutex<Copy>>);

impl BodyTee for RecordingTee {
    fn poll_push(&mut self, _cx: &mut Context<'_>, chunk: &Bytes) -> Poll<()> {
        let mut copy = self.0.lock();
        if copy.blocked {
            return Poll::Pending;
        }
        copy.bytes.extend_from_slice(chunk);
        Poll::Ready(())
    }

    fn finish(self) {
        self.0.lock().finished = true;
    }
}

/// A forwarded response, its copy, its server, and the connection that its permit holds.
struct Exchange {
    body: CloudBody<RecordingTee>,
    tee: RecordingTee,
    server: DuplexStream,
    connection: Arc<ConnectionActivity>,
    metrics: Arc<Metrics>,
    _closing: CloseSignal,
}

impl Exchange {
    /// Begins with these bytes of the server's response, its head at least.
    async fn begin(response: &str) -> Self {
        let (ours, mut server) = tokio::io::duplex(1 << 20);
        let closing = CloseSignal::default();
        let mut sender = handshake_http1(ours, closing.subscribe()).await.unwrap();
        let request = Request::get("/").body(Either::Right(Full::default()));
        let sending = sender.send_request(request.unwrap());
        let serving = async {
            let mut request = [0; 1024];
            assert!(server.read(&mut request).await.unwrap() > 0);
            server.write_all(response.as_bytes()).await.unwrap();
        };
        let (response, ()) = tokio::join!(sending, serving);
        let (connection, metrics) = (Arc::default(), Arc::default());
        let permit = StreamPermit::unlimited(&connection);
        let tee = RecordingTee::default();
        let incoming = response.unwrap().into_body();
        Self {
            body: CloudBody::new(incoming, permit, Arc::clone(&metrics))
                .with_tee(Some(tee.clone())),
            tee,
            server,
            connection,
            metrics,
            _closing: closing,
        }
    }

    async fn write(&mut self, bytes: &str) {
        self.server.write_all(bytes.as_bytes()).await.unwrap();
    }

    async fn chunk(&mut self) -> Option<Result<Bytes, CloudBodyError>> {
        let frame = self.body.frame().await?;
        Some(frame.map(|frame| frame.into_data().unwrap()))
    }

    fn holds_permit(&self) -> bool {
        Arc::strong_count(&self.connection) > 1
    }

    fn copy(&self) -> (String, bool) {
        let copy = self.tee.0.lock();
        let text = String::from_utf8(copy.bytes.clone()).unwrap();
        (text, copy.finished)
    }
}

#[tokio::test]
async fn a_body_passes_unchanged_and_is_copied() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    exchange.write("3\r\nabc\r\n").await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "abc");
    assert!(exchange.holds_permit() && !exchange.body.is_end_stream());
    exchange.write("2\r\nde\r\n0\r\n\r\n").await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "de");
    assert!(exchange.chunk().await.is_none());
    assert_eq!(exchange.copy(), ("abcde".to_owned(), true));
    assert!(!exchange.holds_permit());
    assert_eq!(exchange.metrics.cloud_bytes.get(), 5);
}

#[tokio::test]
async fn the_copy_ends_with_the_last_announced_byte() {
    let mut exchange = Exchange::begin("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n").await;
    assert_eq!(exchange.body.size_hint().exact(), Some(4));
    exchange.write("ab").await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "ab");
    assert_eq!(exchange.body.size_hint().exact(), Some(2));
    assert_eq!(exchange.copy(), ("ab".to_owned(), false));
    exchange.write("cd").await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "cd");
    assert_eq!(exchange.copy(), ("abcd".to_owned(), true));
    assert!(!exchange.holds_permit());
    assert!(exchange.body.is_end_stream());
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_complete() {
    let mut exchange = Exchange::begin("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "ab");
    exchange.server.shutdown().await.unwrap();
    let error = exchange.chunk().await.unwrap().unwrap_err();
    assert!(matches!(error, CloudBodyError::Broken(_)), "{error}");
    assert_eq!(exchange.copy(), ("ab".to_owned(), false));
    assert!(!exchange.holds_permit());
}

#[tokio::test]
async fn a_watch_ends_in_good_order_when_the_link_breaks() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    let stop = CancellationToken::new();
    exchange.body = exchange.body.with_watch_end(Some(stop.cancelled_owned()));
    exchange.server.shutdown().await.unwrap();
    assert!(exchange.chunk().await.is_none());
    assert!(!exchange.copy().1);
}

#[tokio::test]
async fn a_watch_ends_when_it_is_told_to_once_it_is_idle() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    let stop = CancellationToken::new();
    let ends = stop.clone().cancelled_owned();
    exchange.body = exchange.body.with_watch_end(Some(ends));
    exchange.write("3\r\nabc\r\n").await;
    stop.cancel();
    sleep(Duration::from_millis(20)).await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "abc");
    assert!(exchange.chunk().await.is_none());
    assert_eq!(exchange.copy(), ("abc".to_owned(), false));
}

#[tokio::test]
async fn a_copy_without_room_holds_the_response_back() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    exchange.tee.0.lock().blocked = true;
    exchange.write("3\r\nabc\r\n").await;
    let chunk = tokio::time::timeout(Duration::from_millis(50), exchange.chunk());
    assert!(chunk.await.is_err());
    assert_eq!(exchange.metrics.cloud_bytes.get(), 0);
    exchange.tee.0.lock().blocked = false;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "abc");
    assert_eq!(exchange.copy().0, "abc");
}

#[tokio::test]
async fn the_first_frame_is_waited_for_and_still_passed_on() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    let first = tokio::time::timeout(Duration::from_millis(20), exchange.body.first_frame());
    assert!(first.await.is_err(), "dropped, and called again");
    exchange.write("3\r\nabc\r\n").await;
    exchange.body.first_frame().await.unwrap();
    exchange.body.first_frame().await.unwrap();
    assert!(!exchange.body.is_end_stream());
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "abc");
}

#[tokio::test]
async fn an_empty_body_has_begun_with_its_end() {
    let mut exchange = Exchange::begin("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    exchange.body.first_frame().await.unwrap();
    assert!(exchange.chunk().await.is_none());
}

#[tokio::test]
async fn a_body_that_breaks_before_its_first_frame_has_not_begun() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    exchange.server.shutdown().await.unwrap();
    let error = exchange.body.first_frame().await.unwrap_err();
    assert!(matches!(error, CloudBodyError::Broken(_)));
}

#[tokio::test]
async fn a_short_body_is_prefetched_and_gives_its_permit_back() {
    let mut exchange = Exchange::begin("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nabcd").await;
    exchange.body.prefetch().await;
    assert!(!exchange.holds_permit());
    assert_eq!(exchange.body.size_hint().exact(), Some(4));
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "abcd");
    assert!(exchange.chunk().await.is_none());
}

#[tokio::test]
async fn a_long_body_is_prefetched_in_part() {
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", 1 << 20);
    let mut exchange = Exchange::begin(&head).await;
    let half = "x".repeat(512 << 10);
    exchange.write(&half).await;
    exchange.body.prefetch().await;
    let prefetched = exchange.body.buffered();
    assert!(
        (MAX_PREFETCH_BYTES..=128 << 10).contains(&prefetched),
        "{prefetched}"
    );
    assert!(exchange.holds_permit());
    assert_eq!(exchange.body.size_hint().exact(), Some(1 << 20));
}

#[tokio::test(start_paused = true)]
async fn a_slow_body_is_prefetched_for_a_second() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    let began = Instant::now();
    exchange.body.prefetch().await;
    assert_eq!(began.elapsed(), PREFETCH_TIMEOUT);
}

#[tokio::test]
async fn an_error_within_the_prefetched_frames_comes_in_its_place() {
    let mut exchange = Exchange::begin("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab").await;
    exchange.server.shutdown().await.unwrap();
    exchange.body.prefetch().await;
    exchange.body.first_frame().await.unwrap();
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "ab");
    assert!(exchange.chunk().await.unwrap().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_response_that_stands_still_beside_its_upload_ends() {
    let mut exchange = Exchange::begin(CHUNKED).await;
    let upload = TrackedBody::new(Full::new(Bytes::from_static(b"a")));
    let progress = upload.progress();
    exchange.body = exchange.body.with_upload(Some(upload.progress()));
    exchange.write("3\r\nabc\r\n").await;
    assert_eq!(exchange.chunk().await.unwrap().unwrap(), "abc");
    let began = Instant::now();
    let error = exchange.chunk().await.unwrap().unwrap_err();
    assert!(matches!(error, CloudBodyError::Stalled), "{error}");
    assert!(began.elapsed() >= STALL_TIMEOUT, "{:?}", began.elapsed());
    assert!(!exchange.holds_permit());
    drop(exchange);
    progress.cancelled().await;
}

#[tokio::test]
async fn the_end_of_a_response_ends_its_upload() {
    let mut exchange = Exchange::begin("HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\na").await;
    let upload = TrackedBody::new(Full::new(Bytes::from_static(b"a")));
    exchange.body = exchange.body.with_upload(Some(upload.progress()));
    exchange.chunk().await.unwrap().unwrap();
    upload.progress().cancelled().await;
}
