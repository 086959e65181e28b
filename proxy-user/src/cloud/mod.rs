//! Stage 5a: the way to the API server and back. In: a request and where it goes. Out: its answer as it came (I3),
//! copied into the cache as it streams by.

pub mod connection;
pub mod dial;
pub mod forward;
pub mod health;
pub mod heard;
pub mod judge;
pub mod places;
pub mod probe;
pub mod resolve;
pub mod shared;
pub mod stream;
pub mod upgrade;
pub mod upstreams;
