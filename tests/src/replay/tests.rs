//! The replay's own judgement, without a cloud: it must accept what only differs between clusters, and nothing else.

use std::time::Duration;

use bytes::Bytes;

use super::compare::find_differences;
use super::learn::read_identities;
use super::{Exchange, Known, Recording, protobuf};
use crate::client::Answer;

fn recording() -> Recording {
    Recording::load_calico().unwrap()
}

fn exchange(id: u32) -> Exchange {
    recording()
        .all()
        .iter()
        .find(|exchange| exchange.id == id)
        .unwrap()
        .clone()
}

/// The recorded answer, as if a server had given it again, with another body.
fn answer(exchange: &Exchange, body: impl Into<Bytes>) -> Answer {
    let headers = exchange.answer_headers.iter().map(|(name, value)| {
        let value = if value.is_empty() { "1" } else { value };
        (name.parse().unwrap(), value.parse().unwrap())
    });
    Answer {
        status: exchange.status,
        headers: headers.collect(),
        body: body.into(),
        protocol: http::Version::HTTP_2,
        subject: String::new(),
        took: Duration::ZERO,
    }
}

fn with(exchange: &Exchange, old: &str, new: &str) -> Answer {
    let text = latin1(&exchange.answer);
    assert!(text.contains(old), "{old} isn't in {exchange}");
    let bytes: Vec<u8> = text
        .replace(old, new)
        .chars()
        .map(|c| u8::try_from(u32::from(c)).unwrap())
        .collect();
    answer(exchange, bytes)
}

/// Bytes as Latin-1, so that a protobuf body can be edited where lengths stay the same.
fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| char::from(*byte)).collect()
}

#[test]
fn every_recorded_answer_equals_itself() {
    for exchange in recording().all() {
        let found = find_differences(exchange, &answer(exchange, exchange.answer.clone()));
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn uids_versions_and_times_of_another_cluster_are_accepted() {
    let handle = exchange(23);
    for (old, new) in [
        (
            "ce7a6f6a-fd22-406d-a78f-ca39dde3a815",
            "00000000-0000-4000-8000-000000000000",
        ),
        ("\"10423\"", "\"7\""),
        ("2026-11-22T16:32:53Z", "2031-01-01T00:00:00Z"),
    ] {
        assert!(
            find_differences(&handle, &with(&handle, old, new)).is_empty(),
            "{old}"
        );
    }
    let pod = exchange(4);
    for (old, new) in [
        (
            "e60b6081-deaf-403f-aae4-3690a423bde3",
            "00000000-0000-4000-8000-000000000000",
        ),
        ("10418", "99999"),
        ("kube-api-access-z9jh6", "kube-api-access-aaaaa"),
    ] {
        assert!(
            find_differences(&pod, &with(&pod, old, new)).is_empty(),
            "{old}"
        );
    }
    let deleted = exchange(60);
    assert!(find_differences(&deleted, &with(&deleted, "ce7a6f6a", "00000000")).is_empty());
}

#[test]
fn anything_else_is_a_difference() {
    for (id, old, new) in [
        (23, "\"deleted\":false", "\"deleted\":true"),
        (
            23,
            "\"manager\":\"Go-http-client\"",
            "\"manager\":\"hublet\"",
        ),
        (24, "1795365173949336803", "1795365173949336804"), // one in the 19th digit
        (24, "\"unallocated\":[1,2", "\"unallocated\":[2,1"),
        (
            13,
            "\"uid\":\"68a23701-ef60-4a00-b8a1-dc7fc6a9870b\"",
            "\"uid\":\"\"",
        ),
        (13, "\"items\":[", "\"other\":["),
        (4, "pod-a", "pod-b"),
        (4, "IfNotPresent", "IfNotAbsent\u{1}"),
        (10, "NotFound", "NotKnown"),
        (2, "blockaffinities", "blockaffinity"),
    ] {
        let exchange = exchange(id);
        assert!(
            !find_differences(&exchange, &with(&exchange, old, new)).is_empty(),
            "#{id}: {old} → {new}"
        );
    }
}

#[test]
fn status_and_headers_count() {
    let handle = exchange(23);
    let mut live = answer(&handle, handle.answer.clone());
    live.status = 200;
    live.headers
        .insert("content-type", "application/yaml".parse().unwrap());
    live.headers.remove("audit-id");
    live.headers.insert("server", "nginx".parse().unwrap());
    live.headers
        .insert("x-hublet-source", "cloud".parse().unwrap());
    let found: Vec<String> = find_differences(&handle, &live)
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(found.len(), 4, "{found:#?}");
    for (line, word) in found.iter().zip(["201", "audit-id", "yaml", "nginx"]) {
        assert!(line.contains(word), "{line}");
    }
}

#[test]
fn protobuf_bodies_are_read_without_a_schema() {
    let pod = protobuf::decode_envelope(&exchange(4).answer).unwrap();
    assert_eq!((pod.api_version.as_str(), pod.kind.as_str()), ("v1", "Pod"));
    assert_eq!(pod.object["2"][0]["10"][0], "edge-1"); // spec.nodeName
    let identity = &read_identities(&exchange(4).answer)[0];
    assert_eq!(
        (identity.name.as_str(), identity.version.as_str()),
        ("pod-a", "10418")
    );
    let body = &exchange(4).answer;
    for end in 0..body.len() {
        // A body cut anywhere is an error or another object, never a panic.
        let _ = protobuf::decode_envelope(&body[..end]);
    }
}

/// The answers that a store must give after the cut, taken from the recording itself.
#[test]
fn the_last_word_of_the_cloud_is_known() {
    let mut known = Known::default();
    for exchange in recording().all() {
        known.record(exchange, &answer(exchange, exchange.answer.clone()));
    }
    let read = |id: u32| {
        let uri = exchange(id).uri;
        known.reads().find(|read| read.uri == uri).unwrap().clone()
    };
    let contradiction = |id: u32, of: u32| {
        let of = exchange(of);
        known.find_contradiction(&read(id), &answer(&of, of.answer.clone()))
    };
    // A pod is what its last PATCH returned, not what was read before it.
    assert_eq!(contradiction(49, 50), None);
    assert!(
        contradiction(49, 49)
            .unwrap()
            .contains("not the newest copy")
    );
    // pod-b's handle was absent, then created (201; a read of it is 200); pod-a's was there, then deleted.
    let created = exchange(43);
    let mut read_again = answer(&created, created.answer.clone());
    read_again.status = 200;
    assert_eq!(known.find_contradiction(&read(42), &read_again), None);
    assert!(
        contradiction(42, 42)
            .unwrap()
            .contains("the cloud answered")
    );
    let gone = exchange(22);
    assert_eq!(
        known.find_contradiction(&read(53), &answer(&gone, gone.answer.clone())),
        None
    );
    assert!(contradiction(53, 59).unwrap().contains("404"));
    // A list may hold what was created since; it may not lack what it held, or invent.
    assert_eq!(contradiction(39, 39), None);
    let empty = exchange(14);
    assert!(
        known
            .find_contradiction(&read(39), &answer(&empty, empty.answer.clone()))
            .unwrap()
            .contains("isn't in the list")
    );
    let invented = with(
        &exchange(39),
        "\"name\":\"edge-1-10-244-228-128-26\"",
        "\"name\":\"other\"",
    );
    assert!(known.find_contradiction(&read(39), &invented).is_some());
}
