//! The HTTP/2 connections that requests share, and the requests that wait while one is dialed.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{FlowWindows, Http2Connection, Http2Sender, RequestSender, StreamLimit};
use super::limit::{ClientPermit, FairLimit, PermitPool};
use super::permit::{Lease, OpenStreams};
use crate::caller::Client;
use crate::cloud::dial::DialError;
use crate::cloud::health::activity::ConnectionActivity;

/// Streams on a small-window connection: below the 100 that the API server allows by default.
const SMALL_WINDOW_STREAMS: usize = 90;
/// Streams on the large-window connection.
const LARGE_WINDOW_STREAMS: usize = 16;
/// Streams on a connection before the server's SETTINGS frame has arrived.
const STREAMS_BEFORE_SETTINGS: usize = 16;
/// HTTP/2 connections at once.
const MAX_CONNECTIONS: usize = 64;
/// Streams for privileged clients only.
const RESERVED_STREAMS: usize = 16;
/// Connections without a single allowed stream after which no more are dialed: the server takes no
/// requests over HTTP/2.
const MAX_UNUSABLE_CONNECTIONS: usize = 8;
/// Retired connections that stay open for the streams on them; beyond it the oldest is closed.
const MAX_RETIRED: usize = 8;

const LARGE_WINDOWS: FlowWindows = flow_windows(LARGE_WINDOW_STREAMS, 1 << 20);
const FIRST_SMALL_WINDOWS: FlowWindows = flow_windows(SMALL_WINDOW_STREAMS, 128 << 10);
const SMALL_WINDOWS: FlowWindows = flow_windows(SMALL_WINDOW_STREAMS, 16 << 10);

/// The connection's window holds those of all its streams: a response that nobody reads must not block
/// the others.
const fn flow_windows(streams: usize, stream: u32) -> FlowWindows {
    FlowWindows {
        stream,
        connection: stream * streams as u32,
    }
}

/// The size of a connection's flow-control windows, which decides what it is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WindowSize {
    /// For few responses that end, at full speed.
    Large,
    /// For watches, and for responses that the large-window connection has no stream for.
    Small,
}

impl WindowSize {
    fn max_streams(self) -> usize {
        match self {
            Self::Large => LARGE_WINDOW_STREAMS,
            Self::Small => SMALL_WINDOW_STREAMS,
        }
    }
}

/// The duration of a request, which decides which connections it may share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamKind {
    Unary,
    Watch,
}

#[derive(Debug)]
struct PooledConnection {
    sender: Http2Sender,
    windows: WindowSize,
    stream_limit: Arc<StreamLimit>,
    streams: Arc<OpenStreams>,
    activity: Arc<ConnectionActivity>,
    driver: AbortHandle,
}

impl PooledConnection {
    fn has_capacity(&self) -> bool {
        self.is_usable() && self.streams.count() < self.capacity(STREAMS_BEFORE_SETTINGS)
    }

    /// Streams at once; `unknown` of them while the server's limit isn't known.
    fn capacity(&self, unknown: usize) -> usize {
        let allowed = match self.stream_limit.get() {
            None => unknown,
            // A stream that has ended here counts there for a moment longer.
            Some(limit) => limit - limit / 10,
        };
        self.windows.max_streams().min(allowed)
    }

    fn is_usable(&self) -> bool {
        !self.activity.is_quarantined()
    }

    /// It takes no more requests, and none runs on it.
    fn is_finished(&self) -> bool {
        self.sender.is_closed() || !self.is_usable() && self.streams.count() == 0
    }

    fn lease(&self) -> Lease {
        Lease {
            sender: RequestSender::Http2(self.sender.clone()),
            permit: self.streams.acquire(&self.activity),
        }
    }
}

/// The connections that requests share.
#[derive(Debug, Default)]
pub(super) struct SharedConnections {
    state: Mutex<State>,
    /// Notified when a connection opens, a dial ends, or a stream ends.
    capacity_freed: Arc<Notify>,
    limit: Arc<FairLimit>,
}

#[derive(Debug, Default)]
struct State {
    connections: Vec<PooledConnection>,
    dialing: Dials,
    waiting: Waiters,
}

/// Dials under way, by the windows of their connections.
#[derive(Debug, Default)]
struct Dials {
    large: usize,
    small: usize,
}

impl Dials {
    fn count_mut(&mut self, windows: WindowSize) -> &mut usize {
        match windows {
            WindowSize::Large => &mut self.large,
            WindowSize::Small => &mut self.small,
        }
    }

    fn total(&self) -> usize {
        self.large + self.small
    }
}

/// Requests that wait for a dial under way.
#[derive(Debug, Default)]
struct Waiters {
    unary: usize,
    watch: usize,
}

impl Waiters {
    fn count_mut(&mut self, kind: StreamKind) -> &mut usize {
        match kind {
            StreamKind::Unary => &mut self.unary,
            StreamKind::Watch => &mut self.watch,
        }
    }
}

pub(super) enum Acquired {
    Lease(Lease),
    /// The request is to wait: enough is being dialed.
    Wait(PendingWait),
    /// The request is to dial.
    Dial(PendingDial),
}

/// A request that waits, counted until this is dropped.
pub(super) struct PendingWait {
    shared: Arc<SharedConnections>,
    kind: StreamKind,
}

impl Drop for PendingWait {
    fn drop(&mut self) {
        *self.shared.state.lock().waiting.count_mut(self.kind) -= 1;
    }
}

/// A dial, counted as under way until this is dropped.
pub(super) struct PendingDial {
    shared: Arc<SharedConnections>,
    pub(super) windows: WindowSize,
    pub(super) flow: FlowWindows,
}

impl Drop for PendingDial {
    fn drop(&mut self) {
        *self.shared.state.lock().dialing.count_mut(self.windows) -= 1;
        self.shared.capacity_freed.notify_waiters();
    }
}

impl State {
    fn has_usable(&self, windows: WindowSize) -> bool {
        let mut connections = self.connections.iter();
        connections.any(|c| c.windows == windows && c.is_usable())
    }

    fn with_capacity(&self, windows: WindowSize) -> Option<&PooledConnection> {
        let mut connections = self.connections.iter();
        connections.find(|c| c.windows == windows && c.has_capacity())
    }

    fn lacks_large(&self) -> bool {
        self.dialing.large == 0 && !self.has_usable(WindowSize::Large)
    }

    /// A stream on an open connection. None for a unary request that is to dial the large-window
    /// connection first.
    fn lease(&mut self, kind: StreamKind) -> Option<Lease> {
        self.connections.retain(|c| !c.is_finished());
        let unary = kind == StreamKind::Unary;
        let large = self.with_capacity(WindowSize::Large).filter(|_| unary);
        if large.is_none() && unary && self.lacks_large() {
            return None;
        }
        large
            .or_else(|| self.with_capacity(WindowSize::Small))
            .map(PooledConnection::lease)
    }

    /// Streams of all connections that may be opened; at least one on each that isn't open yet.
    fn capacity(&self) -> usize {
        let open = self.connections.iter();
        let open: usize = open.map(|c| c.capacity(SMALL_WINDOW_STREAMS)).sum();
        let mut small = self.connections.iter();
        let small = small.find(|c| c.windows == WindowSize::Small);
        let each = small.map_or(SMALL_WINDOW_STREAMS, |c| {
            c.capacity(SMALL_WINDOW_STREAMS).max(1)
        });
        open + MAX_CONNECTIONS.saturating_sub(self.connections.len()) * each
    }

    /// The connections being dialed have a stream for one more waiting request.
    fn dials_suffice(&self, kind: StreamKind) -> bool {
        let Waiters { unary, watch } = self.waiting;
        match kind {
            StreamKind::Watch => watch < self.dialing.small * STREAMS_BEFORE_SETTINGS,
            StreamKind::Unary => {
                let dialed = self.dialing.total() * STREAMS_BEFORE_SETTINGS;
                !self.lacks_large() && unary + watch < dialed
            }
        }
    }

    fn is_full(&self) -> bool {
        self.connections.len() + self.dialing.total() >= MAX_CONNECTIONS
    }

    fn server_allows_no_streams(&self) -> bool {
        let connections = self.connections.iter();
        let unusable = connections.filter(|c| c.stream_limit.is_zero()).count();
        unusable >= MAX_UNUSABLE_CONNECTIONS
    }

    fn begin_dial(&mut self, kind: StreamKind) -> (WindowSize, FlowWindows) {
        let is_first = !self.has_usable(WindowSize::Small) && self.dialing.small == 0;
        let (windows, flow) = match kind {
            StreamKind::Unary if self.lacks_large() => (WindowSize::Large, LARGE_WINDOWS),
            _ if is_first => (WindowSize::Small, FIRST_SMALL_WINDOWS),
            _ => (WindowSize::Small, SMALL_WINDOWS),
        };
        *self.dialing.count_mut(windows) += 1;
        (windows, flow)
    }

    fn remove_finished(&mut self) {
        self.connections.retain(|c| !c.is_finished());
    }
}

impl SharedConnections {
    /// Counts one more stream of this client.
    ///
    /// # Errors
    /// [`DialError::Busy`]: the client holds as many as are free.
    pub(super) fn count_stream(&self, client: Client) -> Result<ClientPermit, DialError> {
        let total = self.state.lock().capacity();
        let pool = PermitPool {
            total,
            reserved: RESERVED_STREAMS,
        };
        self.limit.try_acquire(client, pool)
    }

    /// # Errors
    /// All connections are full, or the server allows no streams.
    pub(super) fn try_acquire(self: &Arc<Self>, kind: StreamKind) -> Result<Acquired, DialError> {
        let mut state = self.state.lock();
        if let Some(lease) = state.lease(kind) {
            return Ok(Acquired::Lease(lease));
        }
        if state.dials_suffice(kind) || state.is_full() && state.dialing.total() > 0 {
            *state.waiting.count_mut(kind) += 1;
            let shared = Arc::clone(self);
            return Ok(Acquired::Wait(PendingWait { shared, kind }));
        }
        if state.is_full() {
            return Err(DialError::Busy);
        }
        if state.server_allows_no_streams() {
            return Err(DialError::NoStreams);
        }
        let (windows, flow) = state.begin_dial(kind);
        Ok(Acquired::Dial(PendingDial {
            shared: Arc::clone(self),
            windows,
            flow,
        }))
    }

    /// Done when there may be a stream for a request that waits; enable it before trying.
    pub(super) fn capacity_freed(&self) -> tokio::sync::futures::Notified<'_> {
        self.capacity_freed.notified()
    }

    /// Adds a connection and leases the first stream on it.
    pub(super) fn add(
        &self,
        connection: Http2Connection,
        activity: Arc<ConnectionActivity>,
        windows: WindowSize,
    ) -> Lease {
        let pooled = PooledConnection {
            streams: OpenStreams::new(&connection, &self.capacity_freed),
            sender: connection.sender,
            windows,
            stream_limit: connection.stream_limit,
            activity,
            driver: connection.driver,
        };
        let lease = pooled.lease();
        self.state.lock().connections.push(pooled);
        self.capacity_freed.notify_waiters();
        lease
    }

    /// Keeps new requests off all connections; those that run go on.
    pub(super) fn retire_all(&self) {
        let mut state = self.state.lock();
        state.remove_finished();
        let excess = state.connections.len().saturating_sub(MAX_RETIRED);
        for connection in &state.connections {
            connection.activity.quarantine();
        }
        for oldest in state.connections.drain(..excess) {
            oldest.driver.abort();
        }
    }

    /// Forgets all connections; [`super::connection::CloseSignal`] closes them.
    pub(super) fn clear(&self) {
        self.state.lock().connections.clear();
    }

    pub(super) fn open_connections(&self) -> usize {
        let mut state = self.state.lock();
        state.remove_finished();
        state.connections.len()
    }
}

#[cfg(test)]
#[path = "shared_tests.rs"]
mod tests;
