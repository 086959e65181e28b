//! Absences that no longer count, since the object may exist by now, but that are still on disk: the queue was full, or the
//! disk can't be written. In: keys. Out: whether an absence counts, and the changes to write once that is possible.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::cache::change::Change;
use crate::cache::keys;

/// Most keys, and most bytes of them; beyond either no absence counts until the disk takes changes again.
const MAX_KEYS: usize = 4_096;
const MAX_BYTES: usize = 256 << 10;

/// The key that stands for all objects.
const EVERY: &[u8] = b"";

#[derive(Debug, Default)]
pub(super) struct EndedAbsences {
    ended: RwLock<Ended>,
    /// Counts the calls of [`EndedAbsences::forget`] that forgot something.
    forgets: AtomicU64,
}

/// The fate of the change that ended an absence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EndedBy {
    /// The writer keeps it, and will write it in its order.
    Kept,
    /// It is dropped: the absence has to be cleared in its stead.
    Dropped,
}

#[derive(Debug, Default)]
struct Ended {
    /// Of objects, and of collections for any object in them.
    keys: HashMap<Vec<u8>, EndedBy>,
    bytes: usize,
    /// Counts the calls of [`EndedAbsences::add`].
    additions: u64,
}

/// Ended absences as changes to the store.
#[derive(Debug)]
pub(super) struct Pending {
    pub changes: Vec<Change>,
    additions: u64,
}

impl EndedAbsences {
    /// Ends the absence of an object, or of all objects of a collection.
    pub(super) fn add(&self, key: &[u8], by: EndedBy) {
        let mut ended = self.ended.write();
        ended.additions += 1;
        if ended.keys.contains_key(EVERY) {
            return;
        }
        match ended.keys.get_mut(key) {
            Some(before) if by == EndedBy::Dropped => *before = by,
            Some(_) => {}
            None => {
                ended.keys.insert(key.to_vec(), by);
                ended.bytes += key.len();
            }
        }
        if ended.keys.len() > MAX_KEYS || ended.bytes > MAX_BYTES {
            ended.keys = HashMap::from([(EVERY.to_vec(), EndedBy::Dropped)]);
            ended.bytes = 0;
        }
    }

    /// True if the absence of this object no longer counts.
    pub(super) fn contains(&self, object: &[u8]) -> bool {
        let ended = self.ended.read();
        !ended.keys.is_empty()
            && keys::collections_around(object)
                .chain([object, EVERY])
                .any(|key| ended.keys.contains_key(key))
    }

    /// How often keys were forgotten. Snapshots from before the last time may still hold the absences of those keys.
    pub(super) fn forgets(&self) -> u64 {
        self.forgets.load(Ordering::Acquire)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.ended.read().keys.is_empty()
    }

    /// Every key as a change, for a store that is opened anew.
    pub(super) fn to_changes(&self) -> Vec<Change> {
        let ended = self.ended.read();
        let keys = ended.keys.keys().cloned();
        keys.map(|key| Change::ClearAbsence { key }).collect()
    }

    /// The number of keys and their bytes, which tell whether any was added.
    pub(super) fn len(&self) -> (usize, usize) {
        let ended = self.ended.read();
        (ended.keys.len(), ended.bytes)
    }

    /// The absences to clear once the writer has written the changes that it keeps.
    pub(super) fn pending(&self) -> Pending {
        let ended = self.ended.read();
        let dropped = ended.keys.iter().filter(|(_, by)| **by == EndedBy::Dropped);
        let clear = |key: &Vec<u8>| Change::ClearAbsence { key: key.clone() };
        Pending {
            changes: dropped.map(|(key, _)| clear(key)).collect(),
            additions: ended.additions,
        }
    }

    /// Forgets what the store has taken, unless something was added meanwhile: then all of it is written again.
    pub(super) fn forget(&self, written: &Pending) {
        let mut ended = self.ended.write();
        if ended.additions == written.additions {
            self.forgets.fetch_add(1, Ordering::Release);
            ended.keys = HashMap::new();
            ended.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_ends_the_absence_of_what_it_names() {
        let ended = EndedAbsences::default();
        assert!(!ended.contains(b"/pods/d/a"));
        ended.add(b"/pods/d/a", EndedBy::Dropped);
        ended.add(b"/pods/d/a", EndedBy::Kept);
        ended.add(b"/pods/e/", EndedBy::Kept);
        ended.add(b"/pods/e/", EndedBy::Dropped);
        ended.add(b"/pods/f/", EndedBy::Kept);
        for (key, expected) in [("d/a", true), ("d/b", false), ("e/a", true), ("f/a", true)] {
            assert_eq!(ended.contains(format!("/pods/{key}").as_bytes()), expected);
        }
        let pending = ended.pending();
        assert_eq!(pending.changes.len(), 2);
        ended.add(b"/pods/d/b", EndedBy::Kept);
        ended.forget(&pending);
        assert!(ended.contains(b"/pods/d/b") && ended.contains(b"/pods/d/a"));
        ended.forget(&ended.pending());
        assert!(ended.is_empty() && !ended.contains(b"/pods/d/a"));
    }

    #[test]
    fn i14_beyond_the_limit_no_absence_counts() {
        for (count, length) in [(MAX_KEYS + 1, 8), (2, MAX_BYTES / 2)] {
            let ended = EndedAbsences::default();
            for n in 0..count {
                assert!(!ended.contains(b"/pods/d/other"));
                let name = "x".repeat(length);
                ended.add(format!("/pods/{n}{name}").as_bytes(), EndedBy::Kept);
            }
            assert!(ended.contains(b"/pods/d/other"));
            assert_eq!(ended.pending().changes.len(), 1);
        }
    }
}
