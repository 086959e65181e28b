//! The error of every parser, and the limits that they share.

/// Longest object, list item or watch frame in bytes; etcd's own limit is 1.5 MiB, requests' 3 MiB.
pub const MAX_OBJECT: usize = 4 << 20;

/// Deepest nesting of JSON that is read; `serde_json`'s own limit is 128.
pub const MAX_DEPTH: u32 = 127;

/// The reason why bytes could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Not the JSON that the API server sends.
    #[error("malformed JSON from the API server: {0}")]
    Json(String),
    /// Not the protobuf that the API server sends.
    #[error("malformed protobuf from the API server: {0}")]
    Protobuf(&'static str),
    /// A variant of the objects instead of themselves, such as a Table or their metadata.
    #[error("the response holds the variant {0:?} of objects, which is not stored")]
    Variant(String),
    /// Too long or nested too deep.
    #[error("over a limit: {0}")]
    Limit(&'static str),
}
