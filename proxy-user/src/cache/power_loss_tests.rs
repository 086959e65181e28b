//! A power loss at any sync leaves exactly what had been committed: each batch wholly or not at all, in their order.

use crate::cache::apply::apply;
use crate::cache::change::{Change, Evicted};
use crate::cache::continuity::Continuity;
use crate::cache::grant_rows::{CredentialKey, CredentialRow, GrantKey, Verdict};
use crate::cache::keys::ObjectKey;
use crate::cache::paginate::ListAssembler;
use crate::cache::store::{Condition, Store};
use crate::cache::testing::{Dump, MemoryDisk, Response, Survivors, dump};
use crate::cache::tests::{PODS, event, gone, list, pod};
use crate::clock::Clock;
use hublet_wire::media::Encoding;
use hublet_wire::meta::Timestamp;

/// Number of draws of a part of the unsynced writes, for each sync.
const DRAWS: u64 = 4;

/// Batches of everything that the writer may be given, each of which a commit ends.
fn batches() -> Vec<Vec<Change>> {
    let lists = &mut ListAssembler::default();
    let (watch, selection) = (
        format!("{PODS}?watch=true&resourceVersion=10"),
        format!("{PODS}?labelSelector=app%3Dx"),
    );
    let (first, second) = (
        format!("{PODS}?limit=1"),
        format!("{PODS}?limit=1&continue=next"),
    );
    let large = pod("large", 21).replace("u-large", &"u".repeat(200));
    let spec = format!("}},\"spec\":\"{}\"}}", "x".repeat(300_000));
    let large = large.replace("}}", &spec);
    let events = event("MODIFIED", "b", 11) + &event("DELETED", "a", 12) + &event("ADDED", "c", 13);
    let mut ingest = |call: &str, status: u16, body: &str, at: u64| {
        let response = Response {
            call,
            status,
            encoding: Encoding::Json,
            body: body.as_bytes(),
            at: Timestamp::from_millis(at),
        };
        response.decode(lists, &[])
    };
    vec![
        ingest(PODS, 200, &list(10, "", &[("a", 7), ("b", 8)]), 1_000),
        vec![
            grant(1, Verdict::allowed_at(Timestamp::from_millis(2_000))),
            credential(7),
        ],
        ingest(&watch, 200, &events, 3_000),
        ingest(&selection, 200, &list(14, "", &[("b", 11)]), 4_000),
        ingest("GET /api/v1/namespaces/d/pods/z", 404, &gone("z"), 5_000),
        ingest(&first, 200, &list(20, "next", &[("d", 15)]), 6_000),
        ingest("GET /api/v1/namespaces/d/pods/large", 200, &large, 7_000),
        ingest(&second, 200, &list(20, "", &[("e", 16)]), 8_000),
        ingest("GET /version", 200, r#"{"minor":"36"}"#, 9_000),
        vec![
            grant(1, Verdict::denied_at(Timestamp::from_millis(10_000))),
            delete_credential(7),
        ],
        vec![
            Change::Evict(Evicted::Object(ObjectKey::new(b"/pods/d/large").to_buf())),
            grant(2, Verdict::allowed_at(Timestamp::from_millis(11_000))),
        ],
        ingest(PODS, 200, &list(30, "", &[("e", 25), ("f", 26)]), 12_000),
    ]
}

fn grant(key: u8, verdict: Verdict) -> Change {
    Change::PutGrant {
        key: GrantKey([key; 48]),
        verdict,
    }
}

fn credential(key: u8) -> Change {
    Change::PutCredential {
        key: CredentialKey([key; 32]),
        row: CredentialRow {
            verdict: Verdict::allowed_at(Timestamp::from_millis(2_000)),
            account: [1; 16],
        },
    }
}

fn delete_credential(key: u8) -> Change {
    Change::DeleteCredential {
        key: CredentialKey([key; 32]),
    }
}

/// Commits the batches until one can't be; how many were.
fn commit(store: &Store, batches: &[Vec<Change>]) -> usize {
    if store.condition() != Condition::Writable {
        return 0;
    }
    let mut continuity = Continuity::new(Clock::default());
    batches
        .iter()
        .take_while(|batch| apply(store, batch, &mut continuity).is_ok())
        .count()
}

/// The content after each number of batches, and how often all of them, and an orderly end, sync.
fn undisturbed(dir: &std::path::Path) -> (Vec<Dump>, usize) {
    let disk = MemoryDisk::default();
    let store = disk.open_store(dir);
    let mut continuity = Continuity::new(Clock::default());
    let mut contents = vec![dump(&store)];
    for batch in batches() {
        assert!(apply(&store, &batch, &mut continuity).unwrap());
        contents.push(dump(&store));
    }
    store.close();
    (contents, disk.syncs())
}

#[test]
fn i15_a_power_loss_at_any_sync_leaves_exactly_the_committed_batches() {
    let dir = tempfile::tempdir().unwrap();
    let (contents, syncs) = undisturbed(dir.path());
    assert!(syncs > 2 * batches().len(), "{syncs}");
    let draws = (0..DRAWS).map(Survivors::Sectors);
    let survivors: Vec<_> = [Survivors::Nothing, Survivors::Everything]
        .into_iter()
        .chain(draws)
        .collect();
    for (sync, survivors) in (0..syncs).flat_map(|n| survivors.iter().map(move |s| (n, *s))) {
        let disk = MemoryDisk::losing_power(sync, survivors);
        let store = disk.open_store(dir.path());
        let committed = commit(&store, &batches());
        store.close();
        let case = format!("sync {sync}, {survivors:?}: {committed} batches");
        recover(dir.path(), disk.durable(), committed, &contents, &case);
    }
}

/// Opens what a power loss has left, and goes on from there.
fn recover(dir: &std::path::Path, left: Vec<u8>, committed: usize, contents: &[Dump], case: &str) {
    let store = MemoryDisk::holding(left).open_store(dir);
    assert_eq!(store.condition(), Condition::Writable, "{case}");
    let found = dump(&store);
    // The sync that was cut off may have ended a commit.
    let stored = (committed..=committed + 1).find(|n| contents.get(*n) == Some(&found));
    let stored = stored.unwrap_or_else(|| panic!("{case}: {found:?}"));
    assert_eq!(
        commit(&store, &batches()[stored..]),
        batches().len() - stored,
        "{case}"
    );
    assert_eq!(Some(&dump(&store)), contents.last(), "{case}");
}
