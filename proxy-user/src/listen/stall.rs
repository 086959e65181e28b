//! Ends HTTP/2 responses whose clients do not read: a stream's task is dropped, and so the stream
//! reset, when its client has taken nothing of a frame for the given time.
//!
//! hyper polls a body for its next frame as soon as the one before is on its way. A task that got a
//! frame and does not poll again waits for its client; one whose body had none waits for the cloud,
//! which may take days.

use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyPoll {
    Frame,
    /// Pending, ended or failed.
    NoFrame,
}

thread_local! {
    /// The last poll of a body within the task that runs on this thread.
    static LAST_POLL: Cell<Option<BodyPoll>> = const { Cell::new(None) };
}

pub(super) fn record_poll(poll: BodyPoll) {
    LAST_POLL.set(Some(poll));
}

/// Runs the tasks of HTTP/2 connections.
#[derive(Debug, Clone)]
pub(super) struct StallTimeoutExecutor {
    timeout: Duration,
}

impl StallTimeoutExecutor {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout }
    }
}

impl<F> hyper::rt::Executor<F> for StallTimeoutExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(StallTimeout {
            task,
            timeout: self.timeout,
            client_busy_since: None,
            timer: None,
        });
    }
}

pin_project! {
    struct StallTimeout<F> {
        #[pin]
        task: F,
        timeout: Duration,
        client_busy_since: Option<Instant>,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for StallTimeout<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        LAST_POLL.set(None);
        if this.task.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        match LAST_POLL.take() {
            Some(BodyPoll::Frame) => *this.client_busy_since = Some(Instant::now()),
            Some(BodyPoll::NoFrame) => *this.client_busy_since = None,
            None => {}
        }
        let Some(since) = *this.client_busy_since else {
            return Poll::Pending;
        };
        let deadline = since + *this.timeout;
        // The timer is not moved for every frame: when it fires it is reset to the new deadline.
        let timer = this
            .timer
            .get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        while timer.as_mut().poll(cx).is_ready() {
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
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

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// A task that records the polls it is sent; the sender is closed when it ends.
    fn spawn_task() -> mpsc::Sender<BodyPoll> {
        let (sender, mut polls) = mpsc::channel(8);
        StallTimeoutExecutor::new(TIMEOUT).execute(async move {
            poll_fn(|cx| {
                while let Poll::Ready(Some(poll)) = polls.poll_recv(cx) {
                    record_poll(poll);
                }
                Poll::<()>::Pending
            })
            .await;
        });
        sender
    }

    async fn advance(seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_reads_nothing_is_closed_after_the_timeout() {
        let polls = spawn_task();
        for _ in 0..10 {
            polls.send(BodyPoll::Frame).await.expect("it runs");
            advance(29).await;
            assert!(!polls.is_closed(), "slow, not stalled");
        }
        advance(2).await;
        assert!(polls.is_closed(), "31 s without progress");
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_without_events_stays() {
        let polls = spawn_task();
        polls.send(BodyPoll::Frame).await.expect("it runs");
        polls.send(BodyPoll::NoFrame).await.expect("it runs");
        advance(100_000).await;
        assert!(!polls.is_closed());
    }
}
