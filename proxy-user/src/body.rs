//! The response body of every answer that hublet gives: whole bytes, a list out of the store, a stream from the cloud
//! (copied into the store as it passes), or a watch that hublet itself holds open.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::cache::store::StoreError;
use crate::cloud::stream::CloudBody;
use crate::local::list::StoredList;

/// Events of a watch that hublet itself holds open, each a whole frame; its end is the watch's end.
pub type Events = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// Why a body broke off; the client sees a cut stream, never a shortened whole.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The cloud's answer broke off.
    #[error("the cloud's answer broke off: {0}")]
    Cloud(#[from] hyper::Error),
    /// The store failed within a list.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A response body.
pub struct Body(Kind, Option<OwnedSemaphorePermit>);

enum Kind {
    Full(Option<Bytes>),
    Stored(Box<StoredList>),
    Cloud(Box<CloudBody>),
    Events(Events),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.0 {
            Kind::Full(_) => "Body::Full",
            Kind::Stored(_) => "Body::Stored",
            Kind::Cloud(_) => "Body::Cloud",
            Kind::Events(_) => "Body::Events",
        })
    }
}

impl Body {
    /// No bytes.
    pub fn empty() -> Self {
        Self(Kind::Full(None), None)
    }

    /// These bytes, with an exact length.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self(Kind::Full(Some(bytes.into())), None)
    }

    /// Holds the request's place among those in flight until the body has ended.
    pub fn hold(&mut self, permit: OwnedSemaphorePermit) {
        self.1 = Some(permit);
    }

    /// A list out of the store.
    pub fn stored(list: StoredList) -> Self {
        Self(Kind::Stored(Box::new(list)), None)
    }

    /// A stream from the cloud.
    pub fn cloud(body: CloudBody) -> Self {
        Self(Kind::Cloud(Box::new(body)), None)
    }

    /// Waits until a stream from the cloud has begun; the others have.
    ///
    /// # Errors
    /// It broke off before.
    pub async fn begin(&mut self) -> Result<(), BodyError> {
        match &mut self.0 {
            Kind::Cloud(body) => body.begin().await,
            Kind::Full(_) | Kind::Stored(_) | Kind::Events(_) => Ok(()),
        }
    }

    /// A watch that hublet holds open.
    pub fn events(events: Events) -> Self {
        Self(Kind::Events(events), None)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut self.0 {
            Kind::Full(bytes) => {
                Poll::Ready(bytes.take().filter(|b| !b.is_empty()).map(|b| Ok(Frame::data(b))))
            }
            Kind::Stored(list) => Poll::Ready(list.next_chunk().map(|chunk| Ok(Frame::data(chunk?)))),
            Kind::Cloud(body) => body.poll_frame(cx),
            Kind::Events(events) => {
                events.as_mut().poll_next(cx).map(|event| event.map(|e| Ok(Frame::data(e))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Cloud(body) => body.is_end_stream(),
            Kind::Stored(_) | Kind::Events(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Cloud(body) => body.size_hint(),
            Kind::Stored(_) | Kind::Events(_) => SizeHint::default(),
        }
    }
}
