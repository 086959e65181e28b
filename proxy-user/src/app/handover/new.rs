//! The new daemon's side: requests the old one's sockets and locks.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tracing::warn;

use super::{
    HandoverError, Item, MAX_ITEMS, MAX_MANIFEST, Manifest, Message, PEER_TIMEOUT, PeerProcess,
    socket_path,
};
use crate::steer;

/// Sockets and locks of the old daemon. Empty when there is none.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    listeners: Vec<TcpListener>,
    pub(crate) setup: steer::Inheritance,
    old: Option<OldDaemon>,
}

#[derive(Debug)]
struct OldDaemon {
    stream: UnixStream,
    process: Option<PeerProcess>,
}

impl Inheritance {
    /// Requests the place of the daemon that runs with this root directory, and waits until its
    /// store is closed. Returns an empty inheritance if none runs.
    pub(crate) fn request(root_dir: &Path) -> Result<Self, HandoverError> {
        match UnixStream::connect(socket_path(root_dir)) {
            Ok(stream) => Self::receive(stream),
            Err(_) => Ok(Self::default()),
        }
    }

    pub(super) fn receive(stream: UnixStream) -> Result<Self, HandoverError> {
        stream.set_read_timeout(Some(PEER_TIMEOUT))?;
        Message::Request.send(&stream)?;
        let (manifest, descriptors) = receive_manifest(&stream)?;
        let mut inheritance = Self::default();
        for (item, descriptor) in manifest.items.iter().zip(descriptors) {
            inheritance.add(item, descriptor);
        }
        let process = PeerProcess::of_stream(&stream);
        Message::StoreClosed.expect(&stream)?;
        inheritance.old = Some(OldDaemon { stream, process });
        Ok(inheritance)
    }

    fn add(&mut self, item: &Item, descriptor: OwnedFd) {
        match item {
            Item::Listener(_) => self.listeners.push(descriptor.into()),
            Item::Pins => self.setup.pins = Some(descriptor),
            Item::Interface => self.setup.interface = Some(descriptor),
        }
    }

    pub(crate) fn take_listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let position = self
            .listeners
            .iter()
            .position(|socket| socket.local_addr().is_ok_and(|local| local == address))?;
        Some(self.listeners.swap_remove(position))
    }

    /// Lets the old daemon exit, and closes the listeners that weren't taken. Returns the old
    /// daemon's process.
    pub(crate) fn confirm_serving(self) -> Option<PeerProcess> {
        let old = self.old?;
        if let Err(error) = Message::Serving.send(&old.stream) {
            warn!("the old hublet exited before the hand-over was complete: {error}");
        }
        old.process
    }
}

fn receive_manifest(from: &UnixStream) -> Result<(Manifest, Vec<OwnedFd>), HandoverError> {
    let (bytes, descriptors) = receive_descriptors(from)?;
    let manifest = Manifest::parse(&bytes)?;
    if manifest.items.len() != descriptors.len() {
        return Err(HandoverError::Descriptors {
            items: manifest.items.len(),
            descriptors: descriptors.len(),
        });
    }
    Ok((manifest, descriptors))
}

/// Receives one message of at most [`MAX_MANIFEST`] bytes, and the descriptors that come with it.
fn receive_descriptors(from: &UnixStream) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut bytes = vec![0; MAX_MANIFEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ITEMS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        from,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    if received.bytes == 0 {
        let closed = "it closed the connection; its log names the reason";
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, closed));
    }
    bytes.truncate(received.bytes);
    Ok((bytes, take_descriptors(&mut control)))
}

fn take_descriptors(control: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    rights.flatten().collect()
}
