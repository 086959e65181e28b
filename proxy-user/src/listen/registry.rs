//! Every open connection: the limit, the sweep for slow, idle and stuck ones, and the drain.
//!
//! One lock, taken when a connection opens or closes and at each sweep, never for a request. A connection learns
//! what is wanted of it by one atomic, so it needs no timer and no shared wake-up list of its own.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tracing::warn;

use super::Counters;
use super::activity::{Activity, Order};
use super::seats::{Room, Seats};
use crate::authz::caller::Client;
use crate::budget::Flow;

/// How often connections are looked at.
pub(super) const SWEEP: Duration = Duration::from_secs(15);

/// Sweeps after which a request's head that isn't complete ends the connection (30 to 45 s).
const SLOW_HEAD: u32 = 3;
/// Sweeps after which a connection without any request ends.
const NO_REQUEST: u32 = 3;
/// Sweeps after which a connection without an open request ends: 5 minutes, longer than Go's clients keep one idle.
const IDLE: u32 = 20;
/// Looks within the time that a reader may take.
const LOOKS: u32 = 6;

#[derive(Debug)]
pub(crate) struct Registry {
    reader_timeout: Duration,
    seats: Mutex<Seats>,
    emptied: Notify,
}

/// What the last sweep saw of a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    begun: u32,
    quiet: u32,
    stuck: u32,
    moved: u32,
    /// Looks since anything was read of what is under way.
    still: u32,
    /// Told to finish at the last sweep.
    told: bool,
}

/// What a sweep thinks of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Keep,
    /// A head that doesn't end, or a connection that was told to finish and didn't.
    Drop,
    Idle,
}

/// A connection as a sweep sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Glimpse {
    /// Requests begun so far (wrapping).
    pub(super) begun: u32,
    pub(super) open: u32,
    /// Bytes came in after the last answer, and no request has begun since.
    pub(super) unread: bool,
}

impl Registry {
    /// An empty registry for at most `limit` connections, whose clients may take `reader_timeout` to read something of
    /// what they asked for.
    pub(crate) fn new(limit: usize, reader_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            reader_timeout,
            seats: Mutex::new(Seats::new(limit)),
            emptied: Notify::new(),
        })
    }

    /// A place for one more connection of this client; made where there is none, and `None` where that can't be.
    pub(super) fn enter(
        self: &Arc<Self>,
        client: Client,
        flow: &Arc<Flow>,
        counters: &Counters,
    ) -> Option<Arc<Activity>> {
        let mut looked_at = Vec::new();
        let mut seats = self.seats.lock();
        let room = seats.room(client, flow, &mut looked_at);
        let entered = (!matches!(room, Room::Full)).then(|| {
            let make =
                |at, order| Arc::new(Activity::new(Arc::clone(self), at, Arc::clone(flow), order));
            seats.take(client, make)
        });
        drop(seats);
        if let Room::Of(loser) = &room
            && let Some(loser) = loser.upgrade()
        {
            loser.order(Order::Drop);
        }
        if !matches!(room, Room::Free) && counters.over_limit().is_power_of_two() {
            warn!(
                "all {} of --max-connections are open, or one client's take more than its part of \
                 --max-bytes-under-way: connections of whoever has the most are closed",
                self.limit()
            );
        }
        entered
    }

    pub(super) fn leave(&self, seat: usize) {
        if self.seats.lock().leave(seat) {
            self.emptied.notify_waiters();
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.seats.lock().open()
    }

    pub(crate) fn limit(&self) -> usize {
        self.seats.lock().limit()
    }

    /// How long a client may take to read something of what it asked for.
    pub(super) fn reader_timeout(&self) -> Duration {
        self.reader_timeout
    }

    /// Looks for clients that don't read, for ever.
    pub(crate) async fn cut_stalled_on_time(self: Arc<Self>, counters: Arc<Counters>) {
        let mut interval = tokio::time::interval(self.reader_timeout / LOOKS);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.cut_stalled(&counters);
        }
    }

    /// Ends connections of which nothing has been read all the time though there is something to read.
    pub(super) fn cut_stalled(&self, counters: &Counters) {
        self.each(|record, activity| {
            let (owed, moved) = activity.progress();
            let still = owed > 0 && moved == record.moved;
            (record.moved, record.still) = (moved, if still { record.still + 1 } else { 0 });
            // The first look may have come right behind the bytes.
            if record.still > LOOKS {
                counters.stalled();
                activity.order(Order::Drop);
            }
        });
    }

    /// Looks at the connections every 15 seconds, for ever.
    pub(crate) async fn sweep_on_time(self: Arc<Self>, counters: Arc<Counters>) {
        let mut interval = tokio::time::interval(SWEEP);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.sweep(&counters);
        }
    }

    pub(super) fn sweep(&self, counters: &Counters) {
        self.each(|record, activity| match judge(record, activity.glimpse()) {
            Verdict::Keep => {}
            Verdict::Idle => {
                counters.idle();
                activity.order(Order::Finish);
            }
            Verdict::Drop => {
                counters.slow();
                activity.order(Order::Drop);
            }
        });
    }

    /// Tells every connection, and those still to come, to finish what they are answering, or to end at once.
    pub(crate) fn drain(&self, at_once: bool) {
        let order = if at_once { Order::Drop } else { Order::Finish };
        self.seats.lock().draining = true;
        self.each(|_, activity| activity.order(order));
    }

    /// Calls this with every connection. Their references are let go after the lock: the last one's drop takes it.
    fn each(&self, mut look: impl FnMut(&mut Record, &Activity)) {
        let mut held = Vec::new();
        let mut seats = self.seats.lock();
        for seat in seats.taken.iter_mut().flatten() {
            if let Some(activity) = seat.activity.upgrade() {
                look(&mut seat.record, &activity);
                held.push(activity);
            }
        }
        drop(seats);
    }

    /// Waits until no connection is open.
    pub(crate) async fn emptied(&self) {
        loop {
            let emptied = self.emptied.notified();
            if self.open() == 0 {
                return;
            }
            emptied.await;
        }
    }
}

fn judge(record: &mut Record, now: Glimpse) -> Verdict {
    let moved = record.begun != now.begun;
    record.begun = now.begun;
    if now.open > 0 {
        let Record { moved, still, .. } = *record;
        *record = Record {
            begun: now.begun,
            moved,
            still,
            ..Record::default()
        };
        return Verdict::Keep;
    }
    if record.told {
        return Verdict::Drop;
    }
    record.quiet = if moved { 0 } else { record.quiet + 1 };
    record.stuck = match (now.unread, moved) {
        (true, false) => record.stuck + 1,
        (true, true) => 1,
        (false, _) => 0,
    };
    if record.stuck >= SLOW_HEAD {
        return Verdict::Drop;
    }
    if record.quiet >= if now.begun == 0 { NO_REQUEST } else { IDLE } {
        record.told = true;
        return Verdict::Idle;
    }
    Verdict::Keep
}

#[cfg(test)]
mod tests {
    use super::super::activity::Open;
    use super::*;
    use crate::budget::Budget;

    /// How many sweeps a connection that looks like this survives, after having begun `begun` requests.
    fn survives(begun: u32, open: u32, unread: bool) -> (u32, Verdict) {
        let mut record = Record {
            begun,
            ..Record::default()
        };
        for sweep in 1..1000 {
            match judge(
                &mut record,
                Glimpse {
                    begun,
                    open,
                    unread,
                },
            ) {
                Verdict::Keep => {}
                other => return (sweep, other),
            }
        }
        (1000, Verdict::Keep)
    }

    #[test]
    fn slow_heads_and_idle_connections_end_and_watches_do_not() {
        assert_eq!(
            survives(1, 1, false),
            (1000, Verdict::Keep),
            "a watch is open for ever"
        );
        assert_eq!(
            survives(1, 1, true),
            (1000, Verdict::Keep),
            "a body that comes in slowly is not a head"
        );
        assert_eq!(
            survives(5, 0, false),
            (20, Verdict::Idle),
            "idle after five requests: 5 minutes"
        );
        assert_eq!(
            survives(0, 0, false),
            (3, Verdict::Idle),
            "never a request: 45 s"
        );
        assert_eq!(
            survives(5, 0, true),
            (3, Verdict::Drop),
            "a head that doesn't end"
        );
    }

    #[test]
    fn a_busy_connection_is_never_taken_for_a_slow_one() {
        let mut record = Record::default();
        for begun in 0..1000 {
            // Each sweep happens to see the first bytes of a new request.
            assert_eq!(
                judge(
                    &mut record,
                    Glimpse {
                        begun: begun * 7,
                        open: 0,
                        unread: true
                    }
                ),
                Verdict::Keep
            );
        }
    }

    #[test]
    fn one_that_was_told_to_finish_and_stays_is_dropped() {
        let mut record = Record {
            begun: 1,
            quiet: 19,
            ..Record::default()
        };
        let quiet = Glimpse {
            begun: 1,
            open: 0,
            unread: false,
        };
        assert_eq!(judge(&mut record, quiet), Verdict::Idle);
        assert_eq!(judge(&mut record, quiet), Verdict::Drop);
        assert_eq!(
            judge(
                &mut record,
                Glimpse {
                    begun: 2,
                    open: 1,
                    unread: false
                }
            ),
            Verdict::Keep,
            "a last request"
        );
    }

    const PATIENCE: Duration = Duration::from_secs(30);
    const POD: Client = Client::Pod(1);
    const KUBELET: Client = Client::Root(1);

    struct Rig {
        registry: Arc<Registry>,
        budget: Arc<Budget>,
        counters: Counters,
    }

    impl Rig {
        fn new(limit: usize) -> Self {
            Self {
                registry: Registry::new(limit, PATIENCE),
                budget: Budget::new(1 << 20),
                counters: Counters::default(),
            }
        }

        fn enter(&self, client: Client) -> Option<Arc<Activity>> {
            self.registry
                .enter(client, &self.budget.flow(client), &self.counters)
        }

        fn enter_all(&self, client: Client, count: usize) -> Vec<Arc<Activity>> {
            (0..count)
                .map(|_| self.enter(client).expect("a place"))
                .collect()
        }
    }

    fn dropped(connections: &[Arc<Activity>]) -> usize {
        connections
            .iter()
            .filter(|connection| connection.ordered() == Order::Drop)
            .count()
    }

    #[test]
    fn the_one_with_the_most_makes_room_and_places_are_kept_for_the_node() {
        let rig = Rig::new(32);
        let pod = rig.enter_all(POD, 28);
        assert_eq!(
            dropped(&pod),
            12,
            "one alone gets half, and makes room for itself"
        );
        let others: Vec<_> = (2..14)
            .flat_map(|uid| rig.enter_all(Client::Pod(uid), 1))
            .collect();
        assert_eq!((dropped(&pod), dropped(&others)), (12, 0));
        let kubelet = rig.enter_all(KUBELET, 4);
        assert_eq!(dropped(&pod), 12, "four were kept for it");
        let more = rig.enter_all(KUBELET, 4);
        let other = rig.enter_all(Client::Pod(99), 1);
        assert_eq!(dropped(&pod), 17);
        assert_eq!(
            dropped(&others) + dropped(&kubelet) + dropped(&more) + dropped(&other),
            0
        );
        let own = rig.enter_all(Client::Own, 1);
        assert_eq!((dropped(&pod), dropped(&own)), (18, 0));
    }

    /// Connections that asked for nothing took the memory that others' requests need, who met 429.
    #[test]
    fn connections_of_one_take_no_more_than_its_part_of_the_memory() {
        let rig = Rig::new(4096);
        let pods: Vec<_> = (1..4)
            .flat_map(|uid| rig.enter_all(Client::Pod(uid), 64))
            .collect();
        assert!(dropped(&pods) > 0);
        drop(pods);
        let pods: Vec<_> = (1..4)
            .flat_map(|uid| rig.enter_all(Client::Pod(uid), 15))
            .collect();
        assert_eq!(dropped(&pods), 0, "few are never too many");
        let kubelet = rig.enter_all(KUBELET, 64);
        assert_eq!(dropped(&kubelet), 0);
    }

    #[test]
    fn an_idle_connection_goes_before_one_in_use() {
        let rig = Rig::new(16);
        let pod = rig.enter_all(POD, 8);
        let _in_use: Vec<_> = pod
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != 5)
            .map(|(_, a)| Open::new(a))
            .collect();
        let _more = rig.enter(POD).expect("a place");
        assert_eq!(dropped(&pod), 1);
        assert_eq!(pod[5].ordered(), Order::Drop);
    }

    #[test]
    fn a_flood_of_the_privileged_makes_room_for_the_probe_only_by_itself() {
        let rig = Rig::new(16);
        let root = rig.enter_all(KUBELET, 16);
        assert!(rig.enter(POD).is_none(), "nothing of root's goes for a pod");
        let _probe = rig.enter(Client::Own).expect("a place");
        assert_eq!(dropped(&root), 1);
    }

    #[test]
    fn places_come_back() {
        let rig = Rig::new(2);
        let first = rig.enter(KUBELET).expect("place");
        let second = rig.enter(KUBELET).expect("place");
        let _third = rig
            .enter(KUBELET)
            .expect("place of the first or the second");
        assert_eq!(
            rig.registry.open(),
            3,
            "the one that lost its place has not closed yet"
        );
        let (loser, _other) = if first.ordered() == Order::Drop {
            (first, second)
        } else {
            (second, first)
        };
        drop(loser);
        assert_eq!(rig.registry.open(), 2);
        let _fourth = rig.enter(KUBELET).expect("place");
        assert_eq!(
            rig.registry.seats.lock().taken.len(),
            3,
            "places are used again"
        );
    }

    #[test]
    fn a_client_that_reads_nothing_is_cut_and_a_slow_one_is_not() {
        let rig = Rig::new(4);
        let flow = rig.budget.flow(POD);
        let connection = rig
            .registry
            .enter(POD, &flow, &rig.counters)
            .expect("place");
        let mut held = Vec::new();
        for _ in 0..20 {
            held.push(flow.count(bytes::Bytes::from_static(b"slow")));
            for _ in 0..LOOKS {
                rig.registry.cut_stalled(&rig.counters);
            }
            assert_eq!(connection.ordered(), Order::GoOn);
            held.remove(0);
            held.push(flow.count(bytes::Bytes::from_static(b"more")));
        }
        for _ in 0..LOOKS + 2 {
            rig.registry.cut_stalled(&rig.counters);
        }
        assert_eq!(connection.ordered(), Order::Drop);
    }

    /// Upgraded connections that had lost their places stayed, and 128 of them above the limit shut out everybody else.
    #[tokio::test]
    async fn a_connection_that_has_left_http_is_told_to_end() {
        let rig = Rig::new(2);
        let flow = rig.budget.flow(POD);
        let connection = rig
            .registry
            .enter(POD, &flow, &rig.counters)
            .expect("place");
        let told = tokio::spawn({
            let flow = Arc::clone(&flow);
            async move { flow.was_cut().await }
        });
        tokio::task::yield_now().await;
        connection.order(Order::Finish);
        tokio::task::yield_now().await;
        assert!(!told.is_finished());
        connection.order(Order::Drop);
        told.await.expect("told");
        flow.was_cut().await;
    }

    #[tokio::test]
    async fn a_drain_ends_when_the_last_connection_leaves() {
        let rig = Rig::new(2);
        let (open, registry) = (rig.enter(POD).expect("place"), Arc::clone(&rig.registry));
        registry.drain(false);
        assert_eq!(open.ordered(), Order::Finish);
        assert_eq!(
            rig.enter(POD).expect("late").ordered(),
            Order::Finish,
            "late comers are told, too"
        );
        let waiting = tokio::spawn({
            let registry = Arc::clone(&registry);
            async move { registry.emptied().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(open);
        waiting.await.expect("emptied");
    }
}
