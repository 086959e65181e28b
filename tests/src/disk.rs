//! A node whose store is on a small disk that can be full or read-only, or on one that can hang.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::site::Site;
use crate::{cloud, daemon, require};

/// A small disk; dropping it unmounts it.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn mount(path: PathBuf, megabytes: u32) -> Result<Self> {
        fs::create_dir_all(&path)?;
        let options = format!("size={megabytes}m,mode=0700");
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )?;
        Ok(Self(path))
    }

    /// Leaves no byte free.
    ///
    /// # Errors
    /// The file can't be made.
    pub fn fill(&self) -> Result<()> {
        let mut file = fs::File::options()
            .create(true)
            .append(true)
            .open(self.0.join("others"))?;
        for block in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![1; block]).is_ok() {}
        }
        Ok(())
    }

    /// Gives back what [`SmallDisk::fill`] took.
    ///
    /// # Errors
    /// It took nothing.
    pub fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("others"))?)
    }

    /// Makes it so, or not.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_read_only(&self, read_only: bool) -> Result<()> {
        let flags = if read_only {
            MsFlags::MS_RDONLY
        } else {
            MsFlags::empty()
        };
        let none = None::<&str>;
        mount(none, &self.0, none, MsFlags::MS_REMOUNT | flags, none).context("remount")
    }

    /// Stores that were set aside.
    #[must_use]
    pub fn count_set_aside(&self) -> usize {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries
            .filter(|entry| entry.file_name().to_string_lossy().contains("aside"))
            .count()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A site whose store is on a disk of that size; `before` has it before the daemon starts. The disk goes last.
///
/// # Errors
/// A part doesn't start; the message holds the end of its log.
pub fn start_site(
    role: &str,
    megabytes: u32,
    cloud: cloud::Options,
    with: impl FnOnce(&mut daemon::Options),
    before: impl FnOnce(&SmallDisk) -> Result<()>,
) -> Result<Option<(Site, SmallDisk)>> {
    let Some(mut site) = Site::prepare(role, cloud, with)? else {
        return Ok(None);
    };
    let disk = SmallDisk::mount(site.daemon.root_dir().join("cache"), megabytes)?;
    before(&disk)?;
    site.start_daemon()?;
    Ok(Some((site, disk)))
}

/// A disk that can hang: a file with ext4, which the kernel can freeze. Dropping it unmounts it.
#[derive(Debug)]
pub struct HangingDisk {
    mount: PathBuf,
    _image: tempfile::NamedTempFile,
}

impl HangingDisk {
    /// Mounts it. `None`: this machine has no loop devices or no ext4, and the reason was printed (in CI this fails).
    ///
    /// # Errors
    /// A command fails; the message holds its output.
    pub fn mount(path: PathBuf) -> Result<Option<Self>> {
        let has_loop_devices = Path::new("/dev/loop-control").exists();
        if !require::skip_unless(has_loop_devices, "it needs loop devices: modprobe loop") {
            return Ok(None);
        }
        fs::create_dir_all(&path)?;
        let image = tempfile::NamedTempFile::new()?;
        image.as_file().set_len(64 << 20)?;
        run(Command::new("mkfs.ext4").arg("-q").arg(image.path()))?;
        run(Command::new("mount")
            .args(["-o", "loop"])
            .args([image.path(), &path]))?;
        Ok(Some(Self {
            mount: path,
            _image: image,
        }))
    }

    /// Every write waits from now on.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn hang(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("-f").arg(&self.mount))
    }

    /// The writes that wait go on.
    ///
    /// # Errors
    /// It doesn't hang.
    pub fn go_on(&self) -> Result<()> {
        run(Command::new("fsfreeze").arg("-u").arg(&self.mount))
    }
}

impl Drop for HangingDisk {
    fn drop(&mut self) {
        let _ = self.go_on();
        let _ = umount2(&self.mount, MntFlags::MNT_DETACH);
    }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {stderr}");
    Ok(())
}
