//! The upstream side of the proxy: sends requests to the API server, streams its responses back unchanged, and
//! tracks whether it is reachable.

pub(crate) mod dial;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod pool;
pub(crate) mod resolve;
pub(crate) mod status;
pub(crate) mod stream;
mod upgrade;
pub(crate) mod upload;
