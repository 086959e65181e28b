//! Errors of the setup, beyond components that are unavailable.

use std::io;
use std::net::SocketAddr;

use crate::node::interface::InterfaceError;

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error(transparent)]
    Interface(#[from] InterfaceError),
    #[error("the listener has no address: {0}")]
    NotASocket(#[source] io::Error),
    /// Listeners are bound to one address, so that clients can be steered to it.
    #[error("the listener is bound to {0}; clients can be steered to one address only")]
    NotOneAddress(String),
    #[error("the kernel rejected the listener {address}: {source}")]
    Listener {
        address: SocketAddr,
        source: io::Error,
    },
    #[error("the services can't be steered: {0}")]
    Services(#[source] io::Error),
}
