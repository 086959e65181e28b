//! Stored rows that no longer count, since this node has seen a later state that is not on disk yet: the writer is behind,
//! the queue was full, or the disk can't be written. In: keys. Out: whether a row counts, and the changes to write once
//! that is possible.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::cache::change::{Change, Extent};
use crate::cache::keys;

/// Most keys, and most bytes of them. Beyond either, a resource's key replaces those of its objects, then
/// one key all others.
const MAX_KEYS: usize = 4_096;
const MAX_BYTES: usize = 256 << 10;

/// The key of all objects.
const EVERY: &[u8] = b"";

/// The fate of the change that holds the later state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The writer keeps it, and will write it in its order.
    Kept,
    /// It is dropped, so the rows have to become unknown instead.
    Dropped,
}

#[derive(Debug, Default)]
pub(super) struct Superseded {
    /// Keys superseded by changes that the queue refused or the disk has not taken.
    unwritten: RwLock<Unwritten>,
    /// Keys superseded by writes on their way to the disk, with the number of these. There are at most as many as open
    /// captures and queued messages.
    in_flight: RwLock<HashMap<Vec<u8>, (Extent, usize)>>,
    /// Counts the calls of [`Superseded::forget`] that forgot something.
    forgets: AtomicU64,
    /// Counts those of them that forgot more than absences.
    copy_forgets: AtomicU64,
    /// Counts the writes that are no longer in flight.
    ended_writes: AtomicU64,
    /// Counts the times that there were too many unwritten keys.
    merges: AtomicU64,
}

#[derive(Debug, Default)]
struct Unwritten {
    /// Keys of objects, and of collections for every object in them.
    keys: HashMap<Vec<u8>, (Extent, Fate)>,
    bytes: usize,
    /// Counts the calls of [`Superseded::add`].
    additions: u64,
    /// The number of messages that the queue had accepted when it last refused a change: among them are older copies.
    queued: u64,
}

/// The size of all unwritten keys. While the store can't be written, as long as this stays the same, so do the keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct UnwrittenSize {
    keys: usize,
    bytes: usize,
    /// The sum of the extents, each of which only grows.
    extents: usize,
}

/// Superseded rows as changes to the store.
#[derive(Debug)]
pub(super) struct Pending {
    pub changes: Vec<Change>,
    additions: u64,
}

/// The moment before a snapshot began: what is written and forgotten after it may be missing in the snapshot.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    forgets: u64,
    copy_forgets: u64,
    /// For a snapshot that does not wait for the writer: no absence counts in it, nor does what has been written since.
    ended_writes: Option<u64>,
}

impl Superseded {
    /// The moment of a snapshot that holds everything captured before it.
    pub(super) fn moment(&self) -> Moment {
        Moment {
            forgets: self.forgets.load(Ordering::Acquire),
            copy_forgets: self.copy_forgets.load(Ordering::Acquire),
            ended_writes: None,
        }
    }

    /// The moment of a snapshot that lacks what the writer has yet to write.
    pub(super) fn moment_behind(&self) -> Moment {
        Moment {
            ended_writes: Some(self.ended_writes.load(Ordering::Acquire)),
            ..self.moment()
        }
    }

    /// Notes that a write of this object, or in this collection, is on its way to the disk, until [`Self::end_write`].
    pub(super) fn begin_write(&self, key: &[u8], extent: Extent) {
        let mut in_flight = self.in_flight.write();
        let (known, writes) = in_flight.entry(key.to_vec()).or_insert((extent, 0));
        (*known, *writes) = ((*known).max(extent), *writes + 1);
    }

    /// The write is on disk, or its key is among the unwritten ones.
    pub(super) fn end_write(&self, key: &[u8]) {
        let mut in_flight = self.in_flight.write();
        self.ended_writes.fetch_add(1, Ordering::Release);
        if let Some((_, writes)) = in_flight.get_mut(key) {
            *writes -= 1;
            if *writes == 0 {
                in_flight.remove(key);
            }
        }
        if in_flight.is_empty() {
            in_flight.shrink_to(64);
        }
    }

    /// Notes a change that is not written, and supersedes what is stored of an object or of all objects of a collection.
    pub(super) fn add(&self, key: &[u8], extent: Extent, fate: Fate) {
        let mut unwritten = self.unwritten.write();
        unwritten.additions += 1;
        unwritten.add(key, extent, fate);
        if unwritten.is_over_limit() {
            self.merges.fetch_add(1, Ordering::Relaxed);
            unwritten.merge(keys::resource_of);
        }
        if unwritten.is_over_limit() {
            unwritten.merge(|_| EVERY);
        }
    }

    /// As [`Superseded::add`], for a change that the queue refused after it had accepted this many messages.
    pub(super) fn add_refused(&self, key: &[u8], extent: Extent, accepted: u64) {
        {
            let mut unwritten = self.unwritten.write();
            unwritten.queued = unwritten.queued.max(accepted);
        }
        self.add(key, extent, Fate::Dropped);
    }

    /// True if messages from before a refused change are still queued, behind the first `received` ones. They would bring
    /// back the older state of what is made unknown now.
    pub(super) fn awaits_queued(&self, received: u64) -> bool {
        received < self.unwritten.read().queued
    }

    /// The changes that were kept are lost after all.
    pub(super) fn drop_kept(&self) {
        let mut unwritten = self.unwritten.write();
        unwritten.additions += 1;
        for (_, fate) in unwritten.keys.values_mut() {
            *fate = Fate::Dropped;
        }
    }

    /// True if the stored absence of this object counts, in a snapshot begun after `since`.
    pub(super) fn absence_counts(&self, object: &[u8], since: Moment) -> bool {
        // In this order, so that a key that is forgotten in between is not missed.
        since.ended_writes.is_none()
            && self.no_write_is_missing(since, |key, _| keys::contains(key, object))
            && !self.unwritten.read().covers(object, Extent::Absences)
            && since.forgets == self.forgets.load(Ordering::Acquire)
    }

    /// True if the stored copy of this object counts, in a snapshot begun after `since`.
    pub(super) fn copy_counts(&self, object: &[u8], since: Moment) -> bool {
        // In this order, so that a write that ends in between is found among the unwritten.
        self.no_write_is_missing(since, |key, extent| {
            extent == Extent::Copies && keys::contains(key, object)
        }) && !self.unwritten.read().covers(object, Extent::Copies)
            && since.copy_forgets == self.copy_forgets.load(Ordering::Acquire)
    }

    /// True if lists of the objects under this prefix count, in a snapshot begun after `since`.
    pub(super) fn list_counts(&self, prefix: &[u8], since: Moment) -> bool {
        // In the order of `copy_counts`.
        self.no_write_is_missing(since, |key, extent| outdates_lists(key, extent, prefix))
            && !self.unwritten.read().outdates_lists(prefix)
            && since.copy_forgets == self.copy_forgets.load(Ordering::Acquire)
    }

    /// True if the object, or anything of the collection, is superseded by a change that is not written.
    pub(super) fn touches(&self, scope: &[u8]) -> bool {
        let unwritten = self.unwritten.read();
        let mut keys = unwritten.keys.keys();
        keys.any(|key| keys::overlap(key, scope))
    }

    /// True if no write in flight that `concerns` the reader may be missing in its snapshot.
    fn no_write_is_missing(&self, since: Moment, concerns: impl Fn(&[u8], Extent) -> bool) -> bool {
        let in_flight = self.in_flight.read();
        let mut writes = in_flight.iter();
        let none_ended = since
            .ended_writes
            .is_none_or(|ended| ended == self.ended_writes.load(Ordering::Acquire));
        none_ended && !writes.any(|(key, (extent, _))| concerns(key, *extent))
    }

    /// Times since the start that a resource's key had to replace those of its objects, or one key all
    /// others.
    pub(super) fn merges(&self) -> u64 {
        self.merges.load(Ordering::Relaxed)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.unwritten.read().keys.is_empty()
    }

    /// Every unwritten key as a change, for a store that is opened anew.
    pub(super) fn to_changes(&self) -> Vec<Change> {
        let unwritten = self.unwritten.read();
        let keys = unwritten.keys.iter();
        keys.map(|(key, (extent, _))| supersede(key, *extent))
            .collect()
    }

    pub(super) fn size(&self) -> UnwrittenSize {
        let unwritten = self.unwritten.read();
        let extents = unwritten.keys.values().map(|(extent, _)| *extent as usize);
        UnwrittenSize {
            keys: unwritten.keys.len(),
            bytes: unwritten.bytes,
            extents: extents.sum(),
        }
    }

    /// The rows to change once the writer has written the changes that it keeps.
    pub(super) fn pending(&self) -> Pending {
        let unwritten = self.unwritten.read();
        let dropped = unwritten
            .keys
            .iter()
            .filter(|(_, (_, fate))| *fate == Fate::Dropped);
        Pending {
            changes: dropped
                .map(|(key, (extent, _))| supersede(key, *extent))
                .collect(),
            additions: unwritten.additions,
        }
    }

    /// Forgets what the store has taken, unless something was added meanwhile: then all of it is written again.
    pub(super) fn forget(&self, written: &Pending) {
        let mut unwritten = self.unwritten.write();
        if unwritten.additions != written.additions {
            return;
        }
        self.forgets.fetch_add(1, Ordering::Release);
        let mut extents = unwritten.keys.values().map(|(extent, _)| *extent);
        if extents.any(|extent| extent > Extent::Absences) {
            self.copy_forgets.fetch_add(1, Ordering::Release);
        }
        unwritten.keys = HashMap::new();
        unwritten.bytes = 0;
    }
}

impl Unwritten {
    fn add(&mut self, key: &[u8], extent: Extent, fate: Fate) {
        let every = self.keys.get_mut(EVERY);
        if let Some((known, _)) = every {
            *known = (*known).max(extent);
            return;
        }
        match self.keys.get_mut(key) {
            Some((known, before)) => {
                *known = (*known).max(extent);
                if fate == Fate::Dropped {
                    *before = fate;
                }
            }
            None => {
                self.keys.insert(key.to_vec(), (extent, fate));
                self.bytes += key.len();
            }
        }
    }

    fn is_over_limit(&self) -> bool {
        self.keys.len() > MAX_KEYS || self.bytes > MAX_BYTES
    }

    /// Replaces each key by what stands for it. The writer may not have seen all that a shorter key covers.
    fn merge(&mut self, stand_in: impl Fn(&[u8]) -> &[u8]) {
        self.bytes = 0;
        for (key, (extent, _)) in std::mem::take(&mut self.keys) {
            self.add(stand_in(&key), extent, Fate::Dropped);
        }
    }

    fn outdates_lists(&self, prefix: &[u8]) -> bool {
        let mut keys = self.keys.iter();
        keys.any(|(key, (extent, _))| outdates_lists(key, *extent, prefix))
    }

    fn covers(&self, object: &[u8], at_least: Extent) -> bool {
        !self.keys.is_empty()
            && keys::collections_around(object)
                .chain([object, EVERY])
                .filter_map(|key| self.keys.get(key))
                .any(|(extent, _)| *extent >= at_least)
    }
}

/// True if a write of this extent at `key` makes lists of the objects under `prefix` out of date.
fn outdates_lists(key: &[u8], extent: Extent, prefix: &[u8]) -> bool {
    extent >= Extent::Lists && keys::overlap(prefix, key)
}

fn supersede(key: &[u8], extent: Extent) -> Change {
    Change::Supersede {
        key: key.to_vec(),
        extent,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn counts(superseded: &Superseded, name: &str) -> [bool; 2] {
        let (key, now) = (format!("/pods/{name}"), superseded.moment());
        [
            superseded.absence_counts(key.as_bytes(), now),
            superseded.copy_counts(key.as_bytes(), now),
        ]
    }

    #[test]
    fn a_key_supersedes_what_it_names() {
        let superseded = Superseded::default();
        assert_eq!(counts(&superseded, "d/a"), [true, true]);
        superseded.add(b"/pods/d/a", Extent::Absences, Fate::Dropped);
        superseded.add(b"/pods/d/a", Extent::Absences, Fate::Kept);
        superseded.add(b"/pods/e/", Extent::Copies, Fate::Kept);
        superseded.add(b"/pods/e/", Extent::Lists, Fate::Dropped);
        superseded.add(b"/pods/f/", Extent::Lists, Fate::Kept);
        for (name, expected) in [
            ("d/a", [false, true]),
            ("d/b", [true, true]),
            ("e/a", [false, false]),
            ("f/a", [false, true]),
        ] {
            assert_eq!(counts(&superseded, name), expected, "{name}");
        }
        let now = superseded.moment();
        for (prefix, expected) in [("d/", true), ("e/", false), ("f/", false), ("", false)] {
            let prefix = format!("/pods/{prefix}");
            assert_eq!(superseded.list_counts(prefix.as_bytes(), now), expected);
        }
        let pending = superseded.pending();
        assert_eq!(pending.changes.len(), 2);
        superseded.add(b"/pods/d/b", Extent::Absences, Fate::Kept);
        superseded.forget(&pending);
        assert_eq!(counts(&superseded, "d/b"), [false, true]);
        superseded.forget(&superseded.pending());
        assert!(superseded.is_empty());
        assert_eq!(counts(&superseded, "e/a"), [true, true]);
        assert!(!superseded.list_counts(b"/pods/d/", now), "begun before");
    }

    #[test]
    fn i2_a_write_in_flight_concerns_every_reader() {
        let superseded = Superseded::default();
        let copy = |moment| superseded.copy_counts(b"/pods/d/a", moment);
        let list = |moment| superseded.list_counts(b"/pods/", moment);
        for _ in 0..2 {
            superseded.begin_write(b"/pods/d/a", Extent::Copies);
        }
        superseded.begin_write(b"/pods/e/", Extent::Lists);
        let (behind, waited) = (superseded.moment_behind(), superseded.moment());
        for moment in [behind, waited] {
            assert!(!copy(moment) && !list(moment));
            assert!(superseded.copy_counts(b"/pods/e/b", moment));
            assert!(!superseded.absence_counts(b"/pods/e/b", moment));
        }
        assert!(superseded.absence_counts(b"/pods/f/a", waited));
        superseded.end_write(b"/pods/d/a");
        assert!(!copy(superseded.moment_behind()), "of two, one has ended");
        superseded.end_write(b"/pods/d/a");
        assert!(copy(superseded.moment_behind()));
        assert!(!copy(behind), "what has ended since is missing in it");
        assert!(copy(waited), "the write's answer had not ended before it");
        assert!(!list(superseded.moment_behind()));
        superseded.end_write(b"/pods/e/");
        assert!(list(superseded.moment_behind()));
        assert!(superseded.in_flight.read().is_empty());
    }

    /// The two were read in the other order, and a reader missed a write that the disk did not take: it read the unwritten
    /// keys before the write was among them, and those in flight after the write had ended.
    #[test]
    fn i2_a_write_is_not_missed_while_it_becomes_an_unwritten_one() {
        const POD: &[u8] = b"/pods/d/a";
        let copies = |s: &Superseded, m| s.copy_counts(POD, m);
        let lists = |s: &Superseded, m| s.list_counts(b"/pods/d/", m);
        let absences = |s: &Superseded, m| s.absence_counts(POD, m);
        for counts in [copies, lists, absences] {
            let superseded = Superseded::default();
            superseded.begin_write(POD, Extent::Copies);
            let moment = superseded.moment();
            let mut in_flight = superseded.in_flight.write();
            std::thread::scope(|scope| {
                let reader = scope.spawn(|| counts(&superseded, moment));
                let began = Instant::now();
                while began.elapsed() < Duration::from_millis(50) {
                    std::thread::yield_now();
                }
                superseded.add(POD, Extent::Copies, Fate::Kept);
                in_flight.clear();
                drop(in_flight);
                assert!(!reader.join().unwrap());
            });
        }
    }

    #[test]
    fn i14_beyond_the_limit_nothing_of_the_resource_counts() {
        for (count, length) in [(MAX_KEYS + 1, 8), (2, MAX_BYTES / 2)] {
            let superseded = Superseded::default();
            for n in 0..count {
                assert_eq!(counts(&superseded, "d/other"), [true, true]);
                let key = format!("/pods/{n}{}", "x".repeat(length));
                superseded.add(key.as_bytes(), Extent::Copies, Fate::Kept);
            }
            assert_eq!(counts(&superseded, "d/other"), [false, false]);
            let now = superseded.moment();
            assert!(superseded.copy_counts(b"/nodes/n", now));
            assert_eq!(superseded.pending().changes.len(), 1);
            assert_eq!(superseded.merges(), 1);
        }
    }

    #[test]
    fn i14_beyond_the_limit_of_resources_nothing_counts() {
        let superseded = Superseded::default();
        for n in 0..=MAX_KEYS {
            let key = format!("{n}/pods/d/a");
            superseded.add(key.as_bytes(), Extent::Absences, Fate::Kept);
        }
        assert_eq!(counts(&superseded, "d/other"), [false, true]);
        superseded.add(b"/nodes/n", Extent::Copies, Fate::Kept);
        assert_eq!(counts(&superseded, "d/other"), [false, false]);
        assert_eq!(superseded.pending().changes.len(), 1);
    }
}
