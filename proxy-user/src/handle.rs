//! One request's way: client → request → route → cloud or local, and back as a response.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::account::Metrics;
use crate::body::Body;
use crate::client::Connection;
use crate::config::Config;

/// Answers requests. One for the whole process, shared by all connections.
#[derive(Debug)]
pub struct Handler {
    metrics: Arc<Metrics>,
}

impl Handler {
    /// Opens the store, starts the cloud's health task and the writer. Call on the traffic runtime.
    ///
    /// # Errors
    /// The store's directory can't be made or written.
    pub async fn start(config: &Config, roots: Arc<rustls::RootCertStore>) -> Result<Arc<Self>, HandleError> {
        let _ = (config, roots);
        Ok(Arc::new(Self { metrics: Arc::new(Metrics::default()) }))
    }

    /// Answers one request; never fails (an error is a `Status` answer).
    pub async fn handle(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let _ = (connection, request);
        Response::new(Body::empty())
    }

    /// The process's metrics.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Cloud state, store figures and the last callers, for `hublet status`.
    pub fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }

    /// Ends the streams that hublet itself holds open (offline watches), so that a drain can finish.
    pub fn end_streams(&self) {}

    /// Commits what is pending and closes the store.
    pub async fn close(&self) {}
}

/// Why the handler could not start.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {}
