//! Protobuf as it is read and written here is what the types mean that are generated from Kubernetes' `.proto` files.
#![allow(clippy::unwrap_used, reason = "a test outside of `cfg(test)`")]

use std::fs;
use std::path::Path;

use hublet_wire::list::{ListHead, ProtobufListSplitter, push_protobuf_item};
use hublet_wire::media::Encoding;
use hublet_wire::meta::{INITIAL_EVENTS_END, Meta, ResourceVersion, TypeMeta};
use hublet_wire::protobuf::{self, Unknown, encode_envelope, parse_object_meta, parse_status};
use hublet_wire::status::{Status, StatusDetails};
use hublet_wire::watch::{Bookmark, BookmarkPlace, EventType, ProtobufWatchSplitter, push_frame};
use hublet_wire::{json, list};
use k8s_pb::api::core::v1::{Container, Pod, PodSpec};
use k8s_pb::apimachinery::pkg::apis::meta::v1 as metav1;
use k8s_pb::apimachinery::pkg::runtime;
use prost::Message;

/// Recorded bodies, which the fuzz targets begin with.
fn recorded(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut bodies: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                fs::read(path).unwrap(),
            )
        })
        .collect();
    bodies.sort();
    bodies
}

fn recorded_body(target: &str, name: &str) -> Vec<u8> {
    let bodies = recorded(target);
    let found = bodies.into_iter().find(|(known, _)| known == name);
    found.unwrap_or_else(|| panic!("no recording {name}")).1
}

/// A whole body as the generated types read it.
fn decode_unknown(body: &[u8]) -> runtime::Unknown {
    runtime::Unknown::decode(body.strip_prefix(protobuf::MAGIC).unwrap()).unwrap()
}

fn assert_same_type(read: TypeMeta<'_>, decoded: &runtime::Unknown) {
    let type_meta = decoded.type_meta.as_ref().unwrap();
    assert_eq!(read.api_version, type_meta.api_version());
    assert_eq!(read.kind, type_meta.kind());
}

fn assert_same_meta(read: &Meta<'_>, decoded: &metav1::ObjectMeta) {
    assert_eq!(read.name, decoded.name());
    assert_eq!(read.namespace, decoded.namespace());
    assert_eq!(read.uid, decoded.uid());
    assert_eq!(read.resource_version, decoded.resource_version());
    assert_eq!(read.deleting, decoded.deletion_timestamp.is_some());
    let grace = decoded.deletion_grace_period_seconds();
    assert_eq!(read.grace_seconds, u64::try_from(grace).unwrap());
    assert_eq!(read.finalizers, !decoded.finalizers.is_empty());
    let end = decoded.annotations.get(INITIAL_EVENTS_END);
    assert_eq!(
        read.initial_events_end,
        end.is_some_and(|value| value == "true")
    );
}

/// Compares a whole body of any object but a list.
fn assert_same_object(body: &[u8]) {
    let (read, decoded) = (Unknown::parse(body).unwrap(), decode_unknown(body));
    assert_same_type(read.type_meta, &decoded);
    assert_eq!(read.raw, decoded.raw());
    if read.type_meta.kind == "Status" {
        return assert_same_status(read.raw);
    }
    let object = metav1::PartialObjectMetadata::decode(read.raw).unwrap();
    let meta = parse_object_meta(read.raw).unwrap();
    assert_same_meta(&meta, &object.metadata.unwrap());
}

fn assert_same_status(raw: &[u8]) {
    let (read, decoded) = (
        parse_status(raw).unwrap(),
        metav1::Status::decode(raw).unwrap(),
    );
    assert_eq!(read.status, decoded.status());
    assert_eq!(read.reason, decoded.reason());
    let details = decoded.details.unwrap_or_default();
    assert_eq!(
        (&*read.name, &*read.resource),
        (details.name(), details.kind())
    );
}

fn split_list(body: &[u8]) -> (ListHead, Vec<Vec<u8>>) {
    let (mut splitter, mut items) = (ProtobufListSplitter::default(), Vec::new());
    let pushed = splitter.push(body, &mut |_, item| {
        items.push(item.to_vec());
        Ok(())
    });
    pushed.unwrap();
    (splitter.finish().unwrap(), items)
}

fn assert_same_list(body: &[u8]) {
    let (head, items) = split_list(body);
    let decoded = decode_unknown(body);
    let type_meta = TypeMeta {
        api_version: &head.api_version,
        kind: &head.kind,
    };
    assert_same_type(type_meta, &decoded);
    let list = metav1::PartialObjectMetadataList::decode(decoded.raw()).unwrap();
    let meta = list.metadata.unwrap();
    assert_eq!(head.resource_version, meta.resource_version());
    assert_eq!(head.continue_token, meta.r#continue());
    assert_eq!(items.len(), list.items.len());
    for (item, object) in items.iter().zip(&list.items) {
        let read = parse_object_meta(item).unwrap();
        assert_same_meta(&read, object.metadata.as_ref().unwrap());
    }
}

/// Compares the frames of a watch; their types.
fn assert_same_watch(stream: &[u8]) -> Vec<String> {
    let (mut splitter, mut frames) = (ProtobufWatchSplitter::default(), Vec::new());
    let pushed = splitter.push(stream, &mut |frame| {
        frames.push(frame.to_vec());
        Ok(())
    });
    pushed.unwrap();
    let lens: usize = frames.iter().map(|frame| 4 + frame.len()).sum();
    assert_eq!(lens, stream.len());
    frames
        .iter()
        .map(|frame| assert_same_event(frame))
        .collect()
}

fn assert_same_event(frame: &[u8]) -> String {
    let (kind, body) = protobuf::parse_watch_event(frame).unwrap();
    let decoded = metav1::WatchEvent::decode(frame).unwrap();
    assert_eq!(kind, decoded.r#type());
    assert_eq!(body, decoded.object.as_ref().unwrap().raw());
    assert_same_object(body);
    kind.to_owned()
}

#[test]
fn recorded_objects_lists_and_watches_are_read_alike() {
    let mut objects = 0;
    for (name, body) in recorded("protobuf") {
        if !body.starts_with(protobuf::MAGIC) || name.starts_with("list-") {
            continue;
        }
        assert_same_object(&body);
        objects += 1;
    }
    let lists = recorded("list_protobuf");
    lists.iter().for_each(|(_, body)| assert_same_list(body));
    let mut watches = 0;
    for (_, stream) in recorded("watch")
        .iter()
        .filter(|(_, stream)| stream[0] == 0)
    {
        assert!(!assert_same_watch(stream).is_empty());
        watches += 1;
    }
    assert!(objects >= 2 && lists.len() >= 6 && watches >= 3);
}

/// The API server sends the same object in both encodings.
#[test]
fn an_object_reads_the_same_in_json_and_protobuf() {
    let text = recorded_body("json", "get-pod-json");
    let head = json::parse_head(&text).unwrap();
    let body = recorded_body("protobuf", "get-pod-protobuf");
    let unknown = Unknown::parse(&body).unwrap();
    assert_eq!(parse_object_meta(unknown.raw).unwrap(), head.meta);
    assert_eq!(unknown.type_meta.kind, head.kind);
}

fn pod(metadata: metav1::ObjectMeta) -> Pod {
    let container = Container {
        name: Some("main".to_owned()),
        image: Some("example.com/image:1".to_owned()),
        ..Container::default()
    };
    let spec = PodSpec {
        node_name: Some("edge-1".to_owned()),
        containers: vec![container; 3],
        ..PodSpec::default()
    };
    Pod {
        metadata: Some(metadata),
        spec: Some(spec),
        status: None,
    }
}

/// Pods whose metadata differ in every field that is read.
fn generated_pods() -> Vec<Pod> {
    let named = |name: &str, version: u64| metav1::ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some(version.to_string()),
        ..metav1::ObjectMeta::default()
    };
    let deleting = metav1::ObjectMeta {
        deletion_timestamp: Some(metav1::Time {
            seconds: Some(1_700_000_000),
            nanos: Some(0),
        }),
        deletion_grace_period_seconds: Some(30),
        finalizers: vec!["example.com/a".to_owned(), "example.com/b".to_owned()],
        ..named("b", 300)
    };
    let annotated = metav1::ObjectMeta {
        annotations: [("k8s.io/other", "true"), (INITIAL_EVENTS_END, "true")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
        labels: [("é".repeat(200), "x".repeat(70_000))].into(),
        ..named("c", u64::MAX)
    };
    let denied = metav1::ObjectMeta {
        annotations: [(INITIAL_EVENTS_END.to_owned(), "false".to_owned())].into(),
        ..named("d", 1)
    };
    [
        metav1::ObjectMeta::default(),
        named("a", 7),
        deleting,
        annotated,
        denied,
    ]
    .map(pod)
    .into()
}

const POD: TypeMeta<'_> = TypeMeta {
    api_version: "v1",
    kind: "Pod",
};

#[test]
fn generated_objects_are_read_as_they_were_made() {
    for pod in generated_pods() {
        let raw = pod.encode_to_vec();
        let meta = pod.metadata.unwrap();
        assert_same_meta(&parse_object_meta(&raw).unwrap(), &meta);
        let unknown = runtime::Unknown {
            type_meta: Some(runtime::TypeMeta {
                api_version: Some(POD.api_version.to_owned()),
                kind: Some(POD.kind.to_owned()),
            }),
            raw: Some(raw),
            content_encoding: None,
            content_type: None,
        };
        assert_same_object(&[&protobuf::MAGIC[..], &unknown.encode_to_vec()].concat());
    }
}

#[test]
fn a_written_list_holds_its_items() {
    let pods = generated_pods();
    let mut items = Vec::new();
    for pod in &pods {
        push_protobuf_item(&mut items, &pod.encode_to_vec());
    }
    let sum: usize = pods
        .iter()
        .map(|pod| list::protobuf_item_len(pod.encoded_len()))
        .sum();
    assert_eq!(items.len(), sum);
    let head = ListHead {
        kind: "PodList".to_owned(),
        api_version: "v1".to_owned(),
        resource_version: "77".to_owned(),
        continue_token: "next".to_owned(),
        unstructured: false,
    };
    let envelope = head.encode_protobuf(items.len());
    let body = [envelope.head, items, envelope.tail].concat();
    assert_same_list(&body);
    let decoded = decode_unknown(&body);
    let list = k8s_pb::api::core::v1::PodList::decode(decoded.raw()).unwrap();
    assert_eq!(list.items, pods);
    assert_eq!(
        (decoded.content_encoding(), decoded.content_type()),
        ("", "")
    );
}

#[test]
fn a_written_watch_holds_its_objects_and_bookmarks() {
    let pods = generated_pods();
    let types = [EventType::Added, EventType::Modified, EventType::Deleted];
    let mut stream = Vec::new();
    for (pod, event) in pods.iter().zip(types) {
        let body = encode_envelope(POD, &pod.encode_to_vec());
        push_frame(&mut stream, event, Encoding::Protobuf, &body);
    }
    for place in [BookmarkPlace::InitialEventsEnd, BookmarkPlace::Later] {
        let bookmark = Bookmark {
            type_meta: POD,
            resource_version: ResourceVersion::new(42),
            place,
        };
        bookmark.push_frame(&mut stream, Encoding::Protobuf);
    }
    let written = assert_same_watch(&stream);
    assert_eq!(
        written,
        ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "BOOKMARK"]
    );
}

#[test]
fn a_written_status_is_the_generated_one() {
    let details = StatusDetails {
        name: "a",
        group: "apps",
        resource: "deployments",
    };
    for (code, details) in [(404, Some(details)), (503, None), (u16::MAX, Some(details))] {
        let status = Status {
            code,
            reason: "NotFound",
            message: "not “found”",
            details,
        };
        let body = status.encode(Encoding::Protobuf);
        assert_same_object(&body);
        let decoded = metav1::Status::decode(decode_unknown(&body).raw()).unwrap();
        assert_eq!(decoded.code(), i32::from(code));
        assert_eq!(decoded.message(), status.message);
        assert_eq!(decoded.status(), "Failure");
        assert_eq!(decoded.details.is_some(), details.is_some());
        let group = decoded.details.unwrap_or_default().group().to_owned();
        assert_eq!(group, details.map_or("", |details| details.group));
    }
}
