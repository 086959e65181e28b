//! The listening sockets in `/v1/status`.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::Purpose;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ListenerStatus {
    pub(crate) purpose: Purpose,
    pub(crate) address: SocketAddr,
    pub(crate) state: ListenerState,
    /// The reason why it isn't on the configured address.
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ListenerState {
    /// Connections wait in the kernel's queue.
    Bound,
    Accepting,
    /// Takes no more connections; those that are open finish their requests.
    Draining,
}

impl ListenerState {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Bound => "bound",
            Self::Accepting => "accepting",
            Self::Draining => "draining",
        }
    }
}
