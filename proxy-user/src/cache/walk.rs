//! Walks over stored objects in key order, within one snapshot.

use std::ops::Bound;
use std::sync::Arc;

use redb::ReadOnlyTable;

use crate::cache::error::StoreError;
use crate::cache::record::Record;
use crate::cache::superseded::{Moment, Superseded};

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
    /// Offset of the object's key in a member's.
    pub(super) skip: usize,
    pub(super) objects: ReadOnlyTable<&'static [u8], &'static [u8]>,
    /// Objects that are stored as absent.
    pub(super) absent: ReadOnlyTable<&'static [u8], (u64, u64)>,
    pub(super) superseded: Arc<Superseded>,
    /// The moment before the snapshot was begun.
    pub(super) moment: Moment,
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
    pub(super) fn next_at<T>(
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
            // A member that was deleted since is left out; if one is unknown, the list can't be completed.
            if self.absent.get(key)?.is_none() || !self.superseded.absence_counts(key, self.moment)
            {
                return Err(StoreError::Changed);
            }
        }
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
