//! The accepted connection that requests arrive on: its addresses, the attested caller, and the credential of each request.

use std::net::SocketAddr;
use std::sync::Arc;

use http::HeaderMap;
use parking_lot::Mutex;

use crate::authz::identity::{Credential, Token};
use crate::budget::Flow;
use crate::caller::{Port, Process};
use crate::telemetry::Caller;

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Connection {
    /// The port that accepted it.
    pub port: Port,
    /// The client's address.
    pub remote: SocketAddr,
    pub tls: bool,
    /// The process at the other end, as eBPF attests it; an unknown one has no privilege.
    pub process: Option<Process>,
    /// The counters of its caller; `None` until its protocol is known.
    pub caller: Option<Arc<Caller>>,
    /// The flow that its bytes under way count for.
    pub flow: Arc<Flow>,
    /// The token of the last request: a client mostly sends the same one again.
    last_token: Mutex<Option<DigestedToken>>,
}

#[derive(Debug)]
struct DigestedToken {
    raw: Box<[u8]>,
    token: Token,
}

impl Connection {
    /// A connection just accepted, whose protocol is not known yet.
    pub(crate) fn new(
        port: Port,
        remote: SocketAddr,
        process: Option<Process>,
        flow: Arc<Flow>,
    ) -> Self {
        Self {
            port,
            remote,
            tls: false,
            process,
            caller: None,
            flow,
            last_token: Mutex::new(None),
        }
    }

    /// A request's credential, by its headers.
    pub(crate) fn credential(&self, headers: &HeaderMap) -> Credential {
        Credential::from_headers_with(headers, |token| self.digest_token(token))
    }

    fn digest_token(&self, raw: &[u8]) -> Token {
        let mut last = self.last_token.lock();
        if let Some(known) = last.as_ref().filter(|last| *last.raw == *raw) {
            return known.token.clone();
        }
        let token = Token::digest(raw);
        *last = Some(DigestedToken {
            raw: raw.into(),
            token: token.clone(),
        });
        token
    }
}
