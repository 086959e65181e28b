//! Pods that opt in to steering: by their own annotation or label `hublet.io/steer`, or by their namespace's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use hublet_wire::media::Encoding;
use hublet_wire::protobuf::{Fields, Unknown, Value};
use serde::Deserialize;

use crate::cache::feed::{ObservedObject, Record, Snapshot, StoreError};

/// Annotation or label; `"true"` opts in, any other value out. A pod's own takes precedence over its namespace's, an
/// annotation over a label.
const STEER: &str = "hublet.io/steer";

/// Prefixes of the keys of pods and namespaces in the store.
pub(super) const PODS: &[u8] = b"/pods/";
pub(super) const NAMESPACES: &[u8] = b"/namespaces/";

/// UIDs of the pods to steer, as far as the store's changes tell.
#[derive(Debug, Default)]
pub(super) struct PodOptIns {
    /// In the last snapshot that was read.
    stored: BTreeSet<String>,
    /// Observed since, and about to be written: a slow disk takes longer than the kubelet needs to start a pod.
    observed: BTreeSet<String>,
    /// Observed and written, but not read from a snapshot yet.
    committed: BTreeSet<String>,
    /// Some pod or namespace carries [`STEER`]. Until then a read of all pods would find nothing, but would push
    /// everything else out of the page cache.
    key_seen: bool,
}

/// UIDs of pods, and whether any pod or namespace carries [`STEER`].
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct StoredOptIns {
    pods: BTreeSet<String>,
    key_seen: bool,
}

impl PodOptIns {
    pub(super) fn uids(&self) -> BTreeSet<String> {
        [&self.stored, &self.observed, &self.committed]
            .into_iter()
            .flatten()
            .cloned()
            .collect()
    }

    /// True if a pod opts in that was not known to.
    pub(super) fn observe(&mut self, objects: &[ObservedObject]) -> bool {
        let before = self.observed.len();
        for object in objects {
            self.observe_object(object);
        }
        self.observed.len() > before
    }

    fn observe_object(&mut self, object: &ObservedObject) {
        let is_pod = object.key.as_bytes().starts_with(PODS);
        if !is_pod && !object.key.as_bytes().starts_with(NAMESPACES) {
            return;
        }
        let Some(record) = object.record().filter(mentions_key) else {
            return;
        };
        self.key_seen = true;
        let opt_in = OptIn::of(&record).filter(|opt_in| opt_in.steer == Some(true));
        self.observed
            .extend(opt_in.filter(|_| is_pod).map(|opt_in| opt_in.uid));
    }

    /// True if the stored opt-ins may have changed, so that [`read_opt_ins`] is due.
    pub(super) fn commit(&mut self, prefixes: &[&[u8]]) -> bool {
        let concerned = prefixes.contains(&PODS) || prefixes.contains(&NAMESPACES);
        if concerned {
            self.commit_all();
        }
        concerned && self.key_seen
    }

    /// Counts everything observed as committed; call where commits may have been missed.
    pub(super) fn commit_all(&mut self) {
        self.committed.append(&mut self.observed);
    }

    /// Call before the snapshot is taken that [`PodOptIns::end_read`] gets.
    pub(super) fn begin_read(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.committed)
    }

    /// `None`: the read has failed, and what `begin_read` gave back still counts.
    pub(super) fn end_read(&mut self, unread: BTreeSet<String>, read: Option<StoredOptIns>) {
        match read {
            Some(read) => {
                self.stored = read.pods;
                self.key_seen |= read.key_seen;
            }
            None => self.committed.extend(unread),
        }
    }
}

/// Reads all pods and namespaces of a snapshot.
///
/// # Errors
/// The store's.
pub(super) fn read_opt_ins(snapshot: &Snapshot) -> Result<StoredOptIns, StoreError> {
    let mut stored = StoredOptIns::default();
    if !snapshot.has_mention()? {
        return Ok(stored);
    }
    let namespaces = stored.read_namespaces(snapshot)?;
    stored.read_pods(snapshot, &namespaces)?;
    Ok(stored)
}

impl StoredOptIns {
    /// The names of the namespaces whose pods are steered.
    fn read_namespaces(&mut self, snapshot: &Snapshot) -> Result<BTreeSet<String>, StoreError> {
        let mut names = BTreeSet::new();
        let mut walk = snapshot.walk(NAMESPACES)?;
        while let Some(found) = walk.next(|record| OptIn::of_mentioning(&record))? {
            self.key_seen |= found.is_some();
            let steered = found.filter(|namespace| namespace.steer == Some(true));
            names.extend(steered.map(|namespace| namespace.name));
        }
        Ok(names)
    }

    fn read_pods(
        &mut self,
        snapshot: &Snapshot,
        namespaces: &BTreeSet<String>,
    ) -> Result<(), StoreError> {
        let mut walk = snapshot.walk(PODS)?;
        while let Some(pod) = walk.next(|record| StoredPod::read(&record, namespaces))? {
            self.key_seen |= pod.mentions_key;
            self.pods.extend(pod.steered);
        }
        Ok(())
    }
}

struct StoredPod {
    mentions_key: bool,
    /// Its UID, if it is steered.
    steered: Option<String>,
}

impl StoredPod {
    /// A pod that doesn't carry the key is parsed only for its namespace's sake.
    fn read(record: &Record<'_>, namespaces: &BTreeSet<String>) -> Self {
        let mentions_key = mentions_key(record);
        let parsed = (mentions_key || !namespaces.is_empty()).then(|| OptIn::of(record));
        let steered = parsed.flatten().filter(|pod| pod.is_steered(namespaces));
        Self {
            mentions_key,
            steered: steered.map(|pod| pod.uid),
        }
    }
}

fn mentions_key(record: &Record<'_>) -> bool {
    memchr::memmem::find(record.body, STEER.as_bytes()).is_some()
}

/// The part of a pod's or namespace's metadata that decides.
#[derive(Debug, PartialEq, Eq)]
struct OptIn {
    name: String,
    namespace: String,
    uid: String,
    /// `None`: it carries no [`STEER`].
    steer: Option<bool>,
}

#[derive(Deserialize)]
struct Object<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Metadata<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    namespace: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow)]
    labels: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
    #[serde(borrow)]
    annotations: BTreeMap<Cow<'a, str>, Cow<'a, str>>,
}

/// Field numbers of `ObjectMeta` in apimachinery's generated.proto.
mod object_meta {
    pub(super) const NAME: u64 = 1;
    pub(super) const NAMESPACE: u64 = 3;
    pub(super) const UID: u64 = 5;
    pub(super) const LABELS: u64 = 11;
    pub(super) const ANNOTATIONS: u64 = 12;
}

impl OptIn {
    /// `None` for an object that can't be read; it is not steered.
    fn of(record: &Record<'_>) -> Option<Self> {
        match record.encoding {
            Encoding::Json => Self::of_json(record.body),
            Encoding::Protobuf => Self::of_protobuf(record.body),
        }
    }

    /// `None` also for an object that doesn't mention the key, which is not parsed.
    fn of_mentioning(record: &Record<'_>) -> Option<Self> {
        mentions_key(record).then(|| Self::of(record)).flatten()
    }

    fn of_json(body: &[u8]) -> Option<Self> {
        let Object { metadata } = serde_json::from_slice(body).ok()?;
        let value = [&metadata.annotations, &metadata.labels]
            .into_iter()
            .find_map(|map| map.get(STEER));
        Some(Self {
            steer: value.map(|value| value == "true"),
            name: metadata.name.into_owned(),
            namespace: metadata.namespace.into_owned(),
            uid: metadata.uid.into_owned(),
        })
    }

    fn of_protobuf(body: &[u8]) -> Option<Self> {
        let raw = Unknown::parse(body).ok()?.raw;
        let meta = bytes_fields(raw, 1).next()?;
        let value = map_value(meta, object_meta::ANNOTATIONS, STEER)
            .or_else(|| map_value(meta, object_meta::LABELS, STEER));
        Some(Self {
            name: text_field(meta, object_meta::NAME)?,
            namespace: text_field(meta, object_meta::NAMESPACE)?,
            uid: text_field(meta, object_meta::UID)?,
            steer: value.map(|value| value == b"true"),
        })
    }

    fn is_steered(&self, namespaces: &BTreeSet<String>) -> bool {
        self.steer
            .unwrap_or_else(|| namespaces.contains(&self.namespace))
    }
}

/// Empty when absent, as protobuf has it; `None` when it is not UTF-8.
fn text_field(message: &[u8], field: u64) -> Option<String> {
    let bytes = bytes_fields(message, field).last().unwrap_or_default();
    String::from_utf8(bytes.to_vec()).ok()
}

/// A value of a `map<string, string>`.
fn map_value<'a>(message: &'a [u8], field: u64, key: &str) -> Option<&'a [u8]> {
    let entry = bytes_fields(message, field)
        .find(|entry| bytes_fields(entry, 1).last() == Some(key.as_bytes()))?;
    bytes_fields(entry, 2).last()
}

/// The values of one length-delimited field, up to the first damaged one.
pub(super) fn bytes_fields(message: &[u8], field: u64) -> impl Iterator<Item = &[u8]> {
    Fields::new(message)
        .map_while(Result::ok)
        .filter_map(move |found| match found {
            (number, Value::Bytes(bytes)) if number == field => Some(bytes),
            _ => None,
        })
}

#[cfg(test)]
#[path = "pods_tests.rs"]
mod tests;
