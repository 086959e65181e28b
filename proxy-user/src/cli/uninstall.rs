//! `hublet uninstall`: removes everything that hublet created on the node, and prints a line for each.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use crate::certs;
use crate::ebpf::pins::{Pinned, PinnedError};
use crate::node::dir_locks::{DaemonRunning, DirectoryLocks};
use crate::node::interface::{InterfaceError, remove_interface};
use crate::text::Printable;

/// Flags of `hublet run` that name places.
#[derive(Debug, Clone, Args)]
pub struct UninstallArgs {
    /// Mount point of bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Name of the dummy interface
    #[arg(long, value_name = "NAME", default_value = "hub-dummy0")]
    pub dummy_if_name: String,
    /// Directory of the certificates, which are in DIR/pki
    #[arg(long, value_name = "DIR", default_value = "/var/lib/yurthub")]
    pub root_dir: PathBuf,
    /// Directory of the store
    #[arg(long, value_name = "DIR", default_value = "/etc/kubernetes/cache/")]
    pub disk_cache_path: PathBuf,
    /// Keep the store and the certificates
    #[arg(long)]
    pub keep_files: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    #[error(transparent)]
    DaemonRunning(#[from] DaemonRunning),
    #[error("{0}; stop hublet first")]
    Pinned(#[from] PinnedError),
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("can't remove {}: {source}; remove it as root", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("can't start a runtime for netlink: {0}")]
    Runtime(#[source] io::Error),
}

/// Removes everything that hublet created. A closed `out` doesn't stop it halfway.
///
/// # Errors
/// A daemon is running, or something can't be removed.
pub fn uninstall(args: &UninstallArgs, out: &mut dyn Write) -> Result<(), UninstallError> {
    let _no_daemon_starts = DirectoryLocks::lock_exclusive(&args.root_dir, &args.disk_cache_path)?;
    let mut report = Report(out);
    remove_pins(&args.bpffs, &mut report)?;
    remove_dummy(&args.dummy_if_name, &mut report)?;
    if !args.keep_files {
        remove_files(args, &mut report)?;
    }
    Ok(())
}

struct Report<'a>(&'a mut dyn Write);

impl Report<'_> {
    fn removed(&mut self, item: impl Display) {
        // Its reader may have gone, which is no reason to leave the rest.
        let _ = writeln!(self.0, "removed {}", Printable(item));
    }
}

fn remove_pins(bpffs: &Path, report: &mut Report<'_>) -> Result<(), UninstallError> {
    let pinned = match Pinned::find(bpffs) {
        Ok(pinned) => pinned,
        Err(PinnedError::Nothing(_)) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    pinned.remove()?;
    report.removed(format_args!(
        "the eBPF programs and maps pinned in {}",
        bpffs.display()
    ));
    Ok(())
}

fn remove_dummy(name: &str, report: &mut Report<'_>) -> Result<(), UninstallError> {
    let runtime = netlink_runtime().map_err(UninstallError::Runtime)?;
    if runtime.block_on(remove_interface(name))? {
        report.removed(format_args!("the interface {name}"));
    }
    Ok(())
}

fn netlink_runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
}

fn remove_files(args: &UninstallArgs, report: &mut Report<'_>) -> Result<(), UninstallError> {
    let pki = args.root_dir.join("pki");
    let mut files = certs::hublet_files(&pki);
    files.extend(files_with_prefix(&args.disk_cache_path, "hublet.redb"));
    for path in files {
        match fs::remove_file(&path) {
            Ok(()) => report.removed(path.display()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(UninstallError::File { path, source }),
        }
    }
    remove_empty_directories([&args.disk_cache_path, &pki, &args.root_dir], report);
    Ok(())
}

/// Directories that hold files of others stay.
fn remove_empty_directories(directories: [&Path; 3], report: &mut Report<'_>) {
    for directory in directories {
        if fs::remove_dir(directory).is_ok() {
            report.removed(directory.display());
        }
    }
}

fn files_with_prefix(directory: &Path, prefix: &str) -> Vec<PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn removed_from(args: &UninstallArgs) -> String {
        let mut out = Vec::new();
        remove_files(args, &mut Report(&mut out)).expect("removed");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn own_files_go_and_others_stay() {
        let root = tempfile::tempdir().expect("directory");
        let path = |name: &str| root.path().join(name);
        fs::create_dir_all(path("root/pki")).expect("made");
        fs::create_dir(path("store")).expect("made");
        for name in [
            "root/pki/dev-ca.crt",
            "store/hublet.redb",
            "store/hublet.redb.corrupt",
            "root/kubelet.conf",
        ] {
            fs::write(path(name), "").expect("written");
        }
        let args = UninstallArgs {
            bpffs: PathBuf::new(),
            dummy_if_name: String::new(),
            root_dir: path("root"),
            disk_cache_path: path("store"),
            keep_files: false,
        };
        let removed = removed_from(&args);
        assert_eq!(
            removed.lines().count(),
            5,
            "three files, two directories: {removed}"
        );
        assert!(path("root/kubelet.conf").exists() && !path("root/pki").exists());
        assert_eq!(removed_from(&args), "", "nothing is left");
    }

    #[test]
    fn a_reader_that_has_gone_does_not_stop_it() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        Report(&mut Closed).removed("the store");
    }
}
