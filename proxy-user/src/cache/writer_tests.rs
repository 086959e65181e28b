//! The writer's bookkeeping while batches fail, without its thread.

use super::*;
use crate::cache::change::Observation;
use crate::cache::record::{NewRecord, TypeHint};
use crate::cache::store::{Lookup, Snapshot};
use crate::cache::testing::Response;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, TypeMeta};
use hublet_wire::protobuf::{encode_envelope, put_bytes};
use hublet_wire::watch::{EventType, push_frame};

const AT: Timestamp = Timestamp::from_millis(1_000);

fn new_writer() -> (tempfile::TempDir, Writer) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 20).unwrap();
    let writer = Writer::new(
        Arc::new(store),
        ClusterGeneration::default(),
        Arc::default(),
        SizeBudget::new(512 << 20, Arc::default()),
        Clock::default(),
    );
    (dir, writer)
}

fn key(name: &str) -> ObjectKeyBuf {
    ObjectKeyBuf::join(b"/pods/", "d", name)
}

fn upsert(name: &str, version: u64, len: usize) -> Change {
    let filler = "x".repeat(len);
    let json = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"d","uid":"u","resourceVersion":"{version}"}},"spec":"{filler}"}}"#
    );
    Change::Upsert {
        key: key(name),
        record: NewRecord::json(json.as_bytes(), TypeHint::default(), AT).unwrap(),
        observed: Observation::watch_event(AT),
    }
}

fn delete(name: &str, version: u64, at: Timestamp) -> Change {
    Change::Delete {
        key: key(name),
        version: ResourceVersion::new(version),
        observed: Observation::watch_event(at),
    }
}

fn is_absent(snapshot: &Snapshot, name: &str) -> bool {
    let found = snapshot.object(key(name).as_key(), |_| ()).unwrap();
    matches!(found, Lookup::Absent(_))
}

impl Writer {
    fn take_changes(&mut self, changes: Vec<Change>) {
        self.take_received(Received::Message(Message::Changes(changes)));
    }

    fn fail_to_write(&mut self) {
        let source = std::io::Error::from_raw_os_error(28);
        let path = "hublet.redb".into();
        self.not_written(&StoreError::Directory { path, source });
    }

    fn retry(&mut self) {
        let outage = self.outage.as_mut().unwrap();
        outage.next = Instant::now();
        self.commit_batch();
        assert!(self.outage.is_none());
        assert!(self.store.superseded().is_empty());
    }

    fn has_ended(&self, name: &str) -> bool {
        let superseded = self.store.superseded();
        !superseded.absence_counts(key(name).as_bytes(), superseded.moment())
    }
}

/// The number of changes that were kept outlived them: an object created next stayed absent, or the writer panicked.
#[test]
fn i2_a_batch_dropped_during_an_outage_hides_no_later_creation() {
    let (_dir, mut writer) = new_writer();
    writer.take_changes(vec![
        upsert("a", 1, 0),
        upsert("b", 2, 0),
        upsert("c", 3, 0),
    ]);
    writer.fail_to_write();
    writer.not_written(&StoreError::Full(1));
    assert!(writer.changes.is_empty());
    writer.take_changes(vec![upsert("d", 4, 0)]);
    writer.fail_to_write();
    assert!(writer.has_ended("d"));
    writer.not_written(&StoreError::Full(1));
    writer.take_changes(vec![upsert("e", 5, MAX_UNWRITTEN_BYTES)]);
    writer.fail_to_write();
    assert!(writer.has_ended("e"));
}

/// Between the start of a read and its lookup the writer cleared the absence and forgot that it had ended: a stale 404.
#[test]
fn i2_a_snapshot_from_before_an_absence_was_cleared_reports_no_absence() {
    let (_dir, mut writer) = new_writer();
    writer.take_changes(vec![delete("a", 0, AT)]);
    writer.commit_batch();
    assert!(is_absent(&writer.store.snapshot().unwrap(), "a"));
    writer.store.superseded().add(
        key("a").as_key().as_bytes(),
        Extent::Absences,
        Fate::Dropped,
    );
    let before = writer.store.snapshot().unwrap();
    writer.commit_batch();
    assert!(writer.store.superseded().is_empty());
    assert!(!is_absent(&before, "a"));
    writer.take_changes(vec![delete("a", 0, AT + Duration::from_secs(60))]);
    writer.commit_batch();
    assert!(is_absent(&writer.store.snapshot().unwrap(), "a"));
}

/// The absences that had ended during an outage were cleared after the batch, and with them the deletions in it.
#[test]
fn a_deletion_that_is_kept_during_an_outage_is_an_absence() {
    let (_dir, mut writer) = new_writer();
    writer.take_changes(vec![upsert("a", 1, 0)]);
    writer.fail_to_write();
    writer.take_changes(vec![delete("a", 2, AT), upsert("b", 3, 0)]);
    writer.commit_batch();
    assert!(writer.has_ended("a") && writer.has_ended("b"));
    writer.retry();
    assert!(is_absent(&writer.store.snapshot().unwrap(), "a"));
}

#[test]
fn i2_a_deletion_from_before_a_dropped_creation_is_no_absence() {
    let (_dir, mut writer) = new_writer();
    writer.take_changes(vec![delete("a", 0, AT), upsert("b", 1, 0)]);
    writer.fail_to_write();
    writer.take_changes(vec![upsert("a", 2, MAX_UNWRITTEN_BYTES)]);
    writer.commit_batch();
    writer.retry();
    assert!(!is_absent(&writer.store.snapshot().unwrap(), "a"));
}

#[test]
fn i2_a_kept_creation_that_is_dropped_later_ends_its_absence() {
    let (_dir, mut writer) = new_writer();
    writer.take_changes(vec![delete("a", 0, AT)]);
    writer.commit_batch();
    writer.take_changes(vec![upsert("a", 1, 0)]);
    writer.fail_to_write();
    writer.not_written(&StoreError::Full(1));
    writer.retry();
    assert!(!is_absent(&writer.store.snapshot().unwrap(), "a"));
}

/// Once one batch was written, a copy from before a change that the full queue had refused was served again.
#[test]
fn i2_what_is_queued_before_a_refused_change_brings_nothing_older_back() {
    let (_dir, mut writer) = new_writer();
    let (superseded, pod) = (Arc::clone(writer.store.superseded()), key("a"));
    superseded.add_refused(pod.as_bytes(), Extent::Copies, 2);
    writer.take_changes(vec![upsert("b", 1, 0)]);
    writer.commit_batch();
    writer.take_changes(vec![upsert("a", 2, 0)]);
    writer.commit_batch();
    let snapshot = writer.store.snapshot().unwrap();
    let found = snapshot.object(pod.as_key(), |_| ()).unwrap();
    assert_eq!(found, Lookup::Unknown);
    assert!(superseded.is_empty());
    writer.take_changes(vec![upsert("a", 3, 0)]);
    writer.commit_batch();
    let snapshot = writer.store.snapshot().unwrap();
    let found = snapshot.object(pod.as_key(), |_| ()).unwrap();
    assert_eq!(found, Lookup::Found(()));
}

/// After an outage that ended with a batch which the store had no room for, the next batch reopened the store once more.
#[test]
fn an_outage_ends_though_the_batch_is_too_large() {
    let (_dir, mut writer) = new_writer();
    writer.take_changes(vec![upsert("a", 1, 0)]);
    writer.fail_to_write();
    let generation = writer.store.generation();
    writer.outage.as_mut().unwrap().next = Instant::now();
    writer.budget = SizeBudget::new(0, Arc::default());
    writer.commit_batch();
    assert_eq!(writer.counters.failures.load(Ordering::Relaxed), 2);
    assert!(writer.outage.is_none());
    writer.take_changes(vec![upsert("b", 2, 0)]);
    writer.commit_batch();
    assert_eq!(writer.store.generation(), generation + 1);
}

const CUT_BODY_BYTES: usize = 1 << 20;

fn long_list(encoding: Encoding) -> Vec<u8> {
    let item = "x".repeat(2 * CUT_BODY_BYTES);
    if encoding == Encoding::Json {
        let head = r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"}"#;
        return format!(r#"{head},"items":[{{"a":"{item}"}}]}}"#).into_bytes();
    }
    let mut list = Vec::new();
    put_bytes(&mut list, 2, item.as_bytes());
    let kind = TypeMeta {
        api_version: "v1",
        kind: "PodList",
    };
    encode_envelope(kind, &list)
}

fn long_watch(encoding: Encoding) -> Vec<u8> {
    let mut frame = Vec::new();
    let object = format!(r#"{{"a":"{}"}}"#, "x".repeat(2 * CUT_BODY_BYTES));
    push_frame(&mut frame, EventType::Added, encoding, object.as_bytes());
    frame
}

/// Only members were counted: clients that stopped reading within an item or a frame took 4 MiB each, without a limit.
#[test]
fn i14_copies_that_are_cut_within_an_item_or_a_frame_are_limited() {
    let (list, watch) = ("GET /api/v1/pods", "GET /api/v1/pods?watch=true");
    for (call, encoding, body) in [
        (list, Encoding::Json, long_list(Encoding::Json)),
        (list, Encoding::Protobuf, long_list(Encoding::Protobuf)),
        (watch, Encoding::Json, long_watch(Encoding::Json)),
        (watch, Encoding::Protobuf, long_watch(Encoding::Protobuf)),
    ] {
        let (_dir, mut writer) = new_writer();
        let response = Response {
            call,
            status: 200,
            encoding,
            body: &body,
            at: AT,
        };
        for id in (0..40).map(CaptureId) {
            writer.begin_response(id, response.exchange());
            for chunk in body[..CUT_BODY_BYTES].chunks(16 << 10) {
                writer.push_data(id, chunk, AT + Duration::from_millis(id.0));
            }
        }
        let open = writer.decoders.len();
        assert!((4..=16).contains(&open), "{call} {encoding:?}: {open}");
        assert!(writer.decoders.contains_key(&CaptureId(39)));
        let not_stored = writer.counters.not_stored.get(NotStored::QueueFull);
        assert_eq!(not_stored, 40 - open as u64, "{call} {encoding:?}");
    }
}

#[test]
fn a_watch_holds_nothing_between_its_frames() {
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let (_dir, mut writer) = new_writer();
        let json = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"resourceVersion":"9"}}"#;
        let mut meta = Vec::new();
        put_bytes(&mut meta, 6, b"9");
        let mut pod = Vec::new();
        put_bytes(&mut pod, 1, &meta);
        let kind = TypeMeta {
            api_version: "v1",
            kind: "Pod",
        };
        let object = match encoding {
            Encoding::Json => json.as_bytes().to_vec(),
            Encoding::Protobuf => encode_envelope(kind, &pod),
        };
        let mut frame = Vec::new();
        push_frame(&mut frame, EventType::Bookmark, encoding, &object);
        let response = Response {
            call: "GET /api/v1/pods?watch=true",
            status: 200,
            encoding,
            body: &frame,
            at: AT,
        };
        writer.begin_response(CaptureId(0), response.exchange());
        writer.push_data(CaptureId(0), &frame[..20], AT);
        assert!(writer.held > 0, "{encoding:?}");
        writer.push_data(CaptureId(0), &frame[20..], AT);
        assert!(writer.decoders.contains_key(&CaptureId(0)));
        assert_eq!(writer.held, 0, "{encoding:?}");
    }
}
