//! The BPF file system and our place in it: `BPFFS/hublet/LAYOUT/{maps,links,progs}/NAME`. In: where it is, or is
//! to be mounted. Out: paths for the pins; [`Pins::remove`] leaves nothing of ours behind.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hublet_ebpf::LAYOUT;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::node::unavailable::{self, Unavailable};

/// Name of our directory.
pub(crate) const OURS: &str = "hublet";

/// Our directory in bpffs, locked: one daemon at a time owns what is pinned there.
#[derive(Debug)]
pub(crate) struct Pins {
    bpffs: PathBuf,
    mounted: bool,
    lock: Flock<File>,
}

impl Pins {
    /// Mounts bpffs when there is none, and makes our directories.
    /// `inherited` is an old daemon's lock.
    pub(crate) fn open(bpffs: &Path, inherited: Option<OwnedFd>) -> Result<Self, Unavailable> {
        let mounted = mount_if_needed(bpffs).map_err(|error| {
            unavailable::from_kernel(format!("mounting bpffs at {}", bpffs.display()), &error)
        })?;
        let pins = Self {
            bpffs: bpffs.to_path_buf(),
            mounted,
            lock: lock(&bpffs.join(OURS), inherited)?,
        };
        for kind in ["maps", "links", "progs"] {
            let dir = pins.layout().join(kind);
            fs::create_dir_all(&dir).map_err(|error| {
                unavailable::from_kernel(format!("making {}", dir.display()), &error)
            })?;
        }
        Ok(pins)
    }

    /// The directory of this layout.
    pub(crate) fn layout(&self) -> PathBuf {
        self.ours().join(format!("{LAYOUT:016x}"))
    }

    /// For a daemon that takes this one's place.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Pin of a map.
    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.layout().join("maps").join(name)
    }

    /// Pin of a program.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.layout().join("progs").join(name)
    }

    /// Pin of a link.
    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.layout().join("links").join(name)
    }

    /// Removes the pins of this layout, which detaches the programs; the directories stay.
    pub(crate) fn clear(&self) {
        for kind in ["links", "progs", "maps"] {
            let Ok(entries) = fs::read_dir(self.layout().join(kind)) else {
                continue;
            };
            for entry in entries.flatten() {
                let _gone = fs::remove_file(entry.path());
            }
        }
    }

    /// Removes the pins of all links but these: what an earlier daemon attached and this one doesn't want.
    pub(crate) fn keep_links(&self, keep: &[&Path]) {
        let Ok(entries) = fs::read_dir(self.layout().join("links")) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if !keep.contains(&path.as_path()) {
                let _detached = fs::remove_file(path);
            }
        }
    }

    /// Removes what a daemon of another version left: its programs would steer a second time.
    pub(crate) fn remove_other_layouts(&self) -> Vec<PathBuf> {
        let Ok(entries) = fs::read_dir(self.ours()) else {
            return Vec::new();
        };
        let keep = self.layout();
        let others = entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| *path != keep);
        others
            .filter(|path| fs::remove_dir_all(path).is_ok())
            .collect()
    }

    /// Removes all pins and directories, and the mount if it is ours and nobody else uses it.
    pub(crate) fn remove(self) -> io::Result<()> {
        // Links first: nothing is steered by half a set.
        self.clear();
        fs::remove_dir_all(self.layout())?;
        let _others_use_it = fs::remove_dir(self.ours());
        let Self {
            bpffs,
            mounted,
            lock,
        } = self;
        drop(lock); // an open directory keeps the mount busy
        if mounted
            && fs::read_dir(&bpffs)?
                .flatten()
                .all(|entry| is_kernels(&entry))
        {
            let _someone_looks_at_it = umount(&bpffs);
        }
        Ok(())
    }

    fn ours(&self) -> PathBuf {
        self.bpffs.join(OURS)
    }
}

/// The lock goes with the process, so a killed daemon's pins can be taken over, and a living one's can't.
fn lock(dir: &Path, inherited: Option<OwnedFd>) -> Result<Flock<File>, Unavailable> {
    fs::create_dir_all(dir)
        .map_err(|error| unavailable::from_kernel(format!("making {}", dir.display()), &error))?;
    // An inherited descriptor holds the lock already; to lock it again is no change.
    let file = inherited
        .map_or_else(|| File::open(dir), |lock| Ok(File::from(lock)))
        .map_err(|error| unavailable::from_kernel(format!("opening {}", dir.display()), &error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Unavailable::Busy {
            pins: dir.to_path_buf(),
        },
        errno => unavailable::from_kernel(format!("locking {}", dir.display()), &errno.into()),
    })
}

/// The kernel's own iterators, which every first mount of bpffs shows.
fn is_kernels(entry: &fs::DirEntry) -> bool {
    ["maps.debug", "progs.debug"]
        .iter()
        .any(|name| entry.file_name() == *name)
}

/// True when it was mounted by us.
fn mount_if_needed(bpffs: &Path) -> io::Result<bool> {
    let is_bpffs =
        |path: &Path| statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
    if is_bpffs(bpffs) {
        return Ok(false);
    }
    fs::create_dir_all(bpffs)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), bpffs, Some("bpf"), flags, Some("mode=700"))?;
    Ok(true)
}
