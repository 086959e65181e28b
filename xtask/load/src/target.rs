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

/// A server that does not response for so long is broken.
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

/// The token in a file.
pub(crate) fn read_token(path: &Path) -> Result<String> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().to_owned())
}
