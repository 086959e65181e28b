//! `hublet uninstall`: leaves nothing of hublet on the node. In: where things are, as the daemon was told. Out: what was
//! removed, a line each.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::app::{DaemonRunning, DirectoryLocks};
use crate::certs;
use crate::ebpf::pins::{Pinned, PinnedError};
use crate::node::error::SetupError;
use crate::node::interface::remove_interface;
use crate::text::Printable;

/// The flags of `hublet run` that say where things are.
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    /// Where bpffs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// The interface
    #[arg(long, value_name = "NAME", default_value = "hub-dummy0")]
    pub dummy_if_name: String,
    /// The certificates are in its pki/
    #[arg(long, value_name = "DIR", default_value = "/var/lib/yurthub")]
    pub root_dir: PathBuf,
    /// The store
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/cache/")]
    pub disk_cache_path: PathBuf,
    /// Leave the store and the certificates
    #[arg(long)]
    pub keep_files: bool,
}

/// Why something is left.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error(transparent)]
    DaemonRunning(#[from] DaemonRunning),
    /// Pins, or a living daemon.
    #[error("{0}; stop hublet first")]
    Pinned(#[from] PinnedError),
    #[error(transparent)]
    Interface(#[from] SetupError),
    #[error("{0} can't be removed: {1}")]
    File(PathBuf, io::Error),
    #[error("{0}")]
    System(#[from] io::Error),
}

/// Removes everything that hublet made; what others made stays.
///
/// # Errors
/// A daemon lives, or something can't be removed. A closed `out` doesn't stop it halfway.
pub fn uninstall(args: &UninstallArgs, out: &mut dyn Write) -> Result<(), UninstallError> {
    let _none_starts = DirectoryLocks::exclude(&args.root_dir, &args.disk_cache_path)?;
    let mut removed = |what: &dyn Display| drop(writeln!(out, "removed {}", Printable(what)));
    match Pinned::find(&args.bpffs) {
        Ok(pinned) => {
            pinned.remove()?;
            removed(&format_args!(
                "the eBPF programs and maps pinned in {}",
                args.bpffs.display()
            ));
        }
        Err(PinnedError::Nothing(_)) => {}
        Err(error) => return Err(error.into()),
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if runtime.block_on(remove_interface(&args.dummy_if_name))? {
        removed(&format_args!("the interface {}", args.dummy_if_name));
    }
    if args.keep_files {
        return Ok(());
    }
    let mut files = certs::hublet_files(&args.root_dir.join("pki"));
    files.extend(named(&args.disk_cache_path, "hublet.redb"));
    for file in files {
        match fs::remove_file(&file) {
            Ok(()) => removed(&file.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(UninstallError::File(file, error)),
        }
    }
    for dir in [
        args.disk_cache_path.clone(),
        args.root_dir.join("pki"),
        args.root_dir.clone(),
    ] {
        if fs::remove_dir(&dir).is_ok() {
            removed(&dir.display()); // an empty one only
        }
    }
    Ok(())
}

/// Files of a directory whose names begin so.
fn named(dir: &Path, begin: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let ours = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(begin));
    ours.map(|entry| entry.path()).collect()
}
