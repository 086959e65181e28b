//! From the response path to the store, without making the client wait for the disk. In: [`Capture`]s that copy
//! answers' frames. Out: messages to the one writer thread (`writer.rs`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Poll, ready};
use std::thread::Thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tokio::time::Sleep;
use tokio_util::sync::PollSemaphore;

use crate::cache::change::Change;
use crate::cache::evict::SizeBudget;
use crate::cache::exchange::Exchange;
use crate::cache::grant_rows::ClusterGeneration;
use crate::cache::not_stored::{NotStored, NotStoredCounts};
use crate::cache::store::{Store, StoreError};
use crate::cache::writer::Writer;
use crate::clock::Clock;
use hublet_wire::request::Verb;

/// Bytes of answers that wait for the writer, in KiB; beyond it a stream waits for room.
const QUEUE_KIB: usize = 8 << 10;
/// The same from which on the writer lingers no longer: a batch.
const BATCH_KIB: usize = 1 << 10;
/// Messages that wait, but for ends; room for one of each KiB above, and as many beginnings.
const MAX_MESSAGES: usize = 4 * QUEUE_KIB;
/// How long a stream waits for room before its copy is given up. The client's own bytes go on then.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);

/// One copied response, for as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct CaptureId(u64);

/// A message to the writer.
#[derive(Debug)]
pub(super) enum Message {
    Begin {
        id: CaptureId,
        exchange: Box<Exchange>,
    },
    Data {
        id: CaptureId,
        bytes: Bytes,
        /// Room in the queue.
        permit: OwnedSemaphorePermit,
        /// Ordering against 404s uses this time, so the delayed writer must not take it.
        received_at: u64,
    },
    End {
        id: CaptureId,
        received_at: u64,
    },
    Abort(CaptureId),
    Changes(Vec<Change>),
    /// A read found that the disk has failed.
    DiskFailed,
    Flush(oneshot::Sender<()>),
    Close(oneshot::Sender<()>),
}

/// Shared with the writer.
#[derive(Debug, Default)]
pub(super) struct Counters {
    /// Messages on their way to the writer.
    pub(super) queued: AtomicUsize,
    pub(super) sent: AtomicU64,
    pub(super) done: AtomicU64,
    pub(super) given_up: AtomicU64,
    pub(super) not_stored: NotStoredCounts,
    pub(super) failures: AtomicU64,
    pub(super) commits: AtomicU64,
    pub(super) evicted: AtomicU64,
    pub(super) next: AtomicU64,
    /// The disk takes nothing, and no more is kept for it.
    pub(super) full: AtomicBool,
}

impl Counters {
    /// Counts copies that end before their responses do.
    pub(super) fn give_up(&self, reason: NotStored, copies: u64) {
        self.given_up.fetch_add(copies, Ordering::Relaxed);
        self.not_stored.add(reason, copies);
    }
}

/// The way to the writer thread.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    to: Sender<Message>,
    /// Its thread, to be woken when it lingers for more messages and there is no time for that.
    writer: Thread,
    room: Arc<tokio::sync::Semaphore>,
    counters: Arc<Counters>,
    clock: Clock,
}

impl Ingest {
    /// Starts the writer thread.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub(super) fn start(
        store: Arc<Store>,
        clock: Clock,
        cluster: ClusterGeneration,
        budget: SizeBudget,
    ) -> Result<Self, StoreError> {
        // Bounded by `queued`: a channel that is bounded itself has memory for all of its messages from the start.
        let (to, from) = channel();
        let counters = Arc::new(Counters::default());
        let writer = Writer::new(store, cluster, Arc::clone(&counters), budget, clock.clone());
        let writer = std::thread::Builder::new()
            .name("hublet-store".into())
            .spawn(move || writer.run(&from))
            .map_err(redb::Error::Io)?;
        let writer = writer.thread().clone();
        Ok(Self {
            to,
            writer,
            room: Arc::new(tokio::sync::Semaphore::new(QUEUE_KIB)),
            counters,
            clock,
        })
    }

    fn send(&self, message: Message) -> bool {
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        let fits = self.counters.queued.fetch_add(1, Ordering::Relaxed) < MAX_MESSAGES;
        if fits && self.to.send(message).is_ok() {
            return true;
        }
        self.counters.queued.fetch_sub(1, Ordering::Relaxed);
        self.counters.sent.fetch_sub(1, Ordering::Relaxed);
        false
    }

    /// Tells what must be known however full the queue is: the end of a copy, which the writer would keep for ever, and a
    /// right that was taken back. There are at most as many of these as copies and rights.
    fn send_always(&self, message: Message) {
        self.counters.sent.fetch_add(1, Ordering::Relaxed);
        self.counters.queued.fetch_add(1, Ordering::Relaxed);
        if self.to.send(message).is_err() {
            // There is no writer any more, and nothing to wait for.
            self.counters.sent.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Begins to copy an answer; `None` when the writer is too far behind.
    pub(crate) fn capture(&self, mut exchange: Exchange) -> Option<Capture> {
        exchange.answered_at = self.clock.now();
        let verb = exchange.verb;
        let id = CaptureId(self.counters.next.fetch_add(1, Ordering::Relaxed));
        if self.counters.full.load(Ordering::Relaxed)
            || !self.send(Message::Begin {
                id,
                exchange: Box::new(exchange),
            })
        {
            self.counters.give_up(NotStored::QueueFull, 1);
            return None;
        }
        Some(Capture {
            id,
            verb,
            ingest: self.clone(),
            room: PollSemaphore::new(Arc::clone(&self.room)),
            waiting: None,
            open: true,
        })
    }

    /// Hands over operations that come from no body.
    pub(crate) fn submit(&self, changes: Vec<Change>) {
        if changes.is_empty() {
            return;
        }
        // An eviction travels with the right that it makes room for, and may be lost with it.
        if changes.iter().all(Change::is_revocation) {
            self.send_always(Message::Changes(changes));
        } else if !self.send(Message::Changes(changes)) {
            self.counters.give_up(NotStored::QueueFull, 1);
        }
    }

    /// A read found that the disk has failed: the store is to be opened anew.
    pub(super) fn report_disk_failure(&self) {
        self.send(Message::DiskFailed);
        self.writer.unpark();
    }

    /// Objects, collections and documents that went to make room, since the start.
    pub(crate) fn evicted(&self) -> u64 {
        self.counters.evicted.load(Ordering::Relaxed)
    }

    /// Something has been seen that is not in the store yet.
    pub(crate) fn is_behind(&self) -> bool {
        self.counters.sent.load(Ordering::Acquire) != self.counters.done.load(Ordering::Acquire)
    }

    /// Waits until all that has been sent is in the store.
    pub(crate) async fn flush(&self) {
        let (done, wait) = oneshot::channel();
        if self.send(Message::Flush(done)) {
            self.writer.unpark();
            let _ = wait.await;
        }
    }

    /// As [`Ingest::flush`], and ends the thread and closes the store. There is always room for it: an end that found
    /// none would leave the store open.
    pub(crate) async fn close(&self) {
        let (done, wait) = oneshot::channel();
        self.counters.queued.fetch_add(1, Ordering::Relaxed);
        if self.to.send(Message::Close(done)).is_ok() {
            self.writer.unpark();
            let _ = wait.await;
        }
    }

    /// How many responses were not stored, by reason.
    pub(crate) fn not_stored(&self) -> &NotStoredCounts {
        &self.counters.not_stored
    }

    /// Copies given up since the start.
    pub(crate) fn given_up(&self) -> u64 {
        self.counters.given_up.load(Ordering::Relaxed)
    }

    /// Batches written since the start.
    #[cfg(test)]
    pub(crate) fn commits(&self) -> u64 {
        self.counters.commits.load(Ordering::Relaxed)
    }

    /// Batches that could not be written since the start.
    pub(crate) fn failures(&self) -> u64 {
        self.counters.failures.load(Ordering::Relaxed)
    }
}

/// Copies one answer's body.
#[derive(Debug)]
pub(crate) struct Capture {
    id: CaptureId,
    verb: Verb,
    ingest: Ingest,
    room: PollSemaphore,
    waiting: Option<Pin<Box<Sleep>>>,
    open: bool,
}

impl Capture {
    /// Copies a frame. Pending while the writer has no room, for a stated time; then the copy is given up and the
    /// answer goes on without it.
    pub(crate) fn poll_push(&mut self, cx: &mut Context<'_>, frame: &Bytes) -> Poll<()> {
        if !self.open || frame.is_empty() {
            return Poll::Ready(());
        }
        let kib = u32::try_from(frame.len().div_ceil(1024).min(QUEUE_KIB)).unwrap_or(1);
        match self.room.poll_acquire_many(cx, kib) {
            Poll::Ready(Some(permit)) => {
                self.waiting = None;
                let data = Message::Data {
                    id: self.id,
                    bytes: frame.clone(),
                    permit,
                    received_at: self.ingest.clock.now(),
                };
                if !self.ingest.send(data) {
                    self.give_up();
                } else if self.ingest.room.available_permits() < QUEUE_KIB - BATCH_KIB {
                    self.ingest.writer.unpark();
                }
            }
            Poll::Ready(None) => self.give_up(),
            Poll::Pending => {
                self.ingest.writer.unpark();
                let sleep = self
                    .waiting
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(QUEUE_TIMEOUT)));
                ready!(sleep.as_mut().poll(cx));
                self.give_up();
            }
        }
        Poll::Ready(())
    }

    fn give_up(&mut self) {
        self.open = false;
        self.ingest.counters.give_up(NotStored::QueueFull, 1);
        self.ingest.send_always(Message::Abort(self.id));
    }

    /// The body has ended well.
    pub(crate) fn end(mut self) {
        if std::mem::take(&mut self.open) {
            self.ingest.send_always(Message::End {
                id: self.id,
                received_at: self.ingest.clock.now(),
            });
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.open {
            // What a watch has sent is stored, wherever its client ends it.
            if self.verb != Verb::Watch {
                self.ingest.not_stored().increment(NotStored::Interrupted);
            }
            self.ingest.send_always(Message::Abort(self.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Method, Uri};

    use super::*;
    use crate::cache::grant_rows::{GrantKey, Verdict};
    use hublet_wire::meta::Timestamp;
    use hublet_wire::request::RequestInfo;

    /// While the queue was full neither the end of an answer nor its breaking off was told: the writer kept the copy, and
    /// what a watch had fed was never evicted.
    #[test]
    fn an_end_and_a_refusal_are_told_however_full_the_queue_is() {
        let (to, from) = channel();
        let (room, clock) = (
            Arc::new(tokio::sync::Semaphore::new(QUEUE_KIB)),
            Clock::default(),
        );
        let ingest = Ingest {
            to,
            writer: std::thread::current(),
            room,
            counters: Arc::default(),
            clock,
        };
        let (uri, mut headers) = (
            Uri::from_static("/api/v1/namespaces/d/pods/a"),
            HeaderMap::new(),
        );
        headers.insert(
            "content-type",
            http::HeaderValue::from_static("application/json"),
        );
        let info = RequestInfo::parse(&Method::GET, &uri);
        let exchange = Exchange::of(info.understood().unwrap(), 200, &headers, 0).unwrap();
        let copies = [
            ingest.capture(exchange.clone()),
            ingest.capture(exchange.clone()),
        ];
        ingest
            .counters
            .queued
            .store(MAX_MESSAGES, Ordering::Relaxed);
        assert!(ingest.capture(exchange).is_none());
        let [ended, broken_off] = copies.map(Option::unwrap);
        ended.end();
        drop(broken_off);
        let grant = |verdict| Change::PutGrant {
            key: GrantKey([0; 48]),
            verdict,
        };
        ingest.submit(vec![grant(Verdict::allowed_at(Timestamp::from_millis(1)))]);
        ingest.submit(vec![grant(Verdict::denied_at(Timestamp::from_millis(1)))]);
        let told: Vec<Message> = from.try_iter().collect();
        assert!(
            matches!(
                told[..],
                [
                    Message::Begin {
                        id: CaptureId(0),
                        ..
                    },
                    Message::Begin {
                        id: CaptureId(1),
                        ..
                    },
                    Message::End {
                        id: CaptureId(0),
                        ..
                    },
                    Message::Abort(CaptureId(1)),
                    Message::Changes(_)
                ]
            ),
            "{told:?}"
        );
    }
}
