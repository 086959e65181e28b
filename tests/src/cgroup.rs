//! cgroups for tests, removed when dropped.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// A cgroup below the root; nested ones are made and removed with their parents.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let root = find_root()?;
        let path = root.join(name);
        fs::create_dir_all(&path)
            .with_context(|| format!("make the cgroup {}: this needs root", path.display()))?;
        Ok(Self { root, path })
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// As configurations and `/proc/PID/cgroup` name it.
    #[must_use]
    pub fn hierarchy_path(&self) -> PathBuf {
        Path::new("/").join(self.path.strip_prefix(&self.root).unwrap_or(&self.path))
    }

    /// The shell's way in, for a program that it runs next.
    #[must_use]
    pub fn join_command(&self) -> String {
        join_command(&self.path)
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut path = self.path.clone();
        while path != self.root && fs::remove_dir(&path).is_ok() {
            path.pop();
        }
    }
}

/// As [`Cgroup::join_command`], for any cgroup's directory.
#[must_use]
pub fn join_command(path: &Path) -> String {
    format!("echo $$ > {}/cgroup.procs", path.display())
}

/// Mount point of the hierarchy.
pub fn find_root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    let line = mounts
        .lines()
        .find(|line| line.contains(" - cgroup2 "))
        .context("no cgroup v2 is mounted")?;
    Ok(line
        .split(' ')
        .nth(4)
        .context("mountinfo names the mount point")?
        .into())
}
