//! The bytes of the Kubernetes API: requests, media types, lists, watch streams, object heads, `Status`.
//!
//! Pure: no I/O, no clock, no async runtime, and nothing of hublet's own. Every parser takes bytes from the network,
//! so each has a limit and a fuzz target.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod duration;
mod error;
pub mod json;
pub mod list;
pub mod media;
pub mod meta;
pub mod protobuf;
pub mod request;
mod scan;
pub mod selector;
pub mod status;
pub mod watch;

pub use error::{CodecError, MAX_DEPTH, MAX_OBJECT};
