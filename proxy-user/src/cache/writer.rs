//! The store's one writer. In: the messages of its queue. Out: batches for `apply`, each one commit of everything received
//! meanwhile. While the disk fails, it reopens the store and keeps changes until they can be written.
//!
//! A long file: what it keeps during an outage, what it notes beside the store and what it commits are one state machine.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::cache::apply::apply;
use crate::cache::change::{Change, Extent};
use crate::cache::continuity::Continuity;
use crate::cache::decode::ResponseDecoder;
use crate::cache::evict::SizeBudget;
use crate::cache::exchange::{Author, Exchange};
use crate::cache::grant_rows::ClusterGeneration;
use crate::cache::keys::ObjectKeyBuf;
use crate::cache::message::{CaptureId, Counters, Message};
use crate::cache::not_stored::NotStored;
use crate::cache::paginate::ListAssembler;
use crate::cache::queue::{Received, Receiver};
use crate::cache::store::{Condition, Store, StoreError};
use crate::cache::superseded::{Fate, UnwrittenSize};
use crate::cache::write_retry::{LogLimit, WriteOutage};
use crate::clock::Clock;
use hublet_wire::CodecError;
use hublet_wire::meta::Timestamp;

/// Most bytes that the writer keeps of responses that have not ended; beyond it the capture that has waited longest for its
/// next bytes is aborted. Twice the longest document.
const MAX_DECODING_BYTES: usize = 16 << 20;
/// Longest wait of a batch's first event for more, to spare flash; a read that flushes ends it.
const BATCH_DELAY: Duration = Duration::from_millis(50);
/// Most changes in a batch.
const MAX_BATCH_CHANGES: usize = 512;
/// Bytes of objects from which on a batch is written.
const MAX_BATCH_BYTES: usize = 1 << 20;
/// Most changes that wait while the disk accepts nothing; later ones are dropped and counted.
const MAX_UNWRITTEN_CHANGES: usize = 8_192;
/// Most bytes of those.
const MAX_UNWRITTEN_BYTES: usize = 4 << 20;
/// Most revocations that wait in addition to those; below this limit none is dropped.
const MAX_UNWRITTEN_REVOCATIONS: usize = 32_768;
/// Longest time that a client's walk holds its snapshot, whose pages can't be reused meanwhile.
const MAX_SNAPSHOT_AGE: Duration = Duration::from_secs(2);
/// Time between a batch and the check whether the file is mostly empty.
const COMPACT_DELAY: Duration = Duration::from_secs(5);
/// Longest that responses wait for the writer during a compaction.
const COMPACT_TIMEOUT: Duration = Duration::from_millis(500);

/// A response whose body is being decoded.
struct OpenResponse {
    decoder: ResponseDecoder,
    /// The caller of the write that this is the response to.
    author: Option<Arc<dyn Author>>,
    /// Buffered bytes, when last counted.
    held: usize,
    /// Time of the last bytes.
    at: Timestamp,
}

/// A write of a client.
struct CapturedWrite {
    /// Its key in flight.
    key: Vec<u8>,
    extent: Extent,
    /// The object that it has created in the collection at that key, once it is decoded.
    created: Option<ObjectKeyBuf>,
}

impl CapturedWrite {
    fn of(decoder: &ResponseDecoder) -> Option<Self> {
        let (key, extent) = decoder.exchange().supersedes()?;
        Some(Self::new(key, extent))
    }

    fn new(key: &[u8], extent: Extent) -> Self {
        Self {
            key: key.to_vec(),
            extent,
            created: None,
        }
    }

    /// The write whose response can't be stored.
    fn unstored(change: &Change) -> Option<Self> {
        match change {
            Change::Supersede { key, extent } => Some(Self::new(key, *extent)),
            _ => None,
        }
    }

    fn superseded(&self) -> (&[u8], Extent) {
        match &self.created {
            Some(created) => (created.as_bytes(), Extent::Copies),
            None => (&self.key, self.extent),
        }
    }
}

/// Decodes captured responses and applies their changes to the store. Lives on one thread.
pub(super) struct Writer {
    store: Arc<Store>,
    counters: Arc<Counters>,
    cluster: ClusterGeneration,
    decoders: HashMap<CaptureId, OpenResponse>,
    /// Bytes that all of them hold.
    held: usize,
    pages: ListAssembler,
    continuity: Continuity,
    changes: Vec<Change>,
    bytes: usize,
    /// Writes of clients whose responses have ended, and are among the changes.
    writes: Vec<CapturedWrite>,
    waiting: Vec<oneshot::Sender<()>>,
    /// Messages received since the start.
    received: u64,
    is_closing: bool,
    error_log: LogLimit,
    budget: SizeBudget,
    outage: Option<WriteOutage>,
    /// During an outage: the `changes` up to the first gap.
    kept: KeptChanges,
    /// The extent of what the file of pending changes holds; `None` where that is unknown.
    pending: Option<PendingExtent>,
    /// The time in which that file can't be written.
    pending_outage: Option<WriteOutage>,
    pending_log: LogLimit,
    /// The revocations that an earlier process has left are among the changes, or written already.
    has_read_pending: bool,
    tidy_at: Option<Instant>,
}

/// Changes that are kept until the disk accepts them.
#[derive(Debug, Clone, Copy, Default)]
struct KeptChanges {
    count: usize,
    bytes: usize,
}

/// The number of changes that must outlast a restart although the store can't be written. Until it can be, the number
/// only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct PendingExtent {
    superseded: UnwrittenSize,
    revocations: usize,
}

fn notify_waiter(waiting: oneshot::Sender<()>) {
    let _ = waiting.send(());
}

/// Set once a malformed response has been logged, so that a misbehaving server can't fill the log.
static LOGGED: OnceLock<()> = OnceLock::new();

impl Writer {
    pub(super) fn new(
        store: Arc<Store>,
        cluster: ClusterGeneration,
        counters: Arc<Counters>,
        budget: SizeBudget,
        clock: Clock,
    ) -> Self {
        // A store that can't be written at the start is retried like one that fails later.
        let outage =
            (store.condition() != Condition::Writable).then(|| WriteOutage::begin(Instant::now()));
        let changes = store.revocations();
        let pending = Some(PendingExtent::of(&store, &changes));
        let has_read_pending = !store.pending_file().is_unread();
        Self {
            store,
            counters,
            cluster,
            decoders: HashMap::new(),
            held: 0,
            pages: ListAssembler::default(),
            continuity: Continuity::new(clock),
            bytes: changes.iter().map(Change::size).sum(),
            changes,
            writes: Vec::new(),
            waiting: Vec::new(),
            received: 0,
            is_closing: false,
            error_log: LogLimit::default(),
            budget,
            outage,
            kept: KeptChanges::default(),
            pending,
            pending_outage: None,
            pending_log: LogLimit::default(),
            has_read_pending,
            tidy_at: Some(Instant::now() + COMPACT_DELAY),
        }
    }

    /// Runs until a close is received or the last sender is dropped.
    pub(super) fn run(mut self, queue: &Receiver<Message>) {
        // An earlier process may have left changes behind.
        self.commit_batch();
        loop {
            let taken = match queue.recv(self.next_due()) {
                Ok(first) => self.take_batch(first, queue),
                Err(RecvTimeoutError::Timeout) => 0,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            self.commit_batch();
            queue.finish(taken);
            let waiting = std::mem::take(&mut self.waiting);
            if self.is_closing {
                // A successor that waited for this may open the file at once, even if readers still hold the store.
                self.store.close();
                return waiting.into_iter().for_each(notify_waiter);
            }
            waiting.into_iter().for_each(notify_waiter);
            self.compact_store(queue);
        }
    }

    /// Takes messages until a batch is full, its delay is over, or an urgent message came; returns how many.
    fn take_batch(&mut self, first: Received<Message>, queue: &Receiver<Message>) -> usize {
        let deadline = Instant::now() + BATCH_DELAY;
        let (mut taken, mut next) = (0, Some(first));
        while let Some(received) = next {
            taken += 1;
            self.take_received(received);
            let is_full = self.changes.len() >= MAX_BATCH_CHANGES || self.bytes >= MAX_BATCH_BYTES;
            if is_full || !self.waiting.is_empty() {
                break;
            }
            next = queue.linger(deadline);
        }
        taken
    }

    /// The time of the next retry of the disk, or of the next compaction check.
    fn next_due(&self) -> Option<Instant> {
        let outages = self.outage.iter().chain(&self.pending_outage);
        let retry = outages.map(|outage| outage.next).min();
        retry.or(self.tidy_at)
    }

    /// Compacts the file if most of it is free and nothing waits to be written.
    fn compact_store(&mut self, queue: &Receiver<Message>) {
        let is_due = self.tidy_at.is_some_and(|at| at <= Instant::now());
        if self.outage.is_some() || !is_due || queue.is_behind() {
            return;
        }
        self.tidy_at = None;
        self.store.end_old_snapshots(MAX_SNAPSHOT_AGE);
        let began = Instant::now();
        if let Err(error) = self.budget.tidy(&self.store, &|| {
            queue.is_behind() && began.elapsed() > COMPACT_TIMEOUT
        }) {
            tracing::warn!(%error, "the store's file can't be compacted");
            if self.store.has_failed() {
                self.fall_back(&error.to_string());
            }
        }
    }

    fn take_received(&mut self, received: Received<Message>) {
        self.received += 1;
        match received {
            Received::Message(message) => {
                let before = self.changes.len();
                self.take_message(message);
                let added = self.changes[before..].iter().map(Change::size);
                self.bytes += added.sum::<usize>();
            }
            Received::Flush(done) => self.waiting.push(done),
            Received::Close(done) => {
                self.waiting.push(done);
                self.is_closing = true;
            }
        }
    }

    fn take_message(&mut self, message: Message) {
        match message {
            Message::Begin { id, exchange } => self.begin_response(id, *exchange),
            Message::Data {
                id,
                bytes,
                permit,
                received_at,
            } => {
                self.push_data(id, &bytes, received_at);
                drop(permit);
            }
            Message::End { id, received_at } => self.end_response(id, received_at),
            Message::Abort(id) => self.abandon(id),
            Message::Changes(mut changes) => {
                let unstored = changes.iter().filter_map(CapturedWrite::unstored);
                self.writes.extend(unstored);
                self.changes.append(&mut changes);
            }
            Message::DiskFailed if self.store.has_failed() => {
                self.fall_back("reading from the disk failed");
            }
            Message::DiskFailed => {}
            Message::TestDisk => {
                // Only its time counts here; a disk that fails is handled when a batch is written.
                let _ = self.store.place().has_room();
            }
        }
    }

    fn begin_response(&mut self, id: CaptureId, mut exchange: Exchange) {
        let (at, author) = (exchange.sent_at, exchange.author.take());
        let decoder = ResponseDecoder::new(exchange);
        self.decoders.insert(
            id,
            OpenResponse {
                decoder,
                author,
                held: 0,
                at,
            },
        );
    }

    fn push_data(&mut self, id: CaptureId, bytes: &[u8], now: Timestamp) {
        let pushed = self.decoders.get_mut(&id).map(|open_response| {
            open_response.at = now;
            open_response.decoder.push(bytes, now, &mut self.changes)
        });
        if let Some(Err(error)) = pushed {
            self.abandon(id);
            self.count_malformed(&error);
        }
        self.limit_copies(id);
    }

    fn end_response(&mut self, id: CaptureId, now: Timestamp) {
        let before = self.changes.len();
        let author = self
            .decoders
            .get_mut(&id)
            .and_then(|open_response| open_response.author.take());
        let writes = self.writes.len();
        let ended = self.end_copy(id);
        let unreadable = ended.as_ref().and_then(unreadable_write);
        let finished = ended.map(|o| o.finish(now, &mut self.pages, &mut self.changes));
        if let Some(Err(error)) = finished {
            self.changes.extend(unreadable);
            self.count_malformed(&error);
            return;
        }
        let created = self.changes[before..].iter().find_map(upserted_key);
        for write in &mut self.writes[writes..] {
            write.created = created.clone().filter(|_| write.extent == Extent::Lists);
        }
        if let Some(author) = author {
            self.grant_author(&*author, before, now);
        }
    }

    /// Adds the author's grants for the objects in the response to its write: those of the changes from `from` on.
    fn grant_author(&mut self, author: &dyn Author, from: usize, now: Timestamp) {
        let written = self.changes[from..].iter();
        for key in written.filter_map(upserted_key).collect::<Vec<_>>() {
            self.changes
                .append(&mut author.observe_object(key.as_key(), now));
        }
    }

    fn count_malformed(&self, error: &CodecError) {
        self.counters.not_stored.increment(NotStored::from(error));
        log_malformed(error);
    }

    fn end_copy(&mut self, id: CaptureId) -> Option<ResponseDecoder> {
        let open_response = self.decoders.remove(&id)?;
        self.held -= open_response.held;
        self.writes
            .extend(CapturedWrite::of(&open_response.decoder));
        Some(open_response.decoder)
    }

    /// Aborts a capture. What a write has changed is then unknown.
    fn abandon(&mut self, id: CaptureId) {
        let decoder = self.end_copy(id);
        self.changes
            .extend(decoder.as_ref().and_then(unreadable_write));
    }

    /// Recounts the bytes that a capture holds, and aborts the ones that have waited longest while all together hold too
    /// much: a client that never reads its response to the end must not block the captures of others.
    fn limit_copies(&mut self, id: CaptureId) {
        if let Some(open_response) = self.decoders.get_mut(&id) {
            let held = open_response.decoder.buffered_bytes();
            self.held = self.held - open_response.held + held;
            open_response.held = held;
        }
        while self.held > MAX_DECODING_BYTES {
            let holding = self
                .decoders
                .iter()
                .filter(|(_, open_response)| open_response.held > 0);
            let Some(longest) = holding
                .min_by_key(|(id, open_response)| (open_response.at, **id))
                .map(|(id, _)| *id)
            else {
                return;
            };
            self.abandon(longest);
            self.counters.count_abandoned(NotStored::QueueFull, 1);
        }
    }

    fn commit_batch(&mut self) {
        self.write_or_keep();
        self.update_pending_file();
    }

    fn is_idle(&self) -> bool {
        self.changes.is_empty() && self.writes.is_empty() && self.store.superseded().is_empty()
    }

    fn write_or_keep(&mut self) {
        let now = Instant::now();
        match &self.outage {
            Some(outage) if !self.is_closing && outage.next > now => return self.keep_unwritten(),
            None if self.is_idle() => return,
            _ => {}
        }
        self.store.feed().publish_observed(&self.changes);
        let written = self.write_batch();
        let is_other_cluster = written.is_ok() && self.continuity.cluster_replaced;
        if is_other_cluster {
            self.cluster.advance();
            self.store.feed().publish_reset();
        }
        if written.is_ok() {
            self.store.feed().publish_committed(&self.changes);
        }
        match written {
            Ok(changed) => {
                self.store.forget_revocations();
                self.end_writes();
                self.write_superseded();
                self.finish_batch(changed);
            }
            Err(error) => self.not_written(&error),
        }
    }

    /// Writes what is pending. First reopens a store that could not be written, or replaces a damaged one.
    fn write_batch(&mut self) -> Result<bool, StoreError> {
        if self.outage.is_some() {
            let late = self.store.late_opening()?;
            let reopened = self.store.reopen(late);
            self.add_pending_revocations();
            reopened?;
        }
        self.store.end_old_snapshots(MAX_SNAPSHOT_AGE);
        self.make_room()?;
        match self.apply_changes() {
            Err(error) if error.is_corruption() => {
                self.store.replace_damaged(&error)?;
                self.store.feed().publish_reset();
                self.apply_changes()
            }
            applied => applied,
        }
    }

    /// Evicts what the batch needs room for, except for collections that a watch keeps current.
    fn make_room(&mut self) -> Result<(), StoreError> {
        let decoders = self.decoders.values();
        let fed: HashSet<Vec<u8>> = decoders
            .filter_map(|open_response| open_response.decoder.watched_collection())
            .map(|collection| collection.as_bytes().to_vec())
            .collect();
        let evicted =
            self.budget
                .evict_for(&self.store, &self.changes, &fed, &mut self.continuity)?;
        self.counters.evicted.fetch_add(evicted, Ordering::Relaxed);
        Ok(())
    }

    /// Applies the batch. One that fails and is applied again must not confirm its own contradictions.
    fn apply_changes(&mut self) -> Result<bool, StoreError> {
        let before = self.continuity.clone();
        let applied = apply(&self.store, &self.changes, &mut self.continuity);
        if applied.is_err() {
            self.continuity = before;
        }
        applied
    }

    /// Adds the revocations that an earlier process has left, once they are read, where that was not possible at the start.
    fn add_pending_revocations(&mut self) {
        if !self.has_read_pending && !self.store.pending_file().is_unread() {
            self.has_read_pending = true;
            let revocations = self.store.revocations();
            let bytes: usize = revocations.iter().map(Change::size).sum();
            self.kept.count += revocations.len();
            self.kept.bytes += bytes;
            self.bytes += bytes;
            self.changes.splice(0..0, revocations);
        }
    }

    /// Makes unknown on disk what changes supersede that the queue or the disk did not take. Reads ignore it already. Comes
    /// after the batch and all that was queued before such a change, which may hold an older copy or absence.
    fn write_superseded(&mut self) {
        let superseded = self.store.superseded();
        if superseded.is_empty() || superseded.awaits_queued(self.received) {
            return;
        }
        let pending = superseded.pending();
        match apply(&self.store, &pending.changes, &mut self.continuity) {
            Ok(_) => self.store.superseded().forget(&pending),
            Err(error) => {
                tracing::debug!(%error, "superseded rows are written with the next batch")
            }
        }
    }

    /// Writes beside the store what it has not taken and must not forget, or that this is over.
    fn update_pending_file(&mut self) {
        let extent = PendingExtent::of(&self.store, &self.changes);
        if self.pending == Some(extent) || !self.has_read_pending {
            self.pending_outage = None;
            return;
        }
        let now = Instant::now();
        if let Some(outage) = &self.pending_outage
            && outage.next > now
            && !self.is_closing
        {
            return;
        }
        match self.write_pending_file(extent) {
            Ok(()) => {
                self.pending = Some(extent);
                self.pending_outage = None;
            }
            Err(error) => self.pending_file_failed(&error, extent),
        }
    }

    fn write_pending_file(&self, extent: PendingExtent) -> std::io::Result<()> {
        let file = self.store.pending_file();
        if extent == PendingExtent::default() {
            return file.clear();
        }
        let superseded = self.store.superseded().to_changes();
        let revocations = self.changes.iter().filter(|change| change.is_revocation());
        file.replace(&revocations.chain(&superseded).collect::<Vec<_>>())
    }

    fn pending_file_failed(&mut self, error: &std::io::Error, extent: PendingExtent) {
        let now = Instant::now();
        self.pending = None;
        match &mut self.pending_outage {
            Some(outage) => outage.back_off(now),
            None => self.pending_outage = Some(WriteOutage::begin(now)),
        }
        if !self.pending_log.admits(now) {
            return;
        }
        if extent == PendingExtent::default() {
            tracing::warn!(%error, "the file of pending changes can't be emptied: after a restart, the objects and rights in it are unknown until the cloud has sent them again");
        } else {
            tracing::warn!(%error, "revoked rights and changed objects are kept in memory only: after a restart, their former state would be served again");
        }
    }

    /// Notes what is superseded by changes that could not be written.
    fn supersede_by(&self, unwritten: &[Change], fate: Fate) {
        for (key, extent) in unwritten.iter().filter_map(Change::superseded) {
            self.store.superseded().add(key, extent, fate);
        }
    }

    /// Ends the flight of writes whose changes were not written.
    fn supersede_by_writes(&mut self, fate: Fate) {
        for (key, extent) in self.writes.iter().map(CapturedWrite::superseded) {
            self.store.superseded().add(key, extent, fate);
        }
        self.end_writes();
    }

    fn end_writes(&mut self) {
        for write in std::mem::take(&mut self.writes) {
            self.store.superseded().end_write(&write.key);
        }
    }

    fn finish_batch(&mut self, changed: bool) {
        if changed {
            self.counters.commits.fetch_add(1, Ordering::Relaxed);
            self.tidy_at
                .get_or_insert_with(|| Instant::now() + COMPACT_DELAY);
        }
        self.end_outage();
        self.clear_batch();
    }

    fn end_outage(&mut self) {
        if let Some(outage) = self.outage.take() {
            let seconds = outage.lasts(Instant::now()).as_secs();
            tracing::info!(seconds, "the store can be written again");
            self.counters.full.store(false, Ordering::Relaxed);
        }
    }

    fn not_written(&mut self, error: &StoreError) {
        self.counters.failures.fetch_add(1, Ordering::Relaxed);
        if self.error_log.admits(Instant::now()) {
            tracing::error!(%error, "responses can't be stored; stored data is still served");
        }
        if error.is_failure() || matches!(error, StoreError::InUse(_)) {
            self.fall_back(&error.to_string());
            if self.kept.count == 0 {
                self.supersede_by(&self.changes, Fate::Kept);
                self.supersede_by_writes(Fate::Kept);
                self.kept = self.all_changes();
            }
            self.keep_unwritten();
        } else {
            // The batch itself can't be written: a retry would fail the same way.
            self.abandon_captures();
            self.supersede_by(&self.changes, Fate::Dropped);
            self.supersede_by_writes(Fate::Dropped);
            self.store.superseded().drop_kept();
            self.changes.retain(Change::is_revocation);
            self.bytes = self.changes.iter().map(Change::size).sum();
            // The kept changes are gone with the batch: their count would hide the next upserts.
            self.kept = KeptChanges::default();
            // The disk has taken writes again, or it would have failed before.
            if self.store.condition() == Condition::Writable {
                self.end_outage();
            }
        }
    }

    /// Serves what was written last, until the disk accepts writes again.
    fn fall_back(&mut self, problem: &str) {
        let now = Instant::now();
        match &mut self.outage {
            Some(outage) => outage.back_off(now),
            None => self.outage = Some(WriteOutage::begin(now)),
        }
        if (self.store.condition() == Condition::Writable || self.store.has_failed())
            && let Err(error) = self.store.fall_back(problem)
        {
            tracing::error!(%error, "the store can't be read");
        }
    }

    /// Keeps changes that can't be written, up to a limit and without a gap, so that writing them later gives a state that
    /// existed. Changes beyond the limit are dropped; all captures that are open then are aborted, since they span the gap.
    fn keep_unwritten(&mut self) {
        self.supersede_by(&self.changes[self.kept.count..], Fate::Kept);
        if self.changes.len() <= MAX_UNWRITTEN_CHANGES.max(self.kept.count)
            && self.bytes <= MAX_UNWRITTEN_BYTES.max(self.kept.bytes)
        {
            self.kept = self.all_changes();
            self.supersede_by_writes(Fate::Kept);
            return;
        }
        let beyond = self.changes.split_off(self.kept.count);
        self.abandon_captures();
        self.supersede_by(&beyond, Fate::Dropped);
        self.supersede_by_writes(Fate::Dropped);
        let room = MAX_UNWRITTEN_REVOCATIONS.saturating_sub(self.changes.len());
        self.changes
            .extend(beyond.into_iter().filter(Change::is_revocation).take(room));
        self.bytes = self.changes.iter().map(Change::size).sum();
        self.kept = self.all_changes();
        self.counters.full.store(true, Ordering::Relaxed);
    }

    fn all_changes(&self) -> KeptChanges {
        KeptChanges {
            count: self.changes.len(),
            bytes: self.bytes,
        }
    }

    /// Aborts all open captures: an event of a watch or a page of a list may have been lost, so none of them can be complete
    /// any more.
    fn abandon_captures(&mut self) {
        self.counters
            .count_abandoned(NotStored::StoreFailed, 1 + self.decoders.len() as u64);
        let decoders = std::mem::take(&mut self.decoders).into_values();
        let open = decoders.filter_map(|open_response| CapturedWrite::of(&open_response.decoder));
        self.writes.extend(open);
        self.held = 0;
        self.pages = ListAssembler::default();
    }

    fn clear_batch(&mut self) {
        self.changes.clear();
        self.changes.shrink_to(MAX_BATCH_CHANGES);
        self.bytes = 0;
        self.kept = KeptChanges::default();
    }
}

impl PendingExtent {
    fn of(store: &Store, changes: &[Change]) -> Self {
        Self {
            superseded: store.superseded().size(),
            revocations: changes.iter().filter(|c| c.is_revocation()).count(),
        }
    }
}

fn unreadable_write(decoder: &ResponseDecoder) -> Option<Change> {
    decoder.exchange().unreadable_write()
}

fn upserted_key(change: &Change) -> Option<ObjectKeyBuf> {
    match change {
        Change::Upsert { key, .. } => Some(key.clone()),
        _ => None,
    }
}

fn log_malformed(error: &CodecError) {
    if !matches!(error, CodecError::Variant(_)) && LOGGED.set(()).is_ok() {
        tracing::warn!(%error, "a response was forwarded but not stored (further ones are logged at debug level)");
    } else {
        tracing::debug!(%error, "a response was forwarded but not stored");
    }
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
