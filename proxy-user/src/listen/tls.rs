//! TLS of the listeners.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::{Ticketer, default_provider};
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::version::{TLS12, TLS13};
use rustls::{CipherSuite, ServerConfig};

pub(super) const H2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// TLS 1.2 and 1.3, h2 before http/1.1, one stateless ticket: resumption costs the server no memory, and saves the client
/// two fifths of its CPU.
///
/// # Errors
/// The crypto provider supports neither version, or has no random numbers for the tickets' key.
pub(crate) fn server_config(
    resolver: Arc<dyn ResolvesServerCert>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let mut provider = default_provider();
    provider
        .cipher_suites
        .sort_by_key(|suite| !is_preferred(suite.suite()));
    let mut config = ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    config.ignore_client_order = true;
    config.alpn_protocols = vec![H2.to_vec(), HTTP1.to_vec()];
    config.ticketer = Ticketer::new()?;
    config.send_tls13_tickets = 1;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// AES with 128 bits, as the API server (Go) prefers it: it is the cheapest for both sides, which are the same machine.
fn is_preferred(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}
