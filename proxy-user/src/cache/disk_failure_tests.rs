//! A disk that fills up, fails or can't be written never loses what is stored: that is served read-only, changes are kept
//! up to a limit and written later, and only a damaged store is renamed and replaced.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::failing_disk::{
    EIO, ENOSPC, EROFS, FailingDisk, count_set_aside, disk_with_store, pod_version, until_writable,
};
use super::tests::{Bench, POD, PODS, event, gone, list, pod};
use super::*;
use crate::cache::grant_rows::{CredentialKey, CredentialRow, GrantCounts, GrantKey, Verdict};
use crate::cache::keys::CollectionKey;
use crate::cache::store::{Condition, Lookup, Store};
use crate::cache::superseded::Fate;
use hublet_wire::meta::{ResourceVersion, Timestamp};

/// One failed write made redb refuse reads for ever, and the next start set the store aside.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_whichever_write_fails_reads_go_on_and_nothing_is_lost() {
    for (after, errno) in [
        (0, ENOSPC),
        (1, EIO),
        (2, ENOSPC),
        (3, EIO),
        (4, ENOSPC),
        (5, ENOSPC),
        (6, EIO),
    ] {
        let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
        let bench = disk.bench(dir.path());
        bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
        disk.0.fail_writes(errno, after);
        bench.respond(POD, 200, pod("a", 8).as_bytes(), 0).await;
        let seen = pod_version(&bench).await;
        assert!((7..=8).contains(&seen), "write {after}: {seen}");
        if let Condition::ReadOnly(problem) = bench.cache.store.condition() {
            assert!(problem.contains("disk"), "{problem}");
        }
        assert_eq!(bench.cache.status(GrantCounts::default()).objects, 1);
        disk.mend();
        until_writable(&bench.cache).await;
        assert_eq!(
            pod_version(&bench).await,
            8,
            "write {after}: what came meanwhile was kept"
        );
        bench.cache.close().await;
        drop(bench);
        assert_eq!(pod_version(&disk.bench(dir.path())).await, 8);
        assert_eq!(count_set_aside(dir.path()), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_a_store_that_was_killed_is_served_from_a_disk_that_cant_be_written() {
    let (disk, dir, other) = (
        FailingDisk::default(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let bench = disk.bench(dir.path());
    bench
        .respond(PODS, 200, list(9, "", &[("a", 7), ("b", 8)]).as_bytes(), 0)
        .await;
    // As a kill leaves it: not closed.
    std::fs::copy(
        dir.path().join("hublet.redb"),
        other.path().join("hublet.redb"),
    )
    .unwrap();
    disk.0.fail_writes(EROFS, 0);
    let bench = disk.bench(other.path());
    assert!(matches!(
        bench.cache.store.condition(),
        Condition::ReadOnly(_)
    ));
    assert_eq!(pod_version(&bench).await, 7);
    assert_eq!(bench.cache.status(GrantCounts::default()).collections, 1);
    assert!(!bench.cache.status(GrantCounts::default()).writable);
    bench.respond(POD, 200, pod("a", 11).as_bytes(), 0).await;
    disk.mend();
    until_writable(&bench.cache).await;
    assert_eq!(pod_version(&bench).await, 11);
    assert_eq!(count_set_aside(other.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_a_disk_that_is_full_at_the_first_start_keeps_nobody_from_starting() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    disk.0.fail_writes(ENOSPC, 0);
    let bench = disk.bench(dir.path());
    assert!(!bench.cache.is_writable());
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
    disk.mend();
    until_writable(&bench.cache).await;
    assert_eq!(pod_version(&bench).await, 7);
    assert_eq!(count_set_aside(dir.path()), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_a_read_that_fails_is_tried_again_and_sets_nothing_aside() {
    let (disk, dir) = disk_with_store().await;
    disk.0.read.store(EIO, Ordering::SeqCst);
    let bench = disk.bench(dir.path());
    assert!(matches!(
        bench.cache.store.condition(),
        Condition::Unreadable(_)
    ));
    disk.mend();
    until_writable(&bench.cache).await;
    assert_eq!(pod_version(&bench).await, 7);
    assert_eq!(count_set_aside(dir.path()), 0);
}

/// A change that is dropped leaves a gap: no watch that spans it advances its collection, and no list that spans it counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_nothing_is_written_over_the_gap_of_a_failed_write() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    bench
        .respond(PODS, 200, list(10, "", &[("a", 7), ("b", 8)]).as_bytes(), 0)
        .await;
    let first_page = list(20, "next", &[("c", 15)]);
    disk.0.fail_writes(ENOSPC, 0);
    let filler = format!("}},\"spec\":\"{}\"}}", "x".repeat(1 << 20));
    let large = |version: u64| pod("large", version).replace("}}", &filler);
    bench
        .respond(&format!("{PODS}?limit=1"), 200, first_page.as_bytes(), 0)
        .await;
    for version in 11..20 {
        if bench.cache.ingest().given_up() > 0 {
            break;
        }
        bench
            .respond(
                "GET /api/v1/namespaces/d/pods/large",
                200,
                large(version).as_bytes(),
                0,
            )
            .await;
    }
    assert!(bench.cache.ingest().given_up() > 0, "more than is kept");
    disk.mend();
    until_writable(&bench.cache).await;
    bench
        .respond(
            &format!("{PODS}?limit=1&continue=next"),
            200,
            list(20, "", &[("d", 16)]).as_bytes(),
            0,
        )
        .await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        10,
        "a page of it is missing"
    );
    let watch = format!("{PODS}?watch=true&resourceVersion=20");
    bench
        .respond(&watch, 200, event("ADDED", "e", 21).as_bytes(), 0)
        .await;
    assert_eq!(
        bench.collection("/pods/d/").await.unwrap().version.get(),
        10,
        "events before it are missing"
    );
    assert_eq!(
        bench.version("/pods/d/e").await,
        Some(21),
        "what is seen from now on is kept"
    );
}

/// While the disk was full, a 404 from before was served for objects that had been created since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_an_object_created_while_the_disk_is_full_is_not_absent() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    for name in ["a", "b", "c"] {
        let call = format!("GET /api/v1/namespaces/d/pods/{name}");
        bench.respond(&call, 404, gone(name).as_bytes(), 0).await;
        assert!(bench.is_absent(&format!("/pods/d/{name}")).await);
    }
    disk.0.fail_writes(ENOSPC, 0);
    let create = "POST /api/v1/namespaces/d/pods";
    bench.respond(create, 201, pod("a", 7).as_bytes(), 0).await;
    bench.cache.clear_absence(b"/pods/d/b");
    bench.cache.settle().await;
    for name in ["a", "b"] {
        let created = bench.object(&format!("/pods/d/{name}")).await;
        assert_eq!(created, Lookup::Unknown, "{name}");
    }
    assert!(bench.is_absent("/pods/d/c").await);
    disk.mend();
    until_writable(&bench.cache).await;
    assert_eq!(bench.version("/pods/d/a").await, Some(7));
    assert_eq!(bench.object("/pods/d/b").await, Lookup::Unknown);
    assert!(bench.is_absent("/pods/d/c").await);
    assert!(bench.cache.store.superseded().is_empty());
    // Beyond the limit all absences have ended, and the disk takes that as well.
    bench
        .cache
        .store
        .superseded()
        .add(b"", Extent::Absences, Fate::Dropped);
    bench.respond(POD, 200, pod("a", 8).as_bytes(), 0).await;
    assert_eq!(bench.object("/pods/d/c").await, Lookup::Unknown);
    assert!(bench.cache.store.superseded().is_empty());
}

/// A copy of a store that is still open, as a kill leaves it.
fn left_by_a_kill(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(dir).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    copy
}

/// Absences that had ended while the disk was full counted again after a restart: 404 for objects that existed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_an_absence_that_ended_while_the_disk_was_full_does_not_count_after_a_restart() {
    for is_killed in [true, false] {
        let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
        let bench = disk.bench(dir.path());
        for name in ["a", "b", "c"] {
            let call = format!("GET /api/v1/namespaces/d/pods/{name}");
            bench.respond(&call, 404, gone(name).as_bytes(), 0).await;
        }
        disk.0.fail_writes(ENOSPC, 0);
        let create = "POST /api/v1/namespaces/d/pods";
        bench.respond(create, 201, pod("a", 7).as_bytes(), 0).await;
        bench.cache.clear_absence(b"/pods/d/b");
        bench.cache.settle().await;
        let left = left_by_a_kill(dir.path());
        if !is_killed {
            bench.cache.close().await;
        }
        let dir = if is_killed { left.path() } else { dir.path() };
        let bench = disk.bench(dir);
        assert!(!bench.cache.is_writable());
        for (name, is_absent) in [("a", false), ("b", false), ("c", true)] {
            let key = format!("/pods/d/{name}");
            assert_eq!(bench.is_absent(&key).await, is_absent, "{name}");
        }
        disk.mend();
        until_writable(&bench.cache).await;
        assert!(bench.cache.store.superseded().is_empty());
        bench.cache.close().await;
        let bench = disk.bench(dir);
        for (name, is_absent) in [("a", false), ("b", false), ("c", true)] {
            let key = format!("/pods/d/{name}");
            assert_eq!(bench.is_absent(&key).await, is_absent, "{name}");
        }
        assert!(bench.cache.store.superseded().is_empty());
    }
}

fn grant_of(key: u8, verdict: Verdict) -> Change {
    let key = GrantKey([key; 48]);
    Change::PutGrant { key, verdict }
}

fn allowed_grants(cache: &Cache) -> Vec<u8> {
    let mut rows = cache.stored().unwrap().grants().unwrap();
    rows.retain(|(_, verdict)| verdict.is_allowed());
    rows.iter().map(|(key, _)| key.0[0]).collect()
}

/// Rights that were revoked while the disk was full held again after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i7_a_revocation_while_the_disk_is_full_counts_after_a_restart() {
    let at = Timestamp::from_millis;
    for is_killed in [true, false] {
        let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
        let bench = disk.bench(dir.path());
        let token = CredentialKey([9; 32]);
        let row = CredentialRow {
            verdict: Verdict::allowed_at(at(1)),
            account: [1; 16],
        };
        let mut rights = vec![Change::PutCredential { key: token, row }];
        rights.extend([1, 2, 3].map(|key| grant_of(key, Verdict::allowed_at(at(1)))));
        bench.cache.ingest().submit(rights);
        bench.cache.settle().await;
        disk.0.fail_writes(ENOSPC, 0);
        let revocations = vec![
            grant_of(1, Verdict::denied_at(at(2))),
            Change::DeleteGrant {
                key: GrantKey([2; 48]),
            },
            Change::DeleteCredential { key: token },
        ];
        bench.cache.ingest().submit(revocations);
        bench.cache.settle().await;
        let left = left_by_a_kill(dir.path());
        if !is_killed {
            bench.cache.close().await;
        }
        let dir = if is_killed { left.path() } else { dir.path() };
        let bench = disk.bench(dir);
        assert!(!bench.cache.is_writable());
        let has_token = |cache: &Cache| !cache.stored().unwrap().credentials().unwrap().is_empty();
        assert_eq!(allowed_grants(&bench.cache), [3]);
        let denied = (GrantKey([1; 48]), Verdict::denied_at(at(2)));
        let grants = bench.cache.stored().unwrap().grants().unwrap();
        assert!(grants.contains(&denied));
        assert!(!has_token(&bench.cache));
        disk.mend();
        until_writable(&bench.cache).await;
        bench.cache.close().await;
        let bench = disk.bench(dir);
        assert_eq!(allowed_grants(&bench.cache), [3]);
        assert!(!has_token(&bench.cache));
        assert!(bench.cache.store.revocations().is_empty());
    }
}

/// A pod, lists with and without selectors that hold it, and an absence.
pub(super) async fn store_pods(bench: &Bench) {
    let pods = list(10, "", &[("a", 7), ("b", 8), ("d", 9)]);
    bench.respond(PODS, 200, pods.as_bytes(), 0).await;
    let others = "GET /api/v1/namespaces/e/pods";
    let empty = list(10, "", &[]);
    bench.respond(others, 200, empty.as_bytes(), 0).await;
    let missing = "GET /api/v1/namespaces/d/pods/c";
    bench.respond(missing, 404, gone("c").as_bytes(), 0).await;
}

/// A client changes pod `a`, deletes `d` and creates `c`, and a request that isn't understood changes `b`.
pub(super) async fn write_pods(bench: &Bench) {
    let path = "/api/v1/namespaces/d/pods";
    let put = format!("PUT {path}/a");
    bench.pass(&put, 200, pod("a", 11).as_bytes(), 0).await;
    let delete = format!("DELETE {path}/d");
    bench.pass(&delete, 200, pod("d", 13).as_bytes(), 0).await;
    let post = format!("POST {path}");
    bench.pass(&post, 201, pod("c", 12).as_bytes(), 0).await;
    bench.cache.supersede(b"/pods/d/b", Extent::Copies);
}

/// Nothing from before the writes is served.
pub(super) async fn assert_pods_unknown(bench: &Bench) {
    for name in ["a", "b", "c", "d"] {
        let found = bench.object(&format!("/pods/d/{name}")).await;
        assert_eq!(found, Lookup::Unknown, "{name}");
    }
    let snapshot = bench.cache.snapshot().await.unwrap();
    for (list, expected) in [("/pods/d/", false), ("/pods/", false), ("/pods/e/", true)] {
        let list = list.as_bytes();
        assert_eq!(snapshot.is_up_to_date(list), expected, "{list:?}");
        let has_changed = snapshot.has_changed_since(list, ResourceVersion::MAX, Timestamp::MAX);
        assert_eq!(has_changed.unwrap(), !expected, "{list:?}");
    }
}

pub(super) async fn assert_pods_written(bench: &Bench) {
    assert_eq!(bench.version("/pods/d/a").await, Some(11));
    assert_eq!(bench.version("/pods/d/c").await, Some(12));
    assert_eq!(bench.object("/pods/d/b").await, Lookup::Unknown);
    assert!(bench.is_absent("/pods/d/d").await);
    let snapshot = bench.cache.snapshot().await.unwrap();
    assert!(snapshot.is_up_to_date(b"/pods/d/"));
    assert!(
        !bench.collection("/pods/d/").await.unwrap().complete,
        "b is unknown"
    );
}

/// The same while the disk was full, and after a restart on the full disk.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_while_the_disk_is_full_nothing_older_than_a_write_is_served() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    store_pods(&bench).await;
    disk.0.fail_writes(ENOSPC, 0);
    write_pods(&bench).await;
    bench.cache.settle().await;
    assert_pods_unknown(&bench).await;
    let left = left_by_a_kill(dir.path());
    assert_pods_unknown(&disk.bench(left.path())).await;
    disk.mend();
    until_writable(&bench.cache).await;
    assert_pods_written(&bench).await;
    let restarted = disk.bench(left.path());
    until_writable(&restarted.cache).await;
    let snapshot = restarted.cache.snapshot().await.unwrap();
    assert!(snapshot.is_up_to_date(b"/pods/d/"));
    for name in ["a", "b", "c", "d"] {
        let found = restarted.object(&format!("/pods/d/{name}")).await;
        assert_eq!(found, Lookup::Unknown, "{name}");
    }
    assert!(!restarted.collection("/pods/d/").await.unwrap().complete);
    assert!(restarted.collection("/pods/e/").await.unwrap().complete);
}

/// A selection, and a Table, counted as unchanged though a member that had been absent was created.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_a_selection_whose_absent_member_exists_again_is_unknown() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    let (call, key) = (
        format!("{PODS}?labelSelector=app%3Dx"),
        CollectionKey::new(b"/pods/d/?l=app=x&f="),
    );
    let pods = list(10, "", &[("a", 7), ("b", 8)]);
    bench.respond(&call, 200, pods.as_bytes(), 0).await;
    bench.respond(POD, 404, gone("a").as_bytes(), 0).await;
    let has_all_members = async || {
        let snapshot = bench.cache.snapshot().await.unwrap();
        let mut members = snapshot.members_cursor(key).unwrap();
        while let Ok(Some(())) = members.next(|_| ()) {}
        snapshot.has_all_members(key).unwrap()
    };
    let has_changed = async || {
        let snapshot = bench.cache.snapshot().await.unwrap();
        let (version, at) = (ResourceVersion::MAX, Timestamp::MAX);
        snapshot
            .has_changed_since(b"/pods/d/", version, at)
            .unwrap()
    };
    assert!(has_all_members().await && !has_changed().await);
    disk.0.fail_writes(ENOSPC, 0);
    bench.respond(POD, 200, pod("a", 11).as_bytes(), 0).await;
    assert!(!has_all_members().await && has_changed().await);
}

/// Replaces the file of pending changes by something that can't be read.
fn replace_pending(dir: &Path) {
    let pending = dir.join("hublet.redb.pending");
    std::fs::remove_file(&pending).unwrap();
    std::fs::create_dir(&pending).unwrap();
}

/// The store opens, and what it held before is unknown until it is received again.
async fn assert_opens_with_all_unknown(bench: &Bench) {
    until_writable(&bench.cache).await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    bench.respond(POD, 200, pod("a", 8).as_bytes(), 0).await;
    assert_eq!(pod_version(bench).await, 8);
}

/// A store that opened late was never served while the pending changes could not be read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_a_late_store_opens_though_its_pending_changes_cant_be_read() {
    let (disk, dir) = disk_with_store().await;
    replace_pending(dir.path());
    disk.stall();
    let bench = disk.bench(dir.path());
    assert!(!bench.cache.is_writable());
    disk.resume();
    assert_opens_with_all_unknown(&bench).await;
}

/// The same for a store that could not be read at the start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i13_an_unreadable_store_opens_though_its_pending_changes_cant_be_read() {
    let (disk, dir) = disk_with_store().await;
    replace_pending(dir.path());
    disk.0.read.store(EIO, Ordering::SeqCst);
    let bench = disk.bench(dir.path());
    let condition = bench.cache.store.condition();
    assert!(matches!(condition, Condition::Unreadable(_)));
    disk.mend();
    assert_opens_with_all_unknown(&bench).await;
}

/// While the file of pending changes could not be written, every batch tried and logged it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pending_changes_are_retried_no_more_often_than_the_store() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    disk.0.fail_writes(EROFS, 0);
    let began = Instant::now();
    bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
    for n in 0..20 {
        let key = format!("/pods/d/{n}");
        bench.cache.supersede(key.as_bytes(), Extent::Copies);
        bench.cache.settle().await;
    }
    let retries = i64::try_from(began.elapsed().as_millis() / 500).unwrap();
    let failures = disk.0.pending_failures.load(Ordering::SeqCst);
    assert!((1..=1 + retries).contains(&failures), "{failures}");
    disk.mend();
    until_writable(&bench.cache).await;
    assert!(bench.cache.store.superseded().is_empty());
}

#[tokio::test]
async fn a_directory_of_others_keeps_its_mode_and_a_new_one_is_private() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |p: &Path| std::fs::metadata(p).unwrap().permissions().mode() & 0o7777;
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o1777)).unwrap();
    let open = |dir: &Path| Store::open(dir, 1 << 20).unwrap();
    drop(open(dir.path()));
    assert_eq!(
        (mode(dir.path()), mode(&dir.path().join("hublet.redb"))),
        (0o1777, 0o600)
    );
    let new = dir.path().join("made/cache");
    drop(open(&new));
    assert_eq!((mode(&new), mode(&new.join("hublet.redb"))), (0o700, 0o600));
}
