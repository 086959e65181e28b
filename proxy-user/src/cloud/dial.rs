//! Opens one connection to an API server: DNS, TCP (marked, so that eBPF never steers it back to us), TLS, HTTP. In: a
//! server's address. Out: a TLS stream and the protocol that both sides chose.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::health::activity::{Heard, HeardStream};
use super::resolve::Resolver;
use crate::config::Server;
use crate::text::with_causes;

/// Longest time for one connection to be ready for requests.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that is ready for HTTP.
pub(crate) type CloudStream = TlsStream<HeardStream>;
/// Between the beginnings of connections to different addresses of the server.
const STAGGER: Duration = Duration::from_millis(250);
/// An idle connection is probed after the first time, again after each second one, and so many times before it is dead:
/// after 30 s, longer than any way takes. HTTP/2 has its own pings; HTTP/1.1 and upgrades have these alone.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);

/// Why no connection could be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The name does not resolve.
    #[error("{host} does not resolve: {source}")]
    Resolve { host: String, source: io::Error },
    #[error("no connection to {address}: {source}")]
    Connect {
        /// The address tried last.
        address: SocketAddr,
        source: io::Error,
    },
    #[error(
        "TLS with {host} failed: {source}; does the CA in --bootstrap-file belong to this server?"
    )]
    Tls { host: String, source: io::Error },
    #[error("HTTP with the server failed: {}", with_causes(.0))]
    Http(#[from] hyper::Error),
    /// The time is up.
    #[error("no connection within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout,
    /// The limit of connections is reached.
    #[error("too many connections to the cloud are in use")]
    Busy,
    /// The server takes no requests over HTTP/2.
    #[error(
        "the server allows no streams on its connections (SETTINGS_MAX_CONCURRENT_STREAMS is 0)"
    )]
    NoStreams,
}

impl DialError {
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// This node lacks something: a place, a file descriptor, memory, a port. That tells nothing of the cloud; nor does a
    /// server that is there and takes no requests.
    pub(crate) fn is_ours(&self) -> bool {
        use rustix::io::Errno;
        let lacks = [
            Errno::MFILE,
            Errno::NFILE,
            Errno::NOBUFS,
            Errno::NOMEM,
            Errno::ADDRNOTAVAIL,
        ];
        match self {
            Self::Busy | Self::NoStreams => true,
            Self::Connect { source, .. } | Self::Resolve { source, .. } => source
                .raw_os_error()
                .is_some_and(|code| lacks.iter().any(|e| e.raw_os_error() == code)),
            _ => false,
        }
    }
}

/// Opens connections to one server.
#[derive(Clone)]
pub(crate) struct Dialer {
    server: Server,
    name: ServerName<'static>,
    both: TlsConnector,
    http1: TlsConnector,
    mark: u32,
    heard: Arc<Heard>,
    resolver: Arc<Resolver>,
}

impl std::fmt::Debug for Dialer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dialer")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Dialer {
    /// To one server, trusted by `roots`.
    ///
    /// # Errors
    /// The host is neither a DNS name nor an IP address.
    pub(crate) fn new(
        server: &Server,
        roots: &Arc<rustls::RootCertStore>,
        mark: u32,
    ) -> Result<Self, rustls::pki_types::InvalidDnsNameError> {
        let name = ServerName::try_from(server.host.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = |alpn: &[&[u8]]| {
            let mut config = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_safe_default_protocol_versions()
                .expect("aws-lc-rs supports TLS 1.2 and 1.3")
                .with_root_certificates(Arc::clone(roots))
                .with_no_client_auth();
            config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
            TlsConnector::from(Arc::new(config))
        };
        let (both, http1) = (config(&[b"h2", b"http/1.1"]), config(&[b"http/1.1"]));
        let resolver = Arc::new(Resolver::new(server));
        Ok(Self {
            server: server.clone(),
            name,
            both,
            http1,
            mark,
            heard: Arc::default(),
            resolver,
        })
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// When the server was heard on any connection of this dialer or its clones.
    pub(crate) fn heard(&self) -> &Arc<Heard> {
        &self.heard
    }

    /// A TLS connection; with `http1`, HTTP/1.1 alone is offered (upgrades need it).
    ///
    /// # Errors
    /// See [`DialError`].
    pub(crate) async fn dial(&self, http1: bool) -> Result<CloudStream, DialError> {
        let dial = async {
            let (address, tcp) = self.connect().await?;
            self.resolver.connected(address);
            let tcp = HeardStream::new(tcp, Arc::clone(&self.heard));
            let tls = if http1 { &self.http1 } else { &self.both };
            let failed = |source| DialError::Tls {
                host: self.server.host.clone(),
                source,
            };
            let stream = tls.connect(self.name.clone(), tcp).await.map_err(failed)?;
            self.resolver.serves(address);
            Ok(stream)
        };
        tokio::time::timeout(DIAL_TIMEOUT, dial)
            .await
            .unwrap_or(Err(DialError::Timeout))
    }

    /// The first of the server's addresses that takes a connection: one after the other is tried, each a quarter of a
    /// second after the one before, or as soon as that one has failed (happy eyeballs, RFC 8305 §5).
    async fn connect(&self) -> Result<(SocketAddr, TcpStream), DialError> {
        let resolve = |source| DialError::Resolve {
            host: self.server.host.clone(),
            source,
        };
        let mut addresses = self
            .resolver
            .addresses()
            .await
            .map_err(resolve)?
            .into_iter();
        let mut tries = FuturesUnordered::new();
        let mut failed = None;
        loop {
            tries.extend(
                addresses
                    .next()
                    .map(|address| async move { (address, self.connect_to(address).await) }),
            );
            let next = tokio::time::sleep(STAGGER);
            tokio::select! {
                tried = tries.next() => match tried {
                    Some((address, Ok(stream))) => return Ok((address, stream)),
                    Some((address, Err(source))) => failed = Some(worse(failed, DialError::Connect { address, source })),
                    None => return Err(failed.unwrap_or_else(|| resolve(io::Error::other("no address")))),
                },
                () = next, if addresses.len() > 0 => {}
            }
        }
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() {
            TcpSocket::new_v4()?
        } else {
            TcpSocket::new_v6()?
        };
        // Without CAP_NET_ADMIN there is no steering of ours either, so an unmarked socket is right.
        if let Err(error) = socket2::SockRef::from(&socket).set_mark(self.mark) {
            tracing::trace!(%error, "upstream socket not marked");
        }
        socket.set_nodelay(true)?;
        end_when_dead(&socket)?;
        socket.connect(address).await
    }
}

/// The kernel ends the connection when the other end has been silent for too long: to what was sent, or to probes of an
/// idle connection (RFC 5482, RFC 9293 §3.8.4).
fn end_when_dead(socket: &TcpSocket) -> io::Result<()> {
    let (idle, interval, probes) = KEEPALIVE;
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(probes);
    let socket = socket2::SockRef::from(socket);
    socket.set_tcp_keepalive(&keepalive)?;
    // With it, Linux counts no probes: it must leave time for all of them.
    socket.set_tcp_user_timeout(Some(idle + interval * probes))
}

/// The error to report of several addresses: refused only where all refuse.
fn worse(before: Option<DialError>, now: DialError) -> DialError {
    match before {
        Some(before) if now.is_refused() => before,
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An idle stream whose NAT entry had gone never ended, where HTTP/2's pings don't look after it.
    #[tokio::test]
    async fn the_kernel_looks_after_connections_that_are_idle() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Server {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
        };
        let dialer = Dialer::new(&server, &Arc::new(rustls::RootCertStore::empty()), 0).unwrap();
        let stream = dialer
            .connect_to(listener.local_addr().unwrap())
            .await
            .unwrap();
        let socket = socket2::SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert_eq!(
            socket.tcp_keepalive_time().unwrap(),
            Duration::from_secs(15)
        );
        assert_eq!(
            socket.tcp_keepalive_interval().unwrap(),
            Duration::from_secs(5)
        );
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(
            socket.tcp_user_timeout().unwrap(),
            Some(Duration::from_secs(30))
        );
    }
}
