//! Recorded traffic, played again: the same requests in the same order with the same headers, and the answers held
//! against the recorded ones.
//!
//! In: a [`Recording`], and a server (hublet, or the API server itself) with a token. Out: the [`Difference`]s. What
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
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;

pub use self::compare::Difference;
pub use self::known::Known;
use self::learn::Learnt;
pub use self::recording::{Exchange, Recording};
use crate::kube::connection::{Connection, Endpoint};

/// One client that replays: it has a token, connects anew for each recorded process, and remembers what it was told.
#[derive(Debug)]
pub struct Replay {
    endpoint: Endpoint,
    token: String,
    connection: Option<Connection>,
    learnt: Learnt,
    known: Known,
}

impl Replay {
    /// A client of `endpoint` with a bearer token.
    pub fn new(endpoint: Endpoint, token: &str) -> Self {
        Self {
            endpoint,
            token: token.to_owned(),
            connection: None,
            learnt: Learnt::default(),
            known: Known::default(),
        }
    }

    /// What the server has said last, for each read made so far.
    pub fn known(&self) -> &Known {
        &self.known
    }

    /// Plays the exchanges in order; all differences from the recording.
    ///
    /// # Errors
    /// No connection, no answer, or a request that carries a version which no answer before it has told.
    pub async fn play(&mut self, exchanges: &[Exchange]) -> Result<Vec<Difference>> {
        let mut differences = Vec::new();
        for exchange in exchanges {
            let answer = self.send(exchange).await?;
            differences.extend(compare::differences(exchange, &answer));
            self.learnt.learn(&exchange.answer, answer.body());
            self.known.note(exchange, &answer);
        }
        Ok(differences)
    }

    /// Sends one recorded request with live versions.
    ///
    /// # Errors
    /// As [`Replay::play`].
    pub async fn send(&mut self, exchange: &Exchange) -> Result<Response<Bytes>> {
        if exchange.starts_process() || self.connection.as_ref().is_none_or(Connection::is_closed) {
            self.connection = Some(self.endpoint.connect().await?);
        }
        let body = match &exchange.body {
            None => Bytes::new(),
            Some(body) => self.learnt.replace(body)?,
        };
        let mut request = exchange.request().header("authorization", format!("Bearer {}", self.token));
        if exchange.body.is_some() {
            request = request.header("content-length", body.len());
        }
        self.over(request.body(Full::new(body))?).await
    }

    async fn over(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        let connection = self.connection.as_ref().expect("a connection is made before each request");
        connection.send(request).await
    }
}
