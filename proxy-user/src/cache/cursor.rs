//! Walks over lists that are sent to clients. A client that reads slowly would hold a snapshot, and make the file grow, for
//! as long as it likes: the writer ends a walk's snapshot when it is old, and the walk goes on behind its last key in a
//! new one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::cache::error::StoreError;
use crate::cache::keys::CollectionKeyBuf;
use crate::cache::leases::Lease;
use crate::cache::record::{Collection, Record};
use crate::cache::snapshot::{Shared, Snapshot};
use crate::cache::walk::Walk;
use hublet_wire::media::Encoding;

/// A list's source, and the state that must hold as long as it is sent.
#[derive(Debug)]
pub(crate) struct ListSource {
    /// Key of the collection by which the list is known to be complete.
    pub key: CollectionKeyBuf,
    /// That collection, as the list's head has it.
    pub collection: Collection,
    /// Key of the collection with selectors whose members it has; without selectors all under the prefix.
    pub selection: Option<CollectionKeyBuf>,
    /// The prefix of its objects' keys.
    pub prefix: CollectionKeyBuf,
    /// Encoding of its objects.
    pub encoding: Encoding,
    /// `apiVersion` of its objects.
    pub api_version: String,
}

impl ListSource {
    /// True if the collection is still complete, no older, and in the same encoding. An item that changes meanwhile may be
    /// sent in a version newer than the list's resourceVersion, and one that is deleted or created may be left out: a watch
    /// from that resourceVersion reports each of them.
    fn stands_in(&self, snapshot: &Snapshot) -> Result<bool, StoreError> {
        let was = &self.collection;
        let now = snapshot.collection(self.key.as_key())?;
        Ok(now.is_some_and(|now| {
            now.is_whole()
                && now.version >= was.version
                && now.kind == was.kind
                && now.api_version == was.api_version
                && now.unstructured == was.unstructured
        }))
    }

    /// Its objects behind `last`, which is empty at the beginning.
    fn walk(&self, snapshot: &Snapshot, last: &[u8]) -> Result<Walk, StoreError> {
        match &self.selection {
            Some(key) => snapshot.walk_members_behind(key.as_key(), last),
            None => snapshot.walk_behind(self.prefix.as_bytes(), last),
        }
    }
}

/// A walk over a list's objects that outlives its snapshot.
#[derive(Debug)]
pub(crate) struct ListCursor {
    shared: Arc<Shared>,
    listed: ListSource,
    /// Key of the last object that was read.
    last: Vec<u8>,
    lease: Arc<WalkLease>,
}

/// The walk and its snapshot, until the writer ends it.
#[derive(Debug, Default)]
struct WalkLease(Mutex<Option<LeasedWalk>>);

#[derive(Debug)]
struct LeasedWalk {
    walk: Walk,
    since: Instant,
    generation: u64,
    /// Open as long as it is walked.
    _snapshot: Snapshot,
}

impl ListCursor {
    pub(super) fn new(shared: Arc<Shared>, listed: ListSource) -> Self {
        let lease = Arc::new(WalkLease::default());
        shared.leases.add(&lease);
        Self {
            shared,
            listed,
            last: Vec::new(),
            lease,
        }
    }

    /// Hands the next object to `read`; `None` at the end.
    ///
    /// # Errors
    /// redb's, a damaged value, or [`StoreError::Changed`]: what follows doesn't fit to what was sent.
    pub(crate) fn next<T>(
        &mut self,
        read: impl FnOnce(Record<'_>) -> T,
    ) -> Result<Option<T>, StoreError> {
        let lease = Arc::clone(&self.lease);
        let mut lease = lease.0.lock();
        let mut read = Some(read);
        loop {
            let mut held = match lease.take() {
                Some(held) => held,
                None => self.lease_snapshot()?,
            };
            match self.read_next(&mut held.walk, &mut read) {
                // The store has been reopened: the walk continues there.
                Err(error) if error.is_failure() && held.generation != self.shared.generation() => {
                }
                Ok(Some(value)) => {
                    *lease = Some(held);
                    return Ok(Some(value));
                }
                end => return end,
            }
        }
    }

    fn lease_snapshot(&self) -> Result<LeasedWalk, StoreError> {
        let generation = self.shared.generation();
        let snapshot = self.shared.snapshot()?;
        if !self.listed.stands_in(&snapshot)? {
            return Err(StoreError::Changed);
        }
        let walk = self.listed.walk(&snapshot, &self.last)?;
        Ok(LeasedWalk {
            walk,
            since: Instant::now(),
            generation,
            _snapshot: snapshot,
        })
    }

    fn read_next<T>(
        &mut self,
        walk: &mut Walk,
        read: &mut Option<impl FnOnce(Record<'_>) -> T>,
    ) -> Result<Option<T>, StoreError> {
        let (last, listed) = (&mut self.last, &self.listed);
        let value = walk.next_at(|key, record| {
            if record.encoding != listed.encoding || record.api_version != listed.api_version {
                return Err(StoreError::Changed);
            }
            last.clear();
            last.extend_from_slice(key);
            read.take()
                .map(|read| read(record))
                .ok_or(StoreError::Damaged)
        })?;
        value.transpose()
    }
}

impl Lease for WalkLease {
    fn end_older_than(&self, age: Duration) {
        // A walk that can't be locked is being read at this moment.
        if let Some(mut leased) = self.0.try_lock()
            && leased
                .as_ref()
                .is_some_and(|leased| leased.since.elapsed() >= age)
        {
            *leased = None;
        }
    }
}

impl Snapshot {
    /// A walk over a list that outlives this snapshot.
    pub(crate) fn list_cursor(&self, listed: ListSource) -> ListCursor {
        ListCursor::new(Arc::clone(&self.shared), listed)
    }
}
