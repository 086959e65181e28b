//! The cloud's objects, their versions and events: snapshots at any version since the last compaction, and the events after
//! one.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

use super::json::Json;
use super::kinds::Kind;
use super::status::Failure;
use crate::pki;

/// Events that are remembered before the oldest are compacted away.
const LOG_LIMIT: usize = 10_000;

/// Namespace and name.
pub(super) type Key = (String, String);

/// A change of one object.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) version: u64,
    kind: &'static Kind,
    key: Key,
    /// The object after it; `None` when it was deleted.
    pub(super) after: Option<Arc<Json>>,
    /// The object before it; `None` when it was created.
    pub(super) before: Option<Arc<Json>>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    compacted: u64,
    objects: BTreeMap<(&'static str, &'static str), BTreeMap<Key, Arc<Json>>>,
    log: VecDeque<Event>,
}

impl State {
    /// Appends to the log, and forgets the oldest event beyond its limit.
    fn record(&mut self, event: Event) {
        self.log.push_back(event);
        if self.log.len() > LOG_LIMIT
            && let Some(oldest) = self.log.pop_front()
        {
            self.compacted = oldest.version;
        }
    }
}

#[derive(Debug)]
pub(super) struct Store {
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    clock_skew: time::Duration,
}

/// A version that is too old to know about; the oldest known one.
pub(super) struct Compacted(pub(super) u64);

impl Store {
    pub(super) fn new(clock_skew: time::Duration) -> Store {
        let state = State {
            version: 1_000,
            compacted: 1_000,
            ..State::default()
        };
        Store {
            state: Mutex::new(state),
            changed: watch::Sender::new(1_000),
            clock_skew,
        }
    }

    pub(super) fn now(&self) -> OffsetDateTime {
        OffsetDateTime::now_utc() + self.clock_skew
    }

    pub(super) fn timestamp(&self) -> String {
        let now = self
            .now()
            .replace_nanosecond(0)
            .unwrap_or_else(|_| self.now());
        now.format(&Rfc3339)
            .expect("a time of this century can be written")
    }

    pub(super) fn version(&self) -> u64 {
        self.state.lock().version
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn get(&self, kind: &'static Kind, key: &Key) -> Option<Arc<Json>> {
        self.state
            .lock()
            .objects
            .get(&(kind.group, kind.resource))?
            .get(key)
            .cloned()
    }

    /// All objects of a kind, now or as of a version, with that version.
    pub(super) fn list_at(
        &self,
        kind: &'static Kind,
        at: Option<u64>,
    ) -> Result<(u64, BTreeMap<Key, Arc<Json>>), Compacted> {
        let state = self.state.lock();
        let mut objects = state
            .objects
            .get(&(kind.group, kind.resource))
            .cloned()
            .unwrap_or_default();
        let Some(at) = at else {
            return Ok((state.version, objects));
        };
        if at < state.compacted {
            return Err(Compacted(state.compacted));
        }
        for event in state
            .log
            .iter()
            .rev()
            .take_while(|event| event.version > at)
            .filter(|e| e.kind == kind)
        {
            match &event.before {
                Some(before) => objects.insert(event.key.clone(), Arc::clone(before)),
                None => objects.remove(&event.key),
            };
        }
        Ok((at, objects))
    }

    /// The events of a kind after a version, and the version up to which they are complete.
    pub(super) fn events_after(
        &self,
        kind: &'static Kind,
        after: u64,
    ) -> Result<(u64, Vec<Event>), Compacted> {
        let state = self.state.lock();
        if after < state.compacted {
            return Err(Compacted(state.compacted));
        }
        let start = state.log.partition_point(|event| event.version <= after);
        let events = state
            .log
            .range(start..)
            .filter(|event| event.kind == kind)
            .cloned()
            .collect();
        Ok((state.version, events))
    }

    /// The object before its last change, for a cloud that tells old tales.
    pub(super) fn previous_version(&self, kind: &'static Kind, key: &Key) -> Option<Arc<Json>> {
        let state = self.state.lock();
        let last = state
            .log
            .iter()
            .rev()
            .find(|event| event.kind == kind && event.key == *key)?;
        last.before.clone()
    }

    /// Forgets the past: older watches and pages get 410.
    pub(super) fn compact(&self) {
        let mut state = self.state.lock();
        state.version += 1;
        state.compacted = state.version;
        state.log.clear();
    }

    /// Changes one object. `change` gets the present one and says what shall be: the same (nothing is written),
    /// another, or none. Out: what is there afterwards, or was there last.
    pub(super) fn change_object(
        &self,
        kind: &'static Kind,
        key: &Key,
        change: impl FnOnce(Option<&Json>) -> Result<Option<Json>, Failure>,
    ) -> Result<Arc<Json>, Failure> {
        let mut state = self.state.lock();
        let place = (kind.group, kind.resource);
        let before = state
            .objects
            .get(&place)
            .and_then(|objects| objects.get(key))
            .cloned();
        let after = change(before.as_deref())?.map(|object| object.into_server_order(kind.builtin));
        if let (Some(before), Some(after)) = (&before, &after)
            && **before == *after
        {
            return Ok(Arc::clone(before));
        }
        if before.is_none() && after.is_none() {
            return Err(Failure::not_found(kind, &key.1));
        }
        state.version += 1;
        let version = state.version;
        let objects = state.objects.entry(place).or_default();
        let (after, result) = if let Some(mut object) = after {
            object.set(&["metadata", "resourceVersion"], version.to_string());
            let object = Arc::new(object.into_server_order(kind.builtin));
            objects.insert(key.clone(), Arc::clone(&object));
            (Some(Arc::clone(&object)), object)
        } else {
            let gone = objects
                .remove(key)
                .ok_or_else(|| Failure::not_found(kind, &key.1))?;
            (None, gone)
        };
        state.record(Event {
            version,
            kind,
            key: key.clone(),
            after,
            before,
        });
        drop(state);
        self.changed.send_replace(version);
        Ok(result)
    }

    /// Fills in what the server gives every new object.
    pub(super) fn stamp_new(&self, kind: &Kind, object: &mut Json, key: &Key) {
        object.set(&["kind"], kind.kind);
        object.set(&["apiVersion"], kind.api_version());
        object.set(&["metadata", "name"], key.1.as_str());
        if kind.namespaced {
            object.set(&["metadata", "namespace"], key.0.as_str());
        }
        object.set(&["metadata", "uid"], pki::random_uuid());
        object.set(&["metadata", "creationTimestamp"], self.timestamp());
        object.remove(&["metadata", "resourceVersion"]);
        if !kind.builtin || matches!(kind.resource, "pods" | "networkpolicies" | "endpointslices") {
            object.set(&["metadata", "generation"], 1_u64);
        }
        if kind.resource == "namespaces" {
            object.set(
                &["metadata", "labels", "kubernetes.io/metadata.name"],
                key.1.as_str(),
            );
            object.set(
                &["spec", "finalizers"],
                Json::Array(vec!["kubernetes".into()]),
            );
            object.set(&["status", "phase"], "Active");
        }
    }
}
