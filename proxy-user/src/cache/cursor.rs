//! Walks over stored objects in key order. In: a snapshot. Out: one object after the other.
//!
//! A snapshot keeps every page that it can see, so that a client that reads slowly would make the file grow for as long
//! as it likes. What is sent to clients ([`ListCursor`]) therefore lends its snapshot: the writer ends those that are old,
//! and the walk goes on behind its last key in a new one.

use std::ops::Bound;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use redb::ReadOnlyTable;

use crate::cache::keys::CollectionKeyBuf;
use crate::cache::record::{Collection, Record};
use crate::cache::store::{Shared, Snapshot, StoreError};
use hublet_wire::media::Encoding;

/// A walk within one snapshot.
pub(crate) enum Walk {
    /// Everything under a prefix.
    Range(Box<redb::OwnedRange<&'static [u8], &'static [u8]>>),
    /// The members of a collection with selectors.
    Members(Box<Members>),
}

/// The rows of a collection with selectors, and the objects that they name.
pub(crate) struct Members {
    pub(super) rows: redb::OwnedRange<&'static [u8], ()>,
    /// Where the object's key begins in a member's.
    pub(super) skip: usize,
    pub(super) objects: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// An object that is known to be gone.
    pub(super) absent: ReadOnlyTable<&'static [u8], (u64, u64)>,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Walk")
    }
}

impl Walk {
    /// Hands the next object to `read`; `None` at the end.
    ///
    /// # Errors
    /// redb's, or a damaged value.
    pub(crate) fn next<T>(
        &mut self,
        read: impl FnOnce(Record<'_>) -> T,
    ) -> Result<Option<T>, StoreError> {
        self.next_at(|_, record| read(record))
    }

    /// As [`Walk::next`], with the object's key.
    fn next_at<T>(
        &mut self,
        read: impl FnOnce(&[u8], Record<'_>) -> T,
    ) -> Result<Option<T>, StoreError> {
        match self {
            Self::Range(range) => {
                let Some(row) = range.next() else {
                    return Ok(None);
                };
                let (key, value) = row?;
                Record::read(value.value())
                    .map(|r| Some(read(key.value(), r)))
                    .ok_or(StoreError::Damaged)
            }
            Self::Members(members) => members.next_at(read),
        }
    }
}

impl Members {
    fn next_at<T>(
        &mut self,
        read: impl FnOnce(&[u8], Record<'_>) -> T,
    ) -> Result<Option<T>, StoreError> {
        loop {
            let Some(row) = self.rows.next() else {
                return Ok(None);
            };
            let (row, ()) = row.map(|(row, _)| (row, ()))?;
            let key = &row.value()[self.skip..];
            if let Some(value) = self.objects.get(key)? {
                return Record::read(value.value())
                    .map(|r| Some(read(key, r)))
                    .ok_or(StoreError::Damaged);
            }
            // A member that is gone since is left out; of one that is merely unknown nothing can be observed.
            if self.absent.get(key)?.is_none() {
                return Err(StoreError::Changed);
            }
        }
    }
}

/// A list's source, and the state that must hold as long as it is sent.
#[derive(Debug)]
pub(crate) struct ListSource {
    /// Key of the collection that says that it is whole.
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
    /// The collection is still whole and no older, in the same form. An item that changes meanwhile may be sent newer than
    /// the list's resourceVersion, and one that is deleted or made be left out: a watch from there tells of each.
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
    lease: Arc<Lease>,
}

type Lease = Mutex<Option<LockedFile>>;

#[derive(Debug)]
struct LockedFile {
    walk: Walk,
    since: Instant,
    generation: u64,
    /// Open as long as it is walked.
    _snapshot: Snapshot,
}

impl ListCursor {
    pub(super) fn new(shared: Arc<Shared>, listed: ListSource) -> Self {
        let lease = Arc::new(Mutex::new(None));
        shared.leases.0.lock().push(Arc::downgrade(&lease));
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
        let mut lease = lease.lock();
        let mut read = Some(read);
        loop {
            let mut held = match lease.take() {
                Some(held) => held,
                None => self.begin()?,
            };
            match self.step(&mut held.walk, &mut read) {
                // The store has been opened anew: it goes on there.
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

    fn begin(&self) -> Result<LockedFile, StoreError> {
        let generation = self.shared.generation();
        let snapshot = self.shared.snapshot()?;
        if !self.listed.stands_in(&snapshot)? {
            return Err(StoreError::Changed);
        }
        let walk = self.listed.walk(&snapshot, &self.last)?;
        Ok(LockedFile {
            walk,
            since: Instant::now(),
            generation,
            _snapshot: snapshot,
        })
    }

    fn step<T>(
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

/// The walks that may have a snapshot; as many as there are requests at the most.
#[derive(Debug, Default)]
pub(super) struct SnapshotLeases(Mutex<Vec<Weak<Lease>>>);

impl SnapshotLeases {
    /// Ends the snapshots of those that have had theirs for longer than `age`.
    pub(super) fn end_older_than(&self, age: Duration) {
        self.0.lock().retain(|lease| {
            let Some(lease) = lease.upgrade() else {
                return false;
            };
            // One that can't be had is being read from just now.
            if let Some(mut held) = lease.try_lock()
                && held
                    .as_ref()
                    .is_some_and(|held| held.since.elapsed() >= age)
            {
                *held = None;
            }
            true
        });
    }
}

/// The range of keys behind `last` under `prefix`; from its beginning where `last` is empty.
pub(super) fn behind<'a>(
    prefix: &'a [u8],
    last: &'a [u8],
    end: &'a [u8],
) -> (Bound<&'a [u8]>, Bound<&'a [u8]>) {
    let start = if last.is_empty() {
        Bound::Included(prefix)
    } else {
        Bound::Excluded(last)
    };
    (start, Bound::Excluded(end))
}
