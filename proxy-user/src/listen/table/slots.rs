//! The slots of the connection table: how many each client holds, and whose connection is evicted
//! when all are taken. Plain data under the table's lock.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::activity::Activity;
use super::snapshot::ActivitySnapshot;
use super::sweep::SweepState;
use crate::budget::Flow;
use crate::caller::Client;

/// Slots reserved for [privileged](Client::is_privileged) clients; an eighth of a small limit.
const RESERVED: usize = 64;
/// Connections above the limit while evicted ones close.
const MAX_EVICTING: usize = 128;
/// Connections of the largest client that are scanned for an idle one.
const EVICTION_SCAN: usize = 64;
/// Age at which a connection that has made no request counts as idle.
const IDLE_AGE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Slots {
    limit: usize,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Connections of each client that are not being evicted.
    counts: HashMap<Client, usize>,
    evicting: usize,
    /// Index behind the last eviction: the next scan begins there.
    cursor: usize,
}

#[derive(Debug)]
struct Slot {
    activity: Weak<Activity>,
    sweep: SweepState,
    client: Client,
    since: Instant,
    evicting: bool,
}

#[derive(Debug)]
pub(super) enum Admission {
    Free,
    /// Admitted in place of this connection.
    Evict(Weak<Activity>),
    Full,
}

/// Order of eviction, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum EvictionRank {
    Idle,
    New,
    InUse,
}

impl EvictionRank {
    fn of(now: ActivitySnapshot, since: Instant) -> Self {
        match (now.in_flight, now.requests) {
            (0, 0) if since.elapsed() < IDLE_AGE => Self::New,
            (0, _) => Self::Idle,
            _ => Self::InUse,
        }
    }
}

impl Slots {
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
        self.slots.len() - self.free.len()
    }

    /// The connections that still exist, and their sweep states.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&mut SweepState, Arc<Activity>)> {
        self.slots
            .iter_mut()
            .flatten()
            .filter_map(|slot| Some((&mut slot.sweep, slot.activity.upgrade()?)))
    }

    /// Decides on one more connection of this client, evicting one of the client with the most
    /// where none is free. A privileged client's connections are evicted for another privileged
    /// client only. An unprivileged client that holds as many as are free, or as many as the memory
    /// budget allows, loses one of its own: one client alone gets half of the table.
    pub(super) fn admit(
        &mut self,
        client: Client,
        flow: &Flow,
        scanned: &mut Vec<Arc<Activity>>,
    ) -> Admission {
        let exceeds_share = self.exceeds_share(client, flow);
        if self.free() > self.reserved_from(client) && !exceeds_share {
            return Admission::Free;
        }
        if self.open() >= self.limit + MAX_EVICTING {
            return Admission::Full;
        }
        let victim = if exceeds_share {
            Some(client)
        } else {
            self.largest_client(client)
        };
        victim
            .and_then(|victim| self.evict(victim, scanned))
            .map_or(Admission::Full, Admission::Evict)
    }

    fn free(&self) -> usize {
        (self.limit + self.evicting).saturating_sub(self.open())
    }

    /// True if the client has its share of slots already. Unlike a permit of the cloud's connections
    /// (`cloud/pool/limit.rs`), a slot is taken from the largest client for a newcomer. So one client
    /// may hold half of all slots, and those in reserve count as free.
    fn exceeds_share(&self, client: Client, flow: &Flow) -> bool {
        let held = self.count(client);
        !client.is_privileged()
            && held > 0
            && (held >= self.free() || flow.has_too_many_connections())
    }

    fn reserved_from(&self, client: Client) -> usize {
        if client.is_privileged() {
            0
        } else {
            RESERVED.min(self.limit / 8)
        }
    }

    fn evict(
        &mut self,
        victim: Client,
        scanned: &mut Vec<Arc<Activity>>,
    ) -> Option<Weak<Activity>> {
        let index = self.eviction_candidate(victim, scanned)?;
        let slot = self.slots[index].as_mut()?;
        slot.evicting = true;
        let activity = Weak::clone(&slot.activity);
        self.cursor = index + 1;
        self.evicting += 1;
        self.decrement(victim);
        Some(activity)
    }

    /// The client with the most connections among those that may lose one to `newcomer`, which
    /// counts as if it were admitted already.
    fn largest_client(&self, newcomer: Client) -> Option<Client> {
        let unprivileged = self.largest_of(newcomer, |client| !client.is_privileged());
        if unprivileged.is_some() || !newcomer.is_privileged() {
            return unprivileged;
        }
        self.largest_of(newcomer, |client| {
            client.is_privileged() && client != Client::Own
        })
    }

    fn largest_of(&self, newcomer: Client, eligible: impl Fn(Client) -> bool) -> Option<Client> {
        self.counts
            .iter()
            .filter(|(client, _)| eligible(**client))
            .max_by_key(|(client, count)| **count + usize::from(**client == newcomer))
            .map(|(client, _)| *client)
    }

    /// The first idle connection of this client, else the one that ranks first of those scanned.
    /// `scanned` keeps references that are to be dropped after the lock.
    fn eviction_candidate(
        &self,
        client: Client,
        scanned: &mut Vec<Arc<Activity>>,
    ) -> Option<usize> {
        let mut candidate: Option<(EvictionRank, usize)> = None;
        for (index, slot, activity) in self.connections_of(client).take(EVICTION_SCAN) {
            let rank = EvictionRank::of(activity.snapshot(), slot.since);
            scanned.push(activity);
            if candidate.is_none_or(|(first, _)| rank < first) {
                candidate = Some((rank, index));
            }
            if rank == EvictionRank::Idle {
                break;
            }
        }
        candidate.map(|(_, index)| index)
    }

    /// The connections of a client that are not being evicted, from the cursor on and around.
    fn connections_of(
        &self,
        client: Client,
    ) -> impl Iterator<Item = (usize, &Slot, Arc<Activity>)> {
        let (before, behind) = self.slots.split_at(self.cursor.min(self.slots.len()));
        (before.len()..)
            .zip(behind)
            .chain((0..).zip(before))
            .filter_map(move |(index, slot)| {
                let slot = slot
                    .as_ref()
                    .filter(|slot| slot.client == client && !slot.evicting)?;
                Some((index, slot, slot.activity.upgrade()?))
            })
    }

    /// Fills a slot with the activity that `create` makes of its index.
    pub(super) fn insert(
        &mut self,
        client: Client,
        create: impl FnOnce(usize) -> Arc<Activity>,
    ) -> Arc<Activity> {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let activity = create(index);
        *self.counts.entry(client).or_default() += 1;
        self.slots[index] = Some(Slot {
            activity: Arc::downgrade(&activity),
            sweep: SweepState::default(),
            client,
            since: Instant::now(),
            evicting: false,
        });
        activity
    }

    pub(super) fn release(&mut self, index: usize) {
        if let Some(slot) = self.slots[index].take() {
            if slot.evicting {
                self.evicting -= 1;
            } else {
                self.decrement(slot.client);
            }
            self.free.push(index);
        }
    }

    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.slots.len()
    }

    fn count(&self, client: Client) -> usize {
        self.counts.get(&client).copied().unwrap_or_default()
    }

    fn decrement(&mut self, client: Client) {
        if let Some(count) = self.counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                self.counts.remove(&client);
            }
        }
    }
}
