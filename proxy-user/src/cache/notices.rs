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

/// A change of the store.
#[derive(Debug, Clone)]
pub(crate) enum Notice {
    /// Objects that are about to be written; the store may hold later versions of them.
    Observed(Arc<[ObservedObject]>),
    /// Keys of objects and of listed collections; their changes are on disk.
    Committed(Arc<[Vec<u8>]>),
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
                Change::Upsert { key, record, .. } if is_wanted(&wanted, key.as_bytes()) => {
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
        let keys: Vec<_> = changes
            .iter()
            .filter_map(changed_key)
            .filter(|key| is_wanted(&wanted, key))
            .map(<[u8]>::to_vec)
            .collect();
        drop(wanted);
        if !keys.is_empty() {
            self.send_notice(Notice::Committed(keys.into()));
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
