//! Notices of the store's changes, sent by the writer. Bounded: a subscriber that lags gets [`Notice::Reset`] and reads a
//! snapshot instead.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::broadcast;

use crate::cache::change::Change;
use crate::cache::keys::ObjectKeyBuf;
use crate::cache::record::Record;

/// Most notices that a subscriber may lag behind. A batch of the writer sends two; its objects are 1 MiB at most.
pub(super) const CAPACITY: usize = 8;

/// An object as the API server sent it.
#[derive(Debug)]
pub(crate) struct ObservedObject {
    pub(crate) key: ObjectKeyBuf,
    pub(super) value: Vec<u8>,
}

impl ObservedObject {
    pub(crate) fn record(&self) -> Option<Record<'_>> {
        Record::read(&self.value)
    }
}

/// Prefix of the annotations and labels that are meant for hublet.
const DOMAIN: &[u8] = b"hublet.io/";

/// True if an object's value contains hublet's own domain, as its annotations and labels for hublet do.
pub(super) fn mentions_domain(value: &[u8]) -> bool {
    memchr::memmem::find(value, DOMAIN).is_some()
}

/// A change of the store.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// Objects that mention hublet's domain and are about to be written; the store may hold later versions of them.
    Observed(Arc<[ObservedObject]>),
    /// The prefixes below which objects or listed collections have changed on disk.
    Committed(Arc<[&'static [u8]]>),
    /// Anything may have changed: the store was emptied, or the subscriber has lagged.
    Reset,
}

/// The writer's end.
#[derive(Debug)]
pub(crate) struct Feed {
    notices: broadcast::Sender<Notice>,
    /// Prefixes of the keys that subscribers want; changes of all others cost the writer a comparison.
    prefixes: Mutex<Vec<&'static [u8]>>,
}

impl Default for Feed {
    fn default() -> Self {
        Self {
            notices: broadcast::Sender::new(CAPACITY),
            prefixes: Mutex::default(),
        }
    }
}

impl Feed {
    /// Notices of changes of keys with one of `prefixes`, and of keys that others want.
    pub(super) fn listen(&self, prefixes: &'static [&'static [u8]]) -> broadcast::Receiver<Notice> {
        self.prefixes.lock().extend_from_slice(prefixes);
        self.notices.subscribe()
    }

    /// Call before `changes` are written.
    pub(super) fn publish_observed(&self, changes: &[Change]) {
        let wanted = self.prefixes.lock();
        let objects: Vec<_> = changes
            .iter()
            .filter_map(|change| match change {
                Change::Upsert { key, record, .. }
                    if is_wanted(&wanted, key.as_bytes()) && mentions_domain(&record.value) =>
                {
                    Some(ObservedObject {
                        key: key.clone(),
                        value: record.value.clone(),
                    })
                }
                _ => None,
            })
            .collect();
        drop(wanted);
        if !objects.is_empty() {
            self.send_notice(Notice::Observed(objects.into()));
        }
    }

    /// Call after `changes` have been written.
    pub(super) fn publish_committed(&self, changes: &[Change]) {
        let wanted = self.prefixes.lock();
        let mut changed: Vec<&'static [u8]> = Vec::new();
        for key in changes.iter().filter_map(changed_key) {
            for prefix in wanted.iter().filter(|prefix| key.starts_with(prefix)) {
                if !changed.contains(prefix) {
                    changed.push(prefix);
                }
            }
        }
        drop(wanted);
        if !changed.is_empty() {
            self.send_notice(Notice::Committed(changed.into()));
        }
    }

    /// Call after the store was emptied.
    pub(super) fn publish_reset(&self) {
        self.send_notice(Notice::Reset);
    }

    fn send_notice(&self, notice: Notice) {
        let _nobody_listens = self.notices.send(notice);
    }
}

fn is_wanted(prefixes: &[&[u8]], key: &[u8]) -> bool {
    prefixes.iter().any(|prefix| key.starts_with(prefix))
}

/// The object or the listed collection that an operation may have changed.
fn changed_key(change: &Change) -> Option<&[u8]> {
    match change {
        Change::Upsert { key, .. } | Change::Delete { key, .. } => Some(key.as_bytes()),
        Change::ReplaceCollection { collection, .. } => Some(collection.as_bytes()),
        _ => None,
    }
}
