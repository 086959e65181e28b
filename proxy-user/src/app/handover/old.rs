//! The old daemon's side: listens for a successor and gives it the sockets and locks.

use std::fs;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::sync::mpsc;
use tracing::warn;

use super::{
    AGAIN, ASK, CLOSED, Item, MAX_ITEMS, Manifest, PEER_TIMEOUT, PROTOCOL, Peer, SERVING, expect,
    path,
};
use crate::steer;

/// Somebody who wants our place.
#[derive(Debug)]
pub(crate) struct Successor(UnixStream);

/// Waits for successors, on a thread of its own.
#[derive(Debug)]
pub(crate) struct HandoverListener {
    path: PathBuf,
    asked: mpsc::Receiver<Successor>,
}

impl HandoverListener {
    /// Opens the door; without it there is no hand-over, which is said, and nothing else is lost.
    pub(crate) fn open(root: &Path) -> Option<Self> {
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
    pub(crate) async fn asked(&mut self) -> Successor {
        match self.asked.recv().await {
            Some(successor) => successor,
            None => std::future::pending().await,
        }
    }

    /// Takes the socket away.
    pub(crate) fn close(self) {
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
    stream.set_read_timeout(Some(PEER_TIMEOUT))?;
    expect(&stream, ASK)?;
    Ok(Successor(stream))
}

impl Successor {
    /// Its process, as [`Peer::behind`].
    pub(crate) fn process(&self) -> Option<Peer> {
        Peer::behind(&self.0)
    }

    /// Gives the place away: the sockets first.
    pub(crate) fn give(
        &self,
        listeners: &[(SocketAddr, BorrowedFd<'_>)],
        setup: &steer::Held<'_>,
    ) -> io::Result<()> {
        let listening = listeners
            .iter()
            .map(|(address, fd)| (Item::Listener(*address), *fd));
        let held = [(Item::Pins, setup.pins), (Item::Interface, setup.interface)];
        let held = held
            .into_iter()
            .filter_map(|(place, fd)| Some((place, fd?)));
        let (items, descriptors): (Vec<_>, Vec<_>) = listening.chain(held).take(MAX_ITEMS).unzip();
        let words = serde_json::to_vec(&Manifest {
            protocol: PROTOCOL,
            items,
        })?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ITEMS))];
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
    pub(crate) fn wait(mut self) -> io::Result<()> {
        io::Write::write_all(&mut self.0, &[CLOSED])?;
        expect(&self.0, SERVING)
    }
}

impl AsFd for Successor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
