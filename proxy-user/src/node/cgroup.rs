//! The cgroup v2 hierarchy: where it is, and which path a cgroup id has. In: /proc/thread-self/mountinfo. Out: a
//! directory to attach to, and names for the ids that eBPF attests.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::unavailable::Unavailable;

/// Id of the true root; a container's own root has another.
pub(crate) const ROOT_ID: u64 = 1;
/// Names kept; at the limit all are forgotten (a name is found again in microseconds).
const MAX_NAMES: usize = 1024;
/// Directories that one search visits at most.
const MAX_VISITED: usize = 20_000;
/// At most one search in this time: an unknown id must not cost a walk for every connection.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    /// Holds a private mount, which is in no mount table.
    _private: Option<File>,
    names: Mutex<Names>,
}

#[derive(Debug, Default)]
struct Names {
    known: HashMap<u64, String>,
    searched: Option<Instant>,
    searching: bool,
}

impl Cgroups {
    /// Finds the v2 root, or mounts it for this process alone.
    pub(crate) fn find() -> Result<Self, Unavailable> {
        let mounts =
            fs::read_to_string("/proc/thread-self/mountinfo").map_err(Unavailable::NoCgroup)?;
        let (root, private) = match root_in(&mounts) {
            Some(root) => (root, None),
            None => {
                let root = mount_privately().map_err(Unavailable::NoCgroup)?;
                (
                    PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd())),
                    Some(root),
                )
            }
        };
        Ok(Self {
            root,
            _private: private,
            names: Mutex::default(),
        })
    }

    /// The directory to attach to, opened: the root, or the configured one.
    pub(crate) fn open(&self, configured: Option<&Path>) -> Result<(File, PathBuf), Unavailable> {
        let path = configured.unwrap_or(&self.root);
        let open = || {
            let dir = File::open(path)?;
            if nix::sys::statfs::fstatfs(&dir)?.filesystem_type()
                != nix::sys::statfs::CGROUP2_SUPER_MAGIC
            {
                return Err(io::Error::other("this is not in a cgroup v2 file system"));
            }
            Ok(dir)
        };
        match open() {
            Ok(dir) => Ok((dir, path.to_path_buf())),
            Err(source) => Err(Unavailable::Cgroup {
                path: path.to_path_buf(),
                source,
            }),
        }
    }

    /// Where the hierarchy is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// This process's cgroup, if it is its own: no other process is in it, and it isn't the root.
    pub(crate) fn own(&self) -> Option<u64> {
        let path = self
            .root
            .join(path_of_process("self")?.trim_start_matches('/'));
        let id = fs::metadata(&path).ok()?.ino();
        let processes = fs::read_to_string(path.join("cgroup.procs")).ok()?;
        (id != ROOT_ID && processes.trim() == std::process::id().to_string()).then_some(id)
    }

    /// Is this process in `subtree`? The programs see accepted sockets by the cgroup of the *listening* process.
    pub(crate) fn is_inside(&self, subtree: &Path) -> bool {
        let Some(own) = path_of_process("self") else {
            return false;
        };
        let own = self.root.join(own.trim_start_matches('/'));
        match (own.canonicalize(), subtree.canonicalize()) {
            (Ok(own), Ok(subtree)) => own.starts_with(subtree),
            _ => false,
        }
    }

    /// The path of a cgroup below the root, for the process `pid` that was in it a moment ago. The pid is a hint
    /// only (it may be reused, or of another pid namespace): a path counts when its inode is the id.
    pub(crate) fn path(&self, id: u64, pid: u32) -> Option<String> {
        if let Some(known) = self.names.lock().known.get(&id) {
            return Some(known.clone());
        }
        let hinted = path_of_process(&pid.to_string()).filter(|path| self.id_of(path) == Some(id));
        let found = hinted.or_else(|| self.searched(id))?;
        let mut names = self.names.lock();
        if names.known.len() >= MAX_NAMES {
            names.known.clear();
        }
        names.known.insert(id, found.clone());
        Some(found)
    }

    /// Nobody waits for another one's search: whoever comes while there is one, or just was, goes without.
    fn searched(&self, id: u64) -> Option<String> {
        {
            let mut names = self.names.lock();
            if names.searching
                || names
                    .searched
                    .is_some_and(|at| at.elapsed() < SEARCH_INTERVAL)
            {
                return None;
            }
            names.searching = true;
        }
        let found = search(&self.root, id);
        let mut names = self.names.lock();
        (names.searching, names.searched) = (false, Some(Instant::now()));
        found
    }

    fn id_of(&self, path: &str) -> Option<u64> {
        fs::metadata(self.root.join(path.trim_start_matches('/')))
            .ok()
            .map(|meta| meta.ino())
    }
}

/// The pod's UID in the name of a pod's cgroup: `podUID`, `kubepods-burstable-podUID.slice` (with `_` for `-`). A static
/// pod's UID is 32 hexadecimal digits.
pub(crate) fn pod_of(name: &str) -> Option<String> {
    let (_, uid) = name
        .strip_suffix(".slice")
        .unwrap_or(name)
        .rsplit_once("pod")?;
    let allowed = |b: u8| b.is_ascii_hexdigit() || matches!(b, b'-' | b'_');
    (matches!(uid.len(), 32 | 36) && uid.bytes().all(allowed)).then(|| uid.replace('_', "-"))
}

/// The container's id in the name of its cgroup: 64 hexadecimal digits, as in `cri-containerd-ID.scope`.
pub(crate) fn container_of(name: &str) -> Option<String> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name.rsplit_once(['-', ':']).map_or(name, |(_, id)| id);
    (id.len() == 64 && id.bytes().all(|b| b.is_ascii_hexdigit())).then(|| id.to_owned())
}

fn path_of_process(pid: &str) -> Option<String> {
    let lines = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    lines
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(str::to_owned)
}

/// Where cgroup2 is mounted from its root on.
fn root_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (mount, kind) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (root == "/" && kind.starts_with("cgroup2 ")).then(|| PathBuf::from(unescape(point)))
    })
}

/// mountinfo writes blanks and backslashes in octal.
fn unescape(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Mounts the hierarchy nowhere (fsmount(2), Linux 5.2): there is no path that somebody else could have prepared, and
/// the mount goes with its descriptor.
fn mount_privately() -> io::Result<File> {
    let cgroup2 = fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(&cgroup2)?;
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    Ok(File::from(fsmount(
        &cgroup2,
        FsMountFlags::FSMOUNT_CLOEXEC,
        quiet,
    )?))
}

/// Breadth first: pods' cgroups are a few levels down.
fn search(root: &Path, id: u64) -> Option<String> {
    if fs::metadata(root).is_ok_and(|meta| meta.ino() == id) {
        return Some("/".into());
    }
    let mut queue = std::collections::VecDeque::from([root.to_path_buf()]);
    let mut visited = 0;
    while let Some(dir) = queue.pop_front() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        {
            let path = entry.path();
            if entry.ino() == id {
                let below = path.strip_prefix(root).ok()?;
                return Some(format!("/{}", below.display()));
            }
            queue.push_back(path);
            visited += 1;
            if visited == MAX_VISITED {
                return None;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_v2_root_among_v1_hierarchies() {
        let hybrid = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                      39 31 0:36 /kubepods /mnt/part rw - cgroup2 cgroup2 rw\n\
                      41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            root_in(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(
            root_in("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"),
            None
        );
    }

    #[test]
    fn searches_by_inode() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("kubepods.slice/pod1/container");
        fs::create_dir_all(&pod).unwrap();
        fs::create_dir(dir.path().join("system.slice")).unwrap();
        let id = fs::metadata(&pod).unwrap().ino();
        assert_eq!(
            search(dir.path(), id).as_deref(),
            Some("/kubepods.slice/pod1/container")
        );
        assert_eq!(search(dir.path(), u64::MAX), None);
    }

    /// The mount point was a directory of a predictable name in the temporary directory: a link of that name led the
    /// mount elsewhere.
    #[test]
    fn the_private_mount_has_no_path() {
        let elsewhere = tempfile::tempdir().unwrap();
        let link = std::env::temp_dir().join(format!("hublet-cgroup2-{}", std::process::id()));
        std::os::unix::fs::symlink(elsewhere.path(), &link).unwrap();
        let mounted = mount_privately();
        fs::remove_file(&link).unwrap();
        let Ok(root) = mounted else { return }; // without privileges
        let there = PathBuf::from(format!("/proc/self/fd/{}", root.as_raw_fd()));
        assert!(there.join("cgroup.procs").exists());
        assert!(
            root_in(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap())
                .is_none_or(|at| at != there)
        );
        let by_path = Cgroups {
            root: there,
            _private: Some(root),
            names: Mutex::default(),
        };
        assert!(by_path.path(by_path.id_of("/").unwrap(), 0).is_some());
    }
}
