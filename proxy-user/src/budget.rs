//! One budget for the bytes that are under way to and from clients, fair between them. In: a connection's [`Client`].
//! Out: its [`Flow`], which lets a body make its next bytes while its client has room, and counts them until they have
//! left this process.
//!
//! A client has room while its own bytes are fewer than those that nobody uses: one alone gets half of the budget, two
//! a third each, and a newcomer always finds some. Who floods waits for itself.

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

/// Memory beside a piece's own bytes: its counts, and its place in a queue of the connection's.
const PIECE: usize = 512;
/// A request's memory while it is answered: its head, its task, its stream.
const REQUEST: usize = 8 << 10;
/// A connection's memory: its task, TLS, HTTP's buffers.
const CONNECTION: usize = 16 << 10;
/// Memory that large buffers add to a connection.
const LARGE: usize = 16 << 10;
/// A client may always have this much, a few connections and requests on them, even when the budget is full.
const LEAST: usize = 256 << 10;
/// Connections of a client from which on each gets small buffers.
const MANY: usize = 256;
/// Requests of a client that wait for room at most, and refusals that have not been read: they count nowhere else.
const WAITING: usize = 64;
/// Clients without bytes that are remembered at most, before they are looked for and forgotten.
const FORGOTTEN: usize = 1024;

#[derive(Debug)]
pub(crate) struct Budget {
    limit: usize,
    used: AtomicUsize,
    shares: Mutex<HashMap<Client, Weak<Share>>>,
    /// Those whose bodies wait for room (that have wakers), and how many they are. Locked before a share's wakers, so that
    /// both change together.
    waiting: Mutex<Vec<Arc<Share>>>,
    waiters: AtomicUsize,
    next: AtomicUsize,
}

/// One client's part of it.
#[derive(Debug, Default)]
struct Share {
    connections: AtomicUsize,
    used: AtomicUsize,
    /// The part of it that is on its way to the client.
    owed: AtomicUsize,
    /// Requests that wait for room.
    waiting: AtomicUsize,
    /// Refusals that have not been read.
    refused: AtomicUsize,
    wakers: Mutex<HashMap<usize, Waker>>,
}

/// One connection's bytes: its client's share, and whether they move.
#[derive(Debug)]
pub(crate) struct Flow {
    client: Client,
    budget: Arc<Budget>,
    share: Arc<Share>,
    owed: AtomicUsize,
    moved: AtomicU32,
    cut: AtomicBool,
    told: Notify,
}

/// Somebody who waits for room; dropping it ends the wait.
#[derive(Debug)]
pub(crate) struct Waiter {
    budget: Arc<Budget>,
    share: Arc<Share>,
    id: usize,
}

impl Waiter {
    fn of(flow: &Flow) -> Self {
        let id = flow.budget.next.fetch_add(1, SeqCst);
        Self {
            budget: Arc::clone(&flow.budget),
            share: Arc::clone(&flow.share),
            id,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // A waker's drop may run others' code, and so comes behind the locks.
        let _waker = self.budget.forget(self);
    }
}

/// One of those of a client that are counted there, until this is dropped.
struct Counted(Arc<Share>, fn(&Share) -> &AtomicUsize);

impl Counted {
    /// None where they are many.
    fn one(share: &Arc<Share>, there: fn(&Share) -> &AtomicUsize) -> Option<Self> {
        let before = there(share).fetch_add(1, SeqCst);
        let counted = Self(Arc::clone(share), there);
        (before < WAITING).then_some(counted)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.1)(&self.0).fetch_sub(1, SeqCst);
    }
}

/// A refusal's body, until the last reference to it is gone.
struct Refused(
    Bytes,
    #[expect(dead_code, reason = "its drop counts")] Counted,
);

impl AsRef<[u8]> for Refused {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Bytes that are counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Charge {
    flow: Arc<Flow>,
    bytes: usize,
    /// On their way to the client, as opposed to memory that a request takes.
    owed: bool,
}

/// A piece of a body that is counted until the last reference to it is gone.
struct Piece {
    bytes: Bytes,
    _charge: Charge,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Budget {
    /// Of this many bytes.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            shares: Mutex::default(),
            waiting: Mutex::default(),
            waiters: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
        })
    }

    /// Bytes under way, and the most that there may be.
    pub(crate) fn figures(&self) -> (usize, usize) {
        (self.used.load(SeqCst), self.limit)
    }

    /// The flow of a new connection.
    pub(crate) fn flow(self: &Arc<Self>, client: Client) -> Arc<Flow> {
        let mut shares = self.shares.lock();
        let known = shares.get(&client).and_then(Weak::upgrade);
        let share = known.unwrap_or_else(|| {
            if shares.len() >= FORGOTTEN {
                shares.retain(|_, share| share.strong_count() > 0);
            }
            let share = Arc::new(Share::default());
            shares.insert(client, Arc::downgrade(&share));
            share
        });
        self.used.fetch_add(CONNECTION, SeqCst);
        share.used.fetch_add(CONNECTION, SeqCst);
        share.connections.fetch_add(1, SeqCst);
        Arc::new(Flow {
            client,
            budget: Arc::clone(self),
            share,
            owed: AtomicUsize::new(0),
            moved: AtomicU32::new(0),
            cut: AtomicBool::new(false),
            told: Notify::new(),
        })
    }

    /// Less than its fair part, or nothing to read: whoever has read all always gets on.
    fn has_room(&self, share: &Share) -> bool {
        share.owed.load(SeqCst) == 0 || self.fits(share)
    }

    /// Less than its fair part.
    fn fits(&self, share: &Share) -> bool {
        share.used.load(SeqCst) + self.used.load(SeqCst) < self.limit
    }

    /// Room for a good while, so that those who wait aren't woken for every piece.
    fn has_ample_room(&self, share: &Share) -> bool {
        share.owed.load(SeqCst) == 0
            || 2 * share.used.load(SeqCst) + self.used.load(SeqCst) < self.limit
    }

    fn released(&self) {
        if self.waiters.load(SeqCst) == 0 {
            return;
        }
        let mut wakers = Vec::new();
        let mut waiting = self.waiting.lock();
        waiting.retain(|share| {
            let ready = self.has_ample_room(share);
            if ready {
                wakers.extend(share.wakers.lock().drain());
            }
            !ready
        });
        self.waiters.store(waiting.len(), SeqCst);
        drop(waiting);
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Somebody waits: what was to be woken for it before, if anything.
    fn wait(&self, waiter: &Waiter, waker: Waker) -> Option<Waker> {
        let mut waiting = self.waiting.lock();
        let mut wakers = waiter.share.wakers.lock();
        if wakers.is_empty() {
            waiting.push(Arc::clone(&waiter.share));
            self.waiters.store(waiting.len(), SeqCst);
        }
        wakers.insert(waiter.id, waker)
    }

    /// Somebody waits no more; the share goes with its last one.
    fn forget(&self, waiter: &Waiter) -> Option<Waker> {
        let mut waiting = self.waiting.lock();
        let mut wakers = waiter.share.wakers.lock();
        let waker = wakers.remove(&waiter.id)?;
        if wakers.is_empty() {
            waiting.retain(|share| !Arc::ptr_eq(share, &waiter.share));
            self.waiters.store(waiting.len(), SeqCst);
        }
        Some(waker)
    }
}

impl Flow {
    /// The client that the connection counts for.
    pub(crate) fn client(&self) -> Client {
        self.client
    }

    /// Its client has room for more.
    pub(crate) fn has_room(&self) -> bool {
        self.budget.has_room(&self.share)
    }

    /// Ready while its client has room; else what is left in `waiter` is woken when there is some.
    pub(crate) fn poll_room(
        self: &Arc<Self>,
        cx: &Context<'_>,
        waiter: &mut Option<Waiter>,
    ) -> Poll<()> {
        if self.has_room() {
            *waiter = None;
            return Poll::Ready(());
        }
        let waiter = waiter.get_or_insert_with(|| Waiter::of(self));
        drop(self.budget.wait(waiter, cx.waker().clone()));
        // Room may have been given back before this waiter was listed.
        if self.budget.has_ample_room(&self.share) {
            self.budget.released();
        }
        Poll::Pending
    }

    /// Waits until its client has room.
    pub(crate) async fn room(self: &Arc<Self>) {
        let mut waiter = None;
        std::future::poll_fn(|cx| self.poll_room(cx, &mut waiter)).await;
    }

    /// The same, before a request begins; false at once where enough others of its client wait.
    pub(crate) async fn room_to_begin(self: &Arc<Self>) -> bool {
        let Some(_counted) = Counted::one(&self.share, |share| &share.waiting) else {
            return false;
        };
        self.room().await;
        true
    }

    /// A refusal's body; none where enough others of its client have not been read, since a stream that can't end takes
    /// memory.
    pub(crate) fn refuse(&self, bytes: Bytes) -> Bytes {
        match Counted::one(&self.share, |share| &share.refused) {
            Some(counted) => Bytes::from_owner(Refused(bytes, counted)),
            None => Bytes::new(),
        }
    }

    /// A request begins, which holds so many bytes beside its own; `None` where its client has too many.
    pub(crate) fn request(self: &Arc<Self>, bytes: usize) -> Option<Charge> {
        self.takes_requests()
            .then(|| self.charge(REQUEST + bytes, false))
    }

    fn takes_requests(&self) -> bool {
        self.share.used.load(SeqCst) <= LEAST || self.budget.fits(&self.share)
    }

    /// Large buffers for this connection; `None` where its client has many connections, or little room.
    pub(crate) fn large_buffers(self: &Arc<Self>) -> Option<Charge> {
        (!self.is_one_of_many() && self.budget.fits(&self.share)).then(|| self.charge(LARGE, false))
    }

    /// Its client has so many connections that each must do with little.
    pub(crate) fn is_one_of_many(&self) -> bool {
        self.connections() > MANY
    }

    /// Its client's connections alone are more than its fair part.
    pub(crate) fn has_too_many_connections(&self) -> bool {
        let taken = self.connections() * CONNECTION;
        taken > LEAST && taken + self.budget.used.load(SeqCst) >= self.budget.limit
    }

    /// Connections that its client has.
    pub(crate) fn connections(&self) -> usize {
        self.share.connections.load(SeqCst)
    }

    /// Counts a piece of a body until it has been written, or dropped with its connection.
    pub(crate) fn count(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        let charge = self.charge(bytes.len() + PIECE, true);
        Bytes::from_owner(Piece {
            bytes,
            _charge: charge,
        })
    }

    /// Bytes that the client has to read, and a number that changes whenever it has read some.
    pub(crate) fn progress(&self) -> (usize, u32) {
        (self.owed.load(SeqCst), self.moved.load(SeqCst))
    }

    /// The connection is to end now.
    pub(crate) fn cut(&self) {
        self.cut.store(true, SeqCst);
        self.told.notify_waiters();
    }

    /// Done when the connection is to end, for who moves its bytes once it has left HTTP.
    pub(crate) async fn was_cut(&self) {
        let mut told = std::pin::pin!(self.told.notified());
        told.as_mut().enable();
        if !self.cut.load(SeqCst) {
            told.await;
        }
    }

    fn charge(self: &Arc<Self>, bytes: usize, owed: bool) -> Charge {
        self.budget.used.fetch_add(bytes, SeqCst);
        self.share.used.fetch_add(bytes, SeqCst);
        if owed {
            self.owed.fetch_add(bytes, SeqCst);
            self.share.owed.fetch_add(bytes, SeqCst);
        }
        Charge {
            flow: Arc::clone(self),
            bytes,
            owed,
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.share.connections.fetch_sub(1, SeqCst);
        self.share.used.fetch_sub(CONNECTION, SeqCst);
        self.budget.used.fetch_sub(CONNECTION, SeqCst);
        self.budget.released();
    }
}

impl Charge {
    /// Counts so many bytes more, of a request; false where its client has too many already.
    pub(crate) fn grow(&mut self, bytes: usize) -> bool {
        let fits = self.flow.takes_requests();
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
        let Self { flow, bytes, owed } = self;
        if *owed {
            flow.owed.fetch_sub(*bytes, SeqCst);
            flow.share.owed.fetch_sub(*bytes, SeqCst);
            flow.moved.fetch_add(1, SeqCst);
        }
        flow.share.used.fetch_sub(*bytes, SeqCst);
        flow.budget.used.fetch_sub(*bytes, SeqCst);
        flow.budget.released();
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use futures_util::FutureExt as _;

    use super::*;

    fn client(last: u8) -> Client {
        Client::Address(IpAddr::V4(Ipv4Addr::new(10, 0, 0, last)))
    }

    /// Counts pieces of a KiB until there is no room; how many they are.
    fn fill(flow: &Arc<Flow>, held: &mut Vec<Bytes>) -> usize {
        let before = held.len();
        while flow.has_room() {
            held.push(flow.count(Bytes::from(vec![0; 1024 - PIECE])));
        }
        held.len() - before
    }

    #[test]
    fn one_client_gets_half_and_a_newcomer_finds_room() {
        let budget = Budget::new(900 << 10);
        let (first, second) = (budget.flow(client(1)), budget.flow(client(2)));
        let mut held = Vec::new();
        // Two connections take 32 KiB: x + (x + 32) = 900 with the first one's own 16.
        assert_eq!(fill(&first, &mut held), 426);
        assert_eq!(fill(&second, &mut held), 213, "half of what is left");
        assert!(
            !budget.flow(client(1)).has_room(),
            "another connection of the first has no share of its own"
        );
        assert!(budget.flow(client(3)).has_room());
        assert_eq!(first.progress(), (426 << 10, 0));
        held.clear();
        assert_eq!(budget.figures(), (2 * CONNECTION, 900 << 10));
        assert_eq!(first.progress(), (0, 426));
        drop((first, second));
        assert_eq!(budget.figures().0, 0);
    }

    #[test]
    fn whoever_has_read_all_gets_on_however_full_it_is() {
        let budget = Budget::new(1 << 10);
        let flows: Vec<_> = (0..50).map(|n| budget.flow(client(n))).collect();
        let held: Vec<_> = flows
            .iter()
            .map(|flow| flow.count(Bytes::from(vec![0; 1 << 20])))
            .collect();
        assert!(
            flows
                .iter()
                .all(|flow| !flow.has_room() && flow.request(0).is_none())
        );
        let newcomer = budget.flow(client(51));
        assert!(newcomer.has_room() && newcomer.request(0).is_some());
        drop(held);
        assert!(flows[0].has_room());
    }

    #[test]
    fn large_buffers_are_counted_and_for_few_connections_with_room() {
        let budget = Budget::new(64 << 20);
        let flows: Vec<_> = (0..MANY).map(|_| budget.flow(client(1))).collect();
        let large = flows[0].large_buffers();
        assert!(large.is_some());
        assert_eq!(budget.figures().0, MANY * CONNECTION + LARGE);
        let one_more = budget.flow(client(1));
        assert!(one_more.large_buffers().is_none() && flows[1].large_buffers().is_none());
        drop((large, one_more));
        assert_eq!(budget.figures().0, MANY * CONNECTION);
        let _held = flows[0].count(Bytes::from(vec![0; 40 << 20]));
        assert!(flows[0].large_buffers().is_none(), "no room");
        assert!(budget.flow(client(2)).large_buffers().is_some());
    }

    #[tokio::test]
    async fn who_waits_is_woken_when_there_is_room_again() {
        let budget = Budget::new(100 << 10);
        let flow = budget.flow(client(1));
        let mut held = Vec::new();
        fill(&flow, &mut held);
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let flow = Arc::clone(&flow);
                tokio::spawn(async move { flow.room().await })
            })
            .collect();
        tokio::task::yield_now().await;
        waiting[0].abort();
        tokio::task::yield_now().await;
        assert!(!waiting[1].is_finished());
        held.clear();
        for waiting in waiting.into_iter().skip(1) {
            waiting.await.expect("woken");
        }
        assert_eq!(flow.share.wakers.lock().len(), 0);
        assert_eq!(budget.waiters.load(SeqCst), 0);
    }

    /// All requests of a client without room waited, and held all places among the requests meanwhile: others met 429.
    #[tokio::test]
    async fn few_requests_of_a_client_wait_for_room() {
        let budget = Budget::new(100 << 10);
        let flow = budget.flow(client(1));
        let mut held = Vec::new();
        fill(&flow, &mut held);
        let mut waiting: Vec<_> = (0..WAITING)
            .map(|_| Box::pin(flow.room_to_begin()))
            .collect();
        assert!(
            waiting
                .iter_mut()
                .all(|waits| waits.now_or_never().is_none())
        );
        assert_eq!(flow.room_to_begin().now_or_never(), Some(false));
        waiting.pop();
        assert_eq!(flow.room_to_begin().now_or_never(), None);
        held.clear();
        assert_eq!(waiting.remove(0).now_or_never(), Some(true));
    }

    /// Fifty thousand refusals to streams without windows took 250 MiB.
    #[tokio::test]
    async fn few_unread_refusals_of_a_client_have_a_body() {
        let flow = Budget::new(100 << 10).flow(client(1));
        let refusals: Vec<_> = (0..100)
            .map(|_| flow.refuse(Bytes::from_static(b"no")))
            .collect();
        assert_eq!(
            refusals.iter().filter(|body| !body.is_empty()).count(),
            WAITING
        );
        drop(refusals);
        assert!(!flow.refuse(Bytes::from_static(b"no")).is_empty());
    }

    /// Waits that were given up left their client's share behind, once each.
    #[tokio::test]
    async fn a_wait_that_is_given_up_leaves_nothing() {
        let budget = Budget::new(100 << 10);
        let flow = budget.flow(client(1));
        let mut held = Vec::new();
        fill(&flow, &mut held);
        let polled = |waiter: &mut Option<Waiter>| {
            flow.poll_room(&Context::from_waker(Waker::noop()), waiter)
                .is_pending()
        };
        let mut lasting = None;
        for _ in 0..1000 {
            let mut waiter = None;
            assert!(polled(&mut waiter) && polled(&mut waiter));
        }
        assert_eq!(
            (budget.waiting.lock().len(), budget.waiters.load(SeqCst)),
            (0, 0)
        );
        assert!(polled(&mut lasting));
        let mut waiter = None;
        assert!(polled(&mut waiter));
        drop(waiter);
        assert_eq!(
            (budget.waiting.lock().len(), budget.waiters.load(SeqCst)),
            (1, 1),
            "one still waits"
        );
        held.clear();
        assert_eq!(
            (budget.waiting.lock().len(), budget.waiters.load(SeqCst)),
            (0, 0)
        );
        assert!(!polled(&mut lasting) && lasting.is_none());
    }
}
