//! Streams whose bytes are counted: the connections of clients, those to the API server, and those that
//! have left HTTP.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Counts the bytes that pass through an [`ObservedStream`]. It is never called with 0 bytes.
pub(crate) trait StreamObserver {
    /// Moves bytes into `buffer` that were read before the stream was observed. False when none are left.
    fn replay(&mut self, _buffer: &mut ReadBuf<'_>) -> bool {
        false
    }

    fn on_read(&mut self, bytes: usize);

    fn on_write(&mut self, _bytes: usize) {}
}

#[derive(Debug)]
pub(crate) struct ObservedStream<S, O> {
    stream: S,
    observer: O,
}

impl<S, O: StreamObserver> ObservedStream<S, O> {
    pub(crate) fn new(stream: S, observer: O) -> Self {
        Self { stream, observer }
    }

    pub(crate) fn observer(&self) -> &O {
        &self.observer
    }

    fn observe_write(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes @ 1..)) = written {
            self.observer.on_write(bytes);
        }
        written
    }
}

impl<S: AsyncRead + Unpin, O: StreamObserver + Unpin> AsyncRead for ObservedStream<S, O> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = if self.observer.replay(buffer) {
            Poll::Ready(Ok(()))
        } else {
            Pin::new(&mut self.stream).poll_read(cx, buffer)
        };
        let bytes = buffer.filled().len() - before;
        if bytes > 0 {
            self.observer.on_read(bytes);
        }
        read
    }
}

impl<S: AsyncWrite + Unpin, O: StreamObserver + Unpin> AsyncWrite for ObservedStream<S, O> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.observe_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.observe_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The bytes of a stream in both directions.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamBytes {
    pub(super) received: u64,
    pub(super) sent: u64,
}

impl StreamObserver for StreamBytes {
    fn on_read(&mut self, bytes: usize) {
        self.received += bytes as u64;
    }

    fn on_write(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn both_directions_of_a_stream_are_counted() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = ObservedStream::new(near, StreamBytes::default());
        far.write_all(b"request").await.unwrap();
        let mut read = [0; 7];
        stream.read_exact(&mut read).await.unwrap();
        stream.write_all(b"re").await.unwrap();
        let slices = [IoSlice::new(b"p"), IoSlice::new(b"ly")];
        assert_eq!(stream.write_vectored(&slices).await.unwrap(), 3);
        let expected = StreamBytes {
            received: 7,
            sent: 5,
        };
        assert_eq!(*stream.observer(), expected);
    }

    /// Bytes read before, then the number of reads.
    struct Earlier(Vec<u8>, usize);

    impl StreamObserver for Earlier {
        fn replay(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
            buffer.put_slice(&self.0);
            !std::mem::take(&mut self.0).is_empty()
        }

        fn on_read(&mut self, _bytes: usize) {
            self.1 += 1;
        }
    }

    #[tokio::test]
    async fn earlier_bytes_come_first_and_the_end_of_the_stream_is_no_read() {
        let (near, mut far) = tokio::io::duplex(64);
        let mut stream = ObservedStream::new(near, Earlier(b"re".to_vec(), 0));
        far.write_all(b"quest").await.unwrap();
        drop(far);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), stream.observer().1), ("request", 2));
    }
}
