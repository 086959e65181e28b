//! hyper's connections under the registry's orders: what a sweep cuts, what it leaves, and how a drain ends.

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

use super::*;
use crate::authz::caller::Client;
use crate::budget::Budget;
use crate::listen::Counters;

/// A connection whose answers are what the test sends, and which end when the test drops the sender.
struct Rig {
    registry: Arc<Registry>,
    counters: Counters,
    client: DuplexStream,
    answers: mpsc::Sender<Bytes>,
    serving: JoinHandle<Option<hyper::Result<()>>>,
}

impl Rig {
    fn new() -> Self {
        let registry = Registry::new(4, Duration::from_secs(30));
        let (client, counters) = (Client::Pod(1), Counters::default());
        let flow = Budget::new(1 << 20).flow(client);
        let activity = registry.enter(client, &flow, &counters).expect("a place");
        let (client, server) = tokio::io::duplex(4096);
        let (answers, receiver) = mpsc::channel(4);
        let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
        let serving = tokio::spawn(async move {
            let stream = Watched {
                stream: TokioIo::new(server),
                activity: Arc::clone(&activity),
                one_at_a_time: true,
            };
            let inner = Arc::clone(&activity);
            let service = service_fn(move |_: Request<Incoming>| {
                let (open, receiver) = (Open::new(&inner), Arc::clone(&receiver));
                async move {
                    let events = futures_util::stream::unfold(receiver, |receiver| async move {
                        let event = receiver.lock().await.recv().await;
                        event.map(|event| (event, receiver))
                    });
                    let body = Body::events(Box::pin(events));
                    Ok::<_, Infallible>(Response::new(Answer { body, open }))
                }
            });
            let mut builder = http1::Builder::new();
            builder.header_read_timeout(None);
            let connection = Box::pin(builder.serve_connection(stream, service).with_upgrades());
            activity
                .drive(connection, |connection| connection.graceful_shutdown())
                .await
        });
        Self {
            registry,
            counters: Counters::default(),
            client,
            answers,
            serving,
        }
    }

    async fn say(&mut self, text: &str) {
        self.client
            .write_all(text.as_bytes())
            .await
            .expect("written");
        // What was written is read by the connection's task before ours runs again.
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn hear(&mut self) -> String {
        let mut buffer = [0; 4096];
        let read = self.client.read(&mut buffer).await.expect("read");
        String::from_utf8_lossy(&buffer[..read]).into_owned()
    }

    fn sweep(&self, times: usize) {
        for _ in 0..times {
            self.registry.sweep(&self.counters);
        }
    }
}

#[tokio::test]
async fn a_head_that_does_not_end_is_cut() {
    let mut rig = Rig::new();
    rig.say("GET / HTTP/1.1\r\nHost: a\r\nX-Slow: ").await;
    rig.sweep(2);
    assert_eq!(rig.registry.open(), 1, "a slow line has its time");
    rig.say("more").await;
    rig.sweep(1);
    assert!(
        rig.serving.await.expect("joined").is_none(),
        "cut, however it dribbles"
    );
    assert_eq!(rig.registry.open(), 0, "its place is free");
}

#[tokio::test]
async fn a_watch_outlives_every_sweep() {
    let mut rig = Rig::new();
    rig.say("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.answers
        .send(Bytes::from_static(b"first"))
        .await
        .expect("sent");
    let head = rig.hear().await;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    rig.sweep(1000);
    rig.answers
        .send(Bytes::from_static(b"second"))
        .await
        .expect("sent");
    let mut text = head;
    while !text.contains("second") {
        text.push_str(&rig.hear().await);
    }
    assert!(!rig.serving.is_finished());
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_its_time_only() {
    let mut rig = Rig::new();
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    drop(rig.answers);
    let mut text = String::new();
    while !text.ends_with("0\r\n\r\n") {
        let mut buffer = [0; 512];
        let read = rig.client.read(&mut buffer).await.expect("read");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    tokio::task::yield_now().await;
    for _ in 0..20 {
        rig.registry.sweep(&rig.counters);
        assert_eq!(rig.registry.open(), 1);
    }
    rig.registry.sweep(&rig.counters);
    assert!(
        rig.serving
            .await
            .expect("joined")
            .expect("ended by itself")
            .is_ok()
    );
}

#[tokio::test]
async fn a_drain_lets_the_answer_end_and_closes() {
    let mut rig = Rig::new();
    rig.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.answers
        .send(Bytes::from_static(b"half"))
        .await
        .expect("sent");
    rig.hear().await;
    rig.registry.drain(false);
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
    rig.registry.emptied().await;
}

#[tokio::test]
async fn an_order_to_drop_ends_even_a_watch() {
    let mut rig = Rig::new();
    rig.say("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n").await;
    rig.registry.drain(false);
    rig.registry.drain(true);
    assert!(rig.serving.await.expect("joined").is_none());
    rig.registry.emptied().await;
}

/// The order to finish took the waker with it, so that the order to end reached nobody: who read nothing stayed, a hand-over
/// took a second more, and a daemon that ended left its interface and pins.
#[tokio::test]
async fn one_that_was_told_to_finish_hears_that_it_is_to_end() {
    let mut rig = Rig::new();
    rig.say("GET /watch HTTP/1.1\r\nHost: a\r\n\r\n").await;
    for at_once in [false, false, true] {
        assert!(!rig.serving.is_finished());
        rig.registry.drain(at_once);
        rig.say("").await;
    }
    let ended = tokio::time::timeout(Duration::from_secs(5), rig.serving)
        .await
        .expect("it has heard");
    assert!(ended.expect("joined").is_none());
}
