//! One request on one connection over either protocol; the body is counted, or kept.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::h1::H1;
use crate::h2::H2;
use crate::target::{Request, Target};

/// A response without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) length: u64,
    /// From the request's last byte to the answer's first.
    #[serde(skip)]
    pub(crate) first_byte: Duration,
    /// From hublet's store, by `x-hublet-source`; read in HTTP/1.1 alone.
    #[serde(skip)]
    pub(crate) stored: bool,
}

/// Takes the body in as it comes.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    /// Kept, when it is wanted.
    pub(crate) body: Option<Vec<u8>>,
    length: u64,
}

impl Sink {
    /// A sink that keeps the body.
    pub(crate) fn with_body() -> Self {
        Self {
            body: Some(Vec::new()),
            length: 0,
        }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if let Some(kept) = &mut self.body {
            kept.extend_from_slice(bytes);
        }
    }

    /// Closes the answer.
    pub(crate) fn finish_response(
        &self,
        status: u16,
        asked: Instant,
        first: Option<Instant>,
    ) -> Response {
        let first_byte = first.map_or(Duration::ZERO, |first| first.duration_since(asked));
        Response {
            status,
            length: self.length,
            first_byte,
            stored: false,
        }
    }
}

/// A connection that answers.
#[derive(Debug)]
pub(crate) enum Connection {
    H1(H1),
    H2(H2),
}

impl Connection {
    /// Connects and, for HTTP/2, sends the preface.
    pub(crate) fn open(target: &Target) -> io::Result<Self> {
        let stream = target.connect()?;
        Ok(if target.h2 {
            Self::H2(H2::handshake(stream)?)
        } else {
            Self::H1(H1::new(stream))
        })
    }

    /// Asks and reads the whole answer.
    pub(crate) fn send_request(
        &mut self,
        question: &Request,
        sink: &mut Sink,
    ) -> io::Result<Response> {
        match self {
            Self::H1(connection) => connection.send_request(question, sink),
            Self::H2(connection) => connection.send_request(question, sink),
        }
    }

    /// Asks and reads the answer's head alone (a watch).
    pub(crate) fn read_status(&mut self, question: &Request) -> io::Result<u16> {
        match self {
            Self::H1(connection) => connection.read_status(question),
            Self::H2(connection) => connection.read_status(question),
        }
    }
}

/// The peer broke the protocol.
pub(crate) fn protocol_error(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
