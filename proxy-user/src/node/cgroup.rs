//! The cgroup v2 hierarchy: its mount point, and the paths of the cgroup ids that eBPF attests.

use std::collections::{HashMap, VecDeque};
use std::fs::{self, DirEntry, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};
use parking_lot::Mutex;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::unavailable::Unavailable;

/// Id of the hierarchy's root; the root of a container's cgroup namespace has another.
pub(crate) const ROOT_ID: u64 = 1;
/// Cached paths. At the limit all are dropped: one is found again in microseconds.
const MAX_PATHS: usize = 1024;
/// Directories that one search visits at most.
const MAX_VISITED: usize = 20_000;
/// Least time between two searches: an unknown id must not cost a walk for every connection.
const SEARCH_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Cgroups {
    root: PathBuf,
    /// Holds a private mount, which is in no mount table.
    _private: Option<File>,
    paths: Mutex<PathCache>,
}

#[derive(Debug, Default)]
struct PathCache {
    known: HashMap<u64, String>,
    last_search: Option<Instant>,
    is_searching: bool,
}

impl PathCache {
    fn insert(&mut self, id: u64, path: String) {
        if self.known.len() >= MAX_PATHS {
            self.known.clear();
        }
        self.known.insert(id, path);
    }

    /// `None` while a search runs, and shortly after one.
    fn begin_search(&mut self) -> Option<()> {
        let last = self.last_search;
        if self.is_searching || last.is_some_and(|at| at.elapsed() < SEARCH_INTERVAL) {
            return None;
        }
        self.is_searching = true;
        Some(())
    }

    fn end_search(&mut self) {
        self.is_searching = false;
        self.last_search = Some(Instant::now());
    }
}

/// An open directory of the hierarchy.
#[derive(Debug)]
pub(crate) struct CgroupDirectory {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// The cgroup id, which is the inode.
    pub(crate) id: u64,
}

impl CgroupDirectory {
    fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if fstatfs(&file)?.filesystem_type() != CGROUP2_SUPER_MAGIC {
            return Err(io::Error::other("this is not in a cgroup v2 file system"));
        }
        Ok(Self {
            id: file.metadata()?.ino(),
            path: path.to_path_buf(),
            file,
        })
    }
}

impl Cgroups {
    /// Finds the mounted hierarchy, or mounts it for this process alone.
    ///
    /// # Errors
    /// It is neither mounted nor can it be.
    pub(crate) fn find() -> Result<Self, Unavailable> {
        let mounts =
            fs::read_to_string("/proc/thread-self/mountinfo").map_err(Unavailable::NoCgroup)?;
        match mount_point_in(&mounts) {
            Some(root) => Ok(Self::new(root, None)),
            None => Self::mount().map_err(Unavailable::NoCgroup),
        }
    }

    fn mount() -> io::Result<Self> {
        let mount = mount_privately()?;
        let root = format!("/proc/self/fd/{}", mount.as_raw_fd());
        Ok(Self::new(root.into(), Some(mount)))
    }

    fn new(root: PathBuf, private: Option<File>) -> Self {
        Self {
            root,
            _private: private,
            paths: Mutex::default(),
        }
    }

    /// Opens the directory to attach to: the configured one, or the root.
    ///
    /// # Errors
    /// It is not a directory of the hierarchy.
    pub(crate) fn open(&self, configured: Option<&Path>) -> Result<CgroupDirectory, Unavailable> {
        let path = configured.unwrap_or(&self.root);
        CgroupDirectory::open(path).map_err(|source| Unavailable::Cgroup {
            path: path.to_path_buf(),
            source,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The id of this process's cgroup, if it is not the root and no other process is in it.
    pub(crate) fn exclusive_id(&self) -> Option<u64> {
        let path = self.directory(&path_of_process("self")?);
        let id = fs::metadata(&path).ok()?.ino();
        let processes = fs::read_to_string(path.join("cgroup.procs")).ok()?;
        (id != ROOT_ID && processes.trim() == std::process::id().to_string()).then_some(id)
    }

    /// True if this process is in `subtree`. The programs see accepted sockets in the cgroup of the *listening* process.
    pub(crate) fn is_inside(&self, subtree: &Path) -> bool {
        let Some(own) = path_of_process("self") else {
            return false;
        };
        let own = self.directory(&own);
        match (own.canonicalize(), subtree.canonicalize()) {
            (Ok(own), Ok(subtree)) => own.starts_with(subtree),
            _ => false,
        }
    }

    /// The path of a cgroup below the root. `pid` is a process that was in it a moment ago, and a hint only (it may be
    /// reused, or of another pid namespace): a path counts only if its inode is the id.
    pub(crate) fn path_of(&self, id: u64, pid: u32) -> Option<String> {
        if let Some(known) = self.paths.lock().known.get(&id) {
            return Some(known.clone());
        }
        let hinted = path_of_process(&pid.to_string()).filter(|path| self.id_of(path) == Some(id));
        let found = hinted.or_else(|| self.search_limited(id))?;
        self.paths.lock().insert(id, found.clone());
        Some(found)
    }

    /// `None` also while another thread searches or shortly after a search: no connection waits for one.
    fn search_limited(&self, id: u64) -> Option<String> {
        self.paths.lock().begin_search()?;
        let found = search_by_id(&self.root, id);
        self.paths.lock().end_search();
        found
    }

    fn id_of(&self, path: &str) -> Option<u64> {
        let directory = fs::metadata(self.directory(path));
        directory.ok().map(|meta| meta.ino())
    }

    /// The directory of a cgroup's path below the root.
    fn directory(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }
}

/// The pod UID in the name of a cgroup: `podUID`, or `kubepods-burstable-podUID.slice` with `_` for `-`. The UID of a static
/// pod has 32 hexadecimal digits.
pub(crate) fn pod_uid_in(name: &str) -> Option<String> {
    let (_, uid) = name
        .strip_suffix(".slice")
        .unwrap_or(name)
        .rsplit_once("pod")?;
    is_uid(uid).then(|| uid.replace('_', "-"))
}

fn is_uid(text: &str) -> bool {
    let mut bytes = text.bytes();
    matches!(text.len(), 32 | 36)
        && bytes.all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b'-' | b'_'))
}

/// The container id in the name of a cgroup: 64 hexadecimal digits, as in `cri-containerd-ID.scope`.
pub(crate) fn container_id_in(name: &str) -> Option<String> {
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

/// The mount point of the hierarchy's root.
fn mount_point_in(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(mount_point_of)
}

/// Of a line of mountinfo; `None` for other file systems, and for a part of the hierarchy.
fn mount_point_of(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(3);
    let (root, point) = (fields.next()?, fields.next()?);
    (root == "/" && kind.starts_with("cgroup2 ")).then(|| unescape_octal(point).into())
}

/// proc_pid_mountinfo(5) writes blanks and backslashes in octal.
fn unescape_octal(field: &str) -> String {
    field
        .replace("\\040", " ")
        .replace("\\011", "\t")
        .replace("\\012", "\n")
        .replace("\\134", "\\")
}

/// Mounts the hierarchy without a mount point (fsmount(2), Linux 5.2): no other process can prepare the path, and the mount
/// ends with its descriptor.
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
fn search_by_id(root: &Path, id: u64) -> Option<String> {
    if fs::metadata(root).is_ok_and(|meta| meta.ino() == id) {
        return Some("/".into());
    }
    let mut queue = VecDeque::from([root.to_path_buf()]);
    let mut visited = 0;
    while let Some(dir) = queue.pop_front() {
        for entry in directories_in(&dir) {
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

pub(crate) fn directories_in(dir: &Path) -> impl Iterator<Item = DirEntry> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
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
            mount_point_in(hybrid),
            Some(PathBuf::from("/sys/fs/cgroup/uni fied"))
        );
        assert_eq!(
            mount_point_in("31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"),
            None
        );
    }

    #[test]
    fn pods_are_known_by_their_cgroups_names() {
        let uid = "0a1b2c3d-0000-4000-8000-0123456789ab";
        let systemd = format!("kubepods-burstable-pod{}.slice", uid.replace('-', "_"));
        for name in [format!("pod{uid}"), systemd] {
            assert_eq!(pod_uid_in(&name).as_deref(), Some(uid), "{name}");
        }
        let static_pod = "pod0123456789abcdef0123456789abcdef";
        assert_eq!(pod_uid_in(static_pod).as_deref(), Some(&static_pod[3..]));
        for name in ["podman.service", "pod-of-whales", "system.slice", "pod"] {
            assert_eq!(pod_uid_in(name), None, "{name}");
        }
    }

    #[test]
    fn a_path_needs_the_right_inode_whatever_the_pid_says() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        let cgroups = Cgroups {
            root: dir.path().to_path_buf(),
            _private: None,
            paths: Mutex::default(),
        };
        let id = cgroups.id_of("/a").unwrap();
        assert_eq!(
            cgroups.path_of(id, std::process::id()).as_deref(),
            Some("/a")
        );
        assert_eq!(cgroups.path_of(id, 0).as_deref(), Some("/a"), "cached");
        assert_eq!(cgroups.path_of(u64::MAX, 0), None, "no search so soon");
    }

    #[test]
    fn a_directory_outside_of_the_hierarchy_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = Cgroups {
            root: dir.path().to_path_buf(),
            _private: None,
            paths: Mutex::default(),
        };
        let text = cgroups.open(None).unwrap_err().to_string();
        assert!(text.contains("not in a cgroup v2 file system"), "{text}");
        let text = cgroups.open(Some(Path::new("/nonexistent"))).unwrap_err();
        assert!(text.to_string().contains("/nonexistent"), "{text}");
    }

    #[test]
    fn searches_by_inode() {
        let dir = tempfile::tempdir().unwrap();
        let pod = dir.path().join("kubepods.slice/pod1/container");
        fs::create_dir_all(&pod).unwrap();
        fs::create_dir(dir.path().join("system.slice")).unwrap();
        let id = fs::metadata(&pod).unwrap().ino();
        assert_eq!(
            search_by_id(dir.path(), id).as_deref(),
            Some("/kubepods.slice/pod1/container")
        );
        assert_eq!(search_by_id(dir.path(), u64::MAX), None);
    }

    /// A mount point of a predictable name in the temporary directory could be a link of another user's, which led the
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
            mount_point_in(&fs::read_to_string("/proc/thread-self/mountinfo").unwrap())
                .is_none_or(|at| at != there)
        );
        let by_path = Cgroups {
            root: there,
            _private: Some(root),
            paths: Mutex::default(),
        };
        assert!(by_path.path_of(by_path.id_of("/").unwrap(), 0).is_some());
    }
}
