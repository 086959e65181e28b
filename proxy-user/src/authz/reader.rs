//! The store, as its clients' requests may read it: every read takes the proof of a decision.

use std::sync::Arc;

use super::attributes::Attributes;
use super::authorizer::{AbsenceOnly, Allowed};
use crate::cache::Cache;
use crate::cache::keys::ObjectKey;
use crate::cache::store::{Lookup, Snapshot, StoreError};
use hublet_wire::meta::Timestamp;

/// The only way from a client's request to the stored objects.
#[derive(Debug)]
pub(crate) struct StoreReader {
    cache: Arc<Cache>,
}

impl StoreReader {
    pub(crate) fn new(cache: Arc<Cache>) -> Self {
        Self { cache }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.cache.clock.now()
    }

    /// The number of times that the store has been reopened since the start.
    pub(crate) fn generation(&self) -> u64 {
        self.cache.generation()
    }

    /// Waits, for a moment, until a store that has failed is reopened; false if the read failed for another reason.
    pub(crate) async fn wait_until_reopened(&self, since: u64) -> bool {
        self.cache.wait_until_reopened(since).await
    }

    /// Notes that a client has been answered with what is stored at this key, for the order of eviction.
    pub(crate) fn note_use(&self, key: &[u8]) {
        self.cache.note_request(key);
    }

    /// A snapshot that holds what has been seen so far.
    ///
    /// # Errors
    /// redb's.
    pub(crate) async fn snapshot<R>(&self, _: &Allowed<R>) -> Result<Snapshot, StoreError> {
        self.cache.snapshot().await
    }

    /// The time of the cloud's 404, if nothing has been seen of the object since.
    ///
    /// # Errors
    /// redb's.
    pub(crate) async fn absent_since<'a, R: AsRef<Attributes<'a>>>(
        &self,
        request: &AbsenceOnly<R>,
    ) -> Result<Option<Timestamp>, StoreError> {
        let snapshot = self.cache.snapshot().await?;
        let key = ObjectKey::new((**request).as_ref().key);
        match snapshot.object(key, |_| ())? {
            Lookup::Absent(at) => Ok(Some(at)),
            Lookup::Found(()) | Lookup::Unknown => Ok(None),
        }
    }
}
