//! The queue to the store's one writer: first in, first out, of bounded length. The writer lingers for more messages before
//! it writes; an urgent message ends that wait. A close is the last message: what is accepted is also received.

use std::collections::VecDeque;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::sync::PollSemaphore;

use super::sync::atomic::{AtomicUsize, Ordering};
use super::sync::{Condvar, Mutex, MutexGuard};

/// Messages that an empty queue keeps memory for.
const KEPT_CAPACITY: usize = 256;

/// The limits of a queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Messages that wait, but for those that are always accepted.
    pub messages: usize,
    /// Permits of all messages together.
    pub room: usize,
    /// Permits in use from which on the receiver lingers no longer.
    pub batch: usize,
}

/// A message from the queue.
#[derive(Debug)]
pub(super) enum Received<T> {
    Message(T),
    /// To be answered once everything before it is written.
    Flush(oneshot::Sender<()>),
    /// As a flush, and the last message.
    Close(oneshot::Sender<()>),
}

/// The receiver's reaction to a message while it lingers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    Lingers,
    Writes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Busy,
    /// Waits for a message.
    Idle,
    /// Waits for a message that can't wait.
    Lingering,
    /// It is no more.
    Gone,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<Received<T>>,
    /// Messages that have been accepted since the start.
    accepted: u64,
    receiver: Activity,
    /// An urgent message has arrived.
    is_urgent: bool,
    /// A close has been accepted, or there is no receiver.
    is_closed: bool,
    has_senders: bool,
}

#[derive(Debug)]
struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
    /// Messages that have been accepted, and not been finished.
    unfinished: AtomicUsize,
    limits: Limits,
    room: Arc<Semaphore>,
}

/// Makes a queue.
pub(super) fn channel<T>(limits: Limits) -> (Sender<T>, Receiver<T>) {
    let queue = Arc::new(Queue {
        state: Mutex::new(State {
            waiting: VecDeque::new(),
            accepted: 0,
            receiver: Activity::Busy,
            is_urgent: false,
            is_closed: false,
            has_senders: true,
        }),
        changed: Condvar::new(),
        unfinished: AtomicUsize::new(0),
        limits,
        room: Arc::new(Semaphore::new(limits.room)),
    });
    let end = SenderEnd(Arc::clone(&queue));
    (Sender(Arc::new(end)), Receiver(queue))
}

impl<T> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        state: MutexGuard<'a, State<T>>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, State<T>> {
        let Some(deadline) = deadline else {
            let woken = self.changed.wait(state);
            return woken.unwrap_or_else(PoisonError::into_inner);
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let woken = self.changed.wait_timeout(state, left);
        woken.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Much of the room is in use, or somebody waits for it.
    fn is_crowded(&self) -> bool {
        self.room.available_permits() < self.limits.room - self.limits.batch
    }

    /// Wakes the receiver if it waits for the message that has just arrived.
    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let is_awaited = match state.receiver {
            Activity::Idle => true,
            Activity::Lingering => state.is_urgent,
            Activity::Busy | Activity::Gone => false,
        };
        if is_awaited {
            state.receiver = Activity::Busy;
        }
        drop(state);
        if is_awaited {
            self.changed.notify_one();
        }
    }
}

impl<T> State<T> {
    fn accepts(&self, message: &Received<T>, max_messages: usize) -> bool {
        match message {
            // A second close waits for the end of the first one.
            Received::Close(_) => self.receiver != Activity::Gone,
            _ => !self.is_closed && self.waiting.len() < max_messages,
        }
    }
}

/// The sending end. When the last one is dropped, the receiver is woken.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<SenderEnd<T>>);

#[derive(Debug)]
struct SenderEnd<T>(Arc<Queue<T>>);

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for SenderEnd<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.has_senders = false;
        state.is_urgent = true;
        self.0.wake(state);
    }
}

impl<T> Sender<T> {
    fn queue(&self) -> &Queue<T> {
        &self.0.0
    }

    /// Queues a message; false where there is no room for it, or the queue is closed.
    pub(super) fn send(&self, message: T, urgency: Urgency) -> bool {
        let limit = self.queue().limits.messages;
        self.push(Received::Message(message), limit, urgency)
    }

    /// Queues a message however many wait; false where the queue is closed.
    pub(super) fn send_always(&self, message: T, urgency: Urgency) -> bool {
        self.push(Received::Message(message), usize::MAX, urgency)
    }

    /// Waits until everything that was sent before is finished, or there is no receiver.
    pub(super) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.push(Received::Flush(done), usize::MAX, Urgency::Writes) {
            let _ = wait.await;
        }
    }

    /// As [`Sender::flush`]; nothing is accepted any more.
    pub(super) async fn close(&self) {
        let (done, wait) = oneshot::channel();
        if self.push(Received::Close(done), usize::MAX, Urgency::Writes) {
            let _ = wait.await;
        }
    }

    /// Ends the receiver's lingering.
    fn hurry(&self) {
        let mut state = self.queue().lock();
        state.is_urgent = true;
        self.queue().wake(state);
    }

    /// Messages have been accepted that are not finished.
    pub(super) fn is_behind(&self) -> bool {
        self.queue().unfinished.load(Ordering::Acquire) > 0
    }

    /// The number of messages that have been accepted since the start.
    pub(super) fn accepted(&self) -> u64 {
        self.queue().lock().accepted
    }

    /// Room for messages, for [`Sender::poll_reserve`].
    pub(super) fn room(&self) -> PollSemaphore {
        PollSemaphore::new(Arc::clone(&self.queue().room))
    }

    /// Reserves room for a message. While there is none, the receiver doesn't linger.
    pub(super) fn poll_reserve(
        &self,
        room: &mut PollSemaphore,
        permits: u32,
        cx: &mut Context<'_>,
    ) -> Poll<Option<OwnedSemaphorePermit>> {
        let reserved = room.poll_acquire_many(cx, permits);
        if reserved.is_pending() {
            self.hurry();
        }
        reserved
    }

    /// Of a message with permits: it is received at once where much of the room is in use.
    pub(super) fn urgency(&self) -> Urgency {
        if self.queue().is_crowded() {
            Urgency::Writes
        } else {
            Urgency::Lingers
        }
    }

    fn push(&self, message: Received<T>, max_messages: usize, urgency: Urgency) -> bool {
        let mut state = self.queue().lock();
        if !state.accepts(&message, max_messages) {
            return false;
        }
        state.is_closed |= matches!(message, Received::Close(_));
        state.is_urgent |= urgency == Urgency::Writes;
        state.waiting.push_back(message);
        state.accepted += 1;
        self.queue().unfinished.fetch_add(1, Ordering::Release);
        self.queue().wake(state);
        true
    }
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Queue<T>>);

impl<T> Receiver<T> {
    /// The next message, with which a batch begins.
    ///
    /// # Errors
    /// None arrived until `deadline`, or every sender was dropped.
    pub(super) fn recv(&self, deadline: Option<Instant>) -> Result<Received<T>, RecvTimeoutError> {
        let mut state = self.0.lock();
        // An urgent message that arrived during the batch before still waits, and must not linger in this one.
        state.is_urgent &= !state.waiting.is_empty();
        loop {
            state.receiver = Activity::Busy;
            if let Some(message) = state.waiting.pop_front() {
                return Ok(message);
            }
            if !state.has_senders {
                return Err(RecvTimeoutError::Disconnected);
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                return Err(RecvTimeoutError::Timeout);
            }
            state.waiting.shrink_to(KEPT_CAPACITY);
            state.receiver = Activity::Idle;
            state = self.0.wait(state, deadline);
        }
    }

    /// One more message for the batch; waits for it until `deadline`, or something can't wait.
    pub(super) fn linger(&self, deadline: Instant) -> Option<Received<T>> {
        let mut state = self.0.lock();
        loop {
            state.receiver = Activity::Busy;
            if let Some(message) = state.waiting.pop_front() {
                return Some(message);
            }
            let is_over = state.is_urgent || !state.has_senders || self.0.is_crowded();
            if is_over || deadline <= Instant::now() {
                state.is_urgent = false;
                return None;
            }
            state.receiver = Activity::Lingering;
            state = self.0.wait(state, Some(deadline));
        }
    }

    /// So many of the received messages are finished.
    pub(super) fn finish(&self, messages: usize) {
        self.0.unfinished.fetch_sub(messages, Ordering::Release);
    }

    /// Messages wait to be received, or to be finished.
    pub(super) fn is_behind(&self) -> bool {
        self.0.unfinished.load(Ordering::Acquire) > 0
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.receiver = Activity::Gone;
        state.is_closed = true;
        let unanswered = std::mem::take(&mut state.waiting);
        drop(state);
        self.0.unfinished.store(0, Ordering::Release);
        // Ends the waits for flushes.
        drop(unanswered);
    }
}
