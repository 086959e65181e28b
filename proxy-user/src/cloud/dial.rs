//! Opens connections to an API server: DNS, TCP (marked, so that eBPF never steers them back to
//! hublet), TLS.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::health::activity::{LinkActivity, ReadRecorder, TrackedStream};
use super::resolve::Resolver;
use crate::config::Server;
use crate::text::with_causes;

/// Longest time for one connection to be ready for requests.
pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Delay between attempts at different addresses (RFC 8305 §5, Connection Attempt Delay).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// TCP keepalive: an idle connection is probed after 15 s, then every 5 s, and is dead after three
/// probes. HTTP/2 has pings besides; HTTP/1.1 and upgraded connections have only this.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(15);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;

/// A TLS stream that is ready for HTTP.
pub(crate) type CloudStream = TlsStream<TrackedStream>;

/// The error of a connection that could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
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
    #[error("no connection within {} s", DIAL_TIMEOUT.as_secs())]
    Timeout,
    /// A limit of hublet's own is reached.
    #[error("too many connections to the cloud are in use")]
    Busy,
    /// The server takes no requests over HTTP/2.
    #[error(
        "the server allows no streams on its connections (SETTINGS_MAX_CONCURRENT_STREAMS is 0)"
    )]
    NoStreams,
}

/// Errors of this node rather than of the network: no descriptor, memory or port is left.
const LOCAL_ERRORS: [rustix::io::Errno; 5] = [
    rustix::io::Errno::MFILE,
    rustix::io::Errno::NFILE,
    rustix::io::Errno::NOBUFS,
    rustix::io::Errno::NOMEM,
    rustix::io::Errno::ADDRNOTAVAIL,
];

impl DialError {
    pub(crate) fn is_refused(&self) -> bool {
        matches!(self, Self::Connect { source, .. } if source.kind() == io::ErrorKind::ConnectionRefused)
    }

    /// True for an error that is no failure of the cloud: this node lacks a permit, a file
    /// descriptor, memory or a port, or the server is there and takes no requests.
    pub(crate) fn is_local(&self) -> bool {
        match self {
            Self::Busy | Self::NoStreams => true,
            Self::Connect { source, .. } | Self::Resolve { source, .. } => is_shortage(source),
            Self::Tls { .. } | Self::Http(_) | Self::Timeout => false,
        }
    }
}

fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    code.is_some_and(|code| LOCAL_ERRORS.iter().any(|e| e.raw_os_error() == code))
}

/// The HTTP versions offered to the server (ALPN, RFC 7301).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Alpn {
    Http2OrHttp1,
    /// For upgrades, and for credentials that the server may answer with GOAWAY.
    Http1Only,
}

/// Opens connections to one server. Clones share what is known of it.
#[derive(Clone)]
pub(crate) struct Dialer {
    server: Server,
    name: ServerName<'static>,
    http2_or_http1: TlsConnector,
    http1_only: TlsConnector,
    mark: u32,
    activity: Arc<LinkActivity>,
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
    /// `mark` is the `SO_MARK` of the sockets.
    ///
    /// # Errors
    /// The host is neither a DNS name nor an IP address.
    pub(crate) fn new(
        server: &Server,
        roots: &Arc<rustls::RootCertStore>,
        mark: u32,
    ) -> Result<Self, rustls::pki_types::InvalidDnsNameError> {
        Ok(Self {
            server: server.clone(),
            name: ServerName::try_from(server.host.clone())?,
            http2_or_http1: tls_connector(roots, &[b"h2", b"http/1.1"]),
            http1_only: tls_connector(roots, &[b"http/1.1"]),
            mark,
            activity: Arc::default(),
            resolver: Arc::new(Resolver::new(server)),
        })
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    /// The absolute URI of a path on the server.
    pub(crate) fn server_uri(&self, path_and_query: Option<&str>) -> http::Uri {
        http::Uri::builder()
            .scheme("https")
            .authority(authority(&self.server))
            .path_and_query(path_and_query.unwrap_or("/"))
            .build()
            .unwrap_or_default()
    }

    /// The `Host` header of requests to the server.
    pub(crate) fn host_header(&self) -> Option<http::HeaderValue> {
        authority(&self.server).try_into().ok()
    }

    /// The activity on all connections of this dialer and its clones.
    pub(crate) fn activity(&self) -> &Arc<LinkActivity> {
        &self.activity
    }

    /// # Errors
    /// See [`DialError`].
    pub(crate) async fn dial(&self, alpn: Alpn) -> Result<CloudStream, DialError> {
        tokio::time::timeout(DIAL_TIMEOUT, self.connect_tls(alpn))
            .await
            .unwrap_or(Err(DialError::Timeout))
    }

    async fn connect_tls(&self, alpn: Alpn) -> Result<CloudStream, DialError> {
        let (address, tcp) = self.connect_tcp().await?;
        self.resolver.record_connected(address);
        let recorder = ReadRecorder::new(Arc::clone(&self.activity));
        let tcp = TrackedStream::new(tcp, recorder);
        let connecting = self.connector(alpn).connect(self.name.clone(), tcp);
        let tls = connecting.await.map_err(|error| self.tls_error(error))?;
        self.resolver.record_served(address);
        Ok(tls)
    }

    fn connector(&self, alpn: Alpn) -> &TlsConnector {
        match alpn {
            Alpn::Http2OrHttp1 => &self.http2_or_http1,
            Alpn::Http1Only => &self.http1_only,
        }
    }

    /// Connects to the first address that accepts. Each is tried [`ATTEMPT_DELAY`] after the one
    /// before, or as soon as that has failed (Happy Eyeballs, RFC 8305 §5).
    async fn connect_tcp(&self) -> Result<(SocketAddr, TcpStream), DialError> {
        let addresses = self.resolver.addresses().await;
        let mut addresses = addresses
            .map_err(|error| self.resolve_error(error))?
            .into_iter();
        let mut attempts = FuturesUnordered::new();
        let mut failed = None;
        loop {
            attempts.extend(addresses.next().map(|address| self.connect_to(address)));
            tokio::select! {
                attempt = attempts.next() => match attempt {
                    Some(Ok(connected)) => return Ok(connected),
                    Some(Err(error)) => failed = Some(more_telling(failed, error)),
                    None => return Err(failed.unwrap_or_else(|| self.no_address())),
                },
                () = tokio::time::sleep(ATTEMPT_DELAY), if addresses.len() > 0 => {}
            }
        }
    }

    fn tls_error(&self, source: io::Error) -> DialError {
        DialError::Tls {
            host: self.server.host.clone(),
            source,
        }
    }

    fn no_address(&self) -> DialError {
        self.resolve_error(io::Error::other("no address"))
    }

    fn resolve_error(&self, source: io::Error) -> DialError {
        DialError::Resolve {
            host: self.server.host.clone(),
            source,
        }
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<(SocketAddr, TcpStream), DialError> {
        let connect = async { self.socket(address)?.connect(address).await };
        let tcp = connect.await;
        tcp.map(|tcp| (address, tcp))
            .map_err(|source| DialError::Connect { address, source })
    }

    fn socket(&self, address: SocketAddr) -> io::Result<TcpSocket> {
        let socket = unbound_socket(address)?;
        // Without CAP_NET_ADMIN hublet can't steer either, so an unmarked socket is safe.
        if let Err(error) = SockRef::from(&socket).set_mark(self.mark) {
            tracing::trace!(%error, "upstream socket not marked");
        }
        socket.set_nodelay(true)?;
        set_keepalive(&socket)?;
        Ok(socket)
    }
}

fn unbound_socket(to: SocketAddr) -> io::Result<TcpSocket> {
    match to {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    }
}

/// `host:port`, with an IPv6 address in brackets.
fn authority(server: &Server) -> String {
    let Server { host, port } = server;
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

fn tls_connector(roots: &Arc<rustls::RootCertStore>, alpn: &[&[u8]]) -> TlsConnector {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("aws-lc-rs supports TLS 1.2 and 1.3")
        .with_root_certificates(Arc::clone(roots))
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Lets the kernel end the connection when the peer has been silent for too long, to data that was sent
/// or to keepalive probes (RFC 5482, RFC 9293 §3.8.4).
fn set_keepalive(socket: &TcpSocket) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE_IDLE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&keepalive)?;
    // Overrides the number of probes on Linux, so it must leave time for all of them.
    socket.set_tcp_user_timeout(Some(KEEPALIVE_IDLE + KEEPALIVE_INTERVAL * KEEPALIVE_PROBES))
}

/// The error to report of several addresses: "refused" only if all refuse.
fn more_telling(before: Option<DialError>, latest: DialError) -> DialError {
    match before {
        Some(before) if latest.is_refused() => before,
        _ => latest,
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    fn dialer(host: &str, port: u16) -> Dialer {
        let server = Server {
            host: host.into(),
            port,
        };
        Dialer::new(&server, &Arc::new(rustls::RootCertStore::empty()), 0).unwrap()
    }

    fn connect_error(errno: rustix::io::Errno) -> DialError {
        DialError::Connect {
            address: ([192, 0, 2, 1], 443).into(),
            source: io::Error::from_raw_os_error(errno.raw_os_error()),
        }
    }

    /// An idle stream whose NAT entry had gone never ended, where HTTP/2's pings don't look after it.
    #[tokio::test]
    async fn the_kernel_looks_after_idle_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let dialer = dialer("127.0.0.1", address.port());
        let (_, stream) = dialer.connect_to(address).await.unwrap();
        let socket = SockRef::from(&stream);
        assert!(socket.keepalive().unwrap());
        assert!(stream.nodelay().unwrap());
        let secs = Duration::from_secs;
        assert_eq!(socket.tcp_keepalive_time().unwrap(), secs(15));
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), secs(5));
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(secs(30)));
    }

    #[tokio::test]
    async fn a_closed_port_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let error = dialer("127.0.0.1", port)
            .dial(Alpn::Http1Only)
            .await
            .unwrap_err();
        assert!(error.is_refused() && !error.is_local(), "{error}");
    }

    #[tokio::test]
    async fn a_server_without_tls_is_neither_refused_nor_local() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move { while listener.accept().await.is_ok() {} });
        let error = dialer("127.0.0.1", port)
            .dial(Alpn::Http2OrHttp1)
            .await
            .unwrap_err();
        assert!(matches!(error, DialError::Tls { .. }), "{error}");
        assert!(!error.is_refused() && !error.is_local());
        assert!(error.to_string().contains("--bootstrap-file"));
    }

    #[test]
    fn a_shortage_on_this_node_does_not_disconnect_the_cloud() {
        use rustix::io::Errno;
        for (error, local) in [
            (connect_error(Errno::MFILE), true),
            (connect_error(Errno::NFILE), true),
            (connect_error(Errno::NOBUFS), true),
            (connect_error(Errno::NOMEM), true),
            (connect_error(Errno::ADDRNOTAVAIL), true),
            (connect_error(Errno::CONNREFUSED), false),
            (connect_error(Errno::NETUNREACH), false),
            (connect_error(Errno::HOSTUNREACH), false),
            (DialError::Busy, true),
            (DialError::NoStreams, true),
            (DialError::Timeout, false),
        ] {
            assert_eq!(error.is_local(), local, "{error}");
        }
    }

    #[test]
    fn refused_is_reported_only_if_all_addresses_refuse() {
        use rustix::io::Errno;
        let refused = || connect_error(Errno::CONNREFUSED);
        let unreachable = || connect_error(Errno::NETUNREACH);
        assert!(more_telling(None, refused()).is_refused());
        assert!(more_telling(Some(refused()), refused()).is_refused());
        assert!(!more_telling(Some(unreachable()), refused()).is_refused());
        assert!(!more_telling(Some(refused()), unreachable()).is_refused());
    }

    #[test]
    fn the_uri_of_a_server_has_brackets_around_an_ipv6_address() {
        for (host, path, uri) in [
            (
                "api.example",
                Some("/api?a=b"),
                "https://api.example:6443/api?a=b",
            ),
            ("192.0.2.1", None, "https://192.0.2.1:6443/"),
            ("2001:db8::1", Some("/"), "https://[2001:db8::1]:6443/"),
        ] {
            let dialer = dialer(host, 6443);
            assert_eq!(dialer.server_uri(path), uri);
            let host = dialer.host_header().unwrap();
            assert!(uri.contains(host.to_str().unwrap()), "{host:?}");
        }
    }

    #[test]
    fn a_host_that_is_no_name_is_an_error() {
        let server = Server {
            host: "not a name".into(),
            port: 443,
        };
        let roots = Arc::new(rustls::RootCertStore::empty());
        assert!(Dialer::new(&server, &roots, 0).is_err());
    }
}
