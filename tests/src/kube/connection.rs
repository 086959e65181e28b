//! An HTTP/2 connection over TLS, opened in a network namespace, whose headers are exactly what the caller sets.
//!
//! In: an address, the CA that its certificate must chain to, optionally a client certificate. Out: whole answers.
//! The replay needs full control of headers and connections (a CNI process is one connection), so no client with
//! habits of its own stands in between.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

use crate::netns::Netns;
use crate::pki::Identity;

/// No test answer takes longer than this; a longer silence is a failure with a message instead of a hang.
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);

/// A TLS server: where it listens, and how it is trusted.
#[derive(Debug, Clone)]
pub struct Endpoint {
    address: SocketAddr,
    netns: Option<Netns>,
    tls: Arc<ClientConfig>,
}

impl Endpoint {
    /// A server at `address` whose certificate chains to `ca_pem` and names the address.
    ///
    /// # Errors
    /// The PEM blocks can't be parsed, or certificate and key don't fit.
    pub fn new(address: SocketAddr, ca_pem: &str, identity: Option<&Identity>) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.context("the CA's PEM")?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut tls = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.rustls();
                builder.with_client_auth_cert(chain, key)?
            }
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self { address, netns: None, tls: Arc::new(tls) })
    }

    /// Dials from this network namespace.
    #[must_use]
    pub fn within(mut self, netns: Option<&Netns>) -> Self {
        self.netns = netns.cloned();
        self
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A new connection: TCP, TLS, h2.
    ///
    /// # Errors
    /// Refused, no trust, no h2, or nothing within 30 s.
    pub async fn connect(&self) -> Result<Connection> {
        tokio::time::timeout(ANSWER_DEADLINE, self.dial())
            .await
            .with_context(|| format!("no TLS connection to {} within 30 s", self.address))?
    }

    async fn dial(&self) -> Result<Connection> {
        let address = self.address;
        let socket = match &self.netns {
            None => TcpStream::connect(address).await,
            Some(netns) => netns
                .run(|| {
                    let socket = std::net::TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
                    socket.set_nonblocking(true)?;
                    Ok(socket)
                })
                .and_then(TcpStream::from_std),
        }
        .with_context(|| {
            format!("no connection to {address}: is the server up in this network namespace?")
        })?;
        socket.set_nodelay(true)?;
        let stream = tokio_rustls::TlsConnector::from(Arc::clone(&self.tls))
            .connect(ServerName::IpAddress(address.ip().into()), socket)
            .await
            .with_context(|| format!("no TLS with {address}: is its certificate of the CA given?"))?;
        let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Connection { sender, address })
    }
}

/// One h2 connection; clones share it.
#[derive(Debug, Clone)]
pub struct Connection {
    sender: SendRequest<Full<Bytes>>,
    address: SocketAddr,
}

impl Connection {
    /// Sends a request whose URI is a path with its query, and reads the whole answer.
    ///
    /// # Errors
    /// The connection ended, or no whole answer came within 30 s.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>> {
        let what = format!("{} {}", request.method(), request.uri());
        let answer = async {
            let (parts, body) = self.stream(request).await?.into_parts();
            anyhow::Ok(Response::from_parts(parts, body.collect().await?.to_bytes()))
        };
        match tokio::time::timeout(ANSWER_DEADLINE, answer).await {
            Ok(answer) => answer.with_context(|| format!("{what}: the connection to {} ended", self.address)),
            Err(_) => bail!("{what}: no whole answer from {} within 30 s", self.address),
        }
    }

    /// Sends a request and hands out the answer's body as it comes (a watch).
    ///
    /// # Errors
    /// The connection ended before the headers came.
    pub async fn stream(&self, mut request: Request<Full<Bytes>>) -> Result<Response<hyper::body::Incoming>> {
        let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
        *request.uri_mut() = format!("https://{}{path}", self.address).parse()?;
        let mut sender = self.sender.clone();
        sender.ready().await?;
        Ok(sender.send_request(request).await?)
    }

    /// The peer has hung up.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
