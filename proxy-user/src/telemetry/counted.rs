//! Request bodies that count their bytes for the record of the request.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// The bytes of a body that have arrived, shared with its request's record.
pub(super) type ReceivedBytes = Arc<AtomicU64>;

/// The body of a request. It counts what arrives, whatever its client announced.
#[derive(Debug)]
pub(crate) struct CountedBody<B> {
    body: B,
    /// `None` for a body without bytes.
    received: Option<ReceivedBytes>,
}

impl<B> CountedBody<B> {
    pub(super) fn new(body: B, received: Option<ReceivedBytes>) -> Self {
        Self { body, received }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for CountedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if let (Some(received), Some(Ok(frame))) = (&self.received, &frame) {
            let bytes = frame.data_ref().map_or(0, Bytes::len);
            received.fetch_add(bytes as u64, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
