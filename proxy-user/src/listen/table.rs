//! The table of open connections: admission, the sweep for slow and idle connections, the check for
//! clients that do not read, and the drain.
//!
//! One lock, taken when a connection opens or closes and at each sweep, never for a request. A
//! connection reads its directive from one atomic, so it needs no timer of its own.

mod activity;
mod slots;
mod snapshot;
mod sweep;
#[cfg(test)]
mod tests;
mod tracked;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Interval, MissedTickBehavior};
use tracing::warn;

pub(super) use activity::{Activity, Directive};
pub(super) use tracked::{HttpVersion, InFlight, TrackedBody, TrackedIo};

use super::counters::Counters;
use crate::budget::Flow;
use crate::caller::Client;
use crate::drain::{DrainTrigger, DrainWatcher};
use crate::telemetry::registry::{Instrumented, Registry, register_gauge};
use slots::{Admission, Slots};
use sweep::{SweepAction, SweepState};

const SWEEP_INTERVAL: Duration = Duration::from_secs(15);
/// Checks for progress within the time that a client may take to read.
const PROGRESS_CHECKS: u32 = 6;

#[derive(Debug)]
pub(crate) struct ConnectionTable {
    reader_timeout: Duration,
    slots: Mutex<Slots>,
    drain: DrainTrigger,
}

impl ConnectionTable {
    /// A table for at most `limit` connections, each of which is closed when its client reads
    /// nothing of a pending response for `reader_timeout`.
    pub(crate) fn new(limit: usize, reader_timeout: Duration) -> Arc<Self> {
        Arc::new(Self {
            reader_timeout,
            slots: Mutex::new(Slots::new(limit)),
            drain: DrainTrigger::new(),
        })
    }

    /// Acquires a slot for a new connection, evicting another connection when the table is full.
    /// `None` when nothing may be evicted for this client.
    pub(super) fn acquire(
        self: &Arc<Self>,
        client: Client,
        flow: &Arc<Flow>,
        counters: &Counters,
    ) -> Option<Arc<Activity>> {
        // Dropped after the lock: dropping the last reference to an activity takes it.
        let mut scanned = Vec::new();
        let mut slots = self.slots.lock();
        let admission = slots.admit(client, flow, &mut scanned);
        let acquired = (!matches!(admission, Admission::Full)).then(|| {
            slots.insert(client, |index| {
                Arc::new(Activity::new(Arc::clone(self), index, Arc::clone(flow)))
            })
        });
        drop(slots);
        if let Admission::Evict(evicted) = &admission
            && let Some(evicted) = evicted.upgrade()
        {
            evicted.set_directive(Directive::Close);
        }
        if !matches!(admission, Admission::Free) {
            self.count_over_limit(counters);
        }
        acquired
    }

    fn count_over_limit(&self, counters: &Counters) {
        if counters.count_over_limit().is_power_of_two() {
            warn!(
                "all {} of --max-connections are open, or one client's connections take more than \
                 its share of --max-bytes-under-way: closing connections of the client with the most",
                self.limit()
            );
        }
    }

    pub(super) fn release(&self, index: usize) {
        self.slots.lock().release(index);
    }

    pub(crate) fn open(&self) -> usize {
        self.slots.lock().open()
    }

    pub(crate) fn limit(&self) -> usize {
        self.slots.lock().limit()
    }

    pub(super) fn reader_timeout(&self) -> Duration {
        self.reader_timeout
    }

    /// Closes connections of clients that do not read, until aborted.
    pub(crate) async fn run_stall_checks(self: Arc<Self>, counters: Arc<Counters>) {
        let mut interval = delayed_interval(self.reader_timeout / PROGRESS_CHECKS);
        loop {
            interval.tick().await;
            self.close_stalled(&counters);
        }
    }

    fn close_stalled(&self, counters: &Counters) {
        self.for_each(|state, activity| {
            // One check more than fit in the timeout: the first may come right after the bytes.
            if state.stalled_checks(activity.write_progress()) > PROGRESS_CHECKS {
                counters.count_stalled();
                activity.set_directive(Directive::Close);
            }
        });
    }

    /// Closes idle connections and those with an incomplete request head, until aborted.
    pub(crate) async fn run_sweeps(self: Arc<Self>, counters: Arc<Counters>) {
        let mut interval = delayed_interval(SWEEP_INTERVAL);
        loop {
            interval.tick().await;
            self.sweep(&counters);
        }
    }

    fn sweep(&self, counters: &Counters) {
        self.for_each(|state, activity| match state.sweep(activity.snapshot()) {
            SweepAction::Keep => {}
            SweepAction::CloseIdle => {
                counters.count_idle();
                activity.set_directive(Directive::Drain);
            }
            SweepAction::CloseSlow => {
                counters.count_slow_head();
                activity.set_directive(Directive::Close);
            }
        });
    }

    /// Gives every connection this directive. Later connections start with [`Directive::Drain`].
    fn direct_all(&self, directive: Directive) {
        self.for_each(|_, activity| activity.set_directive(directive));
    }

    /// Stops the listeners, and lets every connection finish its requests in flight, then close.
    pub(crate) fn drain(&self) {
        self.drain.start();
        self.direct_all(Directive::Drain);
    }

    /// Closes every connection now.
    pub(crate) fn close_all(&self) {
        self.direct_all(Directive::Close);
    }

    fn for_each(&self, mut visit: impl FnMut(&mut SweepState, &Activity)) {
        // Dropped after the lock: dropping the last reference to an activity takes it.
        let mut visited = Vec::new();
        let mut slots = self.slots.lock();
        for (state, activity) in slots.iter_mut() {
            visit(state, &activity);
            visited.push(activity);
        }
        drop(slots);
    }

    /// Held by everything that a drain has to wait for: listeners, connections that are accepted and
    /// not in the table yet, and those in the table.
    pub(super) fn drain_watcher(&self) -> DrainWatcher {
        self.drain.watcher()
    }

    /// Completes when no listener accepts and no connection is open.
    pub(crate) async fn drained(&self) {
        self.drain.drained().await;
    }
}

impl Instrumented for ConnectionTable {
    fn register_metrics(&self, registry: &mut Registry) {
        register_gauge(
            registry,
            "connections_open",
            "Connections open, the self-probe's included",
            self.open(),
        );
        register_gauge(
            registry,
            "connections_limit",
            "Most connections that may be open (--max-connections)",
            self.limit(),
        );
    }
}

fn delayed_interval(period: Duration) -> Interval {
    let mut interval = tokio::time::interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
