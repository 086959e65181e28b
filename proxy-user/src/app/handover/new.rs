//! The new daemon's side: asks for the old one's sockets and locks.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tracing::warn;

use super::{
    ASK, CLOSED, HandoverError, Item, MAX_ITEMS, Manifest, PEER_TIMEOUT, PROTOCOL, Peer, SERVING,
    expect, path,
};
use crate::steer;

/// An old daemon's place.
#[derive(Debug, Default)]
pub(crate) struct Inheritance {
    listeners: Vec<TcpListener>,
    pub(crate) setup: steer::Inherited,
    old: Option<UnixStream>,
    process: Option<Peer>,
}

impl Inheritance {
    /// Asks the daemon that runs with this root directory for its place, and waits until its store is closed. Nothing
    /// is taken when none runs.
    pub(crate) fn ask(root: &Path) -> Result<Self, HandoverError> {
        let Ok(mut old) = UnixStream::connect(path(root)) else {
            return Ok(Self::default());
        };
        old.set_read_timeout(Some(PEER_TIMEOUT))?;
        io::Write::write_all(&mut old, &[ASK])?;
        let (items, descriptors) = receive(&old)?;
        if items.protocol != PROTOCOL {
            return Err(HandoverError::Protocol(items.protocol));
        }
        let mut taken = Self {
            process: Peer::behind(&old),
            ..Self::default()
        };
        for (place, descriptor) in items.items.into_iter().zip(descriptors) {
            match place {
                Item::Listener(_) => taken.listeners.push(descriptor.into()),
                Item::Pins => taken.setup.pins = Some(descriptor),
                Item::Interface => taken.setup.interface = Some(descriptor),
            }
        }
        expect(&old, CLOSED)?;
        taken.old = Some(old);
        Ok(taken)
    }

    /// The listener at this address, if there is one.
    pub(crate) fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let at = self
            .listeners
            .iter()
            .position(|socket| socket.local_addr().is_ok_and(|at| at == address))?;
        Some(self.listeners.swap_remove(at))
    }

    /// Lets the old one go; listeners that nobody wanted are closed. Gives the old one, to wait for its end.
    pub(crate) fn serving(mut self) -> Option<Peer> {
        if let Some(mut old) = self.old.take()
            && let Err(error) = io::Write::write_all(&mut old, &[SERVING])
        {
            warn!("the old hublet has ended before it was told to: {error}");
        }
        self.process
    }
}

fn receive(from: &UnixStream) -> Result<(Manifest, Vec<OwnedFd>), HandoverError> {
    let mut words = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_ITEMS))];
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
