//! A disk that hangs holds up no answer from the store, no start and no stop beyond its limit.

use std::time::{Duration, Instant};

use super::disk_failure_tests::{assert_pods_unknown, assert_pods_written, store_pods, write_pods};
use super::failing_disk::{FailingDisk, disk_with_store, pod_version, until_writable};
use super::tests::{POD, gone, pod};
use crate::cache::store::{Condition, Lookup, Store, StoreError};

/// While a sync hung without failing, a 404 from before was served for objects that had been created since.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_while_a_sync_hangs_nothing_is_absent() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    for name in ["a", "b"] {
        let call = format!("GET /api/v1/namespaces/d/pods/{name}");
        bench.respond(&call, 404, gone(name).as_bytes(), 0).await;
    }
    disk.stall();
    bench.cache.clear_absence(b"/pods/d/a");
    let while_stalled = bench.object("/pods/d/a").await;
    disk.resume();
    assert_eq!(while_stalled, Lookup::Unknown);
    bench.cache.settle().await;
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    assert!(bench.is_absent("/pods/d/b").await);
}

/// While a sync hung, clients were given what they had seen changed or deleted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i2_while_a_sync_hangs_nothing_older_than_a_write_is_served() {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    store_pods(&bench).await;
    disk.stall();
    write_pods(&bench).await;
    assert_pods_unknown(&bench).await;
    disk.resume();
    bench.cache.settle().await;
    assert_pods_written(&bench).await;
}

/// SIGTERM and a hand-over waited for the disk for ever.
#[tokio::test(start_paused = true)]
async fn i12_on_a_disk_that_hangs_a_test_and_a_close_end_at_their_limits() {
    let limit = Duration::from_millis(500);
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
    bench.cache.settle().await;
    disk.stall();
    let began = tokio::time::Instant::now();
    assert!(bench.cache.test_disk(limit).await.is_err());
    assert!(bench.cache.close_within(limit).await.is_err());
    assert!(began.elapsed() < 2 * limit + Duration::from_millis(10));
    let other = Store::open(dir.path(), 1 << 20);
    assert!(matches!(other, Err(StoreError::InUse(_))), "{other:?}");
    disk.resume();
    bench.cache.close().await;
    assert_eq!(pod_version(&disk.bench(dir.path())).await, 7);
}

/// A start waited for a disk that hung, however long that took.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_start_on_a_disk_that_hangs_is_without_the_store_until_it_answers() {
    let (disk, dir) = disk_with_store().await;
    disk.stall();
    let began = Instant::now();
    let bench = disk.bench(dir.path());
    assert!(began.elapsed() < Duration::from_secs(10));
    assert!(matches!(
        bench.cache.store.condition(),
        Condition::Unreadable(_)
    ));
    assert_eq!(bench.object("/pods/d/a").await, Lookup::Unknown);
    disk.resume();
    until_writable(&bench.cache).await;
    assert_eq!(pod_version(&bench).await, 7);
    bench.cache.close().await;
    assert_eq!(pod_version(&disk.bench(dir.path())).await, 7);
}

/// The pending changes were read outside the limit of a start.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i12_a_start_waits_no_longer_for_the_pending_changes_than_for_the_store() {
    let (disk, dir) = disk_with_store().await;
    disk.stall_pending();
    let stalled = disk.clone();
    let resume = tokio::spawn(async move {
        tokio::time::sleep(Duration::from_secs(6)).await;
        stalled.resume();
    });
    let began = Instant::now();
    let bench = disk.bench(dir.path());
    assert!(began.elapsed() < Duration::from_secs(5));
    let condition = bench.cache.store.condition();
    assert!(matches!(condition, Condition::Unreadable(_)));
    resume.await.unwrap();
    until_writable(&bench.cache).await;
    assert_eq!(pod_version(&bench).await, 7);
}

#[tokio::test]
async fn i12_a_disk_that_writes_passes_the_test_though_nothing_is_pending() {
    let dir = tempfile::tempdir().unwrap();
    let bench = FailingDisk::default().bench(dir.path());
    assert!(bench.cache.test_disk(Duration::from_secs(30)).await.is_ok());
    assert!(!dir.path().join("hublet.redb.room").exists());
}
