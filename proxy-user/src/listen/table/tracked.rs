//! Wrappers that keep a connection's [`Activity`] current: its requests, response bodies and stream.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::rt::{Read, ReadBufCursor, Write};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};

use super::activity::Activity;
use crate::listen::stall;
use crate::proxy::body::{Body, BodyError};

/// A request, from its head to the end of its response body.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Activity>);

impl InFlight {
    pub(crate) fn new(activity: &Arc<Activity>) -> Self {
        activity.begin_request();
        Self(Arc::clone(activity))
    }

    pub(crate) fn mark_upgraded(&self) {
        self.0.mark_upgraded();
    }

    /// Ready once the client has had no room for the reader timeout. `timer` runs while it has none.
    fn poll_out_of_room(
        &self,
        cx: &mut Context<'_>,
        timer: &mut Option<Pin<Box<Sleep>>>,
    ) -> Poll<()> {
        if self.0.has_room() {
            *timer = None;
            return Poll::Pending;
        }
        let limit = self.0.reader_timeout();
        let timer = timer.get_or_insert_with(|| Box::pin(sleep(limit)));
        timer.as_mut().poll(cx)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.end_request();
    }
}

pin_project! {
    /// A response body, whose request is in flight until it is dropped. It fails when it can't go on
    /// for the reader timeout because its client leaves too much of other responses unread: nothing of
    /// its own is pending then, so no check of the connection's progress would end it.
    pub(crate) struct TrackedBody {
        #[pin]
        body: Body,
        in_flight: InFlight,
        out_of_room: Option<Pin<Box<Sleep>>>,
    }
}

impl TrackedBody {
    pub(crate) fn new(body: Body, in_flight: InFlight) -> Self {
        Self {
            body,
            in_flight,
            out_of_room: None,
        }
    }
}

impl http_body::Body for TrackedBody {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let frame = this.body.poll_frame(cx);
        stall::record_poll(match frame {
            Poll::Ready(Some(Ok(_))) => stall::BodyPoll::Frame,
            _ => stall::BodyPoll::NoFrame,
        });
        if frame.is_ready() {
            *this.out_of_room = None;
            return frame;
        }
        this.in_flight
            .poll_out_of_room(cx, this.out_of_room)
            .map(|()| Some(Err(BodyError::OutOfRoom)))
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HttpVersion {
    /// Bytes that come between requests begin a request.
    Http1,
    Http2,
}

pin_project! {
    /// A stream that holds its connection's slot and, on HTTP/1.1, notes bytes between requests.
    pub(crate) struct TrackedIo<T> {
        #[pin]
        pub(crate) stream: T,
        pub(crate) activity: Arc<Activity>,
        pub(crate) version: HttpVersion,
    }
}

impl<T: Read> Read for TrackedIo<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.project();
        let read = this.stream.poll_read(cx, buf);
        if *this.version == HttpVersion::Http1 && read.is_ready() {
            this.activity.note_bytes_received();
        }
        read
    }
}

impl<T: Write> Write for TrackedIo<T> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.project().stream.poll_write(cx, buf)
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.project().stream.poll_flush(cx)
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.project().stream.poll_shutdown(cx)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.project().stream.poll_write_vectored(cx, bufs)
    }
}

#[cfg(test)]
#[path = "tracked_tests.rs"]
mod tests;
