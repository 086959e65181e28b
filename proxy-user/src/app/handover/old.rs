//! The old daemon's side: listens for a successor and gives it the sockets and locks.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::sync::mpsc;
use tracing::warn;

use super::{Item, MAX_ITEMS, Manifest, Message, PEER_TIMEOUT, PeerProcess, socket_path};
use crate::steer;

/// Without a free descriptor accept() fails at once, and again.
const ACCEPT_RETRY: Duration = Duration::from_secs(1);

/// The connection of a new daemon that has requested to replace this one.
#[derive(Debug)]
pub(crate) struct Successor(pub(super) UnixStream);

/// Listens for successors, on a thread of its own.
#[derive(Debug)]
pub(crate) struct HandoverListener {
    path: PathBuf,
    successors: mpsc::Receiver<Successor>,
}

impl HandoverListener {
    /// Listens for a successor. Failure is logged and only disables hand-over.
    pub(crate) fn start(root_dir: &Path) -> Option<Self> {
        let path = socket_path(root_dir);
        let (sender, successors) = mpsc::channel(1);
        match start_accepting(&path, sender) {
            Ok(()) => Some(Self { path, successors }),
            Err(error) => {
                warn!(
                    "can't listen on {}, so a new hublet can't take over from this one: {error}",
                    path.display()
                );
                None
            }
        }
    }

    pub(crate) async fn next_successor(&mut self) -> Successor {
        match self.successors.recv().await {
            Some(successor) => successor,
            None => std::future::pending().await,
        }
    }

    pub(crate) fn remove_socket(self) {
        // Another daemon may have removed it already.
        let _ = fs::remove_file(self.path);
    }
}

/// Accepts successors on a thread, which ends with the process.
fn start_accepting(path: &Path, successors: mpsc::Sender<Successor>) -> io::Result<()> {
    let listener = bind_socket(path)?;
    std::thread::Builder::new()
        .name("hublet-handover".into())
        .spawn(move || accept_successors(&listener, &successors))?;
    Ok(())
}

/// Replaces the socket that an earlier daemon left behind.
fn bind_socket(path: &Path) -> io::Result<UnixListener> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

fn accept_successors(listener: &UnixListener, successors: &mpsc::Sender<Successor>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            std::thread::park_timeout(ACCEPT_RETRY);
            continue;
        };
        match Successor::admit(stream) {
            Ok(successor) => {
                if successors.blocking_send(successor).is_err() {
                    return;
                }
            }
            Err(error) => warn!("rejected a request for a hand-over: {error}"),
        }
    }
}

fn check_user(peer: &UnixStream) -> io::Result<()> {
    let user = rustix::net::sockopt::socket_peercred(peer)?.uid;
    if user.is_root() || user == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::PermissionDenied,
        format!("user {} is neither root nor hublet's", user.as_raw()),
    ))
}

impl Successor {
    /// Admits root and the daemon's own user, once they have sent a request.
    pub(super) fn admit(stream: UnixStream) -> io::Result<Self> {
        check_user(&stream)?;
        stream.set_read_timeout(Some(PEER_TIMEOUT))?;
        Message::Request.expect(&stream)?;
        Ok(Self(stream))
    }

    pub(crate) fn process(&self) -> Option<PeerProcess> {
        PeerProcess::of_stream(&self.0)
    }

    /// Sends the listeners and locks, with a manifest that names them.
    ///
    /// # Errors
    /// The successor has exited; nothing was given away.
    pub(crate) fn send_items(
        &self,
        listeners: &[(SocketAddr, BorrowedFd<'_>)],
        setup: &steer::Inheritance<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let listeners = listeners
            .iter()
            .map(|(address, fd)| (Item::Listener(*address), *fd));
        let pins = setup.pins.map(|fd| (Item::Pins, fd));
        let interface = setup.interface.map(|fd| (Item::Interface, fd));
        let (items, descriptors): (Vec<_>, Vec<_>) = listeners
            .chain(pins)
            .chain(interface)
            .take(MAX_ITEMS)
            .unzip();
        let manifest = serde_json::to_vec(&Manifest::new(items))?;
        send_descriptors(&self.0, &manifest, &descriptors)
    }

    /// Reports that the store is closed, and waits until the successor serves. Blocks.
    pub(crate) fn wait_until_serving(self) -> io::Result<()> {
        Message::StoreClosed.send(&self.0)?;
        Message::Serving.expect(&self.0)
    }
}

fn send_descriptors(
    to: &UnixStream,
    manifest: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ITEMS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    let manifest = [IoSlice::new(manifest)];
    sendmsg(to, &manifest, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}
