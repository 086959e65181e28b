//! Is the cloud still the cluster that it was? In: answers that contradict what is stored. Out: what to make of them.
//!
//! A read without a resourceVersion is answered by etcd itself and is the newest there is (a quorum read). In one etcd
//! it can never show less than an answer that came before it was asked; where it does, the cluster was replaced or its
//! etcd restored from a backup, and what is stored is of another past. An answer from an API server's watch cache may
//! merely lag. See [`crate::cache::change::Observation`].

use std::collections::{HashMap, HashSet};

use crate::cache::keys::{ObjectKey, ObjectKeyBuf};
use crate::cache::record::Record;
use crate::clock::Clock;

/// Most contradictions remembered; beyond it all are forgotten, and have to be seen twice again.
const MAX_CONTRADICTIONS: usize = 1_024;
/// So many objects with another uid and a lower resourceVersion make another cluster.
const REPLACEMENTS_OF_A_NEW_CLUSTER: usize = 2;
/// Time between searches for old Events, in milliseconds.
const SWEEP_EVERY: u64 = 600_000;
/// The namespace that every cluster has, and that can't be deleted.
pub(crate) const KUBE_SYSTEM: ObjectKey<'static> = ObjectKey::new(b"/namespaces/kube-system");

/// Evidence about the cluster's identity. Lives as long as the writer.
#[derive(Debug, Clone)]
pub(crate) struct Continuity {
    clock: Clock,
    now: u64,
    /// Copies that an answer has contradicted once, by object or collection.
    contradicted: HashSet<Vec<u8>>,
    /// Objects that were replaced by older ones of another uid, and when those were asked for.
    replacements: HashMap<ObjectKeyBuf, u64>,
    /// The batch that is being applied begins a new cluster.
    pub(super) cluster_replaced: bool,
    /// Time of the last search for old Events.
    swept: u64,
}

/// A stored object, as far as another copy is compared with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) version: u64,
    pub(super) uid: String,
    pub(super) at: u64,
    pub(super) is_json: bool,
}

impl Continuity {
    /// Nothing is known yet.
    pub(crate) fn new(clock: Clock) -> Self {
        let now = clock.now();
        let (contradicted, replacements) = (HashSet::new(), HashMap::new());
        Self {
            clock,
            now,
            contradicted,
            replacements,
            cluster_replaced: false,
            swept: 0,
        }
    }

    pub(super) fn begin(&mut self) {
        (self.now, self.cluster_replaced) = (self.clock.now(), false);
    }

    /// The batch is on disk.
    pub(super) fn committed(&mut self) {
        if self.cluster_replaced {
            self.contradicted.clear();
            self.replacements.clear();
        }
    }

    /// A stored time, to compare with others; 0 where it is in the future: the clock has been set back since, and when
    /// it really was isn't known.
    pub(super) fn past(&self, time: u64) -> u64 {
        if time > self.now { 0 } else { time }
    }

    /// Now, where it is time to look for what is too old.
    pub(super) fn sweep(&mut self) -> Option<u64> {
        if self.swept <= self.now && self.now < self.swept + SWEEP_EVERY {
            return None;
        }
        self.swept = self.now;
        Some(self.now)
    }

    /// An answer contradicts what is stored under this key. True from the second one on.
    pub(super) fn confirm_contradiction(&mut self, key: &[u8]) -> bool {
        if self.contradicted.remove(key) {
            return true;
        }
        if self.contradicted.len() >= MAX_CONTRADICTIONS {
            self.contradicted.clear();
        }
        self.contradicted.insert(key.to_vec());
        false
    }

    /// An answer clear_contradiction with what is stored.
    pub(super) fn clear_contradiction(&mut self, key: &[u8]) {
        self.contradicted.remove(key);
    }

    /// An object has been replaced by an older one of another uid, asked for then. The time since when the cluster is
    /// another one, once that is certain.
    pub(super) fn record_replacement(&mut self, key: ObjectKey<'_>, asked: u64) -> Option<u64> {
        if self.replacements.len() < MAX_CONTRADICTIONS {
            self.replacements.insert(key.to_buf(), asked);
        }
        (self.replacements.len() >= REPLACEMENTS_OF_A_NEW_CLUSTER).then(|| self.since(asked))
    }

    /// The object is the other cluster's.
    pub(super) fn is_replacement(&self, key: &ObjectKeyBuf) -> bool {
        self.replacements.contains_key(key)
    }

    /// The time of the first replacement's request, or of this one if that was earlier.
    pub(super) fn since(&self, asked: u64) -> u64 {
        self.replacements.values().copied().fold(asked, u64::min)
    }
}

impl Stored {
    pub(super) fn of(record: &Record<'_>, at: u64) -> Self {
        let is_json = record.encoding == hublet_wire::media::Encoding::Json;
        Self {
            version: record.version,
            uid: record.uid.to_owned(),
            at,
            is_json,
        }
    }
}

/// A number that stands for a cluster.
pub(super) fn fingerprint(uid: &str) -> u64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, uid.as_bytes());
    digest
        .as_ref()
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
