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

/// Bytes that a client has to read, and a counter that changes whenever it has read some.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WriteProgress {
    pub(super) pending: usize,
    pub(super) written: u32,
}
