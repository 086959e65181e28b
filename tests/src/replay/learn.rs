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
            let live = learnt.get(recorded).with_context(|| {
                format!("no answer before this request has told of {field} {recorded}")
            })?;
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
        let of = |object: &Value| {
            let text = |pointer: &str| {
                object
                    .pointer(pointer)
                    .and_then(Value::as_str)
                    .map(str::to_owned)
            };
            Some(Identity {
                name: text("/1/0/1/0")?,
                uid: text("/1/0/5/0")?,
                version: text("/1/0/6/0")?,
            })
        };
        if envelope.kind.ends_with("List") {
            return envelope.object["2"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(of)
                .collect();
        }
        return of(&envelope.object).into_iter().collect();
    }
    let of = |object: &Value| {
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        Some(Identity {
            name: text("name")?,
            uid: text("uid")?,
            version: text("resourceVersion")?,
        })
    };
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    match value["items"].as_array() {
        Some(items) => items.iter().filter_map(of).collect(),
        None => of(&value).into_iter().collect(),
    }
}
