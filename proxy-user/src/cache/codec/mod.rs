//! Reads what the API server sends, as far as a store must know it: where an object begins and ends, its type and its
//! metadata. In: response bytes, in chunks. Out: slices and [`Meta`]; nothing is decoded further.

pub(crate) mod json;
pub(crate) mod list;
pub(crate) mod protobuf;
pub(crate) mod watch;

use std::borrow::Cow;

/// The annotation of the bookmark that ends the initial events of a WatchList (KEP-3157).
pub(crate) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

/// Longest object, list item or watch frame that is stored, in bytes; etcd's own limit is 1.5 MiB, requests' 3 MiB.
pub(crate) const MAX_OBJECT: usize = 4 << 20;

/// Deepest nesting of JSON that is looked at (serde_json's own limit is 128).
pub(crate) const MAX_DEPTH: u32 = 127;

/// Why bytes were not stored. The client's own copy is never touched by it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CodecError {
    /// Not the JSON that the API server sends.
    #[error("malformed JSON from the cloud: {0}")]
    Json(String),
    /// Not the protobuf that the API server sends.
    #[error("malformed protobuf from the cloud: {0}")]
    Protobuf(&'static str),
    /// Not the objects themselves, but a Table or their metadata.
    #[error("the answer holds objects in the form {0:?}, which is not kept")]
    OtherForm(String),
    /// Too long or too deep.
    #[error("over a limit: {0}")]
    Limit(&'static str),
}

/// What of `metav1.ObjectMeta` a store needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Meta<'a> {
    /// `name`.
    pub name: Cow<'a, str>,
    /// `namespace`.
    pub namespace: Cow<'a, str>,
    /// `uid`.
    pub uid: Cow<'a, str>,
    /// `resourceVersion`.
    pub resource_version: Cow<'a, str>,
    /// `continue` (lists).
    pub continue_token: Cow<'a, str>,
    /// `deletionTimestamp` is set.
    pub deleting: bool,
    /// `deletionGracePeriodSeconds`.
    pub grace_seconds: u64,
    /// `finalizers` is not empty.
    pub finalizers: bool,
    /// The annotation [`INITIAL_EVENTS_END`] is `true`.
    pub initial_events_end: bool,
}

impl Meta<'_> {
    /// The resourceVersion as the ordered number that it is; `None` where it isn't one (KEP-5504).
    pub(crate) fn version(&self) -> Option<u64> {
        parse_version(&self.resource_version)
    }
}

/// A resourceVersion as a number: decimal, no leading zero.
pub(crate) fn parse_version(text: &str) -> Option<u64> {
    if text.is_empty() || text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}
