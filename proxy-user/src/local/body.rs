//! Bodies of answers from the store: whole bytes, a list that is read as it is sent, or the events of a held watch.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http_body::{Body, Frame, SizeHint};

use super::stored_list::StoredList;
use crate::cache::store::StoreError;

/// Events of a held watch, each a whole frame; the end of the stream ends the watch.
pub(crate) type Events = Pin<Box<dyn Stream<Item = Bytes> + Send>>;

/// The body of an answer from the store. An error cuts the stream short: the client never takes it for a shorter whole.
pub(crate) enum LocalBody {
    Whole(Option<Bytes>),
    List(Box<StoredList>),
    Watch(Events),
}

impl LocalBody {
    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self::Whole(Some(bytes.into()))
    }

    pub(crate) fn list(list: StoredList) -> Self {
        Self::List(Box::new(list))
    }

    pub(crate) fn watch(events: impl Stream<Item = Bytes> + Send + 'static) -> Self {
        Self::Watch(Box::pin(events))
    }
}

impl Body for LocalBody {
    type Data = Bytes;
    type Error = StoreError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StoreError>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(
                bytes
                    .take()
                    .filter(|bytes| !bytes.is_empty())
                    .map(|bytes| Ok(Frame::data(bytes))),
            ),
            Self::List(list) => Poll::Ready(list.next_chunk().map(|chunk| chunk.map(Frame::data))),
            Self::Watch(events) => events
                .as_mut()
                .poll_next(cx)
                .map(|event| event.map(|bytes| Ok(Frame::data(bytes)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::List(_) | Self::Watch(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            Self::List(_) | Self::Watch(_) => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for LocalBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "LocalBody::Whole",
            Self::List(_) => "LocalBody::List",
            Self::Watch(_) => "LocalBody::Watch",
        })
    }
}
