//! Reasons why an upstream response was not stored, and how often each occurred.

use std::sync::atomic::{AtomicU64, Ordering};

use hublet_wire::CodecError;

/// The reason that a response, or part of it, did not reach the store. The client's copy is never affected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum NotStored {
    /// `--working-mode=cloud` has no store.
    WorkingMode,
    /// The path or a query parameter is not understood, so the response has no key.
    UnknownRequest,
    /// The verb's responses are never stored (HEAD, OPTIONS, writes to non-resource paths).
    Verb,
    /// Logs, scale and other subresources.
    Subresource,
    /// Reviews, bindings and component statuses are RPCs, not objects.
    NotAnObject,
    /// A non-resource path that reports the server's momentary state, such as `/healthz`.
    LiveNonResource,
    /// `dryRun`: the response shows an object that does not exist.
    DryRun,
    /// `pretty`: the body is reformatted.
    Pretty,
    /// The status code carries no object for this verb.
    StatusCode,
    /// Neither JSON nor Kubernetes protobuf.
    ContentType,
    /// A compression other than gzip.
    ContentEncoding,
    /// Too many bytes already wait for the writer, or the disk accepts nothing.
    QueueFull,
    /// The body ended early.
    Interrupted,
    /// Not what the API server sends.
    Malformed,
    /// An object, list or document beyond its size limit.
    TooLarge,
    /// A Table or PartialObjectMetadata variant that is not kept.
    Variant,
    /// Writing failed, or the store was full.
    StoreFailed,
}

impl NotStored {
    pub(crate) const ALL: [Self; 17] = [
        Self::WorkingMode,
        Self::UnknownRequest,
        Self::Verb,
        Self::Subresource,
        Self::NotAnObject,
        Self::LiveNonResource,
        Self::DryRun,
        Self::Pretty,
        Self::StatusCode,
        Self::ContentType,
        Self::ContentEncoding,
        Self::QueueFull,
        Self::Interrupted,
        Self::Malformed,
        Self::TooLarge,
        Self::Variant,
        Self::StoreFailed,
    ];

    /// The value of the metric's `reason` label.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::WorkingMode => "working_mode",
            Self::UnknownRequest => "unknown_request",
            Self::Verb => "verb",
            Self::Subresource => "subresource",
            Self::NotAnObject => "not_an_object",
            Self::LiveNonResource => "live_non_resource",
            Self::DryRun => "dry_run",
            Self::Pretty => "pretty",
            Self::StatusCode => "status_code",
            Self::ContentType => "content_type",
            Self::ContentEncoding => "content_encoding",
            Self::QueueFull => "queue_full",
            Self::Interrupted => "interrupted",
            Self::Malformed => "malformed",
            Self::TooLarge => "too_large",
            Self::Variant => "variant",
            Self::StoreFailed => "store_failed",
        }
    }
}

impl From<&CodecError> for NotStored {
    fn from(error: &CodecError) -> Self {
        match error {
            CodecError::Json(_) | CodecError::Protobuf(_) => Self::Malformed,
            CodecError::Variant(_) => Self::Variant,
            CodecError::Limit(_) => Self::TooLarge,
        }
    }
}

/// One counter per [`NotStored`], since the start.
#[derive(Debug, Default)]
pub(crate) struct NotStoredCounts([AtomicU64; NotStored::ALL.len()]);

impl NotStoredCounts {
    pub(crate) fn increment(&self, reason: NotStored) {
        self.add(reason, 1);
    }

    pub(crate) fn add(&self, reason: NotStored, responses: u64) {
        self.0[reason as usize].fetch_add(responses, Ordering::Relaxed);
    }

    pub(crate) fn get(&self, reason: NotStored) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_label() {
        let counts = NotStoredCounts::default();
        for (n, reason) in (1..).zip(NotStored::ALL) {
            counts.add(reason, n);
        }
        let mut labels = std::collections::BTreeSet::new();
        for (n, reason) in (1..).zip(NotStored::ALL) {
            assert_eq!(counts.get(reason), n, "{reason:?}");
            labels.insert(reason.as_str());
        }
        assert_eq!(labels.len(), NotStored::ALL.len());
    }
}
