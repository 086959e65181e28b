//! Doing something in another network namespace: on a thread of its own, so that nobody else is moved there.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, setns};

/// Runs `work` in the network namespace mounted at `path`; `None` is the caller's own. Sockets and child
/// processes made by `work` stay in that namespace.
///
/// # Errors
/// The namespace can't be entered (it needs root, and the path must exist).
pub fn within<T: Send>(path: Option<&Path>, work: impl FnOnce() -> T + Send) -> Result<T> {
    let Some(path) = path else { return Ok(work()) };
    let namespace =
        File::open(path).with_context(|| format!("no network namespace at {}", path.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a network namespace needs root")?;
            Ok(work())
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
