//! The store's file stays within its limit, whatever is requested and however slowly clients read, and is compacted.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::cache::apply::apply;
use crate::cache::change::{Change, Evicted, Observation, ObservedBy};
use crate::cache::continuity::Continuity;
use crate::cache::evict::{LastRequested, SizeBudget};
use crate::cache::keys::{CollectionKey, ObjectKey, ObjectKeyBuf};
use crate::cache::record::{Collection, NewRecord, ResponseRecord, TypeHint};
use crate::cache::store::{ListSource, Lookup, Store, StoreError};
use crate::clock::Clock;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};

const KIB: usize = 1 << 10;
const MIB: u64 = 1 << 20;

fn key(name: &str) -> ObjectKeyBuf {
    ObjectKeyBuf::join(b"/pods/", "d", name)
}

fn listed_at(at: u64) -> Observation {
    let at = Timestamp::from_millis(at);
    Observation {
        requested_at: at,
        not_before: Timestamp::EPOCH,
        not_after: at,
        source: ObservedBy::List,
    }
}

fn continuity() -> Continuity {
    Continuity::new(Clock::default())
}

fn upsert(name: &str, (version, at): (u64, u64), len: usize) -> Change {
    let filler = "x".repeat(len);
    let json = format!(
        r#"{{"kind":"Pod","apiVersion":"v1","metadata":{{"name":"{name}","namespace":"d","uid":"u","resourceVersion":"{version}"}},"spec":"{filler}"}}"#
    );
    let record = NewRecord::json(
        json.as_bytes(),
        TypeHint::default(),
        Timestamp::from_millis(at),
    )
    .unwrap();
    Change::Upsert {
        key: key(name),
        record,
        observed: listed_at(at),
    }
}

fn collection(version: u64, at: u64) -> Collection {
    Collection::new(
        ResourceVersion::new(version),
        Timestamp::from_millis(at),
        "PodList".to_owned(),
        "v1".to_owned(),
    )
}

fn complete(version: u64, at: u64, names: &[String]) -> Change {
    let members = names.iter().map(|name| key(name)).collect();
    Change::ReplaceCollection {
        collection: CollectionKey::new(b"/pods/d/").to_buf(),
        record: collection(version, at),
        members,
        observed: listed_at(at),
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 20).unwrap();
    (dir, store)
}

fn names(n: usize) -> Vec<String> {
    (0..n).map(|n| format!("p{n:04}")).collect()
}

fn listed(encoding: Encoding) -> ListSource {
    ListSource {
        key: CollectionKey::new(b"/pods/d/").to_buf(),
        collection: collection(10, 0),
        selection: None,
        prefix: CollectionKey::new(b"/pods/d/").to_buf(),
        encoding,
        api_version: "v1".into(),
    }
}

fn fill(store: &Store, names: &[String], len: usize) {
    for batch in names.chunks(16) {
        let changes: Vec<Change> = batch.iter().map(|name| upsert(name, (7, 0), len)).collect();
        apply(store, &changes, &mut continuity()).unwrap();
    }
    apply(store, &[complete(10, 0, names)], &mut continuity()).unwrap();
}

/// A client that read a list and stopped kept every page of it: the file grew with each write.
#[test]
fn a_reader_that_stalls_does_not_make_the_file_grow() {
    let (_dir, store) = open();
    fill(&store, &names(64), 32 * KIB);
    let mut stalled = store
        .snapshot()
        .unwrap()
        .list_cursor(listed(Encoding::Json));
    assert_eq!(stalled.next(|r| r.version.get()).unwrap(), Some(7));
    let mut size = 0;
    for version in 11..40 {
        store.end_old_snapshots(Duration::ZERO);
        let changes: Vec<Change> = names(64)
            .iter()
            .map(|name| upsert(name, (version, 0), 32 * KIB))
            .collect();
        apply(&store, &changes, &mut continuity()).unwrap();
        size = if version == 14 { store.size() } else { size };
    }
    assert!(store.size() <= size + MIB, "{} after {size}", store.size());
    let mut rest = 0;
    while let Some(version) = stalled.next(|r| r.version.get()).unwrap() {
        assert_eq!(version, 39, "newer than the list, as a change after it is");
        rest += 1;
    }
    assert_eq!(rest, 63, "each once");
}

#[test]
fn a_list_that_can_not_be_ended_as_it_was_begun_breaks_off() {
    let after = |changes: &[Change], encoding| {
        let (_dir, store) = open();
        fill(&store, &names(4), KIB);
        let mut walk = store.snapshot().unwrap().list_cursor(listed(encoding));
        walk.next(|_| ())?;
        apply(&store, changes, &mut continuity()).unwrap();
        store.end_old_snapshots(Duration::ZERO);
        let mut rest = 0;
        while walk.next(|_| ())?.is_some() {
            rest += 1;
        }
        Ok::<_, StoreError>(rest)
    };
    let gone = Change::Delete {
        key: key("p0002"),
        version: ResourceVersion::new(12),
        observed: listed_at(1),
    };
    assert_eq!(
        after(&[gone], Encoding::Json).unwrap(),
        2,
        "deleted after the list: a watch from there says so"
    );
    let forget = Change::Invalidate {
        key: key("p0002"),
        version: ResourceVersion::new(12),
    };
    assert!(
        matches!(after(&[forget], Encoding::Json), Err(StoreError::Changed)),
        "it may be there still"
    );
    let evicted = Change::Evict(Evicted::Collection(
        CollectionKey::new(b"/pods/d/").to_buf(),
    ));
    assert!(matches!(
        after(&[evicted], Encoding::Json),
        Err(StoreError::Changed)
    ));
    assert!(
        matches!(after(&[], Encoding::Protobuf), Err(StoreError::Changed)),
        "another encoding"
    );
}

#[test]
fn i14_over_budget_the_least_recently_requested_is_evicted() {
    let (_dir, store) = open();
    let asked = Arc::new(LastRequested::default());
    let mut budget = SizeBudget::new(16 * MIB, Arc::clone(&asked));
    let fed = HashSet::from([b"/nodes/".to_vec()]);
    let of = |resource: &str, change: Change| match change {
        Change::Upsert {
            key,
            record,
            observed,
        } => {
            let key = String::from_utf8_lossy(key.as_bytes()).replace("/pods/d/", resource);
            Change::Upsert {
                key: ObjectKey::new(key.as_bytes()).to_buf(),
                record,
                observed,
            }
        }
        change => change,
    };
    apply(
        &store,
        &[of("/nodes/", upsert("n", (1, 1), 100 * KIB))],
        &mut continuity(),
    )
    .unwrap();
    let mut evicted = 0;
    for n in 0..600 {
        let changes = [upsert(&format!("p{n:04}"), (7, 1000 + n), 60 * KIB)];
        evicted += budget
            .evict_for(&store, &changes, &fed, &mut continuity())
            .unwrap();
        apply(&store, &changes, &mut continuity()).unwrap();
        if n == 10 {
            asked.note(key("p0003").as_bytes(), Timestamp::from_millis(2_000_000));
        }
    }
    let known = |key: &[u8]| {
        !matches!(
            store
                .snapshot()
                .unwrap()
                .object(ObjectKey::new(key), |_| ()),
            Ok(Lookup::Unknown)
        )
    };
    assert!(evicted > 300, "{evicted}");
    assert!(store.size() <= 16 * MIB, "{}", store.size());
    assert!(known(key("p0599").as_bytes()), "the newest");
    assert!(!known(key("p0004").as_bytes()), "the oldest");
    assert!(
        known(key("p0003").as_bytes()),
        "old, but a client has asked for it since"
    );
    assert!(known(b"/nodes/n"), "a watch feeds it");
    let forms = store.snapshot().unwrap().forms(b"/pods/").unwrap();
    assert_eq!(forms.len(), 1);
}

#[test]
fn an_evicted_collection_is_unknown_and_never_shortened() {
    let (_dir, store) = open();
    let mut budget = SizeBudget::new(16 * MIB, Arc::default());
    fill(&store, &names(64), 60 * KIB);
    let none = HashSet::new();
    for n in 0..400 {
        let changes = [upsert(&format!("q{n:04}"), (11, 1000 + n), 60 * KIB)];
        budget
            .evict_for(&store, &changes, &none, &mut continuity())
            .unwrap();
        apply(&store, &changes, &mut continuity()).unwrap();
    }
    let snapshot = store.snapshot().unwrap();
    assert_eq!(
        snapshot
            .collection(CollectionKey::new(b"/pods/d/"))
            .unwrap(),
        None
    );
    assert!(store.size() <= 16 * MIB, "{}", store.size());
}

#[test]
fn a_file_that_is_mostly_empty_becomes_small_and_readers_go_on() {
    let (dir, store) = open();
    let many = names(900);
    fill(&store, &many, 60 * KIB);
    let mut walk = store
        .snapshot()
        .unwrap()
        .list_cursor(listed(Encoding::Json));
    walk.next(|_| ()).unwrap();
    let held = store.snapshot().unwrap();
    let gone = many[50..]
        .iter()
        .map(|name| Change::Evict(Evicted::Object(key(name))));
    apply(&store, &gone.collect::<Vec<_>>(), &mut continuity()).unwrap();
    let before = store.size();
    let mut budget = SizeBudget::new(512 * MIB, Arc::default());
    budget.tidy(&store, &|| true).unwrap();
    assert_eq!(store.size(), before, "something waited to be written");
    let mut budget = SizeBudget::new(512 * MIB, Arc::default());
    budget.tidy(&store, &|| false).unwrap();
    assert!(store.size() < before / 4, "{} of {before}", store.size());
    assert!(
        matches!(
            held.object(key("p0800").as_key(), |_| ()),
            Ok(Lookup::Found(()))
        ),
        "an older snapshot"
    );
    let mut rest = 0;
    while walk.next(|_| ()).unwrap().is_some() {
        rest += 1;
    }
    assert_eq!(rest, 49);
    apply(&store, &[upsert("p0000", (99, 0), KIB)], &mut continuity()).unwrap();
    drop((held, walk, store));
    let store = Store::open(dir.path(), 1 << 20).unwrap();
    let found = store
        .snapshot()
        .unwrap()
        .object(key("p0000").as_key(), |r| r.version.get())
        .unwrap();
    assert_eq!(
        found,
        Lookup::Found(99),
        "the new file is the one that is written"
    );
    let entries = std::fs::read_dir(dir.path()).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["hublet.redb", "hublet.redb.pending"]);
}

/// A store that watches fill beyond three quarters was looked through for every batch, though nothing could go.
#[test]
fn a_store_with_nothing_to_evict_is_not_scanned_for_every_batch() {
    let (_dir, store) = open();
    let mut budget = SizeBudget::new(16 * MIB, Arc::default());
    fill(&store, &names(240), 60 * KIB);
    let (fed, none) = (HashSet::from([b"/pods/d/".to_vec()]), HashSet::new());
    let mut write = |fed| {
        let changes = [upsert("p0000", (20, 0), 60 * KIB)];
        budget
            .evict_for(&store, &changes, fed, &mut continuity())
            .unwrap()
    };
    assert_eq!(write(&fed), 0, "a watch feeds all of it");
    assert_eq!(write(&none), 0, "not so soon again");
    assert!((0..32).any(|_| write(&none) > 0), "but once there is more");
}

/// Lists and Tables with ever new selectors, from an account that may list one collection only, evicted what all others had
/// requested before.
#[test]
fn i14_a_flood_of_selections_evicts_its_own() {
    let (_dir, store) = open();
    fill(&store, &names(2), KIB);
    let document = |key: String, at: u64| {
        let value = ResponseRecord {
            at: Timestamp::from_millis(at),
            content_type: "application/json",
            etag: "",
            body: b"{}",
        }
        .write();
        Change::PutResponse {
            key: key.into_bytes(),
            value,
        }
    };
    apply(
        &store,
        &[document("/apis\napplication/json".into(), 0)],
        &mut continuity(),
    )
    .unwrap();
    let flood = (0..9_000).flat_map(|n| {
        let selection = format!("/configmaps/d/?l=a{n}&f=");
        let table = document(format!("{selection}\nv1 application/json;as=Table"), n + 1);
        let list = Change::ReplaceCollection {
            collection: CollectionKey::new(selection.as_bytes()).to_buf(),
            record: collection(10, n + 1),
            members: Vec::new(),
            observed: listed_at(n + 1),
        };
        [list, table]
    });
    apply(&store, &flood.collect::<Vec<_>>(), &mut continuity()).unwrap();
    let snapshot = store.snapshot().unwrap();
    let [_, _, collections, documents] = snapshot.counts().unwrap();
    assert!((7_000..=8_192).contains(&collections) && (1_800..=2_048).contains(&documents));
    assert!(
        snapshot
            .collection(CollectionKey::new(b"/pods/d/"))
            .unwrap()
            .is_some()
    );
    assert_eq!(snapshot.documents("/apis").unwrap(), ["application/json"]);
    assert!(
        snapshot
            .collection(CollectionKey::new(b"/configmaps/d/?l=a8999&f="))
            .unwrap()
            .is_some(),
        "the newest"
    );
}

/// 404s for ever new names evicted those of other resources, which a CNI plugin needs: it creates an object after a 404, and
/// requests it again offline.
#[test]
fn i14_a_flood_of_absences_evicts_its_own() {
    let (_dir, store) = open();
    let gone = |key: String, at: u64| Change::Delete {
        key: ObjectKey::new(key.as_bytes()).to_buf(),
        version: ResourceVersion::UNSET,
        observed: listed_at(at),
    };
    apply(
        &store,
        &[gone("x.io/handles/mine".into(), 1)],
        &mut continuity(),
    )
    .unwrap();
    let flood: Vec<Change> = (0..50_001)
        .map(|n| gone(format!("/configmaps/d/{n}"), n + 2))
        .collect();
    apply(&store, &flood, &mut continuity()).unwrap();
    let snapshot = store.snapshot().unwrap();
    assert!((40_000..=50_000).contains(&snapshot.counts().unwrap()[1]));
    let known = |key: &str| {
        snapshot
            .object(ObjectKey::new(key.as_bytes()), |_| ())
            .unwrap()
            != Lookup::Unknown
    };
    assert!(
        known("x.io/handles/mine") && known("/configmaps/d/50000") && !known("/configmaps/d/0")
    );
}
