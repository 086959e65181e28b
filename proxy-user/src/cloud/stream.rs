//! A response body on its way from the API server to a client: the same frames, unchanged (I3), with a
//! copy of the data for the store.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::pool::StreamPermit;
use super::upload::{STALL_TIMEOUT, UploadGuard, UploadProgress};
use crate::telemetry::Metrics;
use crate::text::with_causes;

/// Bytes of a body, but for the last frame, that [`CloudBody::prefetch`] reads.
const MAX_PREFETCH_BYTES: usize = 8 << 10;
const PREFETCH_TIMEOUT: Duration = Duration::from_secs(1);

/// Receives a copy of the data of a response.
pub(crate) trait BodyTee: Unpin {
    /// Copies a chunk. Pending holds the response back until there is room for the copy.
    fn poll_push(&mut self, cx: &mut Context<'_>, chunk: &Bytes) -> Poll<()>;
    /// Ends the copy of a complete body; dropping the tee instead discards the copy.
    fn finish(self);
}

/// The error of a response body that broke off. The client sees a broken stream, never a truncated body that
/// looks complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CloudBodyError {
    #[error("the cloud's response broke off: {}", with_causes(.0))]
    Broken(#[from] hyper::Error),
    /// The server neither answers nor reads the request's body. Only this lets hyper notice that the
    /// client has gone.
    #[error(
        "for {} s the cloud has neither read the request's body nor sent any of its response",
        STALL_TIMEOUT.as_secs()
    )]
    Stalled,
}

type FrameResult = Result<Frame<Bytes>, CloudBodyError>;

/// The body of a forwarded response.
#[derive(Debug)]
pub(crate) struct CloudBody<T> {
    inner: Incoming,
    tee: Option<T>,
    /// A chunk that waits for room in the copy.
    pending: Option<Bytes>,
    /// Frames read before the head went to the client.
    prefetched: VecDeque<FrameResult>,
    /// Bytes still to come, if the response announced its length.
    remaining: Option<u64>,
    watch_end: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    metrics: Arc<Metrics>,
    /// The request's body, as long as it is being sent.
    upload: Option<UploadGuard>,
    /// Given back with the last frame.
    permit: Option<StreamPermit>,
}

impl<T: BodyTee> CloudBody<T> {
    pub(crate) fn new(inner: Incoming, permit: StreamPermit, metrics: Arc<Metrics>) -> Self {
        Self {
            remaining: inner.size_hint().exact(),
            inner,
            tee: None,
            pending: None,
            prefetched: VecDeque::new(),
            watch_end: None,
            metrics,
            upload: None,
            permit: Some(permit),
        }
    }

    pub(crate) fn with_tee(mut self, tee: Option<T>) -> Self {
        self.tee = tee;
        self
    }

    /// Makes this the body of a watch, which ends in good order when `ends` is done or the link breaks;
    /// its client then watches again.
    pub(crate) fn with_watch_end(mut self, ends: Option<WaitForCancellationFutureOwned>) -> Self {
        self.watch_end = ends.map(Box::pin);
        self
    }

    /// Cancels the rest of the request's upload when this body ends.
    pub(crate) fn with_upload(mut self, upload: Option<Arc<UploadProgress>>) -> Self {
        self.upload = upload.map(UploadGuard::new);
        self
    }

    /// Waits for the first frame, or the end of an empty body. Cancellation-safe.
    ///
    /// # Errors
    /// The body broke off before its first frame.
    pub(crate) async fn first_frame(&mut self) -> Result<(), CloudBodyError> {
        if self.prefetched.is_empty() {
            let first = self.next_frame().await.transpose()?;
            self.prefetched.extend(first.map(Ok));
        }
        match self.prefetched.pop_front_if(|first| first.is_err()) {
            Some(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads a short body completely, so that its permit is free even if the client doesn't read it.
    pub(crate) async fn prefetch(&mut self) {
        let _elapsed = tokio::time::timeout(PREFETCH_TIMEOUT, self.read_ahead()).await;
    }

    async fn read_ahead(&mut self) {
        let mut bytes = 0;
        while bytes < MAX_PREFETCH_BYTES
            && self.permit.is_some()
            && let Some(frame) = self.next_frame().await
        {
            bytes += data_len(&frame);
            let is_end = frame.is_err();
            self.prefetched.push_back(frame);
            if is_end {
                break;
            }
        }
    }

    async fn next_frame(&mut self) -> Option<FrameResult> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// The next frame from upstream, behind the prefetched ones.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        loop {
            if let Some(chunk) = self.pending.take() {
                return self.poll_pass(cx, chunk);
            }
            let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending => return self.poll_idle(cx),
            };
            if let Some(upload) = &mut self.upload {
                upload.reset_stall_timer();
            }
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(chunk) => self.pending = Some(chunk),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                Some(Err(error)) => return Poll::Ready(self.break_off(error)),
                None => {
                    self.finish();
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Passes a chunk on, once it has been copied.
    fn poll_pass(&mut self, cx: &mut Context<'_>, chunk: Bytes) -> Poll<Option<FrameResult>> {
        if let Some(tee) = &mut self.tee
            && tee.poll_push(cx, &chunk).is_pending()
        {
            self.pending = Some(chunk);
            return Poll::Pending;
        }
        self.count(&chunk);
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    /// Nothing has arrived: the exchange may be stalled, or the watch is to end.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        if let Some(upload) = &mut self.upload
            && upload.poll_stalled(cx).is_ready()
        {
            self.abort();
            return Poll::Ready(Some(Err(CloudBodyError::Stalled)));
        }
        let Some(watch_end) = &mut self.watch_end else {
            return Poll::Pending;
        };
        ready!(watch_end.as_mut().poll(cx));
        self.tee = None;
        Poll::Ready(None)
    }

    fn break_off(&mut self, error: hyper::Error) -> Option<FrameResult> {
        self.abort();
        // A watch ends in good order instead.
        self.watch_end.is_none().then(|| Err(error.into()))
    }

    fn abort(&mut self) {
        self.tee = None;
        self.permit = None;
    }

    fn count(&mut self, chunk: &Bytes) {
        let len = chunk.len() as u64;
        self.metrics.cloud_bytes.inc_by(len);
        self.remaining = self
            .remaining
            .map(|remaining| remaining.saturating_sub(len));
        // hyper doesn't poll behind the last byte that it knows of, so the copy must end with it.
        if self.remaining == Some(0) || self.inner.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        if let Some(tee) = self.tee.take() {
            tee.finish();
        }
        self.upload = None;
        self.permit = None;
    }

    /// Bytes that were read and not passed on yet.
    fn buffered(&self) -> usize {
        let prefetched: usize = self.prefetched.iter().map(data_len).sum();
        prefetched + self.pending.as_ref().map_or(0, Bytes::len)
    }
}

fn data_len(frame: &FrameResult) -> usize {
    let frame = frame.as_ref().ok();
    frame.and_then(Frame::data_ref).map_or(0, Bytes::len)
}

impl<T: BodyTee> Body for CloudBody<T> {
    type Data = Bytes;
    type Error = CloudBodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        match self.prefetched.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.poll_next(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        let is_drained = self.pending.is_none() && self.prefetched.is_empty();
        is_drained && self.tee.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.inner.size_hint().exact() {
            Some(rest) => SizeHint::with_exact(rest + self.buffered() as u64),
            None => SizeHint::default(),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
