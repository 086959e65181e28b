//! Every open connection: the limit, the sweep for slow and idle ones, and the drain.
//!
//! One lock, taken when a connection opens or closes and at each sweep, never for a request. A connection learns
//! what is wanted of it by one atomic, so it needs no timer and no shared wake-up list of its own.

use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Counters;
use super::activity::{Activity, Order};

/// How often connections are looked at.
pub(super) const SWEEP: Duration = Duration::from_secs(15);

/// Sweeps after which a request's head that isn't complete ends the connection (30 to 45 s).
const SLOW_HEAD: u32 = 3;
/// Sweeps after which a connection without any request ends.
const NO_REQUEST: u32 = 3;
/// Sweeps after which a connection without an open request ends: 5 minutes, longer than Go's clients keep one idle.
const IDLE: u32 = 20;

/// The open connections.
#[derive(Debug)]
pub struct Registry {
    limit: usize,
    seats: Mutex<Seats>,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Seats {
    taken: Vec<Option<Seat>>,
    free: Vec<usize>,
    draining: bool,
}

#[derive(Debug)]
struct Seat {
    activity: Weak<Activity>,
    record: Record,
}

/// What the last sweep saw of a connection.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Record {
    begun: u32,
    quiet: u32,
    stuck: u32,
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
    /// Requests being answered.
    pub(super) open: u32,
    /// Bytes came in after the last answer, and no request has begun since.
    pub(super) unread: bool,
}

impl Registry {
    /// An empty registry for at most `limit` connections.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, seats: Mutex::default(), emptied: Notify::new() })
    }

    /// A place for one more connection; `None` at the limit.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Arc<Activity>> {
        let mut seats = self.seats.lock();
        let seats = &mut *seats;
        if seats.taken.len() - seats.free.len() >= self.limit {
            return None;
        }
        let seat = seats.free.pop().unwrap_or_else(|| {
            seats.taken.push(None);
            seats.taken.len() - 1
        });
        let order = if seats.draining { Order::Finish } else { Order::GoOn };
        let activity = Arc::new(Activity::new(Arc::clone(self), seat, order));
        seats.taken[seat] = Some(Seat { activity: Arc::downgrade(&activity), record: Record::default() });
        Some(activity)
    }

    pub(super) fn leave(&self, seat: usize) {
        let mut seats = self.seats.lock();
        seats.taken[seat] = None;
        seats.free.push(seat);
        if seats.free.len() == seats.taken.len() {
            self.emptied.notify_waiters();
        }
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        let seats = self.seats.lock();
        seats.taken.len() - seats.free.len()
    }

    /// The limit.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Looks at the connections every 15 seconds, for ever.
    pub async fn sweep_on_time(self: Arc<Self>, counters: Arc<Counters>) {
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
    pub fn drain(&self, at_once: bool) {
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
    pub async fn emptied(&self) {
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
        *record = Record { begun: now.begun, ..Record::default() };
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
    use super::*;

    /// How many sweeps a connection that looks like this survives, after having begun `begun` requests.
    fn survives(begun: u32, open: u32, unread: bool) -> (u32, Verdict) {
        let mut record = Record { begun, ..Record::default() };
        for sweep in 1..1000 {
            match judge(&mut record, Glimpse { begun, open, unread }) {
                Verdict::Keep => {}
                other => return (sweep, other),
            }
        }
        (1000, Verdict::Keep)
    }

    #[test]
    fn slow_heads_and_idle_connections_end_and_watches_do_not() {
        assert_eq!(survives(1, 1, false), (1000, Verdict::Keep), "a watch is open for ever");
        assert_eq!(survives(1, 1, true), (1000, Verdict::Keep), "a body that comes in slowly is not a head");
        assert_eq!(survives(5, 0, false), (20, Verdict::Idle), "idle after five requests: 5 minutes");
        assert_eq!(survives(0, 0, false), (3, Verdict::Idle), "never a request: 45 s");
        assert_eq!(survives(5, 0, true), (3, Verdict::Drop), "a head that doesn't end");
    }

    #[test]
    fn a_busy_connection_is_never_taken_for_a_slow_one() {
        let mut record = Record::default();
        for begun in 0..1000 {
            // Each sweep happens to see the first bytes of a new request.
            assert_eq!(
                judge(&mut record, Glimpse { begun: begun * 7, open: 0, unread: true }),
                Verdict::Keep
            );
        }
    }

    #[test]
    fn one_that_was_told_to_finish_and_stays_is_dropped() {
        let mut record = Record { begun: 1, quiet: 19, ..Record::default() };
        let quiet = Glimpse { begun: 1, open: 0, unread: false };
        assert_eq!(judge(&mut record, quiet), Verdict::Idle);
        assert_eq!(judge(&mut record, quiet), Verdict::Drop);
        assert_eq!(
            judge(&mut record, Glimpse { begun: 2, open: 1, unread: false }),
            Verdict::Keep,
            "a last request"
        );
    }

    #[tokio::test]
    async fn the_limit_holds_and_places_come_back() {
        let registry = Registry::new(2);
        let first = registry.enter().expect("place");
        let _second = registry.enter().expect("place");
        assert!(registry.enter().is_none(), "full");
        drop(first);
        assert_eq!(registry.open(), 1);
        let _third = registry.enter().expect("the place of the first");
        assert_eq!(registry.seats.lock().taken.len(), 2, "places are used again");
    }

    #[tokio::test]
    async fn a_drain_ends_when_the_last_connection_leaves() {
        let registry = Registry::new(2);
        let open = registry.enter().expect("place");
        registry.drain(false);
        assert_eq!(open.ordered(), Order::Finish);
        assert_eq!(registry.enter().expect("late").ordered(), Order::Finish, "late comers are told, too");
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
