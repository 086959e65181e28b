//! A connection as a sweep sees it.

/// Requests of one connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct ActivitySnapshot {
    /// Requests so far; wraps.
    pub(super) requests: u32,
    pub(super) in_flight: u32,
    /// Bytes came in after the last response, and no request has begun since.
    pub(super) has_unparsed_bytes: bool,
}
