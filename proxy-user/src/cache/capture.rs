//! Copies responses to the store without making the client wait for the disk. In: the frames of a response, through a
//! [`Capture`]. Out: messages to the one writer thread (`writer.rs`).

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Sleep;
use tokio_util::sync::PollSemaphore;

use crate::cache::change::Change;
use crate::cache::evict::SizeBudget;
use crate::cache::exchange::Exchange;
use crate::cache::grant_rows::ClusterGeneration;
use crate::cache::message::{CaptureId, Counters, Message};
use crate::cache::not_stored::{NotStored, NotStoredCounts};
use crate::cache::queue::{self, Limits, Urgency};
use crate::cache::store::{Store, StoreError};
use crate::cache::superseded::Superseded;
use crate::cache::writer::Writer;
use crate::clock::Clock;
use hublet_wire::request::Verb;

/// Most bytes of responses that wait for the writer, in KiB; beyond it a stream waits for room.
const QUEUE_KIB: usize = 8 << 10;
/// The number of KiB at which the writer stops waiting for more: a full batch.
const BATCH_KIB: usize = 1 << 10;
/// Most messages that wait, not counting ends: one for each KiB above, and as many beginnings.
const MAX_MESSAGES: usize = 4 * QUEUE_KIB;
/// Longest wait of a stream for room, after which its capture is aborted. The client's own bytes are sent on then. A writer
/// that left one stream without room makes no other wait until there is room again.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(2);

/// The sending end of the writer's queue, and its counters.
#[derive(Debug, Clone)]
pub(crate) struct Ingest {
    queue: queue::Sender<Message>,
    next_capture: Arc<AtomicU64>,
    /// A stream has waited [`QUEUE_TIMEOUT`] for nothing, and there has been no room since.
    is_stalled: Arc<AtomicBool>,
    counters: Arc<Counters>,
    superseded: Arc<Superseded>,
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
        let (sender, receiver) = queue::channel(Limits {
            messages: MAX_MESSAGES,
            room: QUEUE_KIB,
            batch: BATCH_KIB,
        });
        let counters = Arc::new(Counters::default());
        let superseded = Arc::clone(store.superseded());
        let writer = Writer::new(store, cluster, Arc::clone(&counters), budget, clock.clone());
        std::thread::Builder::new()
            .name("hublet-store".into())
            .spawn(move || writer.run(&receiver))
            .map_err(redb::Error::Io)?;
        Ok(Self {
            queue: sender,
            next_capture: Arc::default(),
            is_stalled: Arc::default(),
            counters,
            superseded,
            clock,
        })
    }

    /// Sends a message that must not be lost, however full the queue is: the end of a capture, which the writer would
    /// otherwise keep for ever, or the revocation of a right. There are at most as many of these as captures and rights.
    fn send_always(&self, message: Message, urgency: Urgency) {
        // Once the queue is closed, no capture is open and no grant is used any more.
        self.queue.send_always(message, urgency);
    }

    /// Begins to copy a response; `None` if the writer is too far behind.
    pub(crate) fn capture(&self, mut exchange: Exchange) -> Option<Capture> {
        exchange.answered_at = self.clock.now();
        let verb = exchange.verb;
        let id = CaptureId(self.next_capture.fetch_add(1, Ordering::Relaxed));
        if self.counters.full.load(Ordering::Relaxed) || !self.begin(id, exchange) {
            self.counters.count_abandoned(NotStored::QueueFull, 1);
            return None;
        }
        Some(Capture {
            id,
            verb,
            ingest: self.clone(),
            room: self.queue.room(),
            waiting: None,
            open: true,
        })
    }

    /// Queues the begin of a capture; false where there is no room. A write is in flight from here on.
    fn begin(&self, id: CaptureId, exchange: Exchange) -> bool {
        let write = exchange.supersedes();
        let write = write.map(|(key, extent)| (key.to_vec(), extent));
        if let Some((key, extent)) = &write {
            self.superseded.begin_write(key, *extent);
        }
        let exchange = Box::new(exchange);
        let is_queued = self
            .queue
            .send(Message::Begin { id, exchange }, Urgency::Lingers);
        if let (false, Some((key, _))) = (is_queued, write) {
            self.superseded.end_write(&key);
        }
        is_queued
    }

    /// Queues changes that do not come from a response body; false if they are lost, since the queue is full.
    pub(crate) fn submit(&self, changes: Vec<Change>) -> bool {
        if changes.is_empty() {
            return true;
        }
        // An eviction travels with the right that it makes room for, and may be lost with it.
        if changes.iter().all(Change::is_revocation) {
            // After a crash before the write the right would hold again.
            self.send_always(Message::Changes(changes), Urgency::Writes);
            return true;
        }
        let is_queued = self.queue.send(Message::Changes(changes), Urgency::Lingers);
        if !is_queued {
            self.counters.count_abandoned(NotStored::QueueFull, 1);
        }
        is_queued
    }

    /// The number of messages that the queue has accepted since the start.
    pub(super) fn accepted(&self) -> u64 {
        self.queue.accepted()
    }

    /// Reports that a read failed because of the disk, so that the writer reopens the store.
    pub(super) fn report_disk_failure(&self) {
        self.queue.send(Message::DiskFailed, Urgency::Writes);
    }

    /// Objects, collections and documents evicted since the start.
    pub(crate) fn evicted(&self) -> u64 {
        self.counters.evicted.load(Ordering::Relaxed)
    }

    /// True if something captured is not in the store yet.
    pub(crate) fn is_behind(&self) -> bool {
        self.queue.is_behind()
    }

    /// Waits until all that has been sent is in the store.
    pub(crate) async fn flush(&self) {
        self.queue.flush().await;
    }

    /// As [`Ingest::flush`], and syncs the disk even if nothing is pending.
    pub(super) async fn test_disk(&self) {
        self.queue.send(Message::TestDisk, Urgency::Writes);
        self.queue.flush().await;
    }

    /// As [`Ingest::flush`], and ends the thread and closes the store.
    pub(crate) async fn close(&self) {
        self.queue.close().await;
    }

    /// Responses that were not stored, by reason.
    pub(crate) fn not_stored(&self) -> &NotStoredCounts {
        &self.counters.not_stored
    }

    /// Captures aborted since the start.
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

/// Copies one response's body.
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
    /// Copies a frame. Pending while the writer has no room, up to [`QUEUE_TIMEOUT`]; then the capture is aborted and the
    /// response goes on without it.
    pub(crate) fn poll_push(&mut self, cx: &mut Context<'_>, frame: &Bytes) -> Poll<()> {
        if !self.open || frame.is_empty() {
            return Poll::Ready(());
        }
        let kib = u32::try_from(frame.len().div_ceil(1024).min(QUEUE_KIB)).unwrap_or(1);
        let queue = &self.ingest.queue;
        match queue.poll_reserve(&mut self.room, kib, cx) {
            Poll::Ready(Some(permit)) => {
                self.waiting = None;
                self.ingest.is_stalled.store(false, Ordering::Relaxed);
                let data = Message::Data {
                    id: self.id,
                    bytes: frame.clone(),
                    permit,
                    received_at: self.ingest.clock.now(),
                };
                if !queue.send(data, queue.urgency()) {
                    self.abandon();
                }
            }
            Poll::Ready(None) => self.abandon(),
            Poll::Pending if self.ingest.is_stalled.load(Ordering::Relaxed) => self.abandon(),
            Poll::Pending => {
                let sleep = self
                    .waiting
                    .get_or_insert_with(|| Box::pin(tokio::time::sleep(QUEUE_TIMEOUT)));
                ready!(sleep.as_mut().poll(cx));
                self.ingest.is_stalled.store(true, Ordering::Relaxed);
                self.abandon();
            }
        }
        Poll::Ready(())
    }

    fn abandon(&mut self) {
        self.open = false;
        self.ingest
            .counters
            .count_abandoned(NotStored::QueueFull, 1);
        self.ingest
            .send_always(Message::Abort(self.id), Urgency::Lingers);
    }

    /// Ends the capture of a body that is complete.
    pub(crate) fn end(mut self) {
        if std::mem::take(&mut self.open) {
            let end = Message::End {
                id: self.id,
                received_at: self.ingest.clock.now(),
            };
            self.ingest.send_always(end, Urgency::Lingers);
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if self.open {
            // The events of a watch are stored as they arrive, so a watch that the client ends loses nothing.
            if self.verb != Verb::Watch {
                self.ingest.not_stored().increment(NotStored::Interrupted);
            }
            self.ingest
                .send_always(Message::Abort(self.id), Urgency::Lingers);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use http::{HeaderMap, Method, Uri};

    use super::*;
    use crate::cache::change::Extent;
    use crate::cache::grant_rows::{GrantKey, Verdict};
    use crate::cache::queue::Received;
    use hublet_wire::meta::Timestamp;
    use hublet_wire::request::RequestInfo;

    fn ingest_with_room(messages: usize, room: usize) -> (Ingest, queue::Receiver<Message>) {
        let (sender, receiver) = queue::channel(Limits {
            messages,
            room,
            batch: room / 2,
        });
        let ingest = Ingest {
            queue: sender,
            next_capture: Arc::default(),
            is_stalled: Arc::default(),
            counters: Arc::default(),
            superseded: Arc::default(),
            clock: Clock::default(),
        };
        (ingest, receiver)
    }

    fn exchange() -> Exchange {
        let uri = Uri::from_static("/api/v1/namespaces/d/pods/a");
        let json = http::HeaderValue::from_static("application/json");
        let headers = HeaderMap::from_iter([(http::header::CONTENT_TYPE, json)]);
        let info = RequestInfo::parse(&Method::GET, &uri);
        Exchange::of(info.understood().unwrap(), 200, &headers, Timestamp::EPOCH).unwrap()
    }

    /// While the disk hung, each response waited two seconds for room that nobody made.
    #[tokio::test(start_paused = true)]
    async fn one_stream_waits_for_a_writer_that_hangs() {
        let (ingest, receiver) = ingest_with_room(64, 8);
        let frame = Bytes::from(vec![0; 8 << 10]);
        let push = async || {
            let mut capture = ingest.capture(exchange()).expect("the queue has room");
            let began = tokio::time::Instant::now();
            std::future::poll_fn(|cx| capture.poll_push(cx, &frame)).await;
            (capture.open, began.elapsed())
        };
        assert_eq!(push().await, (true, Duration::ZERO));
        assert_eq!(push().await, (false, QUEUE_TIMEOUT));
        assert_eq!(
            push().await,
            (false, Duration::ZERO),
            "nobody waits behind it"
        );
        while let Ok(Received::Message(message)) = receiver.recv(None) {
            if matches!(message, Message::Data { .. }) {
                break;
            }
        }
        assert_eq!(push().await, (true, Duration::ZERO), "there is room again");
        assert_eq!(push().await, (false, QUEUE_TIMEOUT), "and to be waited for");
    }

    fn grant(verdict: Verdict) -> Change {
        Change::PutGrant {
            key: GrantKey([0; 48]),
            verdict,
        }
    }

    /// A revocation waited 50 ms for more to write; after a crash within that time the right held again.
    #[test]
    fn i7_a_revocation_is_written_without_delay() {
        let (ingest, receiver) = ingest_with_room(64, 8);
        let delay = Duration::from_secs(10);
        let at = Timestamp::from_millis(1);
        ingest.submit(vec![grant(Verdict::allowed_at(at))]);
        ingest.submit(vec![grant(Verdict::denied_at(at))]);
        let began = Instant::now();
        receiver.recv(None).unwrap();
        assert!(receiver.linger(began + delay).is_some());
        assert!(receiver.linger(began + delay).is_none());
        assert!(began.elapsed() < delay);

        ingest.submit(vec![grant(Verdict::allowed_at(at))]);
        receiver.recv(None).unwrap();
        let soon = Instant::now() + Duration::from_millis(20);
        assert!(receiver.linger(soon).is_none());
        assert!(Instant::now() >= soon, "a grant waits for more");
    }

    /// While the queue was full neither the end of a response nor its interruption reached the writer, which kept the
    /// capture for ever: collections that a watch had kept current were never evicted.
    #[test]
    fn an_end_and_a_refusal_are_told_however_full_the_queue_is() {
        let (ingest, receiver) = ingest_with_room(2, QUEUE_KIB);
        let exchange = exchange();
        let copies = [
            ingest.capture(exchange.clone()),
            ingest.capture(exchange.clone()),
        ];
        assert!(ingest.capture(exchange).is_none());
        let [ended, broken_off] = copies.map(Option::unwrap);
        ended.end();
        drop(broken_off);
        ingest.submit(vec![grant(Verdict::allowed_at(Timestamp::from_millis(1)))]);
        ingest.submit(vec![grant(Verdict::denied_at(Timestamp::from_millis(1)))]);
        let appeared = Change::Supersede {
            key: Vec::new(),
            extent: Extent::Absences,
        };
        assert!(!ingest.submit(vec![appeared]), "the caller keeps it");
        drop(ingest);
        let told: Vec<Message> = std::iter::from_fn(|| receiver.recv(None).ok())
            .map(|received| match received {
                Received::Message(message) => message,
                other => panic!("{other:?}"),
            })
            .collect();
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
