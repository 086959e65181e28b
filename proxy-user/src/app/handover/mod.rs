//! A new daemon takes the old one's place without a connection attempt that fails: an upgrade, or the way back. In: a unix
//! socket in the root directory. Out: the old one's listening sockets, and what keeps others off its pins and interface.
//!
//! ```text
//! new: --take-over ──ask──▶ old                       (same user or root, by SO_PEERCRED)
//!      ◀──sockets, locks──  stops accepting: the kernel queues what comes in
//!                           ends its streams, finishes what it is answering, closes the store
//!      ◀──closed──────────
//!      opens the store, puts its programs into the pinned links, accepts
//!      ──serving─────────▶  exits, and leaves everything where it is
//! ```
//!
//! The listeners are the same sockets throughout, so the kernel's queue, the eBPF liveness slot and every SYN in flight
//! survive. If the new one dies before it serves, the old one starts itself anew; one that hangs is killed first, since it
//! has the sockets.

mod new;
mod old;

use std::io;
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

pub(crate) use new::Inheritance;
pub(crate) use old::{HandoverListener, Successor};

/// Sockets and locks that can be handed over at once.
const MAX_ITEMS: usize = 16;
/// How long either waits for the other's next word: the old one may have to finish what it is answering.
const PEER_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two attempts to accept where there is no free descriptor; longest time for a killed process to be gone.
const AGAIN: Duration = Duration::from_secs(1);
/// Version of these few words.
const PROTOCOL: u32 = 1;

const ASK: u8 = b'?';
const CLOSED: u8 = b'c';
const SERVING: u8 = b's';

/// What is handed over, in the order of the descriptors.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    protocol: u32,
    items: Vec<Item>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Item {
    Listener(SocketAddr),
    Pins,
    Interface,
}

/// Why there was no hand-over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The other one is of another kind.
    #[error(
        "the hublet that runs here speaks another hand-over protocol ({0}): stop it, then start this one"
    )]
    Protocol(u32),
    /// It refused, died, or was silent.
    #[error("the hublet that runs here did not hand over its place: {0}")]
    Broken(#[from] io::Error),
    /// Words that make no sense.
    #[error("the hublet that runs here handed over its place in words that make no sense: {0}")]
    Words(#[from] serde_json::Error),
}

/// Where a daemon with this root directory can be asked.
fn path(root: &Path) -> PathBuf {
    root.join("handover.sock")
}

/// The other daemon's process.
#[derive(Debug)]
pub(crate) struct Peer(AsyncFd<OwnedFd>);

impl Peer {
    /// The process at the other end; none where it can't be seen (in another pid namespace, or before Linux 5.3). Call
    /// while it lives, on a tokio runtime.
    #[expect(
        deprecated,
        reason = "it closes nothing under the runtime: an OwnedFd stays open as long as it lives"
    )]
    fn behind(stream: &UnixStream) -> Option<Self> {
        let pid = Pid::from_raw(getsockopt(stream, PeerCredentials).ok()?.pid())?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        AsyncFd::with_interest(process, Interest::READABLE)
            .ok()
            .map(Self)
    }

    /// Waits until it has ended.
    pub(crate) async fn ended(self) {
        // An error would mean that the runtime ends.
        let _ready = self.0.readable().await;
    }

    /// Kills it, and waits until what it had open is closed.
    pub(crate) async fn kill(self) -> io::Result<()> {
        pidfd_send_signal(self.0.get_ref(), Signal::KILL)?;
        timeout(AGAIN, self.ended()).await.map_err(io::Error::from)
    }
}

fn expect(from: &UnixStream, word: u8) -> io::Result<()> {
    let mut said = [0];
    io::Read::read_exact(&mut &*from, &mut said).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("silent for {} s", PEER_TIMEOUT.as_secs()),
        ),
        _ => error,
    })?;
    if said[0] == word {
        Ok(())
    } else {
        Err(io::Error::other("it said something else"))
    }
}
