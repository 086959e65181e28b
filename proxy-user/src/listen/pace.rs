//! Ends the answers of HTTP/2 streams whose clients don't read. In: hyper's task of a stream. Out: the same task, which
//! is over (and so its stream reset) when its client has taken nothing of a piece of the answer for the stated time.
//!
//! hyper asks a body for its next piece as soon as the one before is on its way. A task that has had a piece and does not
//! ask again waits for its client; one whose body had none yet waits for the cloud, which may take days.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

thread_local! {
    /// Whether the body that was asked last, within the task that runs, had a piece; `None`: none was asked.
    static HAD: Cell<Option<bool>> = const { Cell::new(None) };
}

/// A body was asked for its next piece, and had one or not.
pub(super) fn asked(had: bool) {
    HAD.set(Some(had));
}

/// Runs the tasks of HTTP/2 connections.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    patience: Duration,
}

impl Pace {
    /// A client may take this long for a piece.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience }
    }
}

impl<F> hyper::rt::Executor<F> for Pace
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(Paced {
            task,
            patience: self.patience,
            waits_since: None,
            timer: None,
        });
    }
}

pin_project! {
    struct Paced<F> {
        #[pin]
        task: F,
        patience: Duration,
        waits_since: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for Paced<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        HAD.set(None);
        if this.task.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match HAD.take() {
            Some(true) => *this.waits_since = Some(Instant::now()),
            Some(false) => *this.waits_since = None,
            None => {}
        }
        let Some(since) = *this.waits_since else {
            return Poll::Pending;
        };
        let end = since + *this.patience;
        // The timer stays as it is while pieces go: it looks again when it has run out.
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(end)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= end {
                return Poll::Ready(());
            }
            timer.as_mut().reset(end);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use hyper::rt::Executor;
    use tokio::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    /// A task whose body has a piece, or has none, each time it is told so; the other end hears of its end.
    fn task() -> (mpsc::Sender<bool>, mpsc::Receiver<()>) {
        let (tell, mut told) = mpsc::channel::<bool>(8);
        let (lives, ended) = mpsc::channel(1);
        Pace::new(PATIENCE).execute(async move {
            let _lives = lives;
            poll_fn(|cx| {
                while let Poll::Ready(Some(had)) = told.poll_recv(cx) {
                    asked(had);
                }
                Poll::<()>::Pending
            })
            .await;
        });
        (tell, ended)
    }

    async fn passes(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_for_its_time_is_cut() {
        let (tell, mut ended) = task();
        for _ in 0..10 {
            tell.send(true).await.expect("it runs");
            passes(29).await;
            assert!(
                ended
                    .try_recv()
                    .is_err_and(|e| e == mpsc::error::TryRecvError::Empty),
                "slow, not stuck"
            );
        }
        passes(2).await;
        assert!(tell.is_closed(), "31 s without progress");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_events_stays() {
        let (tell, _ended) = task();
        tell.send(true).await.expect("it runs");
        tell.send(false).await.expect("it runs");
        passes(100_000).await;
        assert!(!tell.is_closed());
    }
}
