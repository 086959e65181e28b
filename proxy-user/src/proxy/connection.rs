//! The accepted connection that requests come on: its addresses, the attested caller, and the credential of each request.

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
    /// The process's counts; none before its protocol is known.
    pub caller: Option<Arc<Caller>>,
    /// Its bytes under way.
    pub flow: Arc<Flow>,
    /// The last token, raw and digested: clients send the same one each time.
    last_token: Mutex<Option<(Box<[u8]>, Token)>>,
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
        Credential::from_headers_with(headers, |token| {
            let mut last = self.last_token.lock();
            if let Some((_, known)) = last.as_ref().filter(|(seen, _)| **seen == *token) {
                return known.clone();
            }
            let digested = Token::digest(token);
            *last = Some((token.into(), digested.clone()));
            digested
        })
    }
}
