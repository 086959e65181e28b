//! Pods that opt in or out, as the store's feed reports them.

use hublet_wire::meta::TypeMeta;
use hublet_wire::protobuf::{encode_envelope, put_bytes};

use super::*;
use crate::cache::feed::testing::{observed, store_with};

fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (field, bytes) in fields {
        put_bytes(&mut out, *field, bytes);
    }
    out
}

fn pod(namespace: &str, name: &str, metadata: &str) -> (String, String) {
    let json = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"{namespace}","uid":"uid-{name}","resourceVersion":"5"{metadata}}}}}"#
    );
    (format!("/pods/{namespace}/{name}"), json)
}

fn namespace(name: &str, metadata: &str) -> (String, String) {
    let json = format!(
        r#"{{"kind":"Namespace","apiVersion":"v1","metadata":{{"name":"{name}","uid":"n","resourceVersion":"6"{metadata}}}}}"#
    );
    (format!("/namespaces/{name}"), json)
}

const OPTS_IN: &str = r#","annotations":{"hublet.io/steer":"true"}"#;
const LABEL_IN: &str = r#","labels":{"hublet.io/steer":"true"}"#;
const LABEL_OUT: &str = r#","labels":{"hublet.io/steer":"false"}"#;

fn uids(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("uid-{name}")).collect()
}

fn stored(objects: &[(String, String)]) -> StoredOptIns {
    let (_dir, store) = store_with(objects);
    read_opt_ins(&store.snapshot().expect("snapshot")).expect("read")
}

#[test]
fn an_opt_in_is_read_in_both_encodings() {
    let entry = message(&[(1, STEER.as_bytes()), (2, b"true")]);
    let meta = message(&[(1, b"a"), (3, b"n"), (5, b"uid-a"), (12, &entry)]);
    let protobuf = encode_envelope(
        TypeMeta {
            api_version: "v1",
            kind: "Pod",
        },
        &message(&[(1, &meta)]),
    );
    let expected = OptIn {
        name: "a".into(),
        namespace: "n".into(),
        uid: "uid-a".into(),
        steer: Some(true),
    };
    let (_, json) = pod("n", "a", OPTS_IN);
    assert_eq!(OptIn::of_json(json.as_bytes()).as_ref(), Some(&expected));
    assert_eq!(OptIn::of_protobuf(&protobuf), Some(expected));
    let of = |metadata: &str| OptIn::of_json(pod("n", "a", metadata).1.as_bytes());
    assert_eq!(of(LABEL_OUT).and_then(|opt_in| opt_in.steer), Some(false));
    let other_label = r#","labels":{"x":"hublet.io/steer"}"#;
    assert_eq!(of(other_label).and_then(|opt_in| opt_in.steer), None);
    assert_eq!(OptIn::of_json(b"{"), None);
    assert_eq!(OptIn::of_protobuf(b"k8s\0\xff"), None);
}

#[test]
fn an_annotation_takes_precedence_over_a_label() {
    let both = format!("{OPTS_IN}{LABEL_OUT}");
    let (_, json) = pod("n", "a", &both);
    let opt_in = OptIn::of_json(json.as_bytes()).expect("a pod");
    assert_eq!(opt_in.steer, Some(true));
}

#[test]
fn pods_opt_in_by_themselves_and_by_their_namespace() {
    let silent = [pod("a", "silent", ""), namespace("a", "")];
    assert_eq!(stored(&silent), StoredOptIns::default());
    let objects = [
        pod("a", "silent", ""),
        pod("a", "wants", OPTS_IN),
        namespace("b", LABEL_IN),
        pod("b", "follows", ""),
        pod("b", "refuses", LABEL_OUT),
    ];
    let expected = StoredOptIns {
        pods: uids(&["follows", "wants"]),
        key_seen: true,
    };
    assert_eq!(stored(&objects), expected);
}

#[test]
fn an_opted_out_pod_alone_makes_later_reads_due() {
    assert!(stored(&[pod("a", "refuses", LABEL_OUT)]).key_seen);
    assert!(stored(&[namespace("a", LABEL_OUT)]).key_seen);
}

#[test]
fn an_observed_pod_counts_until_the_read_after_its_commit() {
    let mut opt_ins = PodOptIns::default();
    let (key, json) = pod("a", "wants", OPTS_IN);
    assert!(opt_ins.observe(&[observed(&key, &json)]));
    assert!(!opt_ins.observe(&[observed(&key, &json)]), "known already");
    assert_eq!(opt_ins.uids(), uids(&["wants"]));
    assert!(opt_ins.commit(&[PODS]));
    assert_eq!(opt_ins.uids(), uids(&["wants"]));
    let unread = opt_ins.begin_read();
    opt_ins.end_read(unread, Some(StoredOptIns::default()));
    assert_eq!(opt_ins.uids(), BTreeSet::new(), "deleted meanwhile");
}

#[test]
fn a_failed_read_loses_no_pod() {
    let mut opt_ins = PodOptIns::default();
    let (key, json) = pod("a", "wants", OPTS_IN);
    opt_ins.observe(&[observed(&key, &json)]);
    opt_ins.commit(&[PODS]);
    let unread = opt_ins.begin_read();
    opt_ins.end_read(unread, None);
    assert_eq!(opt_ins.uids(), uids(&["wants"]));
}

#[test]
fn no_read_is_due_while_no_object_carries_the_key() {
    let mut opt_ins = PodOptIns::default();
    let (key, json) = pod("a", "silent", "");
    assert!(!opt_ins.observe(&[observed(&key, &json)]));
    assert!(!opt_ins.commit(&[PODS]));
    let (key, json) = namespace("a", LABEL_IN);
    assert!(!opt_ins.observe(&[observed(&key, &json)]), "no pod");
    assert!(opt_ins.commit(&[NAMESPACES]));
    assert!(!opt_ins.commit(&[b"/services/default/kubernetes"]));
}
