//! kubeconfig files: one server, one CA, one credential.

use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::pki::Identity;

/// A kubeconfig with a bearer token.
pub fn with_token(server: &str, ca_pem: &str, token: &str) -> String {
    text(server, ca_pem, &json!({"token": token}))
}

/// A kubeconfig with a client certificate.
pub fn with_certificate(server: &str, ca_pem: &str, identity: &Identity) -> String {
    let user = json!({
        "client-certificate-data": STANDARD.encode(&identity.certificate_pem),
        "client-key-data": STANDARD.encode(&identity.key_pem),
    });
    text(server, ca_pem, &user)
}

/// A kubeconfig without a credential: the server, and how to trust it.
pub fn anonymous(server: &str, ca_pem: &str) -> String {
    text(server, ca_pem, &json!({}))
}

/// JSON, which is YAML too.
fn text(server: &str, ca_pem: &str, user: &Value) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "cloud",
        "clusters": [{"name": "cloud", "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(ca_pem),
        }}],
        "contexts": [{"name": "cloud", "context": {"cluster": "cloud", "user": "user"}}],
        "users": [{"name": "user", "user": user}],
    });
    format!("{config:#}\n")
}

/// Writes a file that only its owner reads.
///
/// # Errors
/// The directory can't be written.
pub fn write(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}
