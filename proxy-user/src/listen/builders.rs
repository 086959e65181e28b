//! The HTTP servers' settings: buffers, streams, pings; smaller for a client with many connections.

use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper_util::rt::TokioTimer;

use super::stall::StallTimeoutExecutor;
use crate::budget::{Flow, MAX_UPLOAD_BUFFER};

/// Largest request head, and largest part of a body that is read at once.
const BUFFER: usize = 64 * 1024;
/// The same for a client with hundreds of connections: incomplete heads take memory.
const SMALL_BUFFER: usize = 16 * 1024;
/// Concurrent requests of an HTTP/2 connection, as the API server allows.
const MAX_STREAMS: u32 = 250;
/// The same for a client with many connections: each response whose head can't be written takes
/// memory.
const REDUCED_MAX_STREAMS: u32 = 8;
/// Connections of a client above which each is limited to [`REDUCED_MAX_STREAMS`].
const MANY_CONNECTIONS: usize = 32;
/// Bytes buffered of all uploads on an HTTP/2 connection; of one, [`MAX_UPLOAD_BUFFER`].
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of a response buffered in its stream, beside the frame that crosses the limit.
const SEND_BUFFER: usize = 32 * 1024;
/// HTTP/2 pings find peers that vanished with their network namespace.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(15);

/// hyper's builders, each with a variant for clients with many connections.
pub(super) struct HttpBuilders {
    http1: http1::Builder,
    small_http1: http1::Builder,
    http2: http2::Builder<StallTimeoutExecutor>,
    small_http2: http2::Builder<StallTimeoutExecutor>,
}

impl HttpBuilders {
    pub(super) fn new(executor: StallTimeoutExecutor) -> Self {
        Self {
            http1: http1_builder(BUFFER),
            small_http1: http1_builder(SMALL_BUFFER),
            http2: http2_builder(executor.clone(), MAX_STREAMS),
            small_http2: http2_builder(executor, REDUCED_MAX_STREAMS),
        }
    }

    pub(super) fn http1_for(&self, flow: &Flow) -> &http1::Builder {
        if flow.is_one_of_many() {
            &self.small_http1
        } else {
            &self.http1
        }
    }

    pub(super) fn http2_for(&self, flow: &Flow) -> &http2::Builder<StallTimeoutExecutor> {
        if flow.connections() > MANY_CONNECTIONS {
            &self.small_http2
        } else {
            &self.http2
        }
    }
}

fn http1_builder(buffer: usize) -> http1::Builder {
    let mut builder = http1::Builder::new();
    // hyper's own limit of 100 header fields stays: another number would cost an allocation a
    // request. So would its timer, which also ends idle connections after half a minute; the
    // table's sweep finds slow heads.
    builder.header_read_timeout(None).max_buf_size(buffer);
    builder
}

fn http2_builder(
    executor: StallTimeoutExecutor,
    max_streams: u32,
) -> http2::Builder<StallTimeoutExecutor> {
    let mut builder = http2::Builder::new(executor);
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(max_streams)
        .initial_stream_window_size(MAX_UPLOAD_BUFFER)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        .max_header_list_size(BUFFER as u32)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT);
    builder
}
