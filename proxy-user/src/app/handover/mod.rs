//! The hand-over of a running daemon's place to its successor (`--take-over`), without a refused
//! connection: for upgrades, and for the way back.
//!
//! ```text
//! new: connects to ROOT_DIR/handover.sock         (same user or root, by SO_PEERCRED)
//!      ──request──────────▶ old
//!      ◀──sockets, locks──  stops accepting: the kernel queues new connections
//!                           ends its streams, finishes open answers, closes the store
//!      ◀──store closed────
//!      opens the store, puts its programs into the pinned links, accepts
//!      ──serving──────────▶ exits without undoing anything
//! ```
//!
//! The listeners are the same sockets throughout, so the kernel's queue, the eBPF liveness slot and
//! every SYN in flight survive. If the new daemon dies before it serves, the old one re-executes
//! itself; one that hangs is killed first, since it holds the sockets.

mod new;
mod old;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::timeout;

pub(super) use new::Inheritance;
pub(super) use old::{HandoverListener, Successor};

/// Version of the protocol: the messages and the manifest.
const PROTOCOL: u32 = 1;

/// Descriptors in one message; the kernel's own limit is SCM_MAX_FD (253).
const MAX_ITEMS: usize = 16;

/// Bytes of a manifest with [`MAX_ITEMS`] items.
const MAX_MANIFEST: usize = 4096;

/// Timeout of the peer's next message: the old daemon may have to finish open answers first.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);

/// Time for a killed process to release what it had open.
const KILL_TIMEOUT: Duration = Duration::from_secs(1);

/// A message of one byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Message {
    /// new → old: requests to replace the old daemon.
    Request = b'?',
    /// old → new: the store is closed.
    StoreClosed = b'c',
    /// new → old: accepts and steers.
    Serving = b's',
}

impl Message {
    fn send(self, to: &UnixStream) -> io::Result<()> {
        (&mut &*to).write_all(&[self as u8])
    }

    /// Waits for this message, at most as long as the stream's read timeout.
    fn expect(self, from: &UnixStream) -> io::Result<()> {
        let mut byte = [0];
        (&mut &*from).read_exact(&mut byte).map_err(read_error)?;
        if byte[0] == self as u8 {
            Ok(())
        } else {
            Err(self.unexpected(byte[0]))
        }
    }

    fn unexpected(self, byte: u8) -> io::Error {
        let problem = format!("expected {self:?}, got byte {byte:#04x}");
        io::Error::new(io::ErrorKind::InvalidData, problem)
    }
}

fn read_error(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no message within {} s", PEER_TIMEOUT.as_secs()),
        ),
        _ => error,
    }
}

/// The items that are handed over, in the order of their descriptors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Manifest {
    protocol: u32,
    /// "places" on the wire since protocol 1.
    #[serde(rename = "places")]
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Item {
    Listener(SocketAddr),
    /// The lock on the pin directory.
    Pins,
    /// The claim to the dummy interface.
    Interface,
}

impl Manifest {
    fn new(items: Vec<Item>) -> Self {
        Self {
            protocol: PROTOCOL,
            items,
        }
    }

    fn parse(bytes: &[u8]) -> Result<Self, HandoverError> {
        let manifest: Self = serde_json::from_slice(bytes)?;
        if manifest.protocol != PROTOCOL {
            return Err(HandoverError::Protocol(manifest.protocol));
        }
        Ok(manifest)
    }
}

/// Errors of the new daemon's side.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    #[error(
        "the running hublet uses hand-over protocol {0}, this one {PROTOCOL}: stop it, then start this one"
    )]
    Protocol(u32),
    /// It refused, died, or was silent.
    #[error("the running hublet did not hand over: {0}")]
    Io(#[from] io::Error),
    #[error("the running hublet sent an invalid manifest: {0}")]
    Manifest(#[from] serde_json::Error),
    #[error("the running hublet sent {descriptors} descriptors for {items} items")]
    Descriptors { items: usize, descriptors: usize },
}

fn socket_path(root_dir: &Path) -> PathBuf {
    root_dir.join("handover.sock")
}

/// The process at the other end of a hand-over.
#[derive(Debug)]
pub(super) struct PeerProcess(AsyncFd<OwnedFd>);

impl PeerProcess {
    /// `None` where the process isn't visible (another pid namespace, or Linux before 5.3). Call
    /// while it lives, on a tokio runtime.
    #[expect(
        deprecated,
        reason = "it closes nothing under the runtime: an OwnedFd stays open as long as it lives"
    )]
    fn of_stream(stream: &UnixStream) -> Option<Self> {
        let pid = Pid::from_raw(getsockopt(stream, PeerCredentials).ok()?.pid())?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        AsyncFd::with_interest(process, Interest::READABLE)
            .ok()
            .map(Self)
    }

    pub(super) async fn wait_for_exit(&self) {
        // Fails only when the runtime ends.
        let _ready = self.0.readable().await;
    }

    /// Kills the process and waits until its descriptors are closed.
    pub(super) async fn kill(self) -> io::Result<()> {
        pidfd_send_signal(self.0.get_ref(), Signal::KILL)?;
        timeout(KILL_TIMEOUT, self.wait_for_exit())
            .await
            .map_err(io::Error::from)
    }
}

#[cfg(test)]
mod tests;
