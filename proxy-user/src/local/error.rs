//! Reasons for which a read is not answered from the store.

use crate::authz::authorizer::Denied;
use crate::cache::store::StoreError;

/// A read that the store does not answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalError {
    /// The caller is not known to be allowed this.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The store lacks a whole and current answer.
    #[error("hublet: the cloud is away and {0} is not in this node's store")]
    NotCached(String),
    /// The stored bytes are in an encoding or API version that the request does not accept.
    #[error("hublet: the cloud is away and {0}")]
    NotAcceptable(String),
    /// A list or watch cannot go on from the state that the request names.
    #[error("{0}")]
    Expired(String),
    /// The client leaves too much of its other responses unread.
    #[error("hublet: too many responses are unread, please try again later")]
    NoRoom,
    #[error("hublet: {0}")]
    Store(#[from] StoreError),
}
