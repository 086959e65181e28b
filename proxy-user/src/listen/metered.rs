//! A client's TCP connection whose bytes are counted, beneath TLS.

use std::sync::Arc;

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::protocol::FirstBytes;
use crate::telemetry::{Caller, ObservedStream, StreamObserver};

pub(super) type MeteredStream = ObservedStream<TcpStream, Meter>;

/// Counts the bytes of a connection for its caller.
#[derive(Debug)]
pub(super) struct Meter {
    pub(super) first_bytes: FirstBytes,
    pub(super) caller: Arc<Caller>,
}

impl StreamObserver for Meter {
    fn replay(&mut self, buffer: &mut ReadBuf<'_>) -> bool {
        self.first_bytes.replay(buffer)
    }

    fn on_read(&mut self, bytes: usize) {
        self.caller.add_received(bytes as u64);
    }

    fn on_write(&mut self, bytes: usize) {
        self.caller.add_sent(bytes as u64);
    }
}
