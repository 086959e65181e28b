//! Request bodies on their way to the API server, and the detection of uploads that it stops reading.
//!
//! While upstream flow control blocks an upload, hyper reads nothing from the client either, and so
//! doesn't see it leave. [`UploadProgress`] bounds that time and lets the response end the upload.

use std::cell::Cell;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::telemetry::CountedBody;

/// Longest time in which the server may take nothing of an upload.
pub(crate) const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A request body sent upstream: streamed from the client, or buffered (none, or a DELETE's options).
pub(crate) type Upload = Either<TrackedBody<CountedBody<Incoming>>, Full<Bytes>>;

thread_local! {
    /// The upload whose body was polled last on this thread.
    static LAST_POLLED: Cell<Option<Arc<UploadProgress>>> = const { Cell::new(None) };
}

/// Takes the upload that was polled last on this thread.
///
/// hyper's HTTP/2 client polls a request's body once and, if that isn't ready, hands the rest to its
/// executor in the same call, as an opaque future. This is the only way for the executor to learn
/// which upload the future sends, and so to stop it once its response has ended: hyper itself keeps
/// the task, and its stream, for as long as the server grants no flow-control window.
pub(crate) fn take_last_polled() -> Option<Arc<UploadProgress>> {
    LAST_POLLED.take()
}

/// The progress of a streamed upload; a buffered one has none.
pub(crate) fn progress(upload: &Upload) -> Option<Arc<UploadProgress>> {
    match upload {
        Either::Left(streamed) => Some(streamed.progress()),
        Either::Right(_) => None,
    }
}

/// Waits until the server has taken nothing of this upload for [`STALL_TIMEOUT`].
pub(crate) async fn until_stalled(progress: Option<Arc<UploadProgress>>) {
    match progress {
        Some(progress) => progress.until_stalled().await,
        None => std::future::pending().await,
    }
}

#[derive(Debug)]
pub(crate) struct UploadProgress {
    state: Mutex<UploadState>,
    cancelled: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UploadState {
    /// The server has room; the client is to send more.
    AwaitingClient,
    /// The server has taken nothing since.
    AwaitingServer(Instant),
    Complete,
}

impl UploadProgress {
    fn new() -> Self {
        Self {
            state: Mutex::new(UploadState::AwaitingServer(Instant::now())),
            cancelled: CancellationToken::new(),
        }
    }

    /// Waits until the server has taken nothing for [`STALL_TIMEOUT`]. A slow client never stalls.
    pub(crate) async fn until_stalled(&self) {
        loop {
            let state = *self.state.lock();
            let due = match state {
                UploadState::AwaitingServer(since) => since + STALL_TIMEOUT,
                UploadState::AwaitingClient => Instant::now() + STALL_TIMEOUT,
                UploadState::Complete => return std::future::pending().await,
            };
            sleep_until(due).await;
            if *self.state.lock() == state && state != UploadState::AwaitingClient {
                return;
            }
        }
    }

    /// Waits until the upload's response has ended, after which the rest of the upload is pointless.
    pub(crate) async fn cancelled(&self) {
        self.cancelled.cancelled().await;
    }

    fn set_state(&self, state: UploadState) {
        *self.state.lock() = state;
    }
}

/// Belongs to the response of an upload; cancels the upload when dropped.
pub(crate) struct UploadGuard {
    progress: Arc<UploadProgress>,
    stall: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl std::fmt::Debug for UploadGuard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadGuard")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl UploadGuard {
    pub(crate) fn new(progress: Arc<UploadProgress>) -> Self {
        Self {
            progress,
            stall: None,
        }
    }

    /// Restarts the time of [`Self::poll_stalled`]: something of the response has arrived.
    pub(crate) fn reset_stall_timer(&mut self) {
        self.stall = None;
    }

    /// Ready when nothing of the response has arrived, and nothing of the upload has been taken, for
    /// [`STALL_TIMEOUT`].
    pub(crate) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let progress = &self.progress;
        let stall = self.stall.get_or_insert_with(|| {
            let progress = Arc::clone(progress);
            Box::pin(async move {
                sleep(STALL_TIMEOUT).await;
                progress.until_stalled().await;
            })
        });
        stall.as_mut().poll(cx)
    }
}

impl Drop for UploadGuard {
    fn drop(&mut self) {
        self.progress.cancelled.cancel();
    }
}

/// A request body that records its progress.
#[derive(Debug)]
pub(crate) struct TrackedBody<B> {
    body: B,
    progress: Arc<UploadProgress>,
}

impl<B> TrackedBody<B> {
    pub(crate) fn new(body: B) -> Self {
        Self {
            body,
            progress: Arc::new(UploadProgress::new()),
        }
    }

    pub(crate) fn progress(&self) -> Arc<UploadProgress> {
        Arc::clone(&self.progress)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for TrackedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        LAST_POLLED.set(Some(Arc::clone(&self.progress)));
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.progress.set_state(match &frame {
            Poll::Pending => UploadState::AwaitingClient,
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => {
                UploadState::AwaitingServer(Instant::now())
            }
            Poll::Ready(_) => UploadState::Complete,
        });
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::{FutureExt, StreamExt, stream};
    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn frame(text: &'static str) -> Result<Frame<Bytes>, Infallible> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn whole_body() -> TrackedBody<Full<Bytes>> {
        TrackedBody::new(Full::new(Bytes::from_static(b"a")))
    }

    async fn stalls(progress: &UploadProgress) -> bool {
        tokio::time::timeout(LONG, progress.until_stalled())
            .await
            .is_ok()
    }

    /// A client that had left while the server took nothing of its upload kept its request and its
    /// streams for ever.
    #[tokio::test(start_paused = true)]
    async fn an_upload_stalls_by_the_server_and_never_by_its_client() {
        let frames = stream::iter([frame("a"), frame("b")]).chain(stream::pending());
        let mut body = TrackedBody::new(StreamBody::new(frames));
        let progress = body.progress();
        assert!(stalls(&progress).await, "nothing was taken");
        body.frame().await.unwrap().unwrap();
        let began = Instant::now();
        assert!(stalls(&progress).await);
        assert_eq!(began.elapsed(), STALL_TIMEOUT);
        body.frame().await.unwrap().unwrap();
        assert!(body.frame().now_or_never().is_none());
        assert!(!stalls(&progress).await, "the client may take its time");
    }

    #[tokio::test(start_paused = true)]
    async fn an_upload_that_goes_on_does_not_stall() {
        let frames = stream::iter((0..10).map(|_| frame("a"))).chain(stream::pending());
        let mut body = TrackedBody::new(StreamBody::new(frames));
        let progress = body.progress();
        let began = Instant::now();
        let upload = async {
            for _ in 0..10 {
                sleep(STALL_TIMEOUT - Duration::from_secs(1)).await;
                body.frame().await.unwrap().unwrap();
            }
            sleep(LONG).await;
        };
        tokio::select! {
            () = progress.until_stalled() => {}
            () = upload => panic!("no stall"),
        }
        let taken_until = (STALL_TIMEOUT - Duration::from_secs(1)) * 10;
        assert_eq!(began.elapsed(), taken_until + STALL_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn the_response_to_a_complete_upload_may_take_its_time() {
        let mut body = whole_body();
        let progress = body.progress();
        body.frame().await.unwrap().unwrap();
        assert!(!stalls(&progress).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_buffered_body_never_stalls() {
        let buffered: Upload = Either::Right(Full::default());
        assert!(progress(&buffered).is_none());
        assert!(until_stalled(None).now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_guard_waits_for_a_silent_response_and_a_blocked_upload() {
        let body = whole_body();
        let mut guard = UploadGuard::new(body.progress());
        let began = Instant::now();
        let half = STALL_TIMEOUT / 2;
        let stalled = |guard: &mut UploadGuard| {
            guard
                .poll_stalled(&mut Context::from_waker(std::task::Waker::noop()))
                .is_ready()
        };
        assert!(!stalled(&mut guard));
        tokio::time::advance(half).await;
        guard.reset_stall_timer();
        assert!(!stalled(&mut guard));
        tokio::time::advance(half).await;
        assert!(!stalled(&mut guard), "the response had begun anew");
        std::future::poll_fn(|cx| guard.poll_stalled(cx)).await;
        assert_eq!(began.elapsed(), half + STALL_TIMEOUT);
    }

    #[tokio::test]
    async fn the_end_of_the_response_cancels_the_upload() {
        let body = whole_body();
        let progress = body.progress();
        let guard = UploadGuard::new(body.progress());
        assert!(progress.cancelled().now_or_never().is_none());
        drop(guard);
        assert!(progress.cancelled().now_or_never().is_some());
    }

    #[tokio::test]
    async fn the_upload_polled_last_on_a_thread_is_taken_once() {
        assert!(take_last_polled().is_none());
        let (mut first, mut second) = (whole_body(), whole_body());
        first.frame().await.unwrap().unwrap();
        second.frame().await.unwrap().unwrap();
        let taken = take_last_polled().expect("the second");
        assert!(Arc::ptr_eq(&taken, &second.progress));
        assert!(take_last_polled().is_none());
    }

    #[test]
    fn a_tracked_body_has_the_length_of_its_body() {
        let body = whole_body();
        assert_eq!(body.size_hint().exact(), Some(1));
        assert!(!body.is_end_stream());
    }
}
