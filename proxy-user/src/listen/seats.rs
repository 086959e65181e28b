//! The places for connections: who has how many, and which is taken from whom when all are taken. Plain data under the
//! registry's lock.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::activity::{Activity, Order};
use super::registry::{Glimpse, Record};
use crate::authz::caller::Client;
use crate::budget::Flow;

/// Places that only [privileged](Client::is_privileged) clients get, at most; of few places an eighth.
const KEPT: usize = 64;
/// Connections above the limit while those that lost their places close.
const LEAVING: usize = 128;
/// Connections of the client with the most that are looked at for an idle one.
const LOOKED_AT: usize = 64;
/// A connection that has asked for nothing by then is idle.
const YOUNG: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Seats {
    limit: usize,
    pub(super) taken: Vec<Option<Seat>>,
    free: Vec<usize>,
    counts: HashMap<Client, usize>,
    /// Connections that lost their places and are still open.
    leaving: usize,
    /// Where the last one to lose its place stood.
    cursor: usize,
    pub(super) draining: bool,
}

#[derive(Debug)]
pub(super) struct Seat {
    pub(super) activity: Weak<Activity>,
    pub(super) record: Record,
    client: Client,
    since: Instant,
    leaving: bool,
}

/// The outcome for a new connection.
#[derive(Debug)]
pub(super) enum Room {
    Free,
    /// The place of this connection, which has to go.
    Of(Weak<Activity>),
    Full,
}

/// How little is lost with a connection; the least goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Loss {
    Idle,
    Beginning,
    InUse,
}

impl Loss {
    fn of(now: Glimpse, since: Instant) -> Self {
        match (now.open, now.begun) {
            (0, 0) if since.elapsed() < YOUNG => Self::Beginning,
            (0, _) => Self::Idle,
            _ => Self::InUse,
        }
    }
}

impl Seats {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            ..Self::default()
        }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn open(&self) -> usize {
        self.taken.len() - self.free.len()
    }

    /// Room for one more of this client, made where there is none: of the client with the most connections one goes, an
    /// idle one if it has one. A privileged client's go for another privileged one's only. Of the others none has more
    /// connections than are free, or than the memory for them allows: one alone gets half, and then loses its own.
    pub(super) fn room(
        &mut self,
        client: Client,
        flow: &Flow,
        looked_at: &mut Vec<Arc<Activity>>,
    ) -> Room {
        let (free, own) = (
            (self.limit + self.leaving).saturating_sub(self.open()),
            self.count(client),
        );
        let kept = if client.is_privileged() {
            0
        } else {
            KEPT.min(self.limit / 8)
        };
        let greedy =
            !client.is_privileged() && own > 0 && (own >= free || flow.has_too_many_connections());
        if free > kept && !greedy {
            return Room::Free;
        }
        if self.open() >= self.limit + LEAVING {
            return Room::Full;
        }
        let fattest = if greedy {
            Some(client)
        } else {
            self.fattest(client)
        };
        let Some(fattest) = fattest else {
            return Room::Full;
        };
        let least = self.least_used(fattest, looked_at);
        let Some((at, seat)) = least.and_then(|at| Some((at, self.taken[at].as_mut()?))) else {
            return Room::Full;
        };
        seat.leaving = true;
        let activity = Weak::clone(&seat.activity);
        self.cursor = at + 1;
        self.leaving += 1;
        self.uncount(fattest);
        Room::Of(activity)
    }

    /// The client with the most connections of those that may lose one to `newcomer`, which counts as if it had its own.
    fn fattest(&self, newcomer: Client) -> Option<Client> {
        let most = |privileged: bool| {
            let these = self
                .counts
                .iter()
                .filter(|(client, _)| client.is_privileged() == privileged);
            let these = these.filter(|(client, _)| **client != Client::Own);
            these
                .max_by_key(|(client, count)| **count + usize::from(**client == newcomer))
                .map(|(c, _)| *c)
        };
        most(false).or_else(|| newcomer.is_privileged().then(|| most(true)).flatten())
    }

    /// The connection of this client whose loss costs the least, of some. References to the others are let go by the
    /// caller, behind the lock: the last one's drop takes it.
    fn least_used(&self, client: Client, looked_at: &mut Vec<Arc<Activity>>) -> Option<usize> {
        let (before, behind) = self.taken.split_at(self.cursor.min(self.taken.len()));
        let around = (before.len()..).zip(behind).chain((0..).zip(before));
        let theirs = around.filter_map(|(at, seat)| {
            let seat = seat
                .as_ref()
                .filter(|seat| seat.client == client && !seat.leaving)?;
            Some((at, seat.since, seat.activity.upgrade()?))
        });
        let mut least: Option<(Loss, usize)> = None;
        for (at, since, activity) in theirs.take(LOOKED_AT) {
            let loss = Loss::of(activity.glimpse(), since);
            looked_at.push(activity);
            if least.is_none_or(|(least, _)| loss < least) {
                least = Some((loss, at));
            }
            if loss == Loss::Idle {
                break;
            }
        }
        least.map(|(_, at)| at)
    }

    /// Takes a place; `make` gets its number.
    pub(super) fn take(
        &mut self,
        client: Client,
        make: impl FnOnce(usize, Order) -> Arc<Activity>,
    ) -> Arc<Activity> {
        let at = self.free.pop().unwrap_or_else(|| {
            self.taken.push(None);
            self.taken.len() - 1
        });
        let activity = make(
            at,
            if self.draining {
                Order::Finish
            } else {
                Order::GoOn
            },
        );
        *self.counts.entry(client).or_default() += 1;
        self.taken[at] = Some(Seat {
            activity: Arc::downgrade(&activity),
            record: Record::default(),
            client,
            since: Instant::now(),
            leaving: false,
        });
        activity
    }

    /// Gives a place back; true when it was the last one.
    pub(super) fn leave(&mut self, at: usize) -> bool {
        if let Some(seat) = self.taken[at].take() {
            if seat.leaving {
                self.leaving -= 1;
            } else {
                self.uncount(seat.client);
            }
            self.free.push(at);
        }
        self.open() == 0
    }

    fn count(&self, client: Client) -> usize {
        self.counts.get(&client).copied().unwrap_or_default()
    }

    fn uncount(&mut self, client: Client) {
        if let Some(count) = self.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
    }
}
