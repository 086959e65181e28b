//! Requests, as the bytes of both protocols, made once; responses, whose bodies are counted, or kept.

use std::io;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::hpack;

/// A request, in the bytes of both protocols.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) h1: Vec<u8>,
    /// The header block.
    pub(crate) h2: Vec<u8>,
}

impl Request {
    pub(crate) fn get(path: &str, token: Option<&str>) -> Self {
        let mut h1 =
            format!("GET {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n");
        let mut headers = vec![
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "kubernetes"),
            (":path", path),
            ("accept", "application/json"),
        ];
        let bearer = token.map(|token| format!("Bearer {token}"));
        if let Some(bearer) = &bearer {
            h1.push_str(&format!("Authorization: {bearer}\r\n"));
            headers.push(("authorization", bearer));
        }
        h1.push_str("\r\n");
        Self {
            h1: h1.into_bytes(),
            h2: hpack::header_block(&headers),
        }
    }

    /// A POST; over HTTP/1.1 alone.
    pub(crate) fn post(path: &str, token: Option<&str>, body: &str) -> Self {
        let bearer = token
            .map(|token| format!("Authorization: Bearer {token}\r\n"))
            .unwrap_or_default();
        let length = body.len();
        let h1 = format!(
            "POST {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n{bearer}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        Self {
            h1: h1.into_bytes(),
            h2: Vec::new(),
        }
    }
}

/// A response without its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Response {
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) length: u64,
    /// From the request's last byte to the response's first.
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

    /// Closes the response.
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

/// The peer broke the protocol.
pub(crate) fn protocol_error(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}
