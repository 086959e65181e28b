//! Locks by which `hublet uninstall` notices a running daemon, whatever else it has or lacks
//! (programs, an interface, a socket).
//!
//! A daemon holds a shared flock(2) on its root directory and its store's directory: two may run
//! side by side during a hand-over. The kernel releases the locks with the process.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tracing::warn;

/// Locks on a daemon's directories, released when dropped.
#[derive(Debug)]
pub struct DirectoryLocks {
    _locks: Vec<Flock<File>>,
}

/// A daemon runs with one of the directories.
#[derive(Debug, thiserror::Error)]
#[error(
    "hublet is running with {}{}: stop it first (`systemctl stop` its unit, or send the process SIGTERM)",
    path.display(),
    pid.map(|pid| format!(", process {pid}")).unwrap_or_default()
)]
pub struct DaemonRunning {
    /// The locked directory or file.
    pub path: PathBuf,
    /// `None` if the kernel does not tell.
    pub pid: Option<u32>,
}

impl DaemonRunning {
    fn with(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            pid: find_lock_holder(path),
        }
    }
}

impl DirectoryLocks {
    /// Locks a running daemon's directories. Failure (a file system without locks) is only logged.
    pub(crate) fn lock_shared(directories: [&Path; 2]) -> Self {
        let mut locks = Vec::new();
        for directory in directories {
            match lock_file(directory, FlockArg::LockSharedNonblock) {
                Ok(lock) => locks.push(lock),
                Err(error) => warn!(
                    "can't lock {}, so `hublet uninstall` won't detect this daemon: {error}",
                    directory.display()
                ),
            }
        }
        Self { _locks: locks }
    }

    /// Excludes daemons with these directories: while the locks are held, none starts.
    ///
    /// # Errors
    /// One is running.
    pub fn lock_exclusive(root_dir: &Path, store_dir: &Path) -> Result<Self, DaemonRunning> {
        // Versions without these locks are noticed by redb's lock on the store.
        let store_file = store_dir.join("hublet.redb");
        let mut locks = Vec::new();
        for path in [root_dir, store_dir, &store_file] {
            match lock_file(path, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => locks.push(lock),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(DaemonRunning::with(path));
                }
                // Absent, or on a file system without locks.
                Err(_) => {}
            }
        }
        Ok(Self { _locks: locks })
    }
}

fn lock_file(path: &Path, mode: FlockArg) -> io::Result<Flock<File>> {
    Flock::lock(File::open(path)?, mode).map_err(|(_, errno): (File, Errno)| errno.into())
}

fn find_lock_holder(path: &Path) -> Option<u32> {
    let inode = fs::metadata(path).ok()?.ino();
    parse_lock_holder(&fs::read_to_string("/proc/locks").ok()?, inode)
}

/// Finds a file's lock in /proc/locks. proc_locks(5): the fields are
/// `1: FLOCK ADVISORY READ PID MAJOR:MINOR:INODE 0 EOF`.
fn parse_lock_holder(locks: &str, inode: u64) -> Option<u32> {
    let locks = locks.lines().filter_map(FileLock::parse);
    locks
        .filter(|lock| lock.inode == inode)
        .find_map(|lock| lock.pid)
}

/// A line of /proc/locks.
struct FileLock {
    inode: u64,
    pid: Option<u32>,
}

impl FileLock {
    /// `None` for locks of other kinds.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<_> = line.split_ascii_whitespace().collect();
        let ["FLOCK", _, _, pid, file, ..] = fields.get(1..)? else {
            return None;
        };
        let (_, inode) = file.rsplit_once(':')?;
        Some(Self {
            inode: inode.parse().ok()?,
            pid: pid.parse().ok(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_daemon_is_noticed_by_each_of_its_directories() {
        let (root, store, other) = (
            tempfile::tempdir().expect("root"),
            tempfile::tempdir().expect("store"),
            tempfile::tempdir().expect("other"),
        );
        let daemon = DirectoryLocks::lock_shared([root.path(), store.path()]);
        let successor = DirectoryLocks::lock_shared([root.path(), store.path()]);
        for (root, store) in [(root.path(), other.path()), (other.path(), store.path())] {
            let running = DirectoryLocks::lock_exclusive(root, store).expect_err("it runs");
            assert_eq!(running.pid, Some(std::process::id()), "{running}");
        }
        drop(daemon);
        assert!(
            DirectoryLocks::lock_exclusive(root.path(), store.path()).is_err(),
            "the successor runs"
        );
        drop(successor);
        assert!(DirectoryLocks::lock_exclusive(root.path(), store.path()).is_ok());
        let absent = root.path().join("absent");
        assert!(DirectoryLocks::lock_exclusive(&absent, &absent).is_ok());
    }

    #[test]
    fn the_holder_is_the_flock_of_that_inode() {
        let locks = "1: POSIX  ADVISORY  WRITE 10 fd:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 11 fd:01:177 0 EOF\n\
                     2: -> FLOCK  ADVISORY  READ 12 fd:01:77 0 EOF\n\
                     3: FLOCK  ADVISORY  READ 13 fd:01:77 0 EOF\n\
                     4: FLOCK\n\n";
        assert_eq!(parse_lock_holder(locks, 77), Some(13));
        assert_eq!(parse_lock_holder(locks, 7), None);
    }
}
