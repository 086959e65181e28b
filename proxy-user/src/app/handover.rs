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

use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::warn;

use crate::setup;

/// Sockets and locks that can be handed over at once.
const MAX_PLACES: usize = 16;
/// How long either waits for the other's next word: the old one may have to finish what it is answering.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two attempts to accept where there is no free descriptor; longest time for a killed process to be gone.
const AGAIN: Duration = Duration::from_secs(1);
/// Version of these few words.
const PROTOCOL: u32 = 1;

const ASK: u8 = b'?';
const CLOSED: u8 = b'c';
const SERVING: u8 = b's';

/// What is handed over, in the order of the descriptors.
#[derive(Debug, Serialize, Deserialize)]
struct Places {
    protocol: u32,
    places: Vec<Place>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Place {
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

// ---- the new one ----

/// An old daemon's place.
#[derive(Debug, Default)]
pub(super) struct Taken {
    listeners: Vec<TcpListener>,
    pub(super) setup: setup::Inherited,
    old: Option<UnixStream>,
    process: Option<Peer>,
}

/// The other daemon's process.
#[derive(Debug)]
pub(super) struct Peer(AsyncFd<OwnedFd>);

impl Taken {
    /// Asks the daemon that runs with this root directory for its place, and waits until its store is closed. Nothing
    /// is taken when none runs.
    pub(super) fn ask(root: &Path) -> Result<Self, HandoverError> {
        let Ok(mut old) = UnixStream::connect(path(root)) else {
            return Ok(Self::default());
        };
        old.set_read_timeout(Some(PATIENCE))?;
        io::Write::write_all(&mut old, &[ASK])?;
        let (places, descriptors) = receive(&old)?;
        if places.protocol != PROTOCOL {
            return Err(HandoverError::Protocol(places.protocol));
        }
        let mut taken = Self {
            process: Peer::behind(&old),
            ..Self::default()
        };
        for (place, descriptor) in places.places.into_iter().zip(descriptors) {
            match place {
                Place::Listener(_) => taken.listeners.push(descriptor.into()),
                Place::Pins => taken.setup.pins = Some(descriptor),
                Place::Interface => taken.setup.interface = Some(descriptor),
            }
        }
        expect(&old, CLOSED)?;
        taken.old = Some(old);
        Ok(taken)
    }

    /// The listener at this address, if there is one.
    pub(super) fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self
            .listeners
            .iter()
            .position(|socket| socket.local_addr().is_ok_and(|at| at == address))?;
        Some(self.listeners.swap_remove(at))
    }

    /// Lets the old one go; listeners that nobody wanted are closed. Gives the old one, to wait for its end.
    pub(super) fn serving(mut self) -> Option<Peer> {
        if let Some(mut old) = self.old.take()
            && let Err(error) = io::Write::write_all(&mut old, &[SERVING])
        {
            warn!("the old hublet has ended before it was told to: {error}");
        }
        self.process
    }
}

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
    pub(super) async fn ended(self) {
        // An error would mean that the runtime ends.
        let _ready = self.0.readable().await;
    }

    /// Kills it, and waits until what it had open is closed.
    pub(super) async fn kill(self) -> io::Result<()> {
        pidfd_send_signal(self.0.get_ref(), Signal::KILL)?;
        timeout(AGAIN, self.ended()).await.map_err(io::Error::from)
    }
}

fn receive(from: &UnixStream) -> Result<(Places, Vec<OwnedFd>), HandoverError> {
    let mut words = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PLACES))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut words)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(io::Error::from)?;
    if got.bytes == 0 {
        return Err(
            io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection").into(),
        );
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    Ok((serde_json::from_slice(&words[..got.bytes])?, descriptors))
}

fn expect(from: &UnixStream, word: u8) -> io::Result<()> {
    let mut said = [0];
    io::Read::read_exact(&mut &*from, &mut said).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!("silent for {} s", PATIENCE.as_secs()),
        ),
        _ => error,
    })?;
    if said[0] == word {
        Ok(())
    } else {
        Err(io::Error::other("it said something else"))
    }
}

// ---- the old one ----

/// Somebody who wants our place.
#[derive(Debug)]
pub(super) struct Successor(UnixStream);

/// Waits for successors, on a thread of its own.
#[derive(Debug)]
pub(super) struct Door {
    path: PathBuf,
    asked: mpsc::Receiver<Successor>,
}

impl Door {
    /// Opens the door; without it there is no hand-over, which is said, and nothing else is lost.
    pub(super) fn open(root: &Path) -> Option<Self> {
        let path = path(root);
        let listener = (|| {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&path)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
            Ok(listener)
        })();
        let listener = listener
            .inspect_err(|error| {
                warn!(
                    "no later hublet can take over from this one: {}: {error}",
                    path.display()
                )
            })
            .ok()?;
        let (sender, asked) = mpsc::channel(1);
        let wait = move || {
            for stream in listener.incoming() {
                // Without a free descriptor accept() fails at once, and again.
                let Ok(stream) = stream else {
                    std::thread::park_timeout(AGAIN);
                    continue;
                };
                match admit(stream) {
                    Ok(successor) => {
                        if sender.blocking_send(successor).is_err() {
                            return;
                        }
                    }
                    Err(error) => warn!("somebody asked for our place and was refused: {error}"),
                }
            }
        };
        std::thread::Builder::new()
            .name("hublet-door".into())
            .spawn(wait)
            .ok()?;
        Some(Self { path, asked })
    }

    /// The next one who asks.
    pub(super) async fn asked(&mut self) -> Successor {
        match self.asked.recv().await {
            Some(successor) => successor,
            None => std::future::pending().await,
        }
    }

    /// Takes the socket away.
    pub(super) fn close(self) {
        let _gone = fs::remove_file(self.path);
    }
}

/// Our own user, or root.
fn admit(stream: UnixStream) -> io::Result<Successor> {
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("user {}", peer.uid.as_raw()),
        ));
    }
    stream.set_read_timeout(Some(PATIENCE))?;
    expect(&stream, ASK)?;
    Ok(Successor(stream))
}

impl Successor {
    /// Its process, as [`Peer::behind`].
    pub(super) fn process(&self) -> Option<Peer> {
        Peer::behind(&self.0)
    }

    /// Gives the place away: the sockets first.
    pub(super) fn give(
        &self,
        listeners: &[(SocketAddr, BorrowedFd<'_>)],
        setup: &setup::Held<'_>,
    ) -> io::Result<()> {
        let listening = listeners
            .iter()
            .map(|(address, fd)| (Place::Listener(*address), *fd));
        let held = [
            (Place::Pins, setup.pins),
            (Place::Interface, setup.interface),
        ];
        let held = held
            .into_iter()
            .filter_map(|(place, fd)| Some((place, fd?)));
        let (places, descriptors): (Vec<_>, Vec<_>) =
            listening.chain(held).take(MAX_PLACES).unzip();
        let words = serde_json::to_vec(&Places {
            protocol: PROTOCOL,
            places,
        })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_PLACES))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !control.push(SendAncillaryMessage::ScmRights(&descriptors)) {
            return Err(io::Error::other("too many sockets"));
        }
        sendmsg(
            &self.0,
            &[IoSlice::new(&words)],
            &mut control,
            SendFlags::NOSIGNAL,
        )?;
        Ok(())
    }

    /// Says that the store is closed, and waits until the successor serves.
    pub(super) fn wait(mut self) -> io::Result<()> {
        io::Write::write_all(&mut self.0, &[CLOSED])?;
        expect(&self.0, SERVING)
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
