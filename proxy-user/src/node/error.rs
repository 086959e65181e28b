//! Why setup failed, where the daemon can't go on without it.

use std::net::{IpAddr, SocketAddr};

/// Why setup failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Someone else has our address.
    #[error(
        "{ip} is on the interface {link}, not on {wanted}: remove it there (`ip address del {ip} dev {link}`), or name {link} or another address"
    )]
    AddressElsewhere {
        ip: IpAddr,
        link: String,
        /// Where it should be.
        wanted: String,
    },
    #[error("{doing}: {source}")]
    Netlink {
        doing: String,
        /// What the kernel said.
        source: Box<rtnetlink::Error>,
    },
    /// No way to the kernel.
    #[error("opening a netlink socket: {0}")]
    NoNetlink(std::io::Error),
    /// A living daemon needs it.
    #[error("a hublet runs with the interface {name}: stop it first")]
    InUse { name: String },
    /// A link vanished between two looks at it.
    #[error(
        "the link {name} vanished while it was set up; something else manages it (NetworkManager, systemd-networkd?): exclude it there"
    )]
    LinkGone { name: String },
    /// Not a socket, or closed.
    #[error("the listener has no address: {0}")]
    NotASocket(std::io::Error),
    /// Listeners that are steered to or attested are bound to one address.
    #[error("the listener is bound to {0}; clients can be steered to one address only")]
    NotOneAddress(String),
    /// The maps refused it.
    #[error("the kernel refuses the listener {address}: {source}")]
    Listener {
        address: SocketAddr,
        source: std::io::Error,
    },
    /// The maps refused the services.
    #[error("the services can't be steered: {0}")]
    Services(std::io::Error),
}
