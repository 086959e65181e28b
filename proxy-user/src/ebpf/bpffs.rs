//! The pins in the BPF file system: `BPFFS/hublet/LAYOUT/{maps,links,progs}/NAME`. bpffs is mounted if it is not;
//! [`Pins::remove`] undoes all of it.

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

/// hublet's directory in bpffs.
pub(crate) const DIRECTORY: &str = "hublet";

/// Files that the kernel puts into the first mount of bpffs.
const KERNEL_ITERATORS: [&str; 2] = ["maps.debug", "progs.debug"];

/// hublet's directory in bpffs, locked: one daemon at a time owns the pins.
#[derive(Debug)]
pub(crate) struct Pins {
    bpffs: PathBuf,
    mounted: bool,
    lock: Flock<File>,
}

impl Pins {
    /// Mounts bpffs if it is not mounted, and creates the directories. `inherited` is the lock of another daemon that hands
    /// over.
    ///
    /// # Errors
    /// Another daemon holds the lock, or the kernel refuses.
    pub(crate) fn open(bpffs: &Path, inherited: Option<OwnedFd>) -> Result<Self, Unavailable> {
        let mounted =
            mount_if_needed(bpffs).map_err(|error| refused("mounting bpffs at", bpffs, error))?;
        let pins = Self {
            bpffs: bpffs.to_path_buf(),
            mounted,
            lock: lock_directory(&bpffs.join(DIRECTORY), inherited)?,
        };
        for kind in ["maps", "links", "progs"] {
            create_directory(&pins.layout().join(kind))?;
        }
        Ok(pins)
    }

    pub(crate) fn layout(&self) -> PathBuf {
        self.directory().join(format!("{LAYOUT:016x}"))
    }

    /// For a daemon that takes over.
    pub(crate) fn lock(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    pub(crate) fn map(&self, name: &str) -> PathBuf {
        self.layout().join("maps").join(name)
    }

    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.layout().join("progs").join(name)
    }

    pub(crate) fn link(&self, name: &str) -> PathBuf {
        self.layout().join("links").join(name)
    }

    /// Removes the pins of this layout, which detaches the programs; the directories stay.
    pub(crate) fn clear(&self) {
        for kind in ["links", "progs", "maps"] {
            for pin in paths_in(&self.layout().join(kind)) {
                let _gone = fs::remove_file(pin);
            }
        }
    }

    /// Removes the pins of all other links: hooks that an earlier daemon used and this one doesn't.
    pub(crate) fn keep_links(&self, keep: &[&Path]) {
        for path in paths_in(&self.layout().join("links")) {
            if !keep.contains(&path.as_path()) {
                let _detached = fs::remove_file(path);
            }
        }
    }

    /// Removes the pins of other versions, whose programs would steer a second time. Returns their directories.
    pub(crate) fn remove_other_layouts(&self) -> Vec<PathBuf> {
        let own = self.layout();
        paths_in(&self.directory())
            .filter(|path| *path != own && fs::remove_dir_all(path).is_ok())
            .collect()
    }

    /// Removes all pins and directories, and the mount if hublet made it and it is otherwise empty.
    ///
    /// # Errors
    /// A pin can't be removed.
    pub(crate) fn remove(self) -> io::Result<()> {
        // `clear` begins with the links, so that no incomplete set of programs steers.
        self.clear();
        fs::remove_dir_all(self.layout())?;
        let _others_use_it = fs::remove_dir(self.directory());
        let Self {
            bpffs,
            mounted,
            lock,
        } = self;
        drop(lock); // the open directory keeps the mount busy
        if mounted && is_empty(&bpffs)? {
            let _someone_looks_at_it = umount(&bpffs);
        }
        Ok(())
    }

    fn directory(&self) -> PathBuf {
        self.bpffs.join(DIRECTORY)
    }
}

/// The lock ends with the process: the pins of a killed daemon can be taken over, those of a running one can't.
fn lock_directory(dir: &Path, inherited: Option<OwnedFd>) -> Result<Flock<File>, Unavailable> {
    create_directory(dir)?;
    // An inherited descriptor holds the lock already; locking it again changes nothing.
    let file = inherited
        .map_or_else(|| File::open(dir), |lock| Ok(File::from(lock)))
        .map_err(|error| refused("opening", dir, error))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => Unavailable::Busy {
            pins: dir.to_path_buf(),
        },
        errno => refused("locking", dir, errno.into()),
    })
}

fn create_directory(dir: &Path) -> Result<(), Unavailable> {
    fs::create_dir_all(dir).map_err(|error| refused("creating", dir, error))
}

fn refused(operation: &str, path: &Path, error: io::Error) -> Unavailable {
    unavailable::from_kernel(format!("{operation} {}", path.display()), error)
}

/// The entries of a directory; none if it can't be read.
pub(super) fn paths_in(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(dir).into_iter().flatten();
    entries.flatten().map(|entry| entry.path())
}

/// True if a mount of bpffs holds nothing, or only the kernel's own iterators, as the first mount does.
fn is_empty(bpffs: &Path) -> io::Result<bool> {
    let mut entries = fs::read_dir(bpffs)?.flatten();
    Ok(entries.all(|entry| {
        KERNEL_ITERATORS
            .iter()
            .any(|name| entry.file_name() == *name)
    }))
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC)
}

/// True if it was mounted here.
fn mount_if_needed(bpffs: &Path) -> io::Result<bool> {
    if is_bpffs(bpffs) {
        return Ok(false);
    }
    fs::create_dir_all(bpffs)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("bpf"), bpffs, Some("bpf"), flags, Some("mode=700"))?;
    Ok(true)
}
