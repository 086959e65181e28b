//! One connection's place in the [`Registry`], what it is doing, and what is wanted of it. Held by the connection's
//! stream, so that an upgraded one (exec, port-forward) keeps its place, and by every answer under way.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::task::{Context, Poll};

use futures_util::task::AtomicWaker;
use hyper::rt::{Read, ReadBufCursor, Write};
use pin_project_lite::pin_project;

use super::pace;
use super::registry::{Glimpse, Registry};
use crate::budget::Flow;
use crate::proxy::body::Body;

/// What is wanted of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Order {
    GoOn,
    /// Answer what has been asked, then close.
    Finish,
    Drop,
}

/// A connection's state, shared with the registry.
#[derive(Debug)]
pub(super) struct Activity {
    registry: Arc<Registry>,
    seat: usize,
    flow: Arc<Flow>,
    begun: AtomicU32,
    open: AtomicU32,
    unread: AtomicBool,
    order: AtomicU8,
    waker: AtomicWaker,
}

impl Activity {
    pub(super) fn new(registry: Arc<Registry>, seat: usize, flow: Arc<Flow>, order: Order) -> Self {
        Self {
            registry,
            seat,
            flow,
            begun: AtomicU32::new(0),
            open: AtomicU32::new(0),
            unread: AtomicBool::new(false),
            order: AtomicU8::new(order as u8),
            waker: AtomicWaker::new(),
        }
    }

    pub(super) fn glimpse(&self) -> Glimpse {
        Glimpse {
            begun: self.begun.load(Relaxed),
            open: self.open.load(Relaxed),
            unread: self.unread.load(Relaxed),
        }
    }

    pub(super) fn progress(&self) -> (usize, u32) {
        self.flow.progress()
    }

    /// Gives an order; a stricter one that was given before stays.
    pub(super) fn order(&self, order: Order) {
        if self.order.fetch_max(order as u8, SeqCst) < order as u8 {
            self.waker.wake();
        }
        if order == Order::Drop {
            self.flow.cut();
        }
    }

    pub(super) fn ordered(&self) -> Order {
        match self.order.load(SeqCst) {
            0 => Order::GoOn,
            1 => Order::Finish,
            _ => Order::Drop,
        }
    }

    /// Runs what comes before HTTP (first byte, handshake); `None` when this order, or a stricter one, ends it.
    pub(super) async fn unless_ordered<F: Future>(
        &self,
        ends: Order,
        work: F,
    ) -> Option<F::Output> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            match work.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if self.ordered() >= ends => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Runs a connection of hyper's until it ends or is dropped by order; `finish` is its graceful shutdown. Boxed,
    /// because a future that is handed on by value takes its size once more at each step.
    pub(super) async fn drive<C: Future>(
        &self,
        mut connection: Pin<Box<C>>,
        finish: impl Fn(Pin<&mut C>),
    ) -> Option<C::Output> {
        let (mut registered, mut told) = (false, false);
        poll_fn(|cx| {
            // The task and so its waker stay the same; registering once spares each request an exchange.
            if !registered {
                self.waker.register(cx.waker());
                registered = true;
            }
            if !told && self.ordered() == Order::Finish {
                told = true;
                // The order has taken the waker, and a stricter one may follow.
                self.waker.register(cx.waker());
                finish(connection.as_mut());
            }
            if self.ordered() == Order::Drop {
                return Poll::Ready(None);
            }
            connection.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.registry.leave(self.seat);
    }
}

/// A request that is being answered, from its head to the end of its answer's body.
#[derive(Debug)]
pub(super) struct Open(Arc<Activity>);

impl Open {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.begun.fetch_add(1, Relaxed);
        activity.open.fetch_add(1, Relaxed);
        activity.unread.store(false, Relaxed);
        Self(Arc::clone(activity))
    }

    /// The connection leaves HTTP: it is in use to its end.
    pub(super) fn for_good(&self) {
        self.0.open.fetch_add(1, Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

pin_project! {
    /// An answer's body, which counts as open until it is dropped.
    pub(super) struct Answer {
        #[pin]
        pub(super) body: Body,
        pub(super) open: Open,
    }
}

impl http_body::Body for Answer {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        let frame = self.project().body.poll_frame(cx);
        pace::asked(matches!(frame, Poll::Ready(Some(Ok(_)))));
        frame
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

pin_project! {
    /// A stream that holds its connection's place and, on HTTP/1.1, notes bytes that come in between requests.
    pub(super) struct Watched<T> {
        #[pin]
        pub(super) stream: T,
        pub(super) activity: Arc<Activity>,
        pub(super) one_at_a_time: bool,
    }
}

impl<T: Read> Read for Watched<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: ReadBufCursor<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = self.project();
        let read = this.stream.poll_read(cx, buf);
        if *this.one_at_a_time && read.is_ready() && this.activity.open.load(Relaxed) == 0 {
            this.activity.unread.store(true, Relaxed);
        }
        read
    }
}

impl<T: Write> Write for Watched<T> {
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
#[path = "activity_tests.rs"]
mod tests;
