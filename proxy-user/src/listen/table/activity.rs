//! The state of one connection, shared by its task, its requests and the table. The connection's
//! stream holds it, so that an upgraded connection (exec, port-forward) keeps its slot.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering::Relaxed, Ordering::SeqCst};
use std::task::Poll;
use std::time::Duration;

use futures_util::task::AtomicWaker;

use super::ConnectionTable;
use super::snapshot::ActivitySnapshot;
use crate::budget::{Flow, WriteProgress};
use crate::drain::DrainWatcher;

/// An order to a connection, the mildest first. A stricter one is never taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Directive {
    Run,
    /// Finish the requests in flight, then close.
    Drain,
    Close,
}

#[derive(Debug)]
pub(crate) struct Activity {
    table: Arc<ConnectionTable>,
    slot: usize,
    flow: Arc<Flow>,
    requests: AtomicU32,
    in_flight: AtomicU32,
    has_unparsed_bytes: AtomicBool,
    directive: AtomicU8,
    waker: AtomicWaker,
    _drain: DrainWatcher,
}

impl Activity {
    pub(super) fn new(table: Arc<ConnectionTable>, slot: usize, flow: Arc<Flow>) -> Self {
        let drain = table.drain_watcher();
        // A connection that comes during a drain may make one request.
        let directive = if drain.has_started() {
            Directive::Drain
        } else {
            Directive::Run
        };
        Self {
            table,
            slot,
            flow,
            requests: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
            has_unparsed_bytes: AtomicBool::new(false),
            directive: AtomicU8::new(directive as u8),
            waker: AtomicWaker::new(),
            _drain: drain,
        }
    }

    pub(super) fn snapshot(&self) -> ActivitySnapshot {
        ActivitySnapshot {
            requests: self.requests.load(Relaxed),
            in_flight: self.in_flight.load(Relaxed),
            has_unparsed_bytes: self.has_unparsed_bytes.load(Relaxed),
        }
    }

    pub(super) fn write_progress(&self) -> WriteProgress {
        self.flow.write_progress()
    }

    /// The client may be sent more.
    pub(super) fn has_room(&self) -> bool {
        self.flow.has_capacity()
    }

    pub(super) fn reader_timeout(&self) -> Duration {
        self.table.reader_timeout()
    }

    pub(super) fn begin_request(&self) {
        self.requests.fetch_add(1, Relaxed);
        self.in_flight.fetch_add(1, Relaxed);
        self.has_unparsed_bytes.store(false, Relaxed);
    }

    pub(super) fn end_request(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }

    /// The connection leaves HTTP: it counts as in use until it closes.
    pub(super) fn mark_upgraded(&self) {
        self.in_flight.fetch_add(1, Relaxed);
    }

    /// Notes bytes that came in, which begin a request unless one is in flight.
    pub(super) fn note_bytes_received(&self) {
        if self.in_flight.load(Relaxed) == 0 {
            self.has_unparsed_bytes.store(true, Relaxed);
        }
    }

    /// Sets the directive, unless a stricter one is set.
    pub(super) fn set_directive(&self, directive: Directive) {
        if self.directive.fetch_max(directive as u8, SeqCst) < directive as u8 {
            self.waker.wake();
        }
        if directive == Directive::Close {
            self.flow.cut_off();
        }
    }

    pub(super) fn directive(&self) -> Directive {
        match self.directive.load(SeqCst) {
            0 => Directive::Run,
            1 => Directive::Drain,
            _ => Directive::Close,
        }
    }

    /// Runs what precedes HTTP (first byte, handshake). `None` once the directive is `end` or a
    /// stricter one.
    pub(crate) async fn until_directive<F: Future>(
        &self,
        end: Directive,
        work: F,
    ) -> Option<F::Output> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            self.waker.register(cx.waker());
            match work.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending if self.directive() >= end => Poll::Ready(None),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Runs one of hyper's connections to its end, which `start_shutdown` asks for gracefully.
    /// `None` when the directive was to close. Boxed, because a future that is passed on by value
    /// takes its size once more at each step.
    pub(crate) async fn run<C: Future>(
        &self,
        mut connection: Pin<Box<C>>,
        start_shutdown: impl Fn(Pin<&mut C>),
    ) -> Option<C::Output> {
        let mut registered = false;
        let mut draining = false;
        poll_fn(|cx| {
            // The task and so its waker stay the same; registering once spares each request an
            // atomic exchange.
            if !registered {
                self.waker.register(cx.waker());
                registered = true;
            }
            if !draining && self.directive() == Directive::Drain {
                draining = true;
                // Setting the directive has consumed the waker, and a stricter one may follow.
                self.waker.register(cx.waker());
                start_shutdown(connection.as_mut());
            }
            if self.directive() == Directive::Close {
                return Poll::Ready(None);
            }
            connection.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Activity {
    fn drop(&mut self) {
        self.table.release(self.slot);
    }
}

#[cfg(test)]
#[path = "activity_tests.rs"]
mod tests;
