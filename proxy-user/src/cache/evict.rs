//! The store's size limit. In: what is stored, when clients last requested it, and which collections a watch keeps current.
//! Out: the rows to evict, least recently requested first. Runs on the writer thread, before a batch is written.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hublet_wire::meta::Timestamp;
use parking_lot::Mutex;
use redb::ReadableTable;

use crate::cache::apply::apply;
use crate::cache::change::{Change, Evicted};
use crate::cache::compact::compact;
use crate::cache::continuity::Continuity;
use crate::cache::keys::{self, CollectionKey, ObjectKey};
use crate::cache::record::{Collection, Record, ResponseRecord};
use crate::cache::store::{Snapshot, Store, StoreError};
use crate::cache::tables::{COLLECTIONS, DOCUMENTS, MEMBERS, OBJECTS};

/// Most keys whose last request is remembered; beyond it the older half is forgotten, for which the time of the API
/// server's last response counts.
const MAX_REQUESTED_KEYS: usize = 8_192;
/// Most distinct times of a survey; beyond it neighbours are merged.
const MAX_TIMES: usize = 32_768;
/// Most rows evicted in one transaction.
const STEP: usize = 2_048;
/// A file smaller than this is never compacted, in bytes.
const SMALL: u64 = 16 << 20;
/// Time between a failed compaction and the next one.
const RETRY: Duration = Duration::from_secs(600);

/// Times of the last requests that were answered from the store. Requests while the cloud is connected need none: they
/// are forwarded, and each response is stored with its time.
#[derive(Debug, Default)]
pub(crate) struct LastRequested(Mutex<HashMap<Vec<u8>, Timestamp>>);

impl LastRequested {
    /// Notes that a request for this object, collection or document was answered from the store.
    pub(crate) fn note(&self, scope: &[u8], now: Timestamp) {
        let mut last_requested = self.0.lock();
        if let Some(at) = last_requested.get_mut(scope) {
            *at = now;
            return;
        }
        if last_requested.len() >= MAX_REQUESTED_KEYS {
            forget_older_half(&mut last_requested);
        }
        last_requested.insert(scope.to_vec(), now);
    }

    /// A copy for a survey, which must not see requests made meanwhile: they could keep a collection and not its objects.
    fn copy(&self) -> Self {
        Self(Mutex::new(self.0.lock().clone()))
    }

    fn at(&self, scope: &[u8]) -> Timestamp {
        self.0.lock().get(scope).copied().unwrap_or_default()
    }

    /// The last request of a collection, at least the time at which the API server confirmed it.
    fn of_collection(&self, key: &[u8], collection: Option<Collection>) -> Timestamp {
        let confirmed = collection.map(|collection| collection.at);
        confirmed.unwrap_or_default().max(self.at(key))
    }
}

fn forget_older_half(last_requested: &mut HashMap<Vec<u8>, Timestamp>) {
    let mut times: Vec<_> = last_requested.values().copied().collect();
    let middle = times.len() / 2;
    let median = *times.select_nth_unstable(middle).1;
    last_requested.retain(|_, at| *at > median);
}

/// Approximate bytes of a row in the file: redb rounds rows longer than a page up to a power of two, and fills its other
/// pages to two thirds.
fn footprint(key: usize, value: usize) -> u64 {
    let len = (key + value + 32) as u64;
    if len > 2048 {
        len.next_power_of_two().max(4096)
    } else {
        len * 3 / 2
    }
}

/// Bytes that a change may add to the file.
fn growth(change: &Change) -> u64 {
    match change {
        Change::Upsert { key, record, .. } => footprint(key.as_bytes().len(), record.value.len()),
        Change::PutResponse { key, value } => footprint(key.len(), value.len()),
        Change::ReplaceCollection {
            collection,
            members,
            ..
        } if members.is_empty() => footprint(collection.as_bytes().len(), 200),
        Change::ReplaceCollection {
            collection,
            members,
            ..
        } if collection.as_key().has_selectors() => members
            .iter()
            .map(|member| footprint(collection.as_bytes().len() + member.as_bytes().len(), 0))
            .sum(),
        _ => 256,
    }
}

/// Stored bytes by the time of their last request.
struct UsageSurvey {
    last_requested: Arc<LastRequested>,
    /// Collection without selectors → its last request, with any selectors; `Timestamp::MAX` if a watch keeps it current.
    collections: HashMap<Vec<u8>, Timestamp>,
    /// Time of the last request (shifted) → bytes.
    times: BTreeMap<u64, u64>,
    shift: u32,
    live: u64,
}

impl UsageSurvey {
    fn of(
        snapshot: &Snapshot,
        last_requested: Arc<LastRequested>,
        fed: &HashSet<Vec<u8>>,
    ) -> Result<Self, StoreError> {
        let mut collections: HashMap<Vec<u8>, Timestamp> = HashMap::new();
        snapshot.for_each_collection(|key, collection| {
            let at = last_requested.of_collection(key, collection);
            let last = collections
                .entry(keys::without_selectors(key).to_vec())
                .or_default();
            *last = at.max(*last);
        })?;
        collections.extend(fed.iter().map(|key| (key.clone(), Timestamp::MAX)));
        let mut survey = Self {
            last_requested,
            collections,
            times: BTreeMap::new(),
            shift: 0,
            live: 0,
        };
        snapshot.for_each_row(Rows::Objects, &[], |key, len, at| {
            survey.count_bytes(survey.object_usage(key, at), footprint(key.len(), len));
            true
        })?;
        snapshot.for_each_row(Rows::Documents, &[], |key, len, at| {
            survey.count_bytes(survey.document_usage(key, at), footprint(key.len(), len));
            true
        })?;
        survey.live += snapshot.bytes_of_members()?;
        Ok(survey)
    }

    fn count_bytes(&mut self, time: Timestamp, bytes: u64) {
        self.live += bytes;
        *self
            .times
            .entry(time.as_millis() >> self.shift)
            .or_default() += bytes;
        while self.times.len() > MAX_TIMES {
            self.merge_neighbours();
        }
    }

    fn merge_neighbours(&mut self) {
        self.shift += 1;
        for (time, bytes) in std::mem::take(&mut self.times) {
            *self.times.entry(time >> 1).or_default() += bytes;
        }
    }

    /// The last request of an object or of a collection that contains it: no object is evicted before its collections.
    fn object_usage(&self, key: &[u8], stored_at: Timestamp) -> Timestamp {
        let mut time = stored_at.max(self.last_requested.at(key));
        let slashes = key
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'/')
            .map(|(at, _)| at + 1);
        for end in slashes.skip(1).take(2) {
            let collection = self.collections.get(&key[..end]).copied();
            time = time.max(collection.unwrap_or_default());
        }
        time
    }

    fn document_usage(&self, key: &[u8], at: Timestamp) -> Timestamp {
        at.max(self.last_requested.at(up_to(key, b'\n')))
            .max(self.last_requested.at(up_to(key, b'?')))
    }

    /// The time up to which rows must be evicted to free `bytes`, and the bytes that this frees. Collections that a watch
    /// keeps current are never evicted.
    fn usage_limit(&self, bytes: u64) -> Option<(Timestamp, u64)> {
        let (mut freed, mut limit) = (0, None);
        for (time, some) in self.times.range(..u64::MAX >> self.shift) {
            if freed >= bytes {
                break;
            }
            freed += some;
            let last = ((time + 1) << self.shift) - 1;
            limit = Some((Timestamp::from_millis(last), freed));
        }
        limit
    }

    /// True of a collection that a watch keeps current.
    fn is_fed(&self, key: &[u8]) -> bool {
        self.collections.get(keys::without_selectors(key)) == Some(&Timestamp::MAX)
    }

    /// Evicts the rows whose last request was at `limit` or before; returns how many.
    fn evict(
        &self,
        store: &Store,
        limit: Timestamp,
        continuity: &mut Continuity,
    ) -> Result<u64, StoreError> {
        let mut changes = Vec::new();
        store.snapshot()?.for_each_collection(|key, collection| {
            let at = self.last_requested.of_collection(key, collection);
            if at <= limit && !self.is_fed(key) {
                changes.push(Change::Evict(Evicted::Collection(
                    CollectionKey::new(key).to_buf(),
                )));
            }
        })?;
        let mut evicted = changes.len() as u64;
        apply(store, &changes, continuity)?;
        for rows in [Rows::Documents, Rows::Objects] {
            let mut behind = Vec::new();
            loop {
                let (changes, last) = self.find_due(&store.snapshot()?, rows, limit, &behind)?;
                if changes.is_empty() {
                    break;
                }
                evicted += changes.len() as u64;
                apply(store, &changes, continuity)?;
                behind = last;
            }
        }
        Ok(evicted)
    }

    /// Up to [`STEP`] rows to evict after the key `behind`, and the last key that was examined.
    fn find_due(
        &self,
        snapshot: &Snapshot,
        rows: Rows,
        limit: Timestamp,
        behind: &[u8],
    ) -> Result<(Vec<Change>, Vec<u8>), StoreError> {
        let (mut changes, mut last) = (Vec::new(), Vec::new());
        snapshot.for_each_row(rows, behind, |key, _, at| {
            let (time, what) = match rows {
                Rows::Documents => (
                    self.document_usage(key, at),
                    Evicted::Response(key.to_vec()),
                ),
                Rows::Objects => (
                    self.object_usage(key, at),
                    Evicted::Object(ObjectKey::new(key).to_buf()),
                ),
            };
            if time <= limit {
                changes.push(Change::Evict(what));
            }
            last.clear();
            last.extend_from_slice(key);
            changes.len() < STEP
        })?;
        Ok((changes, last))
    }
}

/// The tables whose rows take the most space.
#[derive(Debug, Clone, Copy)]
enum Rows {
    Objects,
    Documents,
}

impl Snapshot {
    fn for_each_collection(
        &self,
        mut look: impl FnMut(&[u8], Option<Collection>),
    ) -> Result<(), StoreError> {
        for row in self.txn.open_table(COLLECTIONS)?.iter()? {
            let (key, value) = row?;
            look(key.value(), serde_json::from_slice(value.value()).ok());
        }
        Ok(())
    }

    /// Calls `look` with the key, the length of the value and the time of each row after the key `behind`, until it returns
    /// false.
    fn for_each_row(
        &self,
        rows: Rows,
        behind: &[u8],
        mut look: impl FnMut(&[u8], usize, Timestamp) -> bool,
    ) -> Result<(), StoreError> {
        let table = match rows {
            Rows::Objects => self.txn.open_table(OBJECTS)?,
            Rows::Documents => self.txn.open_table(DOCUMENTS)?,
        };
        for row in table.range::<&[u8]>((Bound::Excluded(behind), Bound::Unbounded))? {
            let (key, value) = row?;
            let at = match rows {
                Rows::Objects => Record::read(value.value()).map(|record| record.stored_at),
                Rows::Documents => ResponseRecord::read(value.value()).map(|document| document.at),
            };
            if !look(key.value(), value.value().len(), at.unwrap_or_default()) {
                break;
            }
        }
        Ok(())
    }

    fn bytes_of_members(&self) -> Result<u64, StoreError> {
        let mut bytes = 0;
        for row in self.txn.open_table(MEMBERS)?.iter()? {
            bytes += footprint(row?.0.value().len(), 0);
        }
        Ok(bytes)
    }
}

#[derive(Debug)]
pub(super) struct SizeBudget {
    limit: u64,
    last_requested: Arc<LastRequested>,
    /// Upper bound of the bytes in use, once they were counted.
    live: Option<u64>,
    /// Bytes written since they were counted.
    written: u64,
    /// Bytes that remained after the last eviction.
    stayed: u64,
    /// The file's size after the last compaction.
    compacted: u64,
    /// Time of the last failed compaction.
    failed: Option<Instant>,
}

impl SizeBudget {
    pub(super) fn new(limit: u64, last_requested: Arc<LastRequested>) -> Self {
        Self {
            limit,
            last_requested,
            live: None,
            written: 0,
            stayed: 0,
            compacted: 0,
            failed: None,
        }
    }

    /// Evicts rows to make room for a batch, if the file is near its limit; returns how many.
    ///
    /// # Errors
    /// redb's; or the collections that watches keep current exceed the limit by themselves.
    pub(super) fn evict_for(
        &mut self,
        store: &Store,
        changes: &[Change],
        fed: &HashSet<Vec<u8>>,
        continuity: &mut Continuity,
    ) -> Result<u64, StoreError> {
        let growth: u64 = changes.iter().map(growth).sum();
        self.written += growth;
        self.live = self.live.map(|live| live + growth);
        if !self.is_survey_due(store.size() + growth) {
            return Ok(0);
        }
        let survey = self.count_bytes(store, fed)?;
        let live = survey.live + growth;
        self.live = Some(live);
        if live <= self.full() {
            return Ok(0);
        }
        let due = survey.usage_limit(live - self.limit / 8 * 5);
        let (evicted, freed) = match due {
            Some((limit, freed)) => (survey.evict(store, limit, continuity)?, freed),
            None => (0, 0),
        };
        self.stayed = live.saturating_sub(freed);
        self.live = Some(self.stayed);
        tracing::info!(
            evicted,
            freed,
            "the store is full: the least recently requested entries were removed"
        );
        if self.stayed > self.limit {
            Err(StoreError::Full(self.limit))
        } else {
            Ok(evicted)
        }
    }

    /// A survey reads the whole store: after one that could not free enough, the store must have grown.
    fn is_survey_due(&self, size: u64) -> bool {
        let grown = self.stayed + self.limit / 16;
        let enough = self.full().max(grown).min(self.limit);
        size > self.limit / 8 * 7 && self.live.is_none_or(|live| live > enough)
    }

    /// The size beyond which rows are evicted.
    fn full(&self) -> u64 {
        self.limit / 4 * 3
    }

    fn count_bytes(
        &mut self,
        store: &Store,
        fed: &HashSet<Vec<u8>>,
    ) -> Result<UsageSurvey, StoreError> {
        self.written = 0;
        UsageSurvey::of(
            &store.snapshot()?,
            Arc::new(self.last_requested.copy()),
            fed,
        )
    }

    /// Compacts the file if most of it is free. To be called while nothing waits to be written.
    ///
    /// # Errors
    /// redb's.
    pub(super) fn tidy(
        &mut self,
        store: &Store,
        busy: &dyn Fn() -> bool,
    ) -> Result<(), StoreError> {
        let size = store.size();
        if size < SMALL || self.failed.is_some_and(|at| at.elapsed() < RETRY) {
            return Ok(());
        }
        if self.live.is_none() || self.written > size / 4 {
            self.live = Some(self.count_bytes(store, &HashSet::new())?.live);
        }
        let live = self.live.unwrap_or(size);
        if size <= live * 2 + SMALL || size <= self.compacted / 2 * 3 {
            return Ok(());
        }
        self.failed = Some(Instant::now());
        if compact(store, busy)? {
            (self.failed, self.compacted) = (None, store.size());
            tracing::info!(
                before = size,
                after = self.compacted,
                "the store's file was compacted"
            );
        }
        Ok(())
    }
}

/// The part of a key before this byte; all of it where there is none.
fn up_to(key: &[u8], end: u8) -> &[u8] {
    let position = key.iter().position(|byte| *byte == end);
    &key[..position.unwrap_or(key.len())]
}
