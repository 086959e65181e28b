//! A connection over either protocol.

use std::io;

use crate::h1::H1;
use crate::h2::H2;
use crate::message::{Request, Response, Sink};
use crate::target::Target;

/// A connection that responses.
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

    /// Sends the request and reads the whole response.
    pub(crate) fn send_request(
        &mut self,
        request: &Request,
        sink: &mut Sink,
    ) -> io::Result<Response> {
        match self {
            Self::H1(connection) => connection.send_request(request, sink),
            Self::H2(connection) => connection.send_request(request, sink),
        }
    }

    /// Sends the request and reads the response's head alone (a watch).
    pub(crate) fn read_status(&mut self, request: &Request) -> io::Result<u16> {
        match self {
            Self::H1(connection) => connection.read_status(request),
            Self::H2(connection) => connection.read_status(request),
        }
    }
}
