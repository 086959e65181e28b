//! Two answers held against each other: what a client could notice, as readable lines.
//!
//! Blanked before the comparison, because two clusters never agree on them: uids, resourceVersions, times, the
//! random end of a pod's token volume, and the component names in `managedFields` that depend on how the binaries
//! are called.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Value, json};

use super::protobuf;
use super::recording::Exchange;
use crate::client::Answer;

/// Something that isn't as recorded.
#[derive(Debug, Clone)]
pub struct Difference {
    /// The exchange, readable.
    pub exchange: String,
    /// The place of the difference, and the recorded and the live value.
    pub what: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.exchange, self.what)
    }
}

/// All differences of an answer from the recorded one: status, headers, body.
pub fn find_differences(recorded: &Exchange, live: &Answer) -> Vec<Difference> {
    let mut lines = Vec::new();
    if live.status != recorded.status {
        let body = String::from_utf8_lossy(&live.body);
        lines.push(format!(
            "status: recorded {}, live {}: {body}",
            recorded.status, live.status
        ));
    }
    compare_headers(recorded, live, &mut lines);
    match (normalise(&recorded.answer), normalise(&live.body)) {
        (recorded, live) if recorded == live => {}
        (recorded, live) => compare_values("body", &recorded, &live, &mut lines),
    }
    lines
        .into_iter()
        .map(|what| Difference {
            exchange: recorded.to_string(),
            what,
        })
        .collect()
}

/// Every recorded header is there, with its value where that is constant; what is new is hublet's own.
fn compare_headers(recorded: &Exchange, live: &Answer, lines: &mut Vec<String>) {
    for (name, value) in &recorded.answer_headers {
        match live.headers.get(name) {
            None => lines.push(format!("header {name}: missing")),
            Some(live) if !value.is_empty() && live != value => {
                lines.push(format!("header {name}: recorded {value:?}, live {live:?}"));
            }
            Some(_) => {}
        }
    }
    for name in live.headers.keys() {
        if !recorded.answer_headers.contains_key(name.as_str())
            && !name.as_str().starts_with("x-hublet-")
        {
            lines.push(format!(
                "header {name}: not recorded, live {:?}",
                live.headers[name]
            ));
        }
    }
}

/// A body as a tree with everything blanked that is of one cluster only; text that is neither JSON nor protobuf
/// stays text.
pub fn normalise(body: &[u8]) -> Value {
    if let Ok(envelope) = protobuf::decode_envelope(body) {
        let mut object = envelope.object;
        blank_protobuf(&envelope.kind, &mut object);
        blank_texts(&mut object);
        return json!({"apiVersion": envelope.api_version, "kind": envelope.kind, "object": object});
    }
    match serde_json::from_slice::<Value>(body) {
        Err(_) => Value::String(String::from_utf8_lossy(body).into_owned()),
        Ok(mut value) => {
            blank_json(&mut value);
            blank_texts(&mut value);
            value
        }
    }
}

fn blank_value(value: &mut Value) {
    // What is missing or empty in one and not in the other stays a difference.
    if !matches!(value, Value::Null) && *value != "" {
        *value = json!("*");
    }
}

fn blank_json(value: &mut Value) {
    for item in value["items"].as_array_mut().into_iter().flatten() {
        blank_json(item);
    }
    for (parent, fields) in [
        (
            "metadata",
            &["uid", "resourceVersion", "creationTimestamp"][..],
        ),
        ("details", &["uid"]),
    ] {
        let Some(parent) = value.get_mut(parent).and_then(Value::as_object_mut) else {
            continue;
        };
        for field in fields {
            parent.get_mut(*field).into_iter().for_each(blank_value);
        }
        let Some(entries) = parent
            .get_mut("managedFields")
            .and_then(Value::as_array_mut)
        else {
            continue;
        };
        for entry in entries.iter_mut() {
            entry.get_mut("time").into_iter().for_each(blank_value);
            entry
                .get_mut("manager")
                .into_iter()
                .for_each(normalise_component);
        }
        // The server sorts them by time, which is blank now.
        entries.sort_by_key(Value::to_string);
    }
}

fn blank_protobuf(kind: &str, object: &mut Value) {
    if kind == "Status" {
        object
            .pointer_mut("/5/0/6/0")
            .into_iter()
            .for_each(blank_value);
    } else if kind.ends_with("List") {
        object
            .pointer_mut("/1/0/2/0")
            .into_iter()
            .for_each(blank_value);
        for item in object
            .get_mut("2")
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            blank_object_meta(item);
        }
    } else {
        blank_object_meta(object);
    }
}

fn blank_object_meta(object: &mut Value) {
    let Some(meta) = object.pointer_mut("/1/0") else {
        return;
    };
    for field in ["/5/0", "/6/0", "/8/0"] {
        meta.pointer_mut(field).into_iter().for_each(blank_value);
    }
    let Some(entries) = meta.get_mut("17").and_then(Value::as_array_mut) else {
        return;
    };
    for entry in entries.iter_mut() {
        entry.pointer_mut("/4/0").into_iter().for_each(blank_value);
        entry
            .pointer_mut("/1/0")
            .into_iter()
            .for_each(normalise_component);
    }
    entries.sort_by_key(Value::to_string);
}

/// One name for a component, whatever its binary is called.
fn normalise_component(manager: &mut Value) {
    match manager.as_str() {
        Some("kube-apiserver") => *manager = json!("apiserver"),
        Some("kube-controller-manager") => *manager = json!("kcm"),
        _ => {}
    }
}

/// The name of a pod's token volume ends in five random characters.
fn blank_texts(value: &mut Value) {
    match value {
        Value::String(text) if text.starts_with("kube-api-access-") => {
            *text = "kube-api-access-*".into()
        }
        Value::Array(values) => values.iter_mut().for_each(blank_texts),
        Value::Object(fields) => fields.values_mut().for_each(blank_texts),
        _ => {}
    }
}

fn compare_values(path: &str, recorded: &Value, live: &Value, lines: &mut Vec<String>) {
    match (recorded, live) {
        (Value::Object(a), Value::Object(b)) => {
            for name in a.keys().chain(b.keys()).collect::<BTreeSet<_>>() {
                let [a, b] = [a, b].map(|object| object.get(name).unwrap_or(&Value::Null));
                compare_values(&format!("{path}.{name}"), a, b, lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                compare_values(&format!("{path}[{index}]"), a, b, lines);
            }
        }
        _ if recorded == live => {}
        _ => lines.push(format!(
            "{path}: recorded {}, live {}",
            shorten(recorded),
            shorten(live)
        )),
    }
}

fn shorten(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 300 {
        text
    } else {
        text.chars().take(300).chain("…".chars()).collect()
    }
}
