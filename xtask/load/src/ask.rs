//! One question on one connection, whichever protocol. In: a [`Target`]. Out: an [`Answer`], its body thrown away
//! or kept.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::h1::H1;
use crate::h2::H2;
use crate::target::{Question, Target};

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Answer {
    /// HTTP status.
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) length: u64,
    /// From the request's last byte to the answer's first.
    #[serde(skip)]
    pub(crate) first_byte: Duration,
    /// hublet said that it comes from its store (`x-hublet-source`, looked at in HTTP/1.1 alone).
    #[serde(skip)]
    pub(crate) stored: bool,
}

/// Takes the body in as it comes.
#[derive(Debug, Default)]
pub(crate) struct Sink {
    /// Kept, when it is wanted.
    pub(crate) kept: Option<Vec<u8>>,
    length: u64,
}

impl Sink {
    /// A sink that keeps the body.
    pub(crate) fn keeping() -> Self {
        Self {
            kept: Some(Vec::new()),
            length: 0,
        }
    }

    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.length += bytes.len() as u64;
        if let Some(kept) = &mut self.kept {
            kept.extend_from_slice(bytes);
        }
    }

    /// Closes the answer.
    pub(crate) fn answer(&self, status: u16, asked: Instant, first: Option<Instant>) -> Answer {
        let first_byte = first.map_or(Duration::ZERO, |first| first.duration_since(asked));
        Answer {
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
        let stream = target.open()?;
        Ok(if target.h2 {
            Self::H2(H2::start(stream)?)
        } else {
            Self::H1(H1::new(stream))
        })
    }

    /// Asks and reads the whole answer.
    pub(crate) fn ask(&mut self, question: &Question, sink: &mut Sink) -> io::Result<Answer> {
        match self {
            Self::H1(connection) => connection.ask(question, sink),
            Self::H2(connection) => connection.ask(question, sink),
        }
    }

    /// Asks and reads the answer's head alone (a watch).
    pub(crate) fn begin(&mut self, question: &Question) -> io::Result<u16> {
        match self {
            Self::H1(connection) => connection.begin(question),
            Self::H2(connection) => connection.begin(question),
        }
    }
}

/// The peer broke the protocol.
pub(crate) fn broken(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
