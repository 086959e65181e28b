//! The response body of every answer that hublet gives.

use bytes::Bytes;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

/// A response body: whole bytes, a stream out of the store, or a stream from the cloud.
#[derive(Debug)]
pub struct Body(Option<Bytes>);

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self(None)
    }
    /// These bytes, with an exact length.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Some(bytes.into()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.take().map(|b| Ok(http_body::Frame::data(b))))
    }
}
