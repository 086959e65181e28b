//! A body from the cloud on its way to a client, copied into the cache as it passes. In: hyper's body. Out: the same
//! frames, unchanged (I3).

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio_util::sync::WaitForCancellationFutureOwned;

use super::pool::Place;
use crate::cache::capture::Capture;
use crate::cloud::upload::{Beside, Progress};
use crate::proxy::body::BodyError;
use crate::telemetry::Metrics;

/// Most bytes, but a frame, that are read for a client before it wants them, and the longest time that they may take.
const AHEAD: (usize, Duration) = (8 << 10, Duration::from_secs(1));

/// The body of a forwarded answer.
#[derive(Debug)]
pub(crate) struct CloudBody {
    inner: Incoming,
    capture: Option<Capture>,
    /// A frame that waits for room in the copy.
    waiting: Option<Bytes>,
    /// Frames read before the head went to the client.
    ahead: VecDeque<Result<Frame<Bytes>, BodyError>>,
    /// Bytes still to come, where the answer said how many.
    left: Option<u64>,
    /// Of a watch: done when hublet stops. A watch ends like any other then, and so when the link breaks: the client
    /// watches again at once.
    watch: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    metrics: Arc<Metrics>,
    /// The caller's body, as long as it is being sent.
    upload: Option<Beside>,
    /// On its connection, until the body has ended there.
    place: Option<Place>,
}

impl CloudBody {
    pub(crate) fn new(
        inner: Incoming,
        capture: Option<Capture>,
        place: Option<Place>,
        watch: Option<WaitForCancellationFutureOwned>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let left = inner.size_hint().exact();
        Self {
            inner,
            capture,
            waiting: None,
            ahead: VecDeque::new(),
            left,
            watch: watch.map(Box::pin),
            metrics,
            upload: None,
            place,
        }
    }

    /// The answer to this upload, which is over with it.
    pub(crate) fn beside(self, upload: Option<Arc<Progress>>) -> Self {
        Self {
            upload: upload.map(Beside::new),
            ..self
        }
    }

    /// Waits for the first frame, or the end of an empty body. May be dropped and called again.
    ///
    /// # Errors
    /// The body broke off before it began.
    pub(crate) async fn begin(&mut self) -> Result<(), BodyError> {
        if self.ahead.is_empty() {
            let first = std::future::poll_fn(|cx| self.poll_next(cx))
                .await
                .transpose()?;
            self.ahead.extend(first.map(Ok));
        }
        match self.ahead.pop_front_if(|first| first.is_err()) {
            Some(Err(error)) => Err(error),
            _ => Ok(()),
        }
    }

    /// Reads a short body whole, so that its place is free whether the client reads it or not.
    pub(crate) async fn read_ahead(&mut self) {
        let read = async {
            let mut bytes = 0;
            while bytes < AHEAD.0
                && self.place.is_some()
                && let Some(frame) = std::future::poll_fn(|cx| self.poll_next(cx)).await
            {
                bytes += frame
                    .as_ref()
                    .ok()
                    .and_then(Frame::data_ref)
                    .map_or(0, Bytes::len);
                let broken = frame.is_err();
                self.ahead.push_back(frame);
                if broken {
                    break;
                }
            }
        };
        let _slow = tokio::time::timeout(AHEAD.1, read).await;
    }

    pub(crate) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.ahead.pop_front() {
            Some(frame) => Poll::Ready(Some(frame)),
            None => self.poll_next(cx),
        }
    }

    /// The next frame from the cloud.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            if let Some(bytes) = self.waiting.take() {
                if let Some(capture) = &mut self.capture
                    && capture.poll_push(cx, &bytes).is_pending()
                {
                    self.waiting = Some(bytes);
                    return Poll::Pending;
                }
                self.counted(&bytes);
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let frame = match Pin::new(&mut self.inner).poll_frame(cx) {
                Poll::Ready(frame) => frame,
                Poll::Pending if self.is_stalled(cx) => {
                    self.capture = None;
                    self.place = None;
                    return Poll::Ready(Some(Err(BodyError::Stalled)));
                }
                Poll::Pending => {
                    // Only an idle watch asks whether it is to end.
                    let Some(stops) = &mut self.watch else {
                        return Poll::Pending;
                    };
                    ready!(stops.as_mut().poll(cx));
                    self.capture = None;
                    return Poll::Ready(None);
                }
            };
            if let Some(upload) = &mut self.upload {
                upload.heard();
            }
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => self.waiting = Some(bytes),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                Some(Err(error)) => {
                    self.capture = None;
                    self.place = None;
                    let end = if self.watch.is_some() {
                        None
                    } else {
                        Some(Err(error.into()))
                    };
                    return Poll::Ready(end);
                }
                None => {
                    self.end();
                    return Poll::Ready(None);
                }
            }
        }
    }

    /// Nothing goes either way. Then hyper would not see, either, that the caller has gone.
    fn is_stalled(&mut self, cx: &mut Context<'_>) -> bool {
        self.upload
            .as_mut()
            .is_some_and(|upload| upload.poll_stalled(cx).is_ready())
    }

    /// hyper does not poll again behind the last byte that it knows of: the copy must end with it.
    fn counted(&mut self, bytes: &Bytes) {
        let len = bytes.len() as u64;
        self.metrics.cloud_bytes.inc_by(len);
        self.left = self.left.map(|left| left.saturating_sub(len));
        if self.left == Some(0) || self.inner.is_end_stream() {
            self.end();
        }
    }

    fn end(&mut self) {
        if let Some(capture) = self.capture.take() {
            capture.end();
        }
        self.upload = None;
        self.place = None;
    }

    pub(crate) fn is_end_stream(&self) -> bool {
        let passed = self.waiting.is_none() && self.ahead.is_empty();
        passed && self.capture.is_none() && self.inner.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        let ahead = self
            .ahead
            .iter()
            .filter_map(|frame| frame.as_ref().ok()?.data_ref());
        let ahead = ahead.chain(&self.waiting).map(Bytes::len).sum::<usize>() as u64;
        match self.inner.size_hint().exact() {
            Some(left) => SizeHint::with_exact(left + ahead),
            None => SizeHint::default(),
        }
    }
}
