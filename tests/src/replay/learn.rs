//! The live uid and resourceVersion for each recorded one.

use std::collections::HashMap;

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::Value;

use super::protobuf;

/// Recorded → live, of uids and of resourceVersions.
#[derive(Debug, Default)]
pub(super) struct IdMap {
    uids: HashMap<String, String>,
    versions: HashMap<String, String>,
}

/// An object's identity in a body.
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) version: String,
}

/// Where name, uid and resourceVersion are in an object: by field number in protobuf, by name in JSON.
const PROTOBUF_POINTERS: [&str; 3] = ["/1/0/1/0", "/1/0/5/0", "/1/0/6/0"];
const JSON_POINTERS: [&str; 3] = [
    "/metadata/name",
    "/metadata/uid",
    "/metadata/resourceVersion",
];

impl Identity {
    fn at(object: &Value, pointers: [&str; 3]) -> Option<Self> {
        let [name, uid, version] =
            pointers.map(|pointer| object.pointer(pointer).and_then(Value::as_str));
        Some(Self {
            name: name?.to_owned(),
            uid: uid?.to_owned(),
            version: version?.to_owned(),
        })
    }
}

impl IdMap {
    /// Learns from a recorded answer and the live one. Versions of lists don't count: requests never carry them,
    /// and other writers of the cluster move them.
    pub(super) fn learn(&mut self, recorded: &[u8], live: &[u8]) {
        let live = read_identities(live);
        for recorded in read_identities(recorded) {
            let Some(live) = live.iter().find(|live| live.name == recorded.name) else {
                continue;
            };
            self.uids.insert(recorded.uid, live.uid.clone());
            self.versions.insert(recorded.version, live.version.clone());
        }
    }

    /// A recorded request body with the live uids and versions.
    pub(super) fn substitute_ids(&self, body: &Bytes) -> Result<Vec<u8>> {
        let value: Value =
            serde_json::from_slice(body).context("a recorded request body that isn't JSON")?;
        let mut text = String::from_utf8(body.to_vec())?;
        for (pointer, field, learnt) in [
            ("/metadata/uid", "uid", &self.uids),
            ("/preconditions/uid", "uid", &self.uids),
            (
                "/metadata/resourceVersion",
                "resourceVersion",
                &self.versions,
            ),
        ] {
            let Some(recorded) = value.pointer(pointer).and_then(Value::as_str) else {
                continue;
            };
            let live = learnt
                .get(recorded)
                .with_context(|| format!("no answer before this request has {field} {recorded}"))?;
            // In place, so that everything else is sent byte for byte.
            text = text.replace(
                &format!("\"{field}\":\"{recorded}\""),
                &format!("\"{field}\":\"{live}\""),
            );
        }
        Ok(text.into_bytes())
    }
}

/// The objects in a body: itself, or the items of a list.
pub(super) fn read_identities(body: &[u8]) -> Vec<Identity> {
    if let Ok(envelope) = protobuf::decode_envelope(body) {
        if envelope.kind.ends_with("List") {
            return envelope.object["2"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|item| Identity::at(item, PROTOBUF_POINTERS))
                .collect();
        }
        let object = Identity::at(&envelope.object, PROTOBUF_POINTERS);
        return object.into_iter().collect();
    }
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    match value["items"].as_array() {
        Some(items) => items
            .iter()
            .filter_map(|item| Identity::at(item, JSON_POINTERS))
            .collect(),
        None => Identity::at(&value, JSON_POINTERS).into_iter().collect(),
    }
}
