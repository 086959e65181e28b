//! Response bodies whose clients don't read.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep, timeout};

use super::*;
use crate::budget::{Budget, Flow};
use crate::caller::Client;
use crate::listen::stall::StallTimeoutExecutor;
use crate::listen::{ConnectionTable, Counters};
use crate::local::body::LocalBody;

const READER_TIMEOUT: Duration = Duration::from_secs(30);
const BUDGET: usize = 1 << 20;

struct Rig {
    activity: Arc<Activity>,
    flow: Arc<Flow>,
}

impl Rig {
    fn new() -> Self {
        let client = Client::Pod(1);
        let table = ConnectionTable::new(4, READER_TIMEOUT);
        let flow = Budget::new(BUDGET).open_flow(client);
        let activity = table.acquire(client, &flow, &Counters::default());
        Self {
            activity: activity.expect("a slot"),
            flow,
        }
    }

    fn track(&self, body: impl Into<Body>) -> TrackedBody {
        let mut body = body.into();
        body.hold(None, &self.flow);
        TrackedBody::new(body, InFlight::new(&self.activity))
    }

    /// Leaves so much unread that the client has no room.
    fn fill(&self) -> Bytes {
        self.flow.charge_chunk(Bytes::from(vec![0; BUDGET]))
    }
}

fn endless() -> LocalBody {
    LocalBody::watch(futures_util::stream::repeat(Bytes::from_static(b"event")))
}

/// Nothing of such a response was pending, so nothing noticed that its client does not read.
#[tokio::test(start_paused = true)]
async fn a_response_without_room_ends_after_the_reader_timeout() {
    let rig = Rig::new();
    let _unread = rig.fill();
    let began = Instant::now();
    let mut body = rig.track(endless());
    let frame = timeout(2 * READER_TIMEOUT, body.frame()).await;
    let failed = matches!(frame, Ok(Some(Err(BodyError::OutOfRoom))));
    assert!(failed, "{frame:?}");
    assert_eq!(began.elapsed(), READER_TIMEOUT);
}

#[tokio::test(start_paused = true)]
async fn a_response_goes_on_once_there_is_room() {
    let rig = Rig::new();
    let mut body = rig.track(endless());
    for _ in 0..5 {
        let unread = rig.fill();
        let read_others = async {
            sleep(READER_TIMEOUT * 2 / 3).await;
            drop(unread);
        };
        let (frame, ()) = tokio::join!(body.frame(), read_others);
        assert!(matches!(frame, Some(Ok(_))), "{frame:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_with_room_waits_for_its_source() {
    let rig = Rig::new();
    let mut body = rig.track(LocalBody::watch(futures_util::stream::pending()));
    let frame = timeout(1000 * READER_TIMEOUT, body.frame()).await;
    assert!(frame.is_err(), "{frame:?}");
}

/// The client lets heads through and nothing of bodies, and answers the server's pings.
#[tokio::test(start_paused = true)]
async fn a_stream_whose_window_is_closed_is_reset_after_the_reader_timeout() {
    let rig = Arc::new(Rig::new());
    let (client, server) = tokio::io::duplex(1 << 16);
    let service = service_fn({
        let rig = Arc::clone(&rig);
        move |_: Request<Incoming>| {
            let response = Response::new(rig.track(endless()));
            async { Ok::<_, Infallible>(response) }
        }
    });
    let builder = http2::Builder::new(StallTimeoutExecutor::new(READER_TIMEOUT));
    tokio::spawn(builder.serve_connection(TokioIo::new(server), service));

    let handshake = h2::client::Builder::new()
        .initial_window_size(0)
        .handshake::<_, Bytes>(client);
    let (mut requests, connection) = handshake.await.expect("a connection");
    tokio::spawn(connection);
    let began = Instant::now();
    let (response, _) = requests
        .send_request(Request::new(()), true)
        .expect("a stream");
    let mut body = response.await.expect("a head").into_body();
    let end = timeout(2 * READER_TIMEOUT, body.data()).await;
    assert!(matches!(end, Ok(Some(Err(_)))), "{end:?}");
    assert!(began.elapsed() >= READER_TIMEOUT, "{:?}", began.elapsed());
    assert_eq!(rig.activity.snapshot().in_flight, 0);
}
