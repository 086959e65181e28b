//! hyper's connections under the table's directives: sweeps, and drains.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::super::tracked::HttpVersion;
use super::super::{InFlight, TrackedBody, TrackedIo};
use super::*;
use crate::budget::Budget;
use crate::caller::Client;
use crate::listen::Counters;
use crate::proxy::body::Body;

/// A connection whose response body is made of the test's messages, and ends with the sender.
struct Rig {
    table: Arc<ConnectionTable>,
    counters: Counters,
    client: DuplexStream,
    answers: mpsc::Sender<Bytes>,
    serving: JoinHandle<Option<hyper::Result<()>>>,
}

impl Rig {
    fn new() -> Self {
        let table = ConnectionTable::new(4, Duration::from_secs(30));
        let (client, counters) = (Client::Pod(1), Counters::default());
        let flow = Budget::new(1 << 20).open_flow(client);
        let activity = table.acquire(client, &flow, &counters).expect("a slot");
        let (client, server) = tokio::io::duplex(4096);
        let (answers, receiver) = mpsc::channel(4);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let serving = tokio::spawn(async move {
            let stream = TrackedIo {
                stream: TokioIo::new(server),
                activity: Arc::clone(&activity),
                version: HttpVersion::Http1,
            };
            let inner = Arc::clone(&activity);
            let service = service_fn(move |_: Request<Incoming>| {
                let (in_flight, receiver) = (InFlight::new(&inner), Arc::clone(&receiver));
                async move {
                    let events = futures_util::stream::unfold(receiver, |receiver| async move {
                        let event = receiver.lock().await.recv().await;
                        event.map(|event| (event, receiver))
                    });
                    let body = Body::from(crate::local::body::LocalBody::watch(events));
                    Ok::<_, Infallible>(Response::new(TrackedBody::new(body, in_flight)))
                }
            });
            let mut builder = http1::Builder::new();
            builder.header_read_timeout(None);
            let connection = Box::pin(builder.serve_connection(stream, service).with_upgrades());
            activity
                .run(connection, |connection| connection.graceful_shutdown())
                .await
        });
        Self {
            table,
            counters: Counters::default(),
            client,
            answers,
            serving,
        }
    }

    async fn send(&mut self, text: &str) {
        self.client
            .write_all(text.as_bytes())
            .await
            .expect("written");
        // What was written is read by the connection's task before ours runs again.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn receive(&mut self) -> String {
        let mut buffer = [0; 4096];
        let read = self.client.read(&mut buffer).await.expect("read");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    fn sweep(&self, times: usize) {
        for _ in 0..times {
            self.table.sweep(&self.counters);
        }
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_closed() {
    let mut rig = Rig::new();
    rig.send("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
    rig.sweep(2);
    assert_eq!(rig.table.open(), 1, "a slow line has its time");
    rig.send("more").await;
    rig.sweep(1);
    assert!(
        rig.serving.await.expect("joined").is_none(),
        "cut, however it dribbles"
    );
    assert_eq!(rig.table.open(), 0, "its slot is free");
}

#[tokio::test]
async fn a_watch_outlives_every_sweep() {
    let mut rig = Rig::new();
    rig.send("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.answers
        .send(Bytes::from_static(b"first"))
        .await
        .expect("sent");
    let head = rig.receive().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    rig.sweep(1000);
    rig.answers
        .send(Bytes::from_static(b"second"))
        .await
        .expect("sent");
    let mut text = head;
    while !text.contains("second") {
        text.push_str(&rig.receive().await);
    }
    assert!(!rig.serving.is_finished());
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_only() {
    let mut rig = Rig::new();
    rig.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    drop(rig.answers);
    let mut text = String::new();
    while !text.ends_with("0\r\n\r\n") {
        let mut buffer = [0; 512];
        let read = rig.client.read(&mut buffer).await.expect("read");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    tokio::task::yield_now().await;
    for _ in 0..20 {
        rig.table.sweep(&rig.counters);
        assert_eq!(rig.table.open(), 1);
    }
    rig.table.sweep(&rig.counters);
    assert!(
        rig.serving
            .await
            .expect("joined")
            .expect("ended by itself")
            .is_ok()
    );
}

#[tokio::test]
async fn a_drain_finishes_the_response_and_closes() {
    let mut rig = Rig::new();
    rig.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.answers
        .send(Bytes::from_static(b"half"))
        .await
        .expect("sent");
    rig.receive().await;
    rig.table.drain();
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    assert!(!rig.serving.is_finished(), "its answer isn't finished");
    rig.answers
        .send(Bytes::from_static(b"whole"))
        .await
        .expect("sent");
    drop(rig.answers);
    let mut rest = String::new();
    rig.client
        .read_to_string(&mut rest)
        .await
        .expect("closed after the answer");
    assert!(
        rest.contains("whole") && rest.ends_with("0\r\n\r\n"),
        "{rest:?}"
    );
    assert!(rig.serving.await.expect("joined").is_some());
    rig.table.drained().await;
}

#[tokio::test]
async fn close_ends_even_a_watch() {
    let mut rig = Rig::new();
    rig.send("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.table.drain();
    rig.table.close_all();
    assert!(rig.serving.await.expect("joined").is_none());
    rig.table.drained().await;
}

/// The directive to drain consumed the waker, so that the directive to close reached nobody: clients
/// that did not read stayed, and a stopped daemon left its interface and pins.
#[tokio::test]
async fn a_draining_connection_hears_that_it_is_to_close() {
    let mut rig = Rig::new();
    rig.send("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.table.drain();
    rig.send("").await;
    rig.table.drain();
    rig.send("").await;
    assert!(!rig.serving.is_finished());
    rig.table.close_all();
    rig.send("").await;
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.serving)
        .await
        .expect("closed");
    assert!(ended.expect("joined").is_none());
}
