//! HTTP/1.1 connections between two requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::Http1Sender;
use crate::cloud::health::activity::ConnectionActivity;

/// Idle connections that are kept; beyond it the oldest is closed.
const MAX_IDLE: usize = 16;
/// Time for which an idle connection is kept; servers close them after a minute or more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub(super) struct IdleConnections(Mutex<VecDeque<IdleConnection>>);

#[derive(Debug)]
pub(super) struct IdleConnection {
    pub(super) sender: Http1Sender,
    pub(super) activity: Arc<ConnectionActivity>,
    since: Instant,
}

impl IdleConnection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed()
            && !self.activity.is_quarantined()
            && self.since.elapsed() < IDLE_TIMEOUT
    }
}

impl IdleConnections {
    pub(super) fn put(&self, sender: Http1Sender, activity: Arc<ConnectionActivity>) {
        let mut idle = self.0.lock();
        idle.retain(IdleConnection::is_usable);
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(IdleConnection {
            sender,
            activity,
            since: Instant::now(),
        });
    }

    /// Takes the connection that was used last. One whose response was not read to its end isn't ready:
    /// it is closing.
    pub(super) fn take(&self) -> Option<IdleConnection> {
        let mut idle = self.0.lock();
        idle.retain(IdleConnection::is_usable);
        let index = idle.iter().rposition(|one| one.sender.is_ready())?;
        idle.remove(index)
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Response};
    use http_body_util::{Either, Full};
    use hyper::body::Incoming;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::sleep;

    use super::*;
    use crate::cloud::pool::connection::{CloseSignal, handshake_http1};

    /// Idle connections, and the servers at their other ends.
    #[derive(Default)]
    struct Bench {
        idle: IdleConnections,
        closing: CloseSignal,
    }

    impl Bench {
        async fn connect(&self) -> (Http1Sender, DuplexStream) {
            let (ours, server) = tokio::io::duplex(1 << 10);
            let mut sender = handshake_http1(ours, self.closing.subscribe())
                .await
                .unwrap();
            sender.ready().await.unwrap();
            (sender, server)
        }

        async fn put_new(&self) -> (Arc<ConnectionActivity>, DuplexStream) {
            let (sender, server) = self.connect().await;
            let activity = Arc::default();
            self.idle.put(sender, Arc::clone(&activity));
            (activity, server)
        }

        fn takes(&self, expected: &Arc<ConnectionActivity>) -> bool {
            let taken = self.idle.take();
            taken.is_some_and(|taken| Arc::ptr_eq(&taken.activity, expected))
        }
    }

    /// The head of a response whose body of two bytes has not arrived.
    async fn begin_response(
        sender: &mut Http1Sender,
        server: &mut DuplexStream,
    ) -> Response<Incoming> {
        let request = Request::get("/").body(Either::Right(Full::default()));
        let serving = async {
            assert!(server.read(&mut [0; 64]).await.unwrap() > 0);
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n";
            server.write_all(head).await.unwrap();
        };
        let (response, ()) = tokio::join!(sender.send_request(request.unwrap()), serving);
        response.unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_was_used_last_is_taken_first() {
        let bench = Bench::default();
        let (first, _first_server) = bench.put_new().await;
        let (second, _second_server) = bench.put_new().await;
        assert!(bench.takes(&second) && bench.takes(&first));
        assert!(bench.idle.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_for_so_long_and_no_longer() {
        let bench = Bench::default();
        let (just_in_time, _server) = bench.put_new().await;
        sleep(IDLE_TIMEOUT - Duration::from_millis(1)).await;
        assert!(bench.takes(&just_in_time));
        let (_late, _server) = bench.put_new().await;
        sleep(IDLE_TIMEOUT).await;
        assert!(bench.idle.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_too_many_is_closed() {
        let bench = Bench::default();
        let (_oldest, mut oldest_server) = bench.put_new().await;
        let mut others = Vec::new();
        for _ in 0..MAX_IDLE {
            others.push(bench.put_new().await);
        }
        assert_eq!(oldest_server.read(&mut [0; 1]).await.unwrap(), 0, "its end");
        let taken = std::iter::from_fn(|| bench.idle.take()).count();
        assert_eq!(taken, MAX_IDLE);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_closed_or_fell_silent_is_not_taken() {
        let bench = Bench::default();
        let (_closed, server) = bench.put_new().await;
        let (silent, _server) = bench.put_new().await;
        drop(server);
        silent.quarantine();
        sleep(Duration::from_millis(1)).await;
        assert!(bench.idle.take().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_with_a_response_to_read_is_passed_over() {
        let bench = Bench::default();
        let (older, _older_server) = bench.put_new().await;
        let (mut sender, mut server) = bench.connect().await;
        let response = begin_response(&mut sender, &mut server).await;
        bench.idle.put(sender, Arc::default());
        assert!(bench.takes(&older));
        assert!(bench.idle.take().is_none());
        drop(response);
    }

    #[tokio::test(start_paused = true)]
    async fn clearing_closes_all() {
        let bench = Bench::default();
        let (_activity, mut server) = bench.put_new().await;
        bench.idle.clear();
        assert_eq!(server.read(&mut [0; 1]).await.unwrap(), 0);
        assert!(bench.idle.take().is_none());
    }
}
