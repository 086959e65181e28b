//! The body of every response: whole bytes, a stream from the store, or a stream from the cloud, which is copied into the
//! store as it passes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::admission::Admission;
use crate::budget::{Flow, Waiter};
use crate::cache::capture::Capture;
use crate::cache::store::StoreError;
use crate::cloud::stream::{BodyTee, CloudBody, CloudBodyError};
use crate::local::body::LocalBody;
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

/// The error of a body that broke off; the client sees a broken stream, never a truncated body that looks complete.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error(transparent)]
    Cloud(#[from] CloudBodyError),
    /// The store failed within a list.
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("its client has left too much of other responses unread for --reader-timeout")]
    OutOfRoom,
}

type FrameResult = Result<Frame<Bytes>, BodyError>;

/// A response body. Its bytes are counted for its client from the moment they are made.
pub(crate) struct Body {
    kind: Kind,
    flow: Option<Arc<Flow>>,
    waiter: Option<Waiter>,
    admission: Option<Admission>,
}

enum Kind {
    Full(Option<Bytes>),
    Local(Box<LocalBody>),
    Cloud(Box<CloudBody<Capture>>),
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match &self.kind {
            Kind::Full(_) => "Body::Full",
            Kind::Local(_) => "Body::Local",
            Kind::Cloud(_) => "Body::Cloud",
        })
    }
}

impl From<LocalBody> for Body {
    fn from(body: LocalBody) -> Self {
        Self::of(match body {
            LocalBody::Whole(bytes) => Kind::Full(bytes),
            streamed => Kind::Local(Box::new(streamed)),
        })
    }
}

impl BodyTee for Capture {
    fn poll_push(&mut self, cx: &mut Context<'_>, chunk: &Bytes) -> Poll<()> {
        Self::poll_push(self, cx, chunk)
    }

    fn finish(self) {
        self.end();
    }
}

impl Body {
    fn of(kind: Kind) -> Self {
        Self {
            kind,
            flow: None,
            waiter: None,
            admission: None,
        }
    }

    pub(crate) fn empty() -> Self {
        Self::of(Kind::Full(None))
    }

    /// These bytes, with an exact length.
    pub(crate) fn full(bytes: impl Into<Bytes>) -> Self {
        Self::of(Kind::Full(Some(bytes.into())))
    }

    /// Holds the request's admission until the body has ended, and counts the body's bytes for its client.
    pub(crate) fn hold(&mut self, admission: Option<Admission>, flow: &Arc<Flow>) {
        self.admission = admission;
        if let Kind::Full(Some(bytes)) = &mut self.kind {
            *bytes = flow.charge_chunk(std::mem::take(bytes));
        }
        self.flow = Some(Arc::clone(flow));
    }

    /// Counts the body of a request that was not admitted: see [`Flow::limit_refusal`].
    pub(crate) fn count_as_refusal(&mut self, flow: &Flow) {
        if let Kind::Full(Some(bytes)) = &mut self.kind {
            *bytes = flow.limit_refusal(std::mem::take(bytes));
        }
    }

    /// A stream from the cloud.
    pub(crate) fn cloud(body: CloudBody<Capture>) -> Self {
        Self::of(Kind::Cloud(Box::new(body)))
    }

    pub(crate) fn as_cloud_mut(&mut self) -> Option<&mut CloudBody<Capture>> {
        let Kind::Cloud(body) = &mut self.kind else {
            return None;
        };
        Some(body)
    }

    /// The next frame, once the client has room for it.
    fn poll_streamed(&mut self, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        if let Some(flow) = &self.flow {
            ready!(flow.poll_capacity(cx, &mut self.waiter));
        }
        let frame = ready!(self.kind.poll_frame(cx));
        if let Some(Ok(frame)) = &frame {
            count_sent(&mut self.admission, frame.data_ref());
        }
        Poll::Ready(frame.map(|frame| frame.map(|frame| self.count_held(frame))))
    }

    /// Counts a frame until it has been written.
    fn count_held(&self, frame: Frame<Bytes>) -> Frame<Bytes> {
        match &self.flow {
            Some(flow) => frame.map_data(|bytes| flow.charge_chunk(bytes)),
            None => frame,
        }
    }
}

impl Kind {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<FrameResult>> {
        match self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Local(body) => Pin::new(body.as_mut())
                .poll_frame(cx)
                .map_err(BodyError::Store),
            Self::Cloud(body) => Pin::new(body).poll_frame(cx).map_err(BodyError::from),
        }
    }
}

fn count_sent(admission: &mut Option<Admission>, data: Option<&Bytes>) {
    if let (Some(admission), Some(data)) = (admission, data) {
        admission.record().add_sent(data.len());
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        if let Kind::Full(bytes) = &mut this.kind {
            let bytes = bytes.take().filter(|b| !b.is_empty());
            count_sent(&mut this.admission, bytes.as_ref());
            return Poll::Ready(bytes.map(|b| Ok(Frame::data(b))));
        }
        this.poll_streamed(cx)
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Kind::Cloud(body) => body.is_end_stream(),
            Kind::Local(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Kind::Cloud(body) => body.size_hint(),
            Kind::Local(body) => body.size_hint(),
        }
    }
}
