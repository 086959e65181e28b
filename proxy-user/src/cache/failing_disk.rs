//! A file system whose reads, writes and syncs fail or hang when a test wants it.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::tests::{Bench, POD, pod};
use super::*;
use crate::cache::backend::{Access, FileOpener, FileSystem, StorageFile};
use crate::cache::keys::ObjectKey;
use crate::cache::open::StoreLocation;
use crate::cache::store::{Lookup, Store};

pub(super) const ENOSPC: i32 = 28;
pub(super) const EROFS: i32 = 30;
pub(super) const EIO: i32 = 5;

/// Operations that fail, and from which one on.
#[derive(Debug, Default)]
pub(super) struct Faults {
    /// errno of writes, 0: none.
    write: AtomicI32,
    /// Writes, growths and syncs that still go well.
    after: AtomicI64,
    /// errno of reads, 0: none.
    pub read: AtomicI32,
    /// Syncs hang as long as this is set.
    stalled: Mutex<bool>,
    resumed: Condvar,
    /// Reads of the file of pending changes hang as long as this is set.
    pending_stalled: Mutex<bool>,
    /// Failed writes of the file of pending changes.
    pub pending_failures: AtomicI64,
}

impl Faults {
    pub(super) fn fail_writes(&self, errno: i32, after: i64) {
        self.after.store(after, Ordering::SeqCst);
        self.write.store(errno, Ordering::SeqCst);
    }

    fn writes(&self) -> io::Result<()> {
        match self.write.load(Ordering::SeqCst) {
            0 => Ok(()),
            _ if self.after.fetch_sub(1, Ordering::SeqCst) > 0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    fn reads(&self) -> io::Result<()> {
        match self.read.load(Ordering::SeqCst) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

/// The file system, with faults.
#[derive(Debug, Clone, Default)]
pub(super) struct FailingDisk(pub Arc<Faults>);

#[derive(Debug)]
struct FailingFile {
    file: Arc<dyn StorageFile>,
    faults: Arc<Faults>,
    /// Its blocks are allocated, and overwritten in place.
    is_reserved: bool,
}

impl FailingFile {
    fn writes(&self) -> io::Result<()> {
        let is_full = self.faults.write.load(Ordering::SeqCst) == ENOSPC;
        let is_allocated = || self.file.len().is_ok_and(|len| len > 0);
        if self.is_reserved && is_full && is_allocated() {
            Ok(())
        } else {
            let count_failure = |_: &io::Error| {
                let failures = &self.faults.pending_failures;
                failures.fetch_add(self.is_reserved.into(), Ordering::SeqCst);
            };
            self.faults.writes().inspect_err(count_failure)
        }
    }
}

fn is_of_pending_file(extension: &OsStr) -> bool {
    extension == "pending" || extension == "pending-new"
}

impl FileOpener for FailingDisk {
    fn open(&self, path: &Path, access: Access) -> io::Result<Arc<dyn StorageFile>> {
        if access == Access::Write && self.0.write.load(Ordering::SeqCst) == EROFS {
            return Err(io::Error::from_raw_os_error(EROFS));
        }
        Ok(Arc::new(FailingFile {
            file: FileSystem.open(path, access)?,
            faults: Arc::clone(&self.0),
            is_reserved: path.extension().is_some_and(is_of_pending_file),
        }))
    }
}

impl StorageFile for FailingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if self.is_reserved {
            let mut stalled = self.faults.pending_stalled.lock();
            let resumed = &self.faults.resumed;
            resumed.wait_while(&mut stalled, |stalled| *stalled);
        }
        self.faults
            .reads()
            .and_then(|()| self.file.read(offset, out))
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.writes().and_then(|()| self.file.write(offset, data))
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.writes().and_then(|()| self.file.set_len(len))
    }
    fn sync(&self) -> io::Result<()> {
        let mut stalled = self.faults.stalled.lock();
        self.faults
            .resumed
            .wait_while(&mut stalled, |stalled| *stalled);
        drop(stalled);
        self.writes().and_then(|()| self.file.sync())
    }
    fn lock(&self) -> io::Result<bool> {
        self.file.lock()
    }
    fn unlock(&self) {
        self.file.unlock();
    }
    fn identity(&self) -> io::Result<(u64, u64)> {
        self.file.identity()
    }
}

impl FailingDisk {
    pub(super) fn open_in(&self, dir: &Path) -> Cache {
        let store =
            Store::open_at(StoreLocation::new(dir, 1 << 20, Arc::new(self.clone()))).unwrap();
        Cache::over(store, 512 << 20, Clock::default(), Instant::now()).unwrap()
    }

    pub(super) fn bench(&self, dir: &Path) -> Bench {
        Bench {
            cache: self.open_in(dir),
            _dir: tempfile::tempdir().unwrap(),
        }
    }

    pub(super) fn mend(&self) {
        self.0.write.store(0, Ordering::SeqCst);
        self.0.read.store(0, Ordering::SeqCst);
    }

    /// From here on syncs hang, until [`Self::resume`].
    pub(super) fn stall(&self) {
        *self.0.stalled.lock() = true;
    }

    /// As [`Self::stall`], for reads of the file of pending changes.
    pub(super) fn stall_pending(&self) {
        *self.0.pending_stalled.lock() = true;
    }

    pub(super) fn resume(&self) {
        *self.0.stalled.lock() = false;
        *self.0.pending_stalled.lock() = false;
        self.0.resumed.notify_all();
    }
}

/// A disk and a directory with a store that was closed, in which pod `a` has version 7.
pub(super) async fn disk_with_store() -> (FailingDisk, tempfile::TempDir) {
    let (disk, dir) = (FailingDisk::default(), tempfile::tempdir().unwrap());
    let bench = disk.bench(dir.path());
    bench.respond(POD, 200, pod("a", 7).as_bytes(), 0).await;
    bench.cache.close().await;
    (disk, dir)
}

pub(super) async fn until_writable(cache: &Cache) {
    let until = Instant::now() + Duration::from_secs(15);
    while !cache.is_writable() {
        assert!(
            Instant::now() < until,
            "the writer comes back by itself: {:?}",
            cache.store.condition()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cache.settle().await;
}

pub(super) fn count_set_aside(dir: &Path) -> usize {
    let names = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name());
    names
        .filter(|name| name.to_string_lossy().contains("aside"))
        .count()
}

/// The stored version of pod `a`, read as for a local answer: once more if the store is reopened meanwhile.
pub(super) async fn pod_version(bench: &Bench) -> u64 {
    for _ in 0..2 {
        let generation = bench.cache.generation();
        let snapshot = bench.cache.snapshot().await.unwrap();
        match snapshot.object(ObjectKey::new(b"/pods/d/a"), |r| r.version.get()) {
            Ok(Lookup::Found(version)) => return version,
            Ok(other) => panic!("it was stored: {other:?}"),
            Err(error) => assert!(bench.cache.wait_until_reopened(generation).await, "{error}"),
        }
    }
    panic!("reopened, and still unreadable");
}
