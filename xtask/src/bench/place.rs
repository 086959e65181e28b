//! A network namespace and a cgroup for the bench alone, so that hublet's address and eBPF programs meet nobody else's,
//! and enough file descriptors.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::project::Project;
use crate::step;

/// Descriptors for a thousand watches on either side, with room.
const FILES: u64 = 16_384;

/// A namespace (gone with its last process) and a cgroup (removed here).
#[derive(Debug)]
pub(super) struct Sandbox {
    cgroup: Option<BenchCgroup>,
}

#[derive(Debug)]
struct BenchCgroup {
    ours: PathBuf,
    before: PathBuf,
}

impl Sandbox {
    /// Moves this thread, and all that it starts from now on.
    pub(super) fn enter(project: &Project) -> Result<Self> {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, soft.max(FILES.min(hard)), hard)?;
        unshare(CloneFlags::CLONE_NEWNET)
            .context("cannot make a network namespace: are we root?")?;
        step::read_output(project.command("ip").args(["link", "set", "lo", "up"]))?;
        let cgroup = match move_to_cgroup() {
            Ok(moved) => Some(moved),
            Err(error) => {
                step::note(format_args!(
                    "no cgroup of our own, so hublet runs without eBPF: {error:#}"
                ));
                None
            }
        };
        Ok(Self { cgroup })
    }

    /// The directory that hublet attaches its programs to.
    pub(super) fn cgroup(&self) -> Option<&Path> {
        self.cgroup.as_ref().map(|moved| moved.ours.as_path())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        let Some(BenchCgroup { ours, before }) = &self.cgroup else {
            return;
        };
        let back = fs::write(before.join("cgroup.procs"), "0").and_then(|()| fs::remove_dir(ours));
        if let Err(error) = back {
            eprintln!("{} is left behind: {error}", ours.display());
        }
    }
}

fn move_to_cgroup() -> Result<BenchCgroup> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let root = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words.get(2) == Some(&"cgroup2"))
        .and_then(|words| words.get(1).map(PathBuf::from))
        .context("cgroup v2 is not mounted")?;
    let ours = fs::read_to_string("/proc/self/cgroup")?;
    let before = ours
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .context("we are in no cgroup v2")?;
    let moved = BenchCgroup {
        ours: root.join(format!("hublet-bench-{}", std::process::id())),
        before: root.join(before),
    };
    fs::create_dir(&moved.ours)?;
    fs::write(moved.ours.join("cgroup.procs"), "0")?;
    Ok(moved)
}
