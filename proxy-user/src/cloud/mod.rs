//! Stage 5a: the way to the API server and back. In: a request and where it goes. Out: its answer as it came (I3),
//! copied into the cache as it streams by.

pub(crate) mod connection;
pub(crate) mod dial;
pub(crate) mod forward;
pub(crate) mod health;
pub(crate) mod heard;
pub(crate) mod judge;
pub(crate) mod places;
pub(crate) mod probe;
pub(crate) mod resolve;
pub(crate) mod shared;
pub(crate) mod stream;
pub(crate) mod upgrade;
pub(crate) mod upstreams;
