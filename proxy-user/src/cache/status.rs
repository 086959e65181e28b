//! The state of the store in `/v1/status`.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::Cache;
use super::grant_rows::GrantCounts;
use super::not_stored::NotStored;
use super::store::Condition;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct StoreStatus {
    pub(crate) writable: bool,
    /// The reason why it can't be written, or not even be read.
    pub(crate) problem: Option<String>,
    pub(crate) bytes: u64,
    pub(crate) max_bytes: u64,
    pub(crate) objects: u64,
    /// Names that the API server has answered with 404.
    pub(crate) absent: u64,
    pub(crate) collections: u64,
    pub(crate) documents: u64,
    pub(crate) grants: usize,
    pub(crate) credentials: usize,
    pub(crate) copies_given_up: u64,
    pub(crate) not_stored: Vec<NotStoredCount>,
    pub(crate) evicted: u64,
    pub(crate) writes_failed: u64,
    /// Captured responses wait for the writer.
    pub(crate) behind: bool,
    pub(crate) opened_in_seconds: f64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct NotStoredCount {
    /// As in the metric's label.
    pub(crate) reason: Cow<'static, str>,
    pub(crate) count: u64,
}

impl Cache {
    /// `in_memory`: grants are counted where they are used.
    pub(crate) fn status(&self, in_memory: GrantCounts) -> StoreStatus {
        let counts = self.store.snapshot().and_then(|stored| stored.counts());
        let [objects, absent, collections, documents] = counts.unwrap_or_default();
        let condition = self.store.condition();
        StoreStatus {
            writable: condition == Condition::Writable,
            problem: condition.problem().map(str::to_owned),
            bytes: self.store.size(),
            max_bytes: self.max_bytes,
            objects,
            absent,
            collections,
            documents,
            grants: in_memory.grants,
            credentials: in_memory.credentials,
            copies_given_up: self.ingest.given_up(),
            not_stored: self.not_stored_counts(),
            evicted: self.ingest.evicted(),
            writes_failed: self.ingest.failures(),
            behind: self.ingest.is_behind(),
            opened_in_seconds: self.opened_in.as_secs_f64(),
        }
    }

    fn not_stored_counts(&self) -> Vec<NotStoredCount> {
        let counts = NotStored::ALL.map(|reason| NotStoredCount {
            reason: reason.as_str().into(),
            count: self.not_stored().get(reason),
        });
        counts.to_vec()
    }
}
