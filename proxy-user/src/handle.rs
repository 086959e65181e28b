//! One request's way: client → request → route → cloud or local, and back as a response.

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::body::Body;
use crate::client::Connection;

/// Answers requests. One for the whole process, shared by all connections.
#[derive(Debug)]
pub struct Handler {}

impl Handler {
    /// Answers one request; never fails (an error is a `Status` answer).
    pub async fn handle(self: Arc<Self>, connection: Arc<Connection>, request: Request<Incoming>) -> Response<Body> {
        let _ = (connection, request);
        Response::new(Body::empty())
    }
}
