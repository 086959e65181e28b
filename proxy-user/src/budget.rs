//! One budget for the memory of all connections, requests and response chunks, shared fairly between clients.
//!
//! [`Budget::open_flow`] makes the [`Flow`] of a connection. A body produces its next chunk while its client has
//! capacity, and the chunk is charged until it has left this process.
//!
//! A client has capacity while it uses less than what is free: one client alone gets half of the budget, two get a third
//! each, and a new client always gets some. A client that uses too much waits until its own memory is freed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::caller::Client;

/// Bytes of an upload that are buffered at most while the server does not take them.
pub(crate) const MAX_UPLOAD_BUFFER: u32 = 64 << 10;

/// Memory of a chunk besides its bytes: its charge, and its place in a queue of the connection.
const CHUNK_OVERHEAD: usize = 512;
/// A request's memory while it is answered: its head, its task, its stream.
const REQUEST_BYTES: usize = 8 << 10;
/// A connection's memory: its task, TLS, HTTP's buffers.
const CONNECTION_BYTES: usize = 16 << 10;
/// Memory that large buffers add to a connection.
const LARGE_BUFFER_BYTES: usize = 16 << 10;
/// Memory that a client may always use, for a few connections and requests, even if the budget is exhausted.
const MIN_SHARE: usize = 256 << 10;
/// Connections of one client above which each gets small buffers.
const MANY_CONNECTIONS: usize = 256;
/// Most requests of a client that wait for capacity, and most of its unread refusals: no other limit holds for them.
const MAX_WAITING: usize = 64;
/// Entries of clients at which those without connections are removed.
const SHARES_BEFORE_CLEANUP: usize = 1024;

#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    shares: Mutex<HashMap<Client, Weak<Share>>>,
    /// Clients with waiters. Locked before the waiters of a share, so that both change together.
    waiting: Mutex<Vec<Arc<Share>>>,
    /// The length of `waiting`, to be read without the lock.
    waiting_clients: AtomicUsize,
    next_waiter: AtomicUsize,
}

/// Bytes in use, and the most that may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Usage {
    pub(crate) bytes: usize,
    pub(crate) limit: usize,
}

/// The memory that one client uses.
#[derive(Debug, Default)]
struct Share {
    connections: AtomicUsize,
    used: AtomicUsize,
    /// The part of it that is chunks on their way to the client.
    pending: AtomicUsize,
    waiting_requests: AtomicUsize,
    unread_refusals: AtomicUsize,
    wakers: Mutex<HashMap<usize, Waker>>,
}

/// The flow control of one connection: its client's share, and the progress of its writes.
#[derive(Debug)]
pub(crate) struct Flow {
    client: Client,
    budget: Arc<Budget>,
    share: Arc<Share>,
    pending: AtomicUsize,
    /// Chunks that have been sent or dropped; wraps around.
    written: AtomicU32,
    is_cut_off: AtomicBool,
    cut_off: Notify,
}

/// The progress of a connection's writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WriteProgress {
    /// Bytes on their way to the client.
    pub(crate) pending: usize,
    /// Changes whenever a chunk has been sent.
    pub(crate) written: u32,
}

/// A body that waits for capacity; dropping it ends the wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    budget: Arc<Budget>,
    share: Arc<Share>,
    id: usize,
}

impl Waiter {
    fn new(flow: &Flow) -> Self {
        let id = flow.budget.next_waiter.fetch_add(1, SeqCst);
        Self {
            budget: Arc::clone(&flow.budget),
            share: Arc::clone(&flow.share),
            id,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // Dropping a waker may run other code, so it happens without the locks.
        let _waker = self.budget.remove_waiter(self);
    }
}

/// One of at most [`MAX_WAITING`] waiting requests or unread refusals of a client.
struct WaitSlot {
    share: Arc<Share>,
    counter: fn(&Share) -> &AtomicUsize,
}

impl WaitSlot {
    fn acquire(share: &Arc<Share>, counter: fn(&Share) -> &AtomicUsize) -> Option<Self> {
        let before = counter(share).fetch_add(1, SeqCst);
        let slot = Self {
            share: Arc::clone(share),
            counter,
        };
        (before < MAX_WAITING).then_some(slot)
    }
}

impl Drop for WaitSlot {
    fn drop(&mut self) {
        (self.counter)(&self.share).fetch_sub(1, SeqCst);
    }
}

/// The body of a refusal, until the last reference to it is gone.
struct RefusalBody {
    bytes: Bytes,
    _slot: WaitSlot,
}

impl AsRef<[u8]> for RefusalBody {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Bytes that are charged to a client until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    flow: Arc<Flow>,
    bytes: usize,
    kind: ChargeKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ChargeKind {
    /// Memory of a connection or a request.
    Memory,
    /// On their way to the client.
    Chunk,
}

/// A chunk of a body that is charged until the last reference to it is gone.
struct Chunk {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            shares: Mutex::default(),
            waiting: Mutex::default(),
            waiting_clients: AtomicUsize::new(0),
            next_waiter: AtomicUsize::new(0),
        })
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            bytes: self.used.load(SeqCst),
            limit: self.limit,
        }
    }

    /// The flow of a new connection.
    pub(crate) fn open_flow(self: &Arc<Self>, client: Client) -> Arc<Flow> {
        let mut shares = self.shares.lock();
        let known = shares.get(&client).and_then(Weak::upgrade);
        let share = known.unwrap_or_else(|| {
            if shares.len() >= SHARES_BEFORE_CLEANUP {
                shares.retain(|_, share| share.strong_count() > 0);
            }
            let share = Arc::new(Share::default());
            shares.insert(client, Arc::downgrade(&share));
            share
        });
        self.used.fetch_add(CONNECTION_BYTES, SeqCst);
        share.used.fetch_add(CONNECTION_BYTES, SeqCst);
        share.connections.fetch_add(1, SeqCst);
        Arc::new(Flow {
            client,
            budget: Arc::clone(self),
            share,
            pending: AtomicUsize::new(0),
            written: AtomicU32::new(0),
            is_cut_off: AtomicBool::new(false),
            cut_off: Notify::new(),
        })
    }

    /// The client uses less than its fair share, or has read everything: such a client always proceeds.
    fn has_capacity(&self, share: &Share) -> bool {
        share.pending.load(SeqCst) == 0 || self.is_below_fair_share(share)
    }

    fn is_below_fair_share(&self, share: &Share) -> bool {
        share.used.load(SeqCst) + self.used.load(SeqCst) < self.limit
    }

    /// Capacity for many chunks, so that waiters aren't woken for each.
    fn has_ample_capacity(&self, share: &Share) -> bool {
        share.pending.load(SeqCst) == 0
            || 2 * share.used.load(SeqCst) + self.used.load(SeqCst) < self.limit
    }

    fn wake_waiters(&self) {
        if self.waiting_clients.load(SeqCst) == 0 {
            return;
        }
        let mut wakers = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.retain(|share| {
            let ready = self.has_ample_capacity(share);
            if ready {
                wakers.extend(share.wakers.lock().drain());
            }
            !ready
        });
        self.waiting_clients.store(waiting.len(), SeqCst);
        drop(waiting);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Returns the waiter's previous waker.
    fn add_waiter(&self, waiter: &Waiter, waker: Waker) -> Option<Waker> {
        let mut waiting = self.waiting.lock();
        let mut wakers = waiter.share.wakers.lock();
        if wakers.is_empty() {
            waiting.push(Arc::clone(&waiter.share));
            self.waiting_clients.store(waiting.len(), SeqCst);
        }
        wakers.insert(waiter.id, waker)
    }

    /// Returns the waiter's waker. A share leaves with its last waiter.
    fn remove_waiter(&self, waiter: &Waiter) -> Option<Waker> {
        let mut waiting = self.waiting.lock();
        let mut wakers = waiter.share.wakers.lock();
        let waker = wakers.remove(&waiter.id)?;
        if wakers.is_empty() {
            waiting.retain(|share| !Arc::ptr_eq(share, &waiter.share));
            self.waiting_clients.store(waiting.len(), SeqCst);
        }
        Some(waker)
    }
}

impl Flow {
    /// The client that the connection counts for.
    pub(crate) fn client(&self) -> Client {
        self.client
    }

    /// The connection's client may produce its next chunk.
    pub(crate) fn has_capacity(&self) -> bool {
        self.budget.has_capacity(&self.share)
    }

    /// Ready while the client has capacity. Otherwise `waiter` is filled in, and the task is woken when it has.
    pub(crate) fn poll_capacity(
        self: &Arc<Self>,
        cx: &Context<'_>,
        waiter: &mut Option<Waiter>,
    ) -> Poll<()> {
        if self.has_capacity() {
            *waiter = None;
            return Poll::Ready(());
        }
        let waiter = waiter.get_or_insert_with(|| Waiter::new(self));
        drop(self.budget.add_waiter(waiter, cx.waker().clone()));
        // Bytes may have been released before this waiter was added.
        if self.budget.has_ample_capacity(&self.share) {
            self.budget.wake_waiters();
        }
        Poll::Pending
    }

    pub(crate) async fn wait_for_capacity(self: &Arc<Self>) {
        let mut waiter = None;
        std::future::poll_fn(|cx| self.poll_capacity(cx, &mut waiter)).await;
    }

    /// Waits for capacity before a request is admitted; false at once if too many requests of the client wait.
    pub(crate) async fn wait_for_admission(self: &Arc<Self>) -> bool {
        let slot = WaitSlot::acquire(&self.share, |share| &share.waiting_requests);
        if slot.is_none() {
            return false;
        }
        self.wait_for_capacity().await;
        true
    }

    /// The body of a refusal; empty if too many of the client's are unread, since a stream that can't end takes memory.
    pub(crate) fn limit_refusal(&self, bytes: Bytes) -> Bytes {
        match WaitSlot::acquire(&self.share, |share| &share.unread_refusals) {
            Some(slot) => Bytes::from_owner(RefusalBody { bytes, _slot: slot }),
            None => Bytes::new(),
        }
    }

    /// Charges a request and `bytes` more that it holds; `None` if its client uses too much.
    pub(crate) fn charge_request(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        self.may_charge_request()
            .then(|| self.charge(REQUEST_BYTES + bytes, ChargeKind::Memory))
    }

    fn may_charge_request(&self) -> bool {
        self.share.used.load(SeqCst) <= MIN_SHARE || self.budget.is_below_fair_share(&self.share)
    }

    /// Charges large buffers of this connection; `None` if its client has many connections, or little capacity.
    pub(crate) fn charge_large_buffers(self: &Arc<Self>) -> Option<Charge> {
        let may_charge = !self.is_one_of_many() && self.budget.is_below_fair_share(&self.share);
        may_charge.then(|| self.charge(LARGE_BUFFER_BYTES, ChargeKind::Memory))
    }

    /// The client has so many connections that each gets small buffers.
    pub(crate) fn is_one_of_many(&self) -> bool {
        self.connections() > MANY_CONNECTIONS
    }

    /// The client's connections alone exceed its fair share.
    pub(crate) fn has_too_many_connections(&self) -> bool {
        let taken = self.connections() * CONNECTION_BYTES;
        taken > MIN_SHARE && taken + self.budget.used.load(SeqCst) >= self.budget.limit
    }

    /// Open connections of the client.
    pub(crate) fn connections(&self) -> usize {
        self.share.connections.load(SeqCst)
    }

    /// Charges a chunk of a body until it has been written, or dropped with its connection.
    pub(crate) fn charge_chunk(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let charge = self.charge(bytes.len() + CHUNK_OVERHEAD, ChargeKind::Chunk);
        Bytes::from_owner(Chunk {
            bytes,
            _charge: charge,
        })
    }

    pub(crate) fn write_progress(&self) -> WriteProgress {
        WriteProgress {
            pending: self.pending.load(SeqCst),
            written: self.written.load(SeqCst),
        }
    }

    /// Ends the connection, also once it has left HTTP.
    pub(crate) fn cut_off(&self) {
        self.is_cut_off.store(true, SeqCst);
        self.cut_off.notify_waiters();
    }

    /// Waits until the connection is to end: for streams that have left HTTP.
    pub(crate) async fn until_cut_off(&self) {
        let mut notified = std::pin::pin!(self.cut_off.notified());
        notified.as_mut().enable();
        if !self.is_cut_off.load(SeqCst) {
            notified.await;
        }
    }

    fn charge(self: &Arc<Self>, bytes: usize, kind: ChargeKind) -> Charge {
        self.budget.used.fetch_add(bytes, SeqCst);
        self.share.used.fetch_add(bytes, SeqCst);
        if kind == ChargeKind::Chunk {
            self.pending.fetch_add(bytes, SeqCst);
            self.share.pending.fetch_add(bytes, SeqCst);
        }
        Charge {
            flow: Arc::clone(self),
            bytes,
            kind,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.share.connections.fetch_sub(1, SeqCst);
        self.share.used.fetch_sub(CONNECTION_BYTES, SeqCst);
        self.budget.used.fetch_sub(CONNECTION_BYTES, SeqCst);
        self.budget.wake_waiters();
    }
}

impl Charge {
    /// Charges further bytes of a request; false if its client uses too much.
    pub(crate) fn try_grow(&mut self, bytes: usize) -> bool {
        let fits = self.flow.may_charge_request();
        if fits {
            self.flow.budget.used.fetch_add(bytes, SeqCst);
            self.flow.share.used.fetch_add(bytes, SeqCst);
            self.bytes += bytes;
        }
        fits
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Self { flow, bytes, kind } = self;
        if *kind == ChargeKind::Chunk {
            flow.pending.fetch_sub(*bytes, SeqCst);
            flow.share.pending.fetch_sub(*bytes, SeqCst);
            flow.written.fetch_add(1, SeqCst);
        }
        flow.share.used.fetch_sub(*bytes, SeqCst);
        flow.budget.used.fetch_sub(*bytes, SeqCst);
        flow.budget.wake_waiters();
    }
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
