//! The CAs that the cloud is verified by: those of `--bootstrap-file`'s kubeconfig. YurtHub's
//! installer gives none with `--bootstrap-mode=kubeletcertificate`; then the cluster's CA as kubeadm
//! installs it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Deserialize;

use super::{CertsError, files};
use crate::config::CertsConfig;

/// kubeadm's copy of the cluster's CA.
const CLUSTER_CA: &str = "/etc/kubernetes/pki/ca.crt";

const BOOTSTRAP_FILE: &str = "bootstrap file";

const NO_CA: &str = "has no CA, by which hublet verifies the cloud: add certificate-authority-data or \
                     certificate-authority";

/// The part of `k8s.io/client-go/tools/clientcmd/api/v1.Config` that names the CA.
#[derive(Deserialize)]
struct Kubeconfig {
    #[serde(default)]
    clusters: Vec<NamedCluster>,
    #[serde(default)]
    contexts: Vec<NamedContext>,
    #[serde(rename = "current-context", default)]
    current_context: Option<String>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: Cluster,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Cluster {
    certificate_authority_data: Option<String>,
    certificate_authority: Option<PathBuf>,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: Context,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
}

/// Loads the CAs that the cloud is verified by.
///
/// # Errors
/// The file can't be read, is not a kubeconfig, or has no CA certificate.
pub(crate) fn cloud_roots(config: &CertsConfig) -> Result<Arc<RootCertStore>, CertsError> {
    let roots = match &config.bootstrap_file {
        Some(file) => load_kubeconfig_roots(file)?,
        None => load_pem_roots(&PemFile {
            purpose: "cluster CA",
            path: Path::new(CLUSTER_CA),
            fix: "name a kubeconfig with --bootstrap-file",
        })?,
    };
    Ok(Arc::new(roots))
}

fn load_kubeconfig_roots(path: &Path) -> Result<RootCertStore, CertsError> {
    let cluster = read_cluster(path)?;
    match (cluster.ca_data(), cluster.ca_file()) {
        (Some(data), _) => parse_inline_roots(path, data),
        // Relative to the kubeconfig, as in client-go.
        (None, Some(file)) => load_pem_roots(&PemFile {
            purpose: "certificate-authority",
            path: &path.parent().unwrap_or(Path::new("")).join(file),
            fix: "correct certificate-authority in the bootstrap file",
        }),
        (None, None) => Err(bad_kubeconfig(path, NO_CA)),
    }
}

/// The cluster of a kubeconfig's current context.
fn read_cluster(path: &Path) -> Result<Cluster, CertsError> {
    let text = files::read_text(path).map_err(|source| CertsError::Read {
        purpose: BOOTSTRAP_FILE,
        path: path.to_owned(),
        source,
        fix: "set --bootstrap-file to a readable kubeconfig with certificate-authority-data",
    })?;
    parse_cluster(&text).map_err(|reason| bad_kubeconfig(path, reason))
}

fn parse_inline_roots(path: &Path, data: &str) -> Result<RootCertStore, CertsError> {
    parse_base64_roots(data).map_err(|reason| {
        let reason = format!("has certificate-authority-data that {reason}");
        bad_kubeconfig(path, reason)
    })
}

fn bad_kubeconfig(path: &Path, reason: impl Into<String>) -> CertsError {
    CertsError::content(BOOTSTRAP_FILE, path, reason)
}

impl Cluster {
    fn ca_data(&self) -> Option<&str> {
        let data = self.certificate_authority_data.as_deref();
        data.filter(|data| !data.trim().is_empty())
    }

    fn ca_file(&self) -> Option<&Path> {
        let file = self.certificate_authority.as_deref();
        file.filter(|file| !file.as_os_str().is_empty())
    }
}

/// The current context's cluster.
fn parse_cluster(text: &str) -> Result<Cluster, String> {
    // An error must not quote the file, which may hold a token.
    let options = serde_saphyr::options! { with_snippet: false };
    let kubeconfig: Kubeconfig =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            format!("is not a kubeconfig ({error}): expected YAML with clusters[].cluster")
        })?;
    select_cluster(kubeconfig).ok_or_else(|| {
        "has no cluster: expected clusters[].cluster with certificate-authority-data".into()
    })
}

/// The current context's cluster, otherwise the first one.
fn select_cluster(kubeconfig: Kubeconfig) -> Option<Cluster> {
    let current = kubeconfig.current_cluster();
    let mut clusters = kubeconfig.clusters.iter();
    let position = clusters.position(|named| Some(named.name.as_str()) == current);
    let mut clusters = kubeconfig.clusters.into_iter();
    clusters
        .nth(position.unwrap_or(0))
        .map(|named| named.cluster)
}

impl Kubeconfig {
    /// The name of the current context's cluster.
    fn current_cluster(&self) -> Option<&str> {
        let current = self.current_context.as_deref().unwrap_or_default();
        let context = self.contexts.iter().find(|named| named.name == current)?;
        Some(&context.context.cluster)
    }
}

/// A file of CA certificates.
struct PemFile<'a> {
    purpose: &'static str,
    path: &'a Path,
    fix: &'static str,
}

impl PemFile<'_> {
    fn read_error(&self, source: io::Error) -> CertsError {
        CertsError::Read {
            purpose: self.purpose,
            path: self.path.to_owned(),
            source,
            fix: self.fix,
        }
    }
}

fn load_pem_roots(file: &PemFile<'_>) -> Result<RootCertStore, CertsError> {
    let text = files::read_text(file.path).map_err(|error| file.read_error(error))?;
    parse_pem_roots(text.as_bytes())
        .map_err(|reason| CertsError::content(file.purpose, file.path, reason))
}

fn parse_base64_roots(data: &str) -> Result<RootCertStore, String> {
    let compact: String = data.split_ascii_whitespace().collect();
    let pem = BASE64_STANDARD
        .decode(compact)
        .map_err(|error| format!("is invalid base64 ({error})"))?;
    parse_pem_roots(&pem)
}

fn parse_pem_roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("holds damaged PEM ({error})"))?;
        let added = roots.add(certificate);
        added.map_err(|error| format!("holds an unusable certificate ({error})"))?;
    }
    if roots.is_empty() {
        return Err("holds no certificate: expected PEM with -----BEGIN CERTIFICATE-----".into());
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BootstrapMode;

    fn ca_pem() -> String {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.self_signed(&key).expect("certificate").pem()
    }

    fn read(text: &str, beside: Option<&str>) -> Result<usize, String> {
        let directory = tempfile::tempdir().expect("directory");
        if let Some(pem) = beside {
            std::fs::write(directory.path().join("ca.crt"), pem).expect("written");
        }
        let file = directory.path().join("bootstrap.conf");
        std::fs::write(&file, text).expect("written");
        let config = CertsConfig {
            mode: BootstrapMode::Development,
            bootstrap_file: Some(file),
            root_dir: PathBuf::new(),
            organizations: vec![],
            ip_sans: vec![],
            dns_sans: vec![],
            node_ip: None,
        };
        cloud_roots(&config)
            .map(|roots| roots.len())
            .map_err(|error| {
                let text = error.to_string();
                assert!(
                    text.contains(&directory.path().display().to_string()),
                    "names the file: {text}"
                );
                text
            })
    }

    fn kubeconfig(cluster: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: kubernetes\n  cluster:\n    server: https://a:1\n{cluster}"
        )
    }

    #[test]
    fn the_ca_is_taken_from_data_or_file() {
        let data = BASE64_STANDARD.encode(ca_pem());
        assert_eq!(
            read(
                &kubeconfig(&format!("    certificate-authority-data: {data}\n")),
                None
            ),
            Ok(1)
        );
        assert_eq!(
            read(
                &kubeconfig("    certificate-authority: ca.crt\n"),
                Some(&ca_pem())
            ),
            Ok(1)
        );
        let both = ca_pem() + &ca_pem();
        assert_eq!(
            read(
                &kubeconfig("    certificate-authority: ca.crt\n"),
                Some(&both)
            ),
            Ok(2)
        );
    }

    #[test]
    fn the_current_context_chooses_the_cluster() {
        let good = BASE64_STANDARD.encode(ca_pem());
        let text = format!(
            "clusters:\n- name: other\n  cluster: {{certificate-authority-data: AAAA}}\n- name: mine\n  cluster: \
             {{certificate-authority-data: {good}}}\ncontexts:\n- name: here\n  context: {{cluster: mine, user: u}}\n\
             current-context: here\n"
        );
        assert_eq!(read(&text, None), Ok(1));
    }

    #[test]
    fn a_rejected_file_is_named_with_the_reason() {
        for (text, says) in [
            ("", "has no cluster"),
            ("{]", "not a kubeconfig"),
            ("just words", "not a kubeconfig"),
            ("clusters: []", "has no cluster"),
            (&kubeconfig(""), "has no CA"),
            (
                &kubeconfig("    insecure-skip-tls-verify: true\n"),
                "has no CA",
            ),
            (
                &kubeconfig("    certificate-authority-data: '%%%'\n"),
                "invalid base64",
            ),
            (
                &kubeconfig("    certificate-authority-data: AAAA\n"),
                "holds no certificate",
            ),
            (
                &kubeconfig("    certificate-authority: missing.crt\n"),
                "can't read",
            ),
        ] {
            let error = read(text, None).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn i8_an_error_never_quotes_the_file() {
        for text in [
            "users:\n- name: a\n  user: {token: secret]\n",
            "clusters:\n- nam: a\n  token: secret\n",
            "clusters: secret",
            "clusters:\n- name: a\n  cluster:\n    certificate-authority-data: se@cret\n",
        ] {
            let error = read(text, None).expect_err(text);
            assert!(!error.contains("cret"), "{text}: {error}");
        }
    }
}
