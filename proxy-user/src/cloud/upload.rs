//! Whether the cloud takes what a caller uploads. While it takes nothing, hyper reads nothing of the caller either, and
//! so never sees it leave. In: a request's body. Out: the same body, and its [`Progress`], by which it can be ended, too.

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

/// Longest time in which the cloud may take nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Bytes of an upload that are held at most while the cloud does not take them.
pub(crate) const HELD: u32 = 64 << 10;

/// The body of a request on its way to the cloud: as it comes, or (none, or a DELETE's options) whole.
pub(crate) type Upload = Either<Noted<Incoming>, Full<Bytes>>;

thread_local! {
    /// The upload that was asked last, by whatever task ran here.
    static ASKED: Cell<Option<Arc<Progress>>> = const { Cell::new(None) };
}

/// The upload that this thread has asked for its next bytes since the last call: hyper sends a body in a task of its own,
/// which it asks once before it starts it.
pub(crate) fn asked() -> Option<Arc<Progress>> {
    ASKED.take()
}

/// The state of one upload.
#[derive(Debug)]
pub(crate) struct Progress {
    state: Mutex<State>,
    over: CancellationToken,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The cloud has room, and the caller is to send more.
    Wanted,
    /// The cloud has wanted nothing since.
    Unwanted(Instant),
    /// All of it has been taken.
    Ended,
}

/// A body that notes its progress.
#[derive(Debug)]
pub(crate) struct Noted<B> {
    body: B,
    progress: Arc<Progress>,
}

impl Progress {
    /// Waits until the cloud has taken nothing for [`PATIENCE`].
    pub(crate) async fn stalled(&self) {
        loop {
            let state = *self.state.lock();
            let due = match state {
                State::Unwanted(since) => since + PATIENCE,
                State::Wanted => Instant::now() + PATIENCE,
                State::Ended => return std::future::pending().await,
            };
            sleep_until(due).await;
            if *self.state.lock() == state && state != State::Wanted {
                return;
            }
        }
    }

    /// Waits until nobody wants the upload any more, whether the cloud has taken it or not.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    fn note(&self, state: State) {
        *self.state.lock() = state;
    }
}

/// An upload beside its answer, over when this is dropped. hyper would keep it, and its stream to the cloud, for as long as
/// the cloud takes nothing of it.
pub(crate) struct Beside {
    progress: Arc<Progress>,
    wait: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl std::fmt::Debug for Beside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Beside")
            .field("progress", &self.progress)
            .finish_non_exhaustive()
    }
}

impl Beside {
    /// The answer to this upload has begun.
    pub(crate) fn new(progress: Arc<Progress>) -> Self {
        Self {
            progress,
            wait: None,
        }
    }

    /// Something of the answer has come.
    pub(crate) fn heard(&mut self) {
        self.wait = None;
    }

    /// Ready when nothing of the answer has come, and nothing of the upload has been taken, for [`PATIENCE`].
    pub(crate) fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let progress = &self.progress;
        let wait = self.wait.get_or_insert_with(|| {
            let progress = Arc::clone(progress);
            Box::pin(async move {
                sleep(PATIENCE).await;
                progress.stalled().await;
            })
        });
        wait.as_mut().poll(cx)
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.progress.over.cancel();
    }
}

/// Waits until the cloud has taken nothing of this upload for [`PATIENCE`].
pub(crate) async fn stalled(progress: Option<Arc<Progress>>) {
    match progress {
        Some(progress) => progress.stalled().await,
        None => std::future::pending().await,
    }
}

/// Its progress, where it streams.
pub(crate) fn progress_of(upload: Option<&Upload>) -> Option<Arc<Progress>> {
    match upload {
        Some(Either::Left(streaming)) => Some(streaming.progress()),
        Some(Either::Right(_)) | None => None,
    }
}

impl<B> Noted<B> {
    /// A body that is to be sent.
    pub(crate) fn new(body: B) -> Self {
        let state = Mutex::new(State::Unwanted(Instant::now()));
        Self {
            body,
            progress: Arc::new(Progress {
                state,
                over: CancellationToken::new(),
            }),
        }
    }

    /// How it gets on.
    pub(crate) fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.progress)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Noted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        ASKED.set(Some(Arc::clone(&self.progress)));
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.progress.note(match &frame {
            Poll::Pending => State::Wanted,
            Poll::Ready(Some(Ok(_))) if !self.body.is_end_stream() => {
                State::Unwanted(Instant::now())
            }
            Poll::Ready(_) => State::Ended,
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

    use http_body_util::{BodyExt, StreamBody};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    async fn stalls(progress: &Progress) -> bool {
        tokio::time::timeout(LONG, progress.stalled()).await.is_ok()
    }

    /// A caller that had left while the cloud took nothing of its upload kept its request and its streams for ever.
    #[tokio::test(start_paused = true)]
    async fn an_upload_stalls_by_the_cloud_and_never_by_its_caller() {
        let frames = [Bytes::from_static(b"a"), Bytes::from_static(b"b")]
            .map(|b| Ok::<_, Infallible>(Frame::data(b)));
        let slow = futures_util::StreamExt::chain(
            futures_util::stream::iter(frames),
            futures_util::stream::pending(),
        );
        let mut body = Noted::new(StreamBody::new(slow));
        let progress = body.progress();
        assert!(stalls(&progress).await, "nothing was taken");
        body.frame().await.unwrap().unwrap();
        let began = Instant::now();
        assert!(stalls(&progress).await);
        assert_eq!(began.elapsed(), PATIENCE);
        body.frame().await.unwrap().unwrap();
        assert!(futures_util::FutureExt::now_or_never(body.frame()).is_none());
        assert!(!stalls(&progress).await, "the caller may take its time");
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_a_whole_upload_may_take_its_time() {
        let mut body = Noted::new(Full::new(Bytes::from_static(b"a")));
        let progress = body.progress();
        body.frame().await.unwrap().unwrap();
        assert!(!stalls(&progress).await);
    }
}
