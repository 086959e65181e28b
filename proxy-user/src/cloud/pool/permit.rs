//! The right to use a connection for one request, given back when dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::connection::{Http1Sender, Http2Connection, RequestSender, StreamLimit};
use super::idle::IdleConnections;
use super::limit::{ClientPermit, ConnectionLimit, ConnectionPermit};
use crate::cloud::health::activity::ConnectionActivity;

/// A connection to send one request on.
#[derive(Debug)]
pub(crate) struct Lease {
    pub sender: RequestSender,
    pub permit: StreamPermit,
}

/// Held until the response body has ended.
#[derive(Debug)]
pub(crate) struct StreamPermit {
    connection: Arc<ConnectionActivity>,
    kind: PermitKind,
}

#[derive(Debug)]
enum PermitKind {
    Http2 {
        streams: Arc<OpenStreams>,
        _client: Option<ClientPermit>,
    },
    Http1 {
        limit: ConnectionPermit,
        on_drop: Option<ReturnToIdle>,
    },
}

#[derive(Debug)]
struct ReturnToIdle {
    sender: Http1Sender,
    idle: Arc<IdleConnections>,
}

impl StreamPermit {
    pub(super) fn http1(connection: &Arc<ConnectionActivity>, limit: ConnectionPermit) -> Self {
        Self {
            connection: Arc::clone(connection),
            kind: PermitKind::Http1 {
                limit,
                on_drop: None,
            },
        }
    }

    /// A permit of no limit, for tests of what holds one.
    #[cfg(test)]
    pub(crate) fn unlimited(connection: &Arc<ConnectionActivity>) -> Self {
        let limit = ConnectionLimit::new(super::UPGRADE_LIMIT);
        let client = crate::caller::Client::Own;
        Self::http1(connection, limit.try_acquire(client).expect("the first"))
    }

    pub(crate) fn connection(&self) -> &ConnectionActivity {
        &self.connection
    }

    /// Keeps new requests off the connection: it is silent while others are not.
    pub(crate) fn quarantine(&self) {
        self.connection.quarantine();
        if let PermitKind::Http2 { streams, .. } = &self.kind {
            streams.abort_if_unusable();
        }
    }

    /// Counts an HTTP/2 stream for its client; an HTTP/1.1 connection is counted already.
    pub(super) fn set_client(&mut self, permit: ClientPermit) {
        if let PermitKind::Http2 { _client, .. } = &mut self.kind {
            *_client = Some(permit);
        }
    }

    /// Lets another request reuse the connection once this one's response has been read.
    pub(super) fn return_to(&mut self, idle: &Arc<IdleConnections>, sender: Http1Sender) {
        if let PermitKind::Http1 { on_drop, .. } = &mut self.kind {
            let idle = Arc::clone(idle);
            *on_drop = Some(ReturnToIdle { sender, idle });
        }
    }

    /// Counts the connection under `other` from now on, if that has room.
    pub(super) fn move_to(&mut self, other: &ConnectionLimit) {
        if let PermitKind::Http1 { limit, .. } = &mut self.kind
            && let Ok(moved) = other.try_acquire(limit.client())
        {
            *limit = moved;
        }
    }
}

impl Drop for StreamPermit {
    fn drop(&mut self) {
        match &mut self.kind {
            PermitKind::Http2 { streams, .. } => streams.release(),
            PermitKind::Http1 { on_drop, .. } => {
                if let Some(ReturnToIdle { sender, idle }) = on_drop.take() {
                    idle.put(sender, Arc::clone(&self.connection));
                }
            }
        }
    }
}

/// The streams in use on an HTTP/2 connection.
#[derive(Debug)]
pub(super) struct OpenStreams {
    count: AtomicUsize,
    limit: Arc<StreamLimit>,
    driver: AbortHandle,
    /// Notified of each stream that ends.
    capacity_freed: Arc<Notify>,
}

impl OpenStreams {
    pub(super) fn new(connection: &Http2Connection, capacity_freed: &Arc<Notify>) -> Arc<Self> {
        Arc::new(Self {
            count: AtomicUsize::new(0),
            limit: Arc::clone(&connection.stream_limit),
            driver: connection.driver.clone(),
            capacity_freed: Arc::clone(capacity_freed),
        })
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    pub(super) fn acquire(self: &Arc<Self>, connection: &Arc<ConnectionActivity>) -> StreamPermit {
        self.count.fetch_add(1, Ordering::Relaxed);
        StreamPermit {
            connection: Arc::clone(connection),
            kind: PermitKind::Http2 {
                streams: Arc::clone(self),
                _client: None,
            },
        }
    }

    fn release(&self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.capacity_freed.notify_waiters();
    }

    /// Ends a connection on which the server allows no streams: a request that was sent before its
    /// SETTINGS frame came would wait for ever.
    fn abort_if_unusable(&self) {
        if self.limit.is_zero() {
            self.driver.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::caller::Client;
    use crate::cloud::pool::limit::LimitConfig;

    fn client(last: u8) -> Client {
        Client::Address(IpAddr::from([10, 0, 0, last]))
    }

    fn one() -> ConnectionLimit {
        ConnectionLimit::new(LimitConfig {
            total: 1,
            per_client: 1,
            reserved: 0,
        })
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_moves_frees_its_old_limit() {
        let (pending, accepted) = (one(), one());
        let limit = pending.acquire(client(1)).await.unwrap();
        let mut permit = StreamPermit::http1(&Arc::default(), limit);
        assert!(pending.try_acquire(client(2)).is_err());
        permit.move_to(&accepted);
        assert!(pending.try_acquire(client(2)).is_ok());
        assert!(accepted.try_acquire(client(2)).is_err());
        drop(permit);
        assert!(accepted.try_acquire(client(2)).is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_stays_where_it_is_if_the_other_limit_is_reached() {
        let (pending, accepted) = (one(), one());
        let _other = accepted.try_acquire(client(2)).unwrap();
        let limit = pending.acquire(client(1)).await.unwrap();
        let mut permit = StreamPermit::http1(&Arc::default(), limit);
        permit.move_to(&accepted);
        assert!(pending.try_acquire(client(3)).is_err());
    }
}
