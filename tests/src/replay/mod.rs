//! Recorded traffic, played again: the same requests in the same order with the same headers, and the answers held
//! against the recorded ones.
//!
//! A [`Recording`] is played against a server (hublet, or the API server itself); the result is the [`Difference`]s. What
//! must differ between two clusters doesn't count: uids, resourceVersions and times; request bodies that carry
//! recorded uids and resourceVersions are sent with the live ones, learnt from the answers before.

pub mod compare;
pub mod known;
mod learn;
pub mod protobuf;
mod recording;
#[cfg(test)]
mod tests;

use anyhow::Result;

pub use self::compare::Difference;
pub use self::known::Known;
use self::learn::IdMap;
pub use self::recording::{Exchange, Recording};
use crate::client::{Answer, Client, Options};

/// One client that replays: it has a token, opens a connection for each recorded process, and remembers the live uids and versions.
#[derive(Debug)]
pub struct Replay {
    options: Options,
    client: Option<Client>,
    learnt: IdMap,
    known: Known,
}

impl Replay {
    /// A client of the server, with the credential and in the namespace of `options`; it speaks h2 as Go does.
    pub fn new(mut options: Options) -> Self {
        options.keep = true;
        options.alpn = vec!["h2"];
        Self {
            options,
            client: None,
            learnt: IdMap::default(),
            known: Known::default(),
        }
    }

    /// The server's newest answer to each read made so far.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Plays the exchanges in order; all differences from the recording.
    ///
    /// # Errors
    /// No connection, no answer, or a request with a version that no earlier answer had.
    pub fn play(&mut self, exchanges: &[Exchange]) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        for exchange in exchanges {
            let answer = self.send_exchange(exchange)?;
            differences.extend(compare::find_differences(exchange, &answer));
            self.learnt.learn(&exchange.answer, &answer.body);
            self.known.record(exchange, &answer);
        }
        Ok(differences)
    }

    /// Sends one recorded request with live versions.
    ///
    /// # Errors
    /// As [`Replay::play`].
    pub fn send_exchange(&mut self, exchange: &Exchange) -> Result<Answer> {
        let body = match &exchange.body {
            None => Vec::new(),
            Some(body) => self.learnt.substitute_ids(body)?,
        };
        let mut request = exchange.to_request();
        if exchange.body.is_some() {
            request = request.header("content-length", body.len());
        }
        if exchange.starts_process() {
            self.client = None;
        }
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::new(self.options.clone())?,
        };
        self.client.insert(client).send(request.body(body)?)
    }
}
