//! When the cloud was last heard, and how long its way takes. In: every byte that comes on any connection to it, and
//! measured round trips. Out: the silence so far, for `health`, which judges by it.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Longest round trip that is believed.
const LONGEST: Duration = Duration::from_secs(2);

/// Signs of life of one server, on whatever connection.
#[derive(Debug)]
pub(crate) struct Heard {
    origin: Instant,
    /// Microseconds since the origin.
    last: AtomicU64,
    /// Microseconds; 0 until one has been measured.
    round_trip: AtomicU64,
}

impl Default for Heard {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            last: AtomicU64::new(0),
            round_trip: AtomicU64::new(0),
        }
    }
}

impl Heard {
    pub(crate) fn note(&self) {
        self.last
            .store(micros(self.origin.elapsed()), Ordering::Relaxed);
    }

    /// When something came last, or when listening began.
    pub(crate) fn last(&self) -> Instant {
        self.origin + Duration::from_micros(self.last.load(Ordering::Relaxed))
    }

    /// The usual round trip, zero while it isn't known.
    pub(crate) fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip.load(Ordering::Relaxed))
    }

    /// A question on an open connection was answered after this time.
    pub(crate) fn took(&self, time: Duration) {
        let (now, usual) = (
            micros(time.min(LONGEST)).max(1),
            self.round_trip.load(Ordering::Relaxed),
        );
        // By half: a way that becomes a long one must be known as such soon.
        let usual = if usual == 0 { now } else { usual.midpoint(now) };
        self.round_trip.store(usual, Ordering::Relaxed);
    }

    /// A request was answered after this time, the server's work included: the way is no longer than that.
    pub(crate) fn took_at_most(&self, time: Duration) {
        if time < self.round_trip() {
            self.took(time);
        }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

/// One connection's share of the signs of life.
#[derive(Debug, Default)]
pub(crate) struct Line {
    heard: Heard,
    /// When it was left, in microseconds since the origin of `heard`; 0: never.
    left: AtomicU64,
}

impl Line {
    /// When something came last on it.
    pub(crate) fn last(&self) -> Instant {
        self.heard.last()
    }

    /// No request takes it until something comes on it again; what runs on it goes on. It may be dead, or its server may
    /// merely sit on what it was asked: the answer to a ping tells.
    pub(crate) fn leave(&self) {
        self.left.store(
            micros(self.heard.origin.elapsed()).max(1),
            Ordering::Relaxed,
        );
    }

    /// Nothing has come since [`Line::leave`].
    pub(crate) fn is_left(&self) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        left != 0 && self.heard.last.load(Ordering::Relaxed) <= left
    }
}

/// A connection to the cloud that notes when something comes. That it could be opened is no sign of life: what stands
/// before a dead server (a load balancer, a tunnel) accepts, too.
#[derive(Debug)]
pub(crate) struct HeardStream {
    tcp: TcpStream,
    heard: Arc<Heard>,
    line: Arc<Line>,
}

impl HeardStream {
    /// Over an open connection.
    pub(crate) fn new(tcp: TcpStream, heard: Arc<Heard>) -> Self {
        Self {
            tcp,
            heard,
            line: Arc::default(),
        }
    }

    /// Bytes and times of this connection alone.
    pub(crate) fn line(&self) -> &Arc<Line> {
        &self.line
    }
}

impl AsyncRead for HeardStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.tcp).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.heard.note();
            self.line.heard.note();
        }
        read
    }
}

impl AsyncWrite for HeardStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_line_that_was_left_is_used_again_once_something_comes_on_it() {
        let line = Line::default();
        assert!(!line.is_left());
        line.leave();
        assert!(line.is_left(), "left at its very beginning");
        for _ in 0..2 {
            tokio::time::advance(Duration::from_secs(1)).await;
            line.heard.note();
            assert!(!line.is_left());
            tokio::time::advance(Duration::from_secs(1)).await;
            line.leave();
            assert!(line.is_left());
        }
    }

    #[test]
    fn the_round_trip_follows_probes_and_is_no_longer_than_any_answer_takes() {
        let heard = Heard::default();
        heard.took_at_most(Duration::from_millis(5));
        assert_eq!(
            heard.round_trip(),
            Duration::ZERO,
            "an answer's time bounds it, and is no measure of it"
        );
        heard.took(Duration::from_millis(80));
        assert_eq!(heard.round_trip(), Duration::from_millis(80));
        heard.took(Duration::from_secs(60));
        assert_eq!(
            heard.round_trip(),
            Duration::from_millis(1040),
            "the longest that is believed, by half"
        );
        heard.took_at_most(Duration::from_millis(40));
        assert_eq!(heard.round_trip(), Duration::from_millis(540));
        heard.took_at_most(Duration::from_millis(600));
        assert_eq!(heard.round_trip(), Duration::from_millis(540));
    }
}
