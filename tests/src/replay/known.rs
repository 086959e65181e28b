//! The newest answers of the cloud, to compare with answers given after the cut.

use std::collections::BTreeMap;

use bytes::Bytes;
use http::Method;
use serde_json::Value;

use super::learn::read_identities;
use super::protobuf;
use super::recording::Exchange;
use crate::client::Answer;

/// The newest state that the cloud has sent for each read: its own answer, or that of a later write of the object.
#[derive(Debug, Default)]
pub struct Known {
    /// By path without query: objects' last states, lists' last answers are by path with query.
    answers: BTreeMap<String, (u16, Bytes)>,
    /// The reads, each once, by URI.
    reads: BTreeMap<String, Exchange>,
}

impl Known {
    /// Takes note of an exchange and its live answer.
    pub fn record(&mut self, exchange: &Exchange, answer: &Answer) {
        let path = exchange.uri.trim_end_matches("/status").to_owned();
        let newest = (answer.status, answer.body.clone());
        match exchange.method {
            Method::GET => {
                self.reads.insert(exchange.uri.clone(), exchange.clone());
                self.answers.insert(path, newest);
            }
            _ if !(200..300).contains(&answer.status) => {}
            Method::DELETE => {
                self.answers.insert(path, (404, Bytes::new()));
            }
            // The object's own path is the collection's with its name.
            Method::POST => {
                for identity in read_identities(&answer.body) {
                    self.answers
                        .insert(format!("{path}/{}", identity.name), (200, newest.1.clone()));
                }
            }
            _ => {
                self.answers.insert(path, newest);
            }
        }
    }

    /// The reads made so far, each once.
    pub fn reads(&self) -> impl Iterator<Item = &Exchange> {
        self.reads.values()
    }

    /// The difference between an answer from the store to this read and the cloud's newest one, if there is one.
    pub fn find_contradiction(&self, read: &Exchange, answer: &Answer) -> Option<String> {
        let Some((status, body)) = self.answers.get(&read.uri) else {
            return Some("the cloud never got this request".into());
        };
        if answer.status != *status {
            let text = String::from_utf8_lossy(&answer.body);
            return Some(format!(
                "the cloud answered {status}, the store {}: {text}",
                answer.status
            ));
        }
        if *status == 404 {
            let reason = status_reason(&answer.body);
            return (reason.as_deref() != Some("NotFound"))
                .then(|| format!("a 404 with reason {reason:?}"));
        }
        if is_list(body) {
            return self.list_contradiction(read, body, &answer.body);
        }
        (answer.body != *body).then(|| {
            format!(
                "not the newest copy: {} instead of {}",
                describe_body(&answer.body),
                describe_body(body)
            )
        })
    }

    /// A list holds what the cloud listed, each item as it was sent last, and nothing that the cloud never sent.
    fn list_contradiction(
        &self,
        read: &Exchange,
        listed_body: &[u8],
        answer: &[u8],
    ) -> Option<String> {
        let path = read.uri.split('?').next().unwrap_or_default();
        let stored = read_identities(answer);
        for listed in read_identities(listed_body) {
            let newest = self.answers.get(&format!("{path}/{}", listed.name));
            if newest.is_some_and(|(status, _)| *status == 404) {
                continue;
            }
            let version = newest
                .and_then(|(_, body)| read_identities(body).into_iter().next())
                .map_or(listed.version, |identity| identity.version);
            if !stored
                .iter()
                .any(|item| item.name == listed.name && item.version == version)
            {
                return Some(format!(
                    "{} isn't in the list in its version {version}",
                    listed.name
                ));
            }
        }
        stored
            .iter()
            .find(|item| {
                let newest = self.answers.get(&format!("{path}/{}", item.name));
                let exists = newest.is_some_and(|(status, _)| *status < 300);
                let is_listed = read_identities(listed_body)
                    .iter()
                    .any(|listed| listed.name == item.name);
                !exists && !is_listed
            })
            .map(|item| format!("the cloud never sent {}", item.name))
    }
}

/// Lists and discovery documents have no name of their own; only lists have items with identities.
fn is_list(body: &[u8]) -> bool {
    match protobuf::decode_envelope(body) {
        Ok(envelope) => envelope.kind.ends_with("List"),
        Err(_) => serde_json::from_slice::<Value>(body).is_ok_and(|value| {
            value["kind"]
                .as_str()
                .is_some_and(|kind| kind.ends_with("List") && !kind.starts_with("API"))
        }),
    }
}

/// `reason` of a `Status` in either encoding.
pub fn status_reason(body: &[u8]) -> Option<String> {
    if let Ok(envelope) = protobuf::decode_envelope(body) {
        return (envelope.kind == "Status")
            .then(|| envelope.object["4"][0].as_str().map(str::to_owned))?;
    }
    let value: Value = serde_json::from_slice(body).ok()?;
    (value["kind"] == "Status").then(|| value["reason"].as_str().map(str::to_owned))?
}

fn describe_body(body: &[u8]) -> String {
    match read_identities(body).first() {
        Some(identity) => format!(
            "{} at {} ({} bytes)",
            identity.name,
            identity.version,
            body.len()
        ),
        None => format!("{} bytes", body.len()),
    }
}
