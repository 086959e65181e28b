//! The connections to the API server, and the permits to use them.
//!
//! | connection | shared by | flow-control window |
//! |---|---|---|
//! | one with large windows | 16 requests at once, no watches | 1 MiB a stream |
//! | small windows, opened when needed | 90 streams, or what the server allows | 128 KiB a stream on the first, then 16 KiB |
//! | HTTP/1.1 | one request at a time | TCP's |
//!
//! The window of a connection holds those of all its streams, so that a response that nobody reads
//! blocks no other one, and what is received and not yet read is bounded.
//!
//! HTTP/1.1 is for servers that speak nothing else, for upgrades, and for credentials that the API
//! server has not accepted yet: it answers one that it refuses with GOAWAY (its
//! `UnauthenticatedHTTP2DOSMitigation`), which would end a connection that others share.

pub(crate) mod connection;
mod idle;
mod limit;
mod permit;
mod shared;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_util::sync::WaitForCancellationFutureOwned;

use self::connection::{CloseSignal, Http1Sender, RequestSender, handshake_http1, handshake_http2};
use self::idle::IdleConnections;
use self::limit::{ConnectionLimit, ConnectionPermit, LimitConfig};
pub(crate) use self::permit::{Lease, StreamPermit};
use self::shared::{Acquired, PendingDial, SharedConnections, StreamKind};
use super::dial::{Alpn, CloudStream, DIAL_TIMEOUT, DialError, Dialer};
use super::health::monitor::Link;
use super::health::probe::{ProbeError, Prober};
use crate::caller::Client;
use crate::telemetry::Metrics;

/// HTTP/1.1 connections of credentials that the server has accepted.
const ACCEPTED_LIMIT: LimitConfig = LimitConfig {
    total: 512,
    per_client: 512,
    reserved: 0,
};
/// HTTP/1.1 connections of other credentials.
const PENDING_LIMIT: LimitConfig = LimitConfig {
    total: 32,
    per_client: 8,
    reserved: 8,
};
/// Upgraded connections (exec, attach, port-forward).
const UPGRADE_LIMIT: LimitConfig = LimitConfig {
    total: 256,
    per_client: 64,
    reserved: 0,
};

/// The connections that a request may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConnectionClass {
    /// Shared ones, for a response that ends.
    Unary,
    /// Shared ones, for a watch.
    Watch,
    /// One of its own: the server may answer the credential with GOAWAY.
    Dedicated,
}

/// Use of an idle HTTP/1.1 connection, which the server may be closing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reuse {
    Allowed,
    Forbidden,
}

/// A connection for one upgrade.
#[derive(Debug)]
pub(crate) struct UpgradeLease {
    pub sender: Http1Sender,
    pub permit: StreamPermit,
    /// Done when the upgraded stream is to end.
    pub closing: WaitForCancellationFutureOwned,
}

/// All connections to one server.
#[derive(Debug)]
pub(crate) struct Pool {
    dialer: Dialer,
    shared: Arc<SharedConnections>,
    /// The server chose HTTP/1.1 where HTTP/2 was offered.
    http1_only: AtomicBool,
    accepted: ConnectionLimit,
    pending: ConnectionLimit,
    upgrades: ConnectionLimit,
    idle: Arc<IdleConnections>,
    prober: Prober,
    /// Notified when a shared connection has ended, in whatever way.
    connection_ended: Arc<Notify>,
    closing: CloseSignal,
    metrics: Arc<Metrics>,
}

impl Pool {
    pub(crate) fn new(dialer: Dialer, metrics: Arc<Metrics>) -> Self {
        Self {
            prober: Prober::new(dialer.clone(), Arc::clone(&metrics)),
            dialer,
            shared: Arc::default(),
            http1_only: AtomicBool::new(false),
            accepted: ConnectionLimit::new(ACCEPTED_LIMIT),
            pending: ConnectionLimit::new(PENDING_LIMIT),
            upgrades: ConnectionLimit::new(UPGRADE_LIMIT),
            idle: Arc::default(),
            connection_ended: Arc::default(),
            closing: CloseSignal::default(),
            metrics,
        }
    }

    pub(crate) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Leases a connection, dialing one if none has capacity.
    ///
    /// # Errors
    /// None could be opened within [`DIAL_TIMEOUT`], or a limit is reached.
    pub(crate) async fn acquire(
        &self,
        client: Client,
        class: ConnectionClass,
        reuse: Reuse,
    ) -> Result<Lease, DialError> {
        let kind = match class {
            ConnectionClass::Unary => StreamKind::Unary,
            ConnectionClass::Watch => StreamKind::Watch,
            ConnectionClass::Dedicated => {
                let permit = self.pending.acquire(client).await?;
                // Boxed: a handshake's state is large, and every request would hold room for it.
                return Box::pin(self.acquire_http1(permit, reuse)).await;
            }
        };
        self.acquire_shared(client, kind, reuse).await
    }

    async fn acquire_shared(
        &self,
        client: Client,
        kind: StreamKind,
        reuse: Reuse,
    ) -> Result<Lease, DialError> {
        let permit = self.shared.count_stream(client)?;
        let mut lease = match self.shared.try_acquire(kind)? {
            Acquired::Lease(lease) => lease,
            Acquired::Dial(dial) => Box::pin(self.open(client, dial, reuse)).await?,
            Acquired::Wait(wait) => {
                drop(wait);
                let waiting = Box::pin(self.wait_for_stream(client, kind, reuse));
                let lease = timeout(DIAL_TIMEOUT, waiting).await;
                lease.unwrap_or(Err(DialError::Timeout))?
            }
        };
        lease.permit.set_client(permit);
        Ok(lease)
    }

    async fn wait_for_stream(
        &self,
        client: Client,
        kind: StreamKind,
        reuse: Reuse,
    ) -> Result<Lease, DialError> {
        loop {
            let mut freed = std::pin::pin!(self.shared.capacity_freed());
            // Registers before the attempt, so that a stream freed in between is not missed.
            freed.as_mut().enable();
            if self.http1_only.load(Ordering::Relaxed) {
                return self.acquire_accepted(client, reuse).await;
            }
            match self.shared.try_acquire(kind)? {
                Acquired::Lease(lease) => return Ok(lease),
                Acquired::Dial(dial) => return self.open(client, dial, reuse).await,
                Acquired::Wait(_counted) => freed.await,
            }
        }
    }

    /// Dials a connection to share, or one for this request if the server speaks HTTP/1.1 only.
    async fn open(
        &self,
        client: Client,
        dial: PendingDial,
        reuse: Reuse,
    ) -> Result<Lease, DialError> {
        if self.http1_only.load(Ordering::Relaxed) {
            drop(dial);
            return self.acquire_accepted(client, reuse).await;
        }
        let closing = self.closing.subscribe();
        let tls = self.dial(Alpn::Http2OrHttp1).await?;
        if tls.get_ref().1.alpn_protocol() == Some(b"h2") {
            return self.share(tls, closing, dial).await;
        }
        self.http1_only.store(true, Ordering::Relaxed);
        drop(dial);
        lease_http1(tls, closing, self.accepted.try_acquire(client)?).await
    }

    async fn share(
        &self,
        tls: CloudStream,
        closing: WaitForCancellationFutureOwned,
        dial: PendingDial,
    ) -> Result<Lease, DialError> {
        let (windows, flow) = (dial.windows, dial.flow);
        let activity = Arc::clone(tls.get_ref().0.observer().connection());
        let on_end = self.end_notifier();
        let connection = handshake_http2(tls, flow, closing, dial, on_end).await?;
        Ok(self.shared.add(connection, activity, windows))
    }

    /// Called when a shared connection ends, with the error if it broke.
    fn end_notifier(&self) -> impl FnOnce(Option<hyper::Error>) + Send + 'static {
        let ended = Arc::clone(&self.connection_ended);
        move |error| {
            if let Some(error) = error {
                tracing::debug!(%error, "a connection to the cloud broke");
            }
            ended.notify_waiters();
        }
    }

    /// Leases an HTTP/1.1 connection of a server that speaks nothing else.
    async fn acquire_accepted(&self, client: Client, reuse: Reuse) -> Result<Lease, DialError> {
        let permit = self.accepted.try_acquire(client)?;
        self.acquire_http1(permit, reuse).await
    }

    async fn acquire_http1(
        &self,
        permit: ConnectionPermit,
        reuse: Reuse,
    ) -> Result<Lease, DialError> {
        if reuse == Reuse::Allowed
            && let Some(idle) = self.idle.take()
        {
            return Ok(Lease {
                sender: RequestSender::Http1(idle.sender),
                permit: StreamPermit::http1(&idle.activity, permit),
            });
        }
        let closing = self.closing.subscribe();
        let tls = self.dial(Alpn::Http1Only).await?;
        lease_http1(tls, closing, permit).await
    }

    async fn dial(&self, alpn: Alpn) -> Result<CloudStream, DialError> {
        let tls = self.dialer.dial(alpn).await?;
        self.metrics.cloud_connects.inc();
        Ok(tls)
    }

    /// Ends the sending half of a lease: the response's head has arrived.
    pub(crate) fn release_sender(&self, lease: Lease) -> StreamPermit {
        let Lease { sender, mut permit } = lease;
        if let RequestSender::Http1(sender) = sender {
            permit.return_to(&self.idle, sender);
        }
        permit
    }

    /// Counts a dedicated connection among those of accepted credentials from now on, so that its watch
    /// takes no permit from credentials that are still to be accepted.
    pub(crate) fn mark_accepted(&self, permit: &mut StreamPermit) {
        permit.move_to(&self.accepted);
    }

    /// Dials an HTTP/1.1 connection for one upgrade.
    ///
    /// # Errors
    /// None could be opened, or the limit is reached.
    pub(crate) async fn acquire_upgrade(&self, client: Client) -> Result<UpgradeLease, DialError> {
        let limit = self.upgrades.try_acquire(client)?;
        let closing = self.closing.subscribe();
        let closing_stream = self.closing.subscribe();
        let tls = self.dial(Alpn::Http1Only).await?;
        let permit = StreamPermit::http1(tls.get_ref().0.observer().connection(), limit);
        Ok(UpgradeLease {
            sender: handshake_http1(tls, closing).await?,
            permit,
            closing: closing_stream,
        })
    }

    /// Closes every connection, and with it every stream, so that clients turn to the store at once.
    pub(crate) fn close_all(&self) {
        self.shared.clear();
        self.idle.clear();
        self.closing.close();
        self.prober.close();
        // Another server may be there when the cloud is back.
        self.http1_only.store(false, Ordering::Relaxed);
    }

    /// Shared connections that are open.
    pub(crate) fn open_connections(&self) -> usize {
        self.shared.open_connections()
    }
}

async fn lease_http1(
    tls: CloudStream,
    closing: WaitForCancellationFutureOwned,
    permit: ConnectionPermit,
) -> Result<Lease, DialError> {
    let permit = StreamPermit::http1(tls.get_ref().0.observer().connection(), permit);
    let sender = RequestSender::Http1(handshake_http1(tls, closing).await?);
    Ok(Lease { sender, permit })
}

impl Link for Pool {
    async fn probe_kept(&self) -> Option<Result<(), ProbeError>> {
        self.prober.probe_kept().await
    }

    async fn probe_new(&self) -> Result<(), ProbeError> {
        self.prober.probe_new().await
    }

    async fn connection_ended(&self) {
        self.connection_ended.notified().await;
    }

    fn retire_all(&self) {
        self.idle.clear();
        self.shared.retire_all();
    }

    fn close_all(&self) {
        Self::close_all(self);
    }
}
