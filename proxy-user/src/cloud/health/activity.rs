//! The time of the last read from the API server, on the link as a whole and on each connection, and
//! the round-trip time of the link.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::telemetry::{ObservedStream, StreamObserver};

/// Round trips that take longer count as this long.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);

/// Bytes read from one server on any connection, and its round-trip time. Lock-free: every read of
/// every connection writes to it.
#[derive(Debug, Default)]
pub(crate) struct LinkActivity {
    last_read: ReadClock,
    /// Microseconds; 0 until one has been measured.
    round_trip: AtomicU64,
}

impl LinkActivity {
    pub(crate) fn record_read(&self) {
        self.last_read.set_now();
    }

    /// The time of the last read; of the creation when there was none.
    pub(crate) fn last_read(&self) -> Instant {
        self.last_read.get()
    }

    /// The smoothed round-trip time; zero until one has been measured.
    pub(crate) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// Records the time to the answer of a probe on an open connection.
    pub(crate) fn record_round_trip(&self, sample: Duration) {
        let sample = as_micros(sample.min(MAX_ROUND_TRIP)).max(1);
        let smoothed = match self.round_trip.load(Ordering::Relaxed) {
            0 => sample,
            // A weight of one half: a link that becomes slow must be known as slow soon.
            before => before.midpoint(sample),
        };
        self.round_trip.store(smoothed, Ordering::Relaxed);
    }

    /// Records the latency of a request. It includes the server's work, so it only bounds the round
    /// trip from above.
    pub(crate) fn record_latency(&self, latency: Duration) {
        if latency < self.round_trip() {
            self.record_round_trip(latency);
        }
    }
}

/// The time of the last read in one word, as microseconds since its creation.
#[derive(Debug)]
struct ReadClock {
    origin: Instant,
    last: AtomicU64,
}

impl Default for ReadClock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            last: AtomicU64::new(0),
        }
    }
}

impl ReadClock {
    fn now(&self) -> u64 {
        as_micros(self.origin.elapsed())
    }

    fn set_now(&self) {
        self.last.store(self.now(), Ordering::Relaxed);
    }

    fn get(&self) -> Instant {
        self.origin + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }
}

fn as_micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// The reads of one connection.
#[derive(Debug, Default)]
pub(crate) struct ConnectionActivity {
    last_read: ReadClock,
    /// The time of [`Self::quarantine`], in microseconds on the clock of `last_read`; 0: never.
    quarantined: AtomicU64,
}

impl ConnectionActivity {
    pub(crate) fn last_read(&self) -> Instant {
        self.last_read.get()
    }

    /// Keeps new requests off the connection until something is read from it. Requests on it go on: it
    /// may be dead, or its server may only be slow, and the answer to an HTTP/2 ping tells.
    pub(crate) fn quarantine(&self) {
        let now = self.last_read.now().max(1);
        self.quarantined.store(now, Ordering::Relaxed);
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        let since = self.quarantined.load(Ordering::Relaxed);
        since != 0 && self.last_read.last.load(Ordering::Relaxed) <= since
    }
}

/// A TCP stream that records its reads. Connecting is no activity: a load balancer or a tunnel before a
/// dead server accepts connections, too.
pub(crate) type TrackedStream = ObservedStream<TcpStream, ReadRecorder>;

/// Records the reads of a connection, for itself and for its link.
#[derive(Debug)]
pub(crate) struct ReadRecorder {
    link: Arc<LinkActivity>,
    connection: Arc<ConnectionActivity>,
}

impl ReadRecorder {
    pub(crate) fn new(link: Arc<LinkActivity>) -> Self {
        Self {
            link,
            connection: Arc::default(),
        }
    }

    pub(crate) fn connection(&self) -> &Arc<ConnectionActivity> {
        &self.connection
    }
}

impl StreamObserver for ReadRecorder {
    fn on_read(&mut self, _bytes: usize) {
        self.link.record_read();
        self.connection.last_read.set_now();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn a_quarantine_ends_with_the_next_read() {
        let connection = ConnectionActivity::default();
        assert!(!connection.is_quarantined());
        connection.quarantine();
        assert!(connection.is_quarantined(), "at its very beginning");
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(1)).await;
            connection.last_read.set_now();
            assert!(!connection.is_quarantined());
            tokio::time::advance(Duration::from_secs(1)).await;
            connection.quarantine();
            assert!(connection.is_quarantined());
        }
    }

    #[test]
    fn the_round_trip_follows_probes_and_is_no_longer_than_any_request_takes() {
        let link = LinkActivity::default();
        link.record_latency(MS * 5);
        assert_eq!(link.round_trip(), Duration::ZERO, "a bound is no measure");
        link.record_round_trip(MS * 80);
        assert_eq!(link.round_trip(), MS * 80);
        link.record_round_trip(MS * 60_000);
        assert_eq!(link.round_trip(), MS * 1040, "(80 + MAX_ROUND_TRIP) / 2");
        link.record_latency(MS * 40);
        assert_eq!(link.round_trip(), MS * 540);
        link.record_latency(MS * 600);
        assert_eq!(link.round_trip(), MS * 540);
        link.record_latency(MS * 540);
        assert_eq!(link.round_trip(), MS * 540);
    }

    #[test]
    fn a_measured_round_trip_is_never_zero() {
        let link = LinkActivity::default();
        link.record_round_trip(Duration::ZERO);
        assert_eq!(link.round_trip(), Duration::from_micros(1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_read_is_remembered_to_the_microsecond() {
        let link = LinkActivity::default();
        let created = link.last_read();
        tokio::time::advance(MS * 1234).await;
        assert_eq!(link.last_read(), created);
        link.record_read();
        assert_eq!(link.last_read(), Instant::now());
    }

    /// A pair of connected sockets: the server's, and ours, tracked.
    async fn connect() -> (TcpStream, TrackedStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (server, _) = listener.accept().await.unwrap();
        let recorder = ReadRecorder::new(Arc::default());
        (server, TrackedStream::new(tcp, recorder))
    }

    #[tokio::test]
    async fn only_bytes_that_are_read_count_as_activity() {
        let (mut server, mut stream) = connect().await;
        let recorder = stream.observer();
        let (link, connection) = (Arc::clone(&recorder.link), Arc::clone(&recorder.connection));
        let created = (link.last_read(), connection.last_read());
        connection.quarantine();
        tokio::time::sleep(MS * 2).await;
        stream.write_all(b"request").await.unwrap();
        stream.flush().await.unwrap();
        assert_eq!((link.last_read(), connection.last_read()), created);
        server.write_all(b"response").await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        assert!(link.last_read() > created.0 && connection.last_read() > created.1);
        assert!(!connection.is_quarantined());
    }

    #[tokio::test]
    async fn the_end_of_the_stream_is_no_activity() {
        let (server, mut stream) = connect().await;
        let link = Arc::clone(&stream.observer().link);
        let created = link.last_read();
        tokio::time::sleep(MS * 2).await;
        drop(server);
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(link.last_read(), created);
    }
}
