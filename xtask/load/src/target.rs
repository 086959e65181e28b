//! The server to measure: TLS connections to it, and its CA and credential.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use crate::h2;

/// A server that does not answer for so long is broken.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) type Stream = StreamOwned<ClientConnection, TcpStream>;

#[derive(Debug, Clone)]
pub(crate) struct Target {
    address: SocketAddr,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    /// HTTP/2, not HTTP/1.1.
    pub(crate) h2: bool,
}

impl Target {
    pub(crate) fn new(address: SocketAddr, name: &str, ca: &Path, h2: bool) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        let certificates =
            CertificateDer::pem_file_iter(ca).with_context(|| format!("{}", ca.display()))?;
        for certificate in certificates {
            roots.add(
                certificate.with_context(|| format!("{} is no PEM certificate", ca.display()))?,
            )?;
        }
        let mut provider = aws_lc_rs::default_provider();
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519];
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![if h2 {
            b"h2".to_vec()
        } else {
            b"http/1.1".to_vec()
        }];
        let name =
            ServerName::try_from(name.to_owned()).with_context(|| format!("{name} is no name"))?;
        Ok(Self {
            address,
            name,
            config: Arc::new(config),
            h2,
        })
    }

    /// A new TCP connection; the TLS handshake happens with the first bytes.
    pub(crate) fn connect(&self) -> io::Result<Stream> {
        let tcp = TcpStream::connect_timeout(&self.address, PATIENCE)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(PATIENCE))?;
        let tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone())
            .map_err(io::Error::other)?;
        Ok(StreamOwned::new(tls, tcp))
    }
}

/// A request, in the bytes of both protocols.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) h1: Vec<u8>,
    /// The header block.
    pub(crate) h2: Vec<u8>,
}

impl Request {
    pub(crate) fn get(path: &str, token: Option<&str>) -> Self {
        let mut h1 =
            format!("GET {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n");
        let mut headers = vec![
            (":method", "GET"),
            (":scheme", "https"),
            (":authority", "kubernetes"),
            (":path", path),
            ("accept", "application/json"),
        ];
        let bearer = token.map(|token| format!("Bearer {token}"));
        if let Some(bearer) = &bearer {
            h1.push_str(&format!("Authorization: {bearer}\r\n"));
            headers.push(("authorization", bearer));
        }
        h1.push_str("\r\n");
        Self {
            h1: h1.into_bytes(),
            h2: h2::header_block(&headers),
        }
    }

    /// A POST; over HTTP/1.1 alone.
    pub(crate) fn post(path: &str, token: Option<&str>, body: &str) -> Self {
        let bearer = token
            .map(|token| format!("Authorization: Bearer {token}\r\n"))
            .unwrap_or_default();
        let length = body.len();
        let h1 = format!(
            "POST {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n{bearer}\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        Self {
            h1: h1.into_bytes(),
            h2: Vec::new(),
        }
    }
}

/// The token in a file.
pub(crate) fn read_token(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
