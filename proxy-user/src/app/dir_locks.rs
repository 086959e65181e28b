//! A living daemon's mark on its directories. In: the root directory and the store's. Out: for `hublet uninstall`, that
//! one lives there, whatever else it has or lacks (programs, an interface, a socket).
//!
//! Each daemon holds a shared flock(2) on both directories, so that two may live side by side during a hand-over; it
//! goes with the process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracing::warn;

/// As long as it is held, a daemon lives.
#[derive(Debug)]
pub struct DirectoryLocks {
    _marks: Vec<Flock<File>>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "a hublet runs with {}{}: stop it first (its unit by `systemctl stop`, or its process by SIGTERM)",
    place.display(),
    process.map(|pid| format!(", process {pid}")).unwrap_or_default()
)]
pub struct DaemonRunning {
    /// Its directory, or its store.
    pub place: PathBuf,
    /// Its process, where the kernel tells.
    pub process: Option<u32>,
}

impl DirectoryLocks {
    /// Marks directories as a living daemon's. One that can't be marked (on a file system without locks) is told of.
    pub(super) fn declare(directories: [&Path; 2]) -> Self {
        let mark = |directory: &Path| {
            lock(directory, FlockArg::LockSharedNonblock)
                .inspect_err(|error| {
                    warn!(
                        "`hublet uninstall` would not notice that this one runs: {}: {error}",
                        directory.display()
                    );
                })
                .ok()
        };
        Self {
            _marks: directories.into_iter().filter_map(mark).collect(),
        }
    }

    /// Makes sure that none lives with these directories, and that none starts as long as the result is held.
    ///
    /// # Errors
    /// One lives.
    pub fn exclude(root: &Path, store: &Path) -> Result<Self, DaemonRunning> {
        // Daemons before these marks are known by the lock that redb holds on the store.
        let items = [root.to_owned(), store.to_owned(), store.join("hublet.redb")];
        let mut marks = Vec::new();
        for place in items {
            match lock(&place, FlockArg::LockExclusiveNonblock) {
                Ok(mark) => marks.push(mark),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let process = holder(&place);
                    return Err(DaemonRunning { place, process });
                }
                Err(_) => {} // not there, or it can't be locked by anybody
            }
        }
        Ok(Self { _marks: marks })
    }
}

fn lock(path: &Path, how: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, how).map_err(|(_, errno): (File, Errno)| errno.into())
}

/// The process that holds a lock on a file, as proc_locks(5) tells it: `1: FLOCK ADVISORY READ PID MAJOR:MINOR:INODE 0 EOF`.
fn holder(path: &Path) -> Option<u32> {
    let inode = format!(":{}", fs::metadata(path).ok()?.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    let fields = locks
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut held = fields
        .filter(|f| f.get(1) == Some(&"FLOCK") && f.get(5).is_some_and(|f| f.ends_with(&inode)));
    held.find_map(|fields| fields.get(4)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_living_daemon_is_noticed_by_each_of_its_directories() {
        let (root, store, other) = (
            tempfile::tempdir().expect("root"),
            tempfile::tempdir().expect("store"),
            tempfile::tempdir().expect("other"),
        );
        let daemon = DirectoryLocks::declare([root.path(), store.path()]);
        let successor = DirectoryLocks::declare([root.path(), store.path()]);
        for (root, store) in [(root.path(), other.path()), (other.path(), store.path())] {
            let alive = DirectoryLocks::exclude(root, store).expect_err("it lives");
            assert_eq!(alive.process, Some(std::process::id()), "{alive}");
        }
        drop(daemon);
        assert!(
            DirectoryLocks::exclude(root.path(), store.path()).is_err(),
            "the successor lives"
        );
        drop(successor);
        assert!(DirectoryLocks::exclude(root.path(), store.path()).is_ok());
        assert!(
            DirectoryLocks::exclude(&root.path().join("none"), &store.path().join("none")).is_ok()
        );
    }
}
