//! The shared connections, over in-memory HTTP/2 servers.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::*;
use crate::cloud::pool::connection::{CloseSignal, SendError, handshake_http2};
use crate::cloud::upload::Upload;

type ServerConnection = h2::server::Connection<DuplexStream, Bytes>;

const SOON: Duration = Duration::from_secs(5);

fn client(last: u8) -> Client {
    Client::Address(IpAddr::from([10, 0, 0, last]))
}

fn request() -> Request<Upload> {
    Request::get("https://api.example/api")
        .body(Either::Right(Full::default()))
        .unwrap()
}

/// Shared connections to scripted servers.
struct Site {
    shared: Arc<SharedConnections>,
    closing: CloseSignal,
    ended: mpsc::UnboundedSender<bool>,
    ends: mpsc::UnboundedReceiver<bool>,
}

impl Site {
    fn new() -> Self {
        let (ended, ends) = mpsc::unbounded_channel();
        Self {
            shared: Arc::default(),
            closing: CloseSignal::default(),
            ended,
            ends,
        }
    }

    fn dial(&self, kind: StreamKind) -> PendingDial {
        match self.shared.try_acquire(kind) {
            Ok(Acquired::Dial(dial)) => dial,
            Ok(Acquired::Lease(_)) => panic!("a lease"),
            Ok(Acquired::Wait(_)) => panic!("a wait"),
            Err(error) => panic!("{error}"),
        }
    }

    fn lease(&self, kind: StreamKind) -> Lease {
        match self.shared.try_acquire(kind) {
            Ok(Acquired::Lease(lease)) => lease,
            _ => panic!("no lease"),
        }
    }

    fn is_wait(&self, kind: StreamKind) -> bool {
        matches!(self.shared.try_acquire(kind), Ok(Acquired::Wait(_)))
    }

    /// Completes a dial with a server that `serve` runs; waits for its SETTINGS frame if it sends one.
    async fn open<F>(
        &self,
        dial: PendingDial,
        max_streams: u32,
        serve: impl FnOnce(ServerConnection) -> F + Send + 'static,
    ) -> Lease
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        tokio::spawn(async move {
            let mut builder = h2::server::Builder::new();
            builder.max_concurrent_streams(max_streams);
            serve(builder.handshake(theirs).await.unwrap()).await;
        });
        let (windows, flow) = (dial.windows, dial.flow);
        let ended = self.ended.clone();
        let on_end = move |error: Option<hyper::Error>| {
            let _ = ended.send(error.is_some());
        };
        let closing = self.closing.subscribe();
        let connection = handshake_http2(ours, flow, closing, dial, on_end)
            .await
            .unwrap();
        let settings = async {
            while connection.stream_limit.get().is_none() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(SOON, settings).await.expect("SETTINGS");
        self.shared.add(connection, Arc::default(), windows)
    }

    async fn open_ok(&self, kind: StreamKind, max_streams: u32) -> Lease {
        self.open(self.dial(kind), max_streams, serve_ok).await
    }

    /// Done when a connection has ended: whether it broke.
    async fn next_end(&mut self) -> bool {
        timeout(SOON, self.ends.recv()).await.unwrap().unwrap()
    }
}

/// Answers every request with 200.
async fn serve_ok(mut server: ServerConnection) {
    while let Some(Ok((_request, mut respond))) = server.accept().await {
        respond.send_response(Response::new(()), true).unwrap();
    }
}

/// Takes requests and answers none.
async fn serve_nothing(mut server: ServerConnection) {
    let mut held = Vec::new();
    while let Some(Ok(stream)) = server.accept().await {
        held.push(stream);
    }
}

async fn send(lease: &mut Lease) -> Result<Response<hyper::body::Incoming>, Box<SendError>> {
    timeout(SOON, lease.sender.try_send(request()))
        .await
        .expect("an end")
}

/// Two thousand responses that one client did not read took all streams, and the writes of all others
/// met 429.
#[test]
fn one_client_leaves_as_many_streams_as_it_has_and_root_always_finds_some() {
    let shared = SharedConnections::default();
    let most = MAX_CONNECTIONS * SMALL_WINDOW_STREAMS;
    let take_all = |client| -> Vec<ClientPermit> {
        std::iter::from_fn(|| shared.count_stream(client).ok())
            .take(most + 1)
            .collect()
    };
    let pod = take_all(Client::Pod(1));
    assert_eq!(pod.len(), (most - RESERVED_STREAMS) / 2);
    let others: Vec<_> = (2..200).map(|pod| take_all(Client::Pod(pod))).collect();
    assert!(
        others.iter().take(10).all(|taken| !taken.is_empty()),
        "newcomers find some"
    );
    let root = take_all(Client::Root(1));
    let taken = root.len() + others.iter().map(Vec::len).sum::<usize>() + pod.len();
    assert_eq!(taken, most);
    drop((pod, others));
    assert!(!take_all(client(1)).is_empty(), "given back");
}

#[tokio::test]
async fn the_first_unary_request_dials_large_windows_and_the_first_watch_small_ones() {
    let site = Site::new();
    let large = site.dial(StreamKind::Unary);
    assert_eq!(
        (large.windows, large.flow),
        (WindowSize::Large, LARGE_WINDOWS)
    );
    let small = site.dial(StreamKind::Watch);
    assert_eq!(small.windows, WindowSize::Small);
    assert_eq!(small.flow, FIRST_SMALL_WINDOWS);
    let _first = site.open(small, 100, serve_ok).await;
    drop(large);
    // A full small-window connection is followed by one with smaller windows.
    let _streams: Vec<_> = (1..90).map(|_| site.lease(StreamKind::Watch)).collect();
    let next = site.dial(StreamKind::Watch);
    assert_eq!(
        (next.windows, next.flow),
        (WindowSize::Small, SMALL_WINDOWS)
    );
}

#[test]
fn a_connections_window_holds_those_of_all_its_streams() {
    for windows in [FIRST_SMALL_WINDOWS, SMALL_WINDOWS] {
        assert_eq!(windows.connection, windows.stream * 90);
    }
    assert_eq!(LARGE_WINDOWS.connection, 16 << 20);
}

#[tokio::test]
async fn a_request_is_answered_and_its_stream_given_back() {
    let site = Site::new();
    let mut lease = site.open_ok(StreamKind::Unary, 100).await;
    let response = send(&mut lease).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let second = site.lease(StreamKind::Unary);
    let connection = || {
        let state = site.shared.state.lock();
        (
            state.connections.len(),
            state.connections[0].streams.count(),
        )
    };
    assert_eq!(connection(), (1, 2));
    drop((lease, second));
    assert_eq!(connection(), (1, 0));
}

#[tokio::test]
async fn watches_keep_off_the_large_window_connection() {
    let site = Site::new();
    let _large = site.open_ok(StreamKind::Unary, 100).await;
    let small = site.dial(StreamKind::Watch);
    assert_eq!(small.windows, WindowSize::Small);
}

#[tokio::test]
async fn unary_requests_overflow_to_small_windows_once_the_large_ones_are_taken() {
    let site = Site::new();
    let first = site.open_ok(StreamKind::Unary, 100).await;
    let mut held = vec![first];
    held.extend((1..LARGE_WINDOW_STREAMS).map(|_| site.lease(StreamKind::Unary)));
    let overflow = site.dial(StreamKind::Unary);
    assert_eq!(overflow.windows, WindowSize::Small);
    held.push(site.open(overflow, 100, serve_ok).await);
    held.push(site.lease(StreamKind::Unary));
    assert_eq!(site.shared.open_connections(), 2);
}

#[tokio::test]
async fn a_connection_takes_no_more_than_the_server_allows_less_a_tenth() {
    let site = Site::new();
    let first = site.open_ok(StreamKind::Watch, 20).await;
    let mut held = vec![first];
    while let Ok(Acquired::Lease(lease)) = site.shared.try_acquire(StreamKind::Watch) {
        held.push(lease);
    }
    assert_eq!(held.len(), 18);
    held.pop();
    held.push(site.lease(StreamKind::Watch));
}

#[tokio::test]
async fn only_as_many_requests_wait_as_a_dial_has_streams_for() {
    let site = Site::new();
    let dial = site.dial(StreamKind::Watch);
    let waits: Vec<_> = (0..STREAMS_BEFORE_SETTINGS)
        .map(|_| match site.shared.try_acquire(StreamKind::Watch) {
            Ok(Acquired::Wait(wait)) => wait,
            _ => panic!("no wait"),
        })
        .collect();
    let second = site.dial(StreamKind::Watch);
    assert!(site.is_wait(StreamKind::Watch), "for the second dial");
    drop((waits, dial));
    assert!(site.is_wait(StreamKind::Watch));
    drop(second);
    drop(site.dial(StreamKind::Watch));
    let state = site.shared.state.lock();
    assert_eq!((state.dialing.total(), state.waiting.watch), (0, 0));
}

#[tokio::test]
async fn a_failed_dial_and_an_ended_stream_wake_the_waiting() {
    let site = Site::new();
    let shared = Arc::clone(&site.shared);
    let mut freed = std::pin::pin!(shared.capacity_freed());
    freed.as_mut().enable();
    let dial = site.dial(StreamKind::Watch);
    assert!(freed.as_mut().now_or_never().is_none());
    drop(dial);
    timeout(SOON, freed.as_mut()).await.expect("a failed dial");
    let lease = site.open_ok(StreamKind::Watch, 100).await;
    let mut freed = std::pin::pin!(shared.capacity_freed());
    freed.as_mut().enable();
    drop(lease);
    timeout(SOON, freed).await.expect("an ended stream");
}

#[tokio::test]
async fn a_goaway_excludes_a_request_which_was_not_processed() {
    let mut site = Site::new();
    let dial = site.dial(StreamKind::Unary);
    let mut lease = site
        .open(dial, 100, |mut server| async move {
            server.graceful_shutdown();
            while let Some(Ok(_)) = server.accept().await {}
        })
        .await;
    assert!(!site.next_end().await, "it closed in good order");
    let error = send(&mut lease).await.unwrap_err();
    assert!(error.returned.is_some(), "given back: {:?}", error.error);
    assert_eq!(site.shared.open_connections(), 0);
    drop(site.dial(StreamKind::Unary));
}

#[tokio::test]
async fn a_refused_stream_was_not_processed() {
    let site = Site::new();
    let dial = site.dial(StreamKind::Unary);
    let mut lease = site
        .open(dial, 100, |mut server| async move {
            while let Some(Ok((_, mut respond))) = server.accept().await {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
            }
        })
        .await;
    let error = send(&mut lease).await.unwrap_err();
    assert!(crate::cloud::forward::is_unprocessed(&error.error));
    assert_eq!(site.shared.open_connections(), 1, "it goes on");
}

#[tokio::test]
async fn a_stream_that_is_reset_otherwise_may_have_been_processed() {
    let site = Site::new();
    let dial = site.dial(StreamKind::Unary);
    let mut lease = site
        .open(dial, 100, |mut server| async move {
            while let Some(Ok((_, mut respond))) = server.accept().await {
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
            }
        })
        .await;
    let error = send(&mut lease).await.unwrap_err();
    assert!(error.returned.is_none());
    assert!(!crate::cloud::forward::is_unprocessed(&error.error));
}

#[tokio::test]
async fn a_server_without_streams_is_dialed_a_few_times_only() {
    let site = Site::new();
    let mut held = Vec::new();
    for _ in 0..MAX_UNUSABLE_CONNECTIONS {
        held.push(site.open_ok(StreamKind::Watch, 0).await);
    }
    let refused = site.shared.try_acquire(StreamKind::Watch);
    assert!(matches!(refused, Err(DialError::NoStreams)));
}

#[tokio::test]
async fn a_connection_without_streams_ends_when_it_is_quarantined() {
    let mut site = Site::new();
    let lease = site.open_ok(StreamKind::Watch, 0).await;
    lease.permit.quarantine();
    // An aborted task calls nothing; the connection is gone all the same.
    let gone = async {
        while site.shared.open_connections() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, gone).await.expect("closed");
    assert!(site.ends.try_recv().is_err());
}

#[tokio::test]
async fn a_quarantined_connection_keeps_its_streams_and_gets_no_more() {
    let site = Site::new();
    let lease = site.open_ok(StreamKind::Watch, 100).await;
    lease.permit.quarantine();
    let second = site.dial(StreamKind::Watch);
    assert_eq!(site.shared.open_connections(), 1);
    drop(lease);
    assert_eq!(
        site.shared.open_connections(),
        0,
        "none runs on it any more"
    );
    drop(second);
}

#[tokio::test]
async fn retired_connections_go_on_for_their_streams_but_for_the_oldest() {
    let site = Site::new();
    let mut leases = Vec::new();
    for _ in 0..=MAX_RETIRED {
        let dial = site.dial(StreamKind::Watch);
        leases.push(site.open(dial, 100, serve_nothing).await);
        site.shared.retire_all();
    }
    assert_eq!(site.shared.open_connections(), MAX_RETIRED);
    assert!(send(&mut leases[0]).await.is_err(), "the oldest is closed");
    let pending = leases[1].sender.try_send(request());
    assert!(timeout(Duration::from_millis(50), pending).await.is_err());
}

#[tokio::test]
async fn the_close_signal_ends_every_connection_of_before() {
    let mut site = Site::new();
    let dial = site.dial(StreamKind::Watch);
    let mut lease = site.open(dial, 100, serve_nothing).await;
    let sending = tokio::spawn(async move { send(&mut lease).await.is_err() });
    sleep(Duration::from_millis(20)).await;
    site.shared.clear();
    site.closing.close();
    assert!(!site.next_end().await);
    assert!(sending.await.unwrap(), "its requests end");
    let mut after = site.open_ok(StreamKind::Watch, 100).await;
    assert!(send(&mut after).await.is_ok(), "later ones are open");
}

#[tokio::test]
async fn a_connection_that_breaks_says_so() {
    let mut site = Site::new();
    let dial = site.dial(StreamKind::Watch);
    let _lease = site
        .open(dial, 100, |mut server| async move {
            server.abrupt_shutdown(h2::Reason::PROTOCOL_ERROR);
            while let Some(Ok(_)) = server.accept().await {}
        })
        .await;
    assert!(site.next_end().await);
}

#[tokio::test]
async fn all_connections_full_is_busy() {
    let site = Site::new();
    let mut held = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let dial = site.dial(StreamKind::Watch);
        held.push(site.open(dial, 1, serve_nothing).await);
    }
    let refused = site.shared.try_acquire(StreamKind::Watch);
    assert!(matches!(refused, Err(DialError::Busy)));
    drop(held.pop());
    let _again = site.lease(StreamKind::Watch);
}
