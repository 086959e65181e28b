//! The store's changes, broadcast to readers inside the daemon. Bounded: a subscriber that lags gets
//! [`Notice::Reset`] and reads a snapshot instead.

use std::sync::Arc;

use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::cache::store::Store;

pub(crate) use crate::cache::keys::ObjectKey;
pub(crate) use crate::cache::notices::{Notice, ObservedObject};
pub(crate) use crate::cache::record::Record;
pub(crate) use crate::cache::store::{Lookup, Snapshot, StoreError};

/// A subscriber's end.
#[derive(Debug)]
pub(crate) struct Subscription {
    store: Arc<Store>,
    notices: broadcast::Receiver<Notice>,
}

impl Subscription {
    /// Subscribes to changes of keys with one of `prefixes`. Notices also hold keys that others want.
    pub(super) fn new(store: &Arc<Store>, prefixes: &'static [&'static [u8]]) -> Self {
        Self {
            store: Arc::clone(store),
            notices: store.feed().listen(prefixes),
        }
    }

    /// The next notice; `None` once the writer has ended. Cancel safe.
    pub(crate) async fn next(&mut self) -> Option<Notice> {
        match self.notices.recv().await {
            Ok(notice) => Some(notice),
            Err(RecvError::Lagged(_)) => Some(Notice::Reset),
            Err(RecvError::Closed) => None,
        }
    }

    /// Reads of the store as it is now.
    pub(crate) fn reader(&self) -> FeedReader {
        FeedReader {
            store: Arc::clone(&self.store),
        }
    }
}

/// Access to snapshots, for reads on another thread.
#[derive(Debug)]
pub(crate) struct FeedReader {
    store: Arc<Store>,
}

impl FeedReader {
    /// A snapshot that includes every change announced by a [`Notice::Committed`].
    ///
    /// # Errors
    /// The store is closed, or the disk fails.
    pub(crate) fn snapshot(&self) -> Result<Snapshot, StoreError> {
        self.store.snapshot()
    }
}

/// A store and observed objects for the tests of subscribers.
#[cfg(test)]
pub(crate) mod testing {
    use std::sync::Arc;

    use super::{ObjectKey, ObservedObject, Store, Subscription};
    use crate::cache::apply::apply;
    use crate::cache::change::{Change, Observation};
    use crate::cache::continuity::Continuity;
    use crate::cache::record::{NewRecord, TypeHint};
    use crate::cache::tables::{MENTIONED, META};
    use crate::clock::Clock;
    use hublet_wire::meta::Timestamp;

    pub(super) const AT: Timestamp = Timestamp::from_millis(1);

    fn record(json: &str) -> NewRecord {
        NewRecord::json(json.as_bytes(), TypeHint::default(), AT).expect("an object")
    }

    /// `objects`: keys and JSON.
    pub(crate) fn store_with(objects: &[(String, String)]) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("a directory");
        let store = Store::open(dir.path(), 1 << 20).expect("store");
        let upsert = |(key, json): &(String, String)| Change::Upsert {
            key: ObjectKey::new(key.as_bytes()).to_buf(),
            record: record(json),
            observed: Observation::watch_event(AT),
        };
        let changes: Vec<_> = objects.iter().map(upsert).collect();
        apply(&store, &changes, &mut Continuity::new(Clock::default())).expect("applied");
        (dir, store)
    }

    /// As a store of a version that did not write it.
    pub(super) fn remove_mention_row(store: &Store) {
        let txn = store.begin_write().expect("a transaction");
        let mut meta = txn.open_table(META).expect("a table");
        meta.remove(MENTIONED).expect("removed");
        drop(meta);
        txn.commit().expect("committed");
    }

    pub(crate) fn subscribe(
        store: &Arc<Store>,
        prefixes: &'static [&'static [u8]],
    ) -> Subscription {
        Subscription::new(store, prefixes)
    }

    pub(crate) fn observed(key: &str, json: &str) -> ObservedObject {
        ObservedObject {
            key: ObjectKey::new(key.as_bytes()).to_buf(),
            value: record(json).value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::change::{Change, Observation};
    use crate::cache::compact::compact;
    use crate::cache::notices::CAPACITY;
    use crate::cache::record::{NewRecord, TypeHint};
    use hublet_wire::meta::ResourceVersion;

    fn subscribed() -> (tempfile::TempDir, Arc<Store>, Subscription) {
        let (dir, store) = testing::store_with(&[]);
        let store = Arc::new(store);
        let subscription = Subscription::new(&store, &[b"/pods/", b"/namespaces/"]);
        (dir, store, subscription)
    }

    fn pod(metadata: &str) -> String {
        format!(
            r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"a","resourceVersion":"5"{metadata}}}}}"#
        )
    }

    fn upsert(key: &str) -> Change {
        upsert_with(key, r#","labels":{"hublet.io/steer":"true"}"#)
    }

    fn upsert_with(key: &str, metadata: &str) -> Change {
        let json = pod(metadata);
        Change::Upsert {
            key: ObjectKey::new(key.as_bytes()).to_buf(),
            record: NewRecord::json(json.as_bytes(), TypeHint::default(), testing::AT)
                .expect("an object"),
            observed: Observation::watch_event(testing::AT),
        }
    }

    #[tokio::test]
    async fn a_batch_is_observed_and_then_committed() {
        let (_dir, store, mut subscription) = subscribed();
        let changes = [
            upsert("/pods/n/a"),
            upsert_with("/pods/n/silent", ""),
            upsert("/secrets/n/a"),
            Change::Delete {
                key: ObjectKey::new(b"/pods/n/b").to_buf(),
                version: ResourceVersion::new(1),
                observed: Observation::watch_event(testing::AT),
            },
        ];
        store.feed().publish_observed(&changes);
        store.feed().publish_committed(&changes);
        let Some(Notice::Observed(objects)) = subscription.next().await else {
            panic!("no objects");
        };
        assert_eq!(objects.len(), 1, "{objects:?}");
        assert_eq!(objects[0].key.as_bytes(), b"/pods/n/a");
        assert_eq!(objects[0].record().expect("a record").kind, "Pod");
        let Some(Notice::Committed(prefixes)) = subscription.next().await else {
            panic!("no commit");
        };
        assert_eq!(*prefixes, [b"/pods/"]);
    }

    #[tokio::test]
    async fn a_mention_is_remembered_from_the_first_object_on() {
        let has_mention = |objects: &[(String, String)]| -> bool {
            let (_dir, store) = testing::store_with(objects);
            store
                .snapshot()
                .expect("snapshot")
                .has_mention()
                .expect("read")
        };
        let stored = |metadata| [("/pods/n/a".to_owned(), pod(metadata))];
        assert!(!has_mention(&[]));
        assert!(!has_mention(&stored("")));
        assert!(has_mention(&stored(
            r#","labels":{"hublet.io/steer":"false"}"#
        )));
    }

    /// A store that an earlier version had written counted as one that mentions nothing: its pods were not steered until one
    /// of them changed.
    #[test]
    fn a_store_without_a_row_for_mentions_may_have_some() {
        let (dir, store) = testing::store_with(&[("/pods/n/a".to_owned(), pod(""))]);
        testing::remove_mention_row(&store);
        let may_have_mention = |store: &Store| store.snapshot().unwrap().has_mention().unwrap();
        assert!(may_have_mention(&store));
        assert!(compact(&store, &|| false).expect("compacted"));
        assert!(may_have_mention(&store));
        store.close();
        drop(store);
        let store = Store::open(dir.path(), 1 << 20).expect("store");
        assert!(may_have_mention(&store));
    }

    #[tokio::test]
    async fn changes_of_keys_without_a_subscriber_are_not_sent() {
        let (_dir, store, subscription) = subscribed();
        let changes = [upsert("/secrets/n/a")];
        store.feed().publish_observed(&changes);
        store.feed().publish_committed(&changes);
        assert!(subscription.notices.is_empty());
    }

    #[tokio::test]
    async fn a_subscriber_that_lags_is_told_to_read_everything() {
        let (_dir, store, mut subscription) = subscribed();
        for _ in 0..=CAPACITY {
            store.feed().publish_committed(&[upsert("/pods/n/a")]);
        }
        assert!(matches!(subscription.next().await, Some(Notice::Reset)));
        assert!(matches!(
            subscription.next().await,
            Some(Notice::Committed(_))
        ));
    }
}
