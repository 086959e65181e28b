//! Detects that the cluster was replaced, or its etcd restored from a backup. In: responses that contradict what is stored.
//! Out: whether the contradiction is confirmed, and since when another cluster has answered.
//!
//! A read without a resourceVersion is a quorum read of etcd and shows the newest state. Within one etcd it can never show
//! an older state than a response that arrived before the request was sent. If it does, the cluster was replaced or its etcd
//! restored from a backup, and what is stored is no longer valid. A response from an API server's watch cache may merely
//! lag. See [`crate::cache::change::Observation`].

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use hublet_wire::meta::{ResourceVersion, Timestamp};

use crate::cache::change::Observation;
use crate::cache::keys::{CollectionKey, ObjectKey, ObjectKeyBuf};
use crate::cache::record::Record;
use crate::clock::Clock;

/// Most contradictions remembered; beyond it all are forgotten, and each must be seen twice again.
const MAX_CONTRADICTIONS: usize = 1_024;
/// Number of objects with another uid and a lower resourceVersion that prove another cluster.
const REPLACEMENTS_OF_A_NEW_CLUSTER: usize = 2;
/// Most writes remembered of which only the version is known; beyond it the oldest is forgotten.
const MAX_WRITES: usize = 1_024;
/// Time between searches for old Events.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// The namespace that every cluster has, and that can't be deleted.
pub(crate) const KUBE_SYSTEM: ObjectKey<'static> = ObjectKey::new(b"/namespaces/kube-system");

/// Evidence about the cluster's identity. Lives as long as the writer.
#[derive(Debug, Clone)]
pub(crate) struct Continuity {
    clock: Clock,
    now: Timestamp,
    /// Keys of objects and collections whose stored copy a response has contradicted once.
    contradicted: HashSet<Vec<u8>>,
    /// Objects that were replaced by one of another uid and a lower resourceVersion → the time of that request.
    replacements: HashMap<ObjectKeyBuf, Timestamp>,
    /// Objects that clients have written and that haven't been received since.
    writes: HashMap<ObjectKeyBuf, Write>,
    /// True if the batch that is being applied belongs to a new cluster.
    pub(super) cluster_replaced: bool,
    /// Time of the last search for old Events.
    swept: Timestamp,
}

/// A client's write of which only the version is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Write {
    pub(super) version: ResourceVersion,
    /// Time of the response.
    pub(super) at: Timestamp,
}

/// The fields of a stored object that another copy is compared with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) version: ResourceVersion,
    pub(super) uid: String,
    pub(super) at: Timestamp,
    pub(super) is_json: bool,
}

impl Continuity {
    /// Without any evidence yet.
    pub(crate) fn new(clock: Clock) -> Self {
        let now = clock.now();
        let (contradicted, replacements) = (HashSet::new(), HashMap::new());
        Self {
            clock,
            now,
            contradicted,
            replacements,
            writes: HashMap::new(),
            cluster_replaced: false,
            swept: Timestamp::EPOCH,
        }
    }

    pub(super) fn begin(&mut self) {
        (self.now, self.cluster_replaced) = (self.clock.now(), false);
    }

    /// Called when the batch is on disk.
    pub(super) fn committed(&mut self) {
        if self.cluster_replaced {
            self.contradicted.clear();
            self.replacements.clear();
            self.writes.clear();
        }
    }

    /// Remembers a write until its object is received, so that nothing from before it is taken for the object's state.
    pub(super) fn remember_write(&mut self, key: ObjectKey<'_>, write: Write) {
        if self.writes.len() >= MAX_WRITES {
            let oldest = self.writes.iter().min_by_key(|(_, write)| write.at);
            let oldest = oldest.map(|(key, _)| key.clone());
            oldest.map(|key| self.writes.remove(&key));
        }
        self.writes.insert(key.to_buf(), write);
    }

    pub(super) fn forget_write(&mut self, key: ObjectKey<'_>) {
        if !self.writes.is_empty() {
            self.writes.remove(&key.to_buf());
        }
    }

    /// True if a response shows this object as it was before a client wrote it.
    pub(super) fn is_from_before_write(
        &self,
        key: ObjectKey<'_>,
        version: ResourceVersion,
        observed: Observation,
    ) -> bool {
        !self.writes.is_empty()
            && (self.writes.get(&key.to_buf()))
                .is_some_and(|write| self.precedes(version, observed, write))
    }

    /// The latest version and time of those writes that a list of this version may be from before.
    pub(super) fn writes_after(
        &self,
        list: CollectionKey<'_>,
        version: ResourceVersion,
        observed: Observation,
    ) -> Option<Write> {
        let of_list = self.writes.iter().filter(|(key, write)| {
            self.precedes(version, observed, write) && list.may_hold(key.as_key())
        });
        of_list.map(|(_, write)| *write).reduce(|one, other| Write {
            version: one.version.max(other.version),
            at: one.at.max(other.at),
        })
    }

    fn precedes(&self, version: ResourceVersion, observed: Observation, write: &Write) -> bool {
        version < write.version && !observed.overrules(self.past(write.at))
    }

    /// A stored time to compare with others; the epoch if it is in the future: the clock has been set back since, and the
    /// real time is unknown.
    pub(super) fn past(&self, time: Timestamp) -> Timestamp {
        if time > self.now {
            Timestamp::EPOCH
        } else {
            time
        }
    }

    /// The current time, if a search for old Events is due.
    pub(super) fn sweep(&mut self) -> Option<Timestamp> {
        if self.swept <= self.now && self.now < self.swept + SWEEP_EVERY {
            return None;
        }
        self.swept = self.now;
        Some(self.now)
    }

    /// Notes that a response contradicts what is stored at this key; true if one did before, which confirms it.
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

    /// Notes that a response agrees with what is stored at this key.
    pub(super) fn clear_contradiction(&mut self, key: &[u8]) {
        self.contradicted.remove(key);
    }

    /// Notes that an object was replaced by one of another uid and a lower resourceVersion. Returns the time since when
    /// another cluster has answered, once there is proof.
    pub(super) fn record_replacement(
        &mut self,
        key: ObjectKey<'_>,
        asked: Timestamp,
    ) -> Option<Timestamp> {
        if self.replacements.len() < MAX_CONTRADICTIONS {
            self.replacements.insert(key.to_buf(), asked);
        }
        (self.replacements.len() >= REPLACEMENTS_OF_A_NEW_CLUSTER).then(|| self.since(asked))
    }

    /// True if the object was stored from the new cluster.
    pub(super) fn is_replacement(&self, key: &ObjectKeyBuf) -> bool {
        self.replacements.contains_key(key)
    }

    /// The time of the first replacement's request, or of this one if that was earlier.
    pub(super) fn since(&self, asked: Timestamp) -> Timestamp {
        self.replacements
            .values()
            .copied()
            .fold(asked, Timestamp::min)
    }
}

impl Stored {
    pub(super) fn of(record: &Record<'_>, at: Timestamp) -> Self {
        let is_json = record.encoding == hublet_wire::media::Encoding::Json;
        Self {
            version: record.version,
            uid: record.uid.to_owned(),
            at,
            is_json,
        }
    }
}

/// A number that identifies a cluster by the uid of its kube-system namespace.
pub(super) fn fingerprint(uid: &str) -> u64 {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, uid.as_bytes());
    digest
        .as_ref()
        .first_chunk()
        .map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
