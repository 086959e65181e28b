//! Whom we trust as the cloud: the CA in `--bootstrap-file`'s kubeconfig, or, where today's installer gives none
//! (`--bootstrap-mode=kubeletcertificate`), the cluster's CA where kubeadm leaves it.

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

const KUBECONFIG: &str = "bootstrap file";

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

/// The certificates by which the cloud is trusted.
///
/// # Errors
/// The file can't be read, is no kubeconfig, or holds no CA certificate.
pub(crate) fn cloud_roots(config: &CertsConfig) -> Result<Arc<RootCertStore>, CertsError> {
    let roots = match &config.bootstrap_file {
        Some(file) => from_kubeconfig(file)?,
        None => from_pem_file(
            "cluster CA",
            Path::new(CLUSTER_CA),
            "name a kubeconfig by --bootstrap-file",
        )?,
    };
    Ok(Arc::new(roots))
}

fn from_kubeconfig(path: &Path) -> Result<RootCertStore, CertsError> {
    let text = files::read(path).map_err(|source| CertsError::Read {
        what: KUBECONFIG,
        path: path.to_owned(),
        source,
        way_out: "give --bootstrap-file a readable kubeconfig with certificate-authority-data",
    })?;
    let wrong = |reason: String| CertsError::content(KUBECONFIG, path, reason);
    let kubeconfig: Kubeconfig = serde_yaml_ng::from_str(&text).map_err(|error| {
        wrong(format!(
            "is no kubeconfig ({error}): expected YAML with clusters[].cluster"
        ))
    })?;
    let cluster = current_cluster(&kubeconfig).ok_or_else(|| {
        wrong(
            "names no cluster: expected clusters[].cluster with certificate-authority-data".into(),
        )
    })?;
    match (&cluster.certificate_authority_data, &cluster.certificate_authority) {
        (Some(data), _) if !data.trim().is_empty() => {
            let pem = BASE64_STANDARD.decode(data.split_ascii_whitespace().collect::<String>()).map_err(
                |error| wrong(format!("has certificate-authority-data that is no base64 ({error})")),
            )?;
            roots(&pem).map_err(|reason| wrong(format!("has certificate-authority-data that {reason}")))
        }
        (_, Some(file)) if !file.as_os_str().is_empty() => {
            let file = path.parent().unwrap_or(Path::new("")).join(file);
            from_pem_file(
                "certificate-authority",
                &file,
                "correct certificate-authority in the bootstrap file",
            )
        }
        _ => Err(wrong(
            "has neither certificate-authority-data nor certificate-authority: hublet trusts no cloud \
            without its CA, so add one"
                .into(),
        )),
    }
}

/// The current context's cluster, or the only one there is.
fn current_cluster(kubeconfig: &Kubeconfig) -> Option<&Cluster> {
    let current = kubeconfig
        .current_context
        .as_deref()
        .filter(|name| !name.is_empty());
    let context = current.and_then(|name| {
        kubeconfig
            .contexts
            .iter()
            .find(|context| context.name == name)
    });
    let named = context.and_then(|c| {
        kubeconfig
            .clusters
            .iter()
            .find(|cluster| cluster.name == c.context.cluster)
    });
    named
        .or(kubeconfig.clusters.first())
        .map(|cluster| &cluster.cluster)
}

fn from_pem_file(
    what: &'static str,
    path: &Path,
    way_out: &'static str,
) -> Result<RootCertStore, CertsError> {
    let text = files::read(path).map_err(|source| CertsError::Read {
        what,
        path: path.to_owned(),
        source,
        way_out,
    })?;
    roots(text.as_bytes()).map_err(|reason| CertsError::content(what, path, reason))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| format!("holds damaged PEM ({error})"))?;
        roots
            .add(certificate)
            .map_err(|error| format!("holds a certificate that can't be used ({error})"))?;
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
    fn what_is_wrong_with_the_file_is_said() {
        for (text, says) in [
            ("", "names no cluster"),
            ("{]", "no kubeconfig"),
            ("just words", "no kubeconfig"),
            ("clusters: []", "names no cluster"),
            (&kubeconfig(""), "without its CA"),
            (
                &kubeconfig("    insecure-skip-tls-verify: true\n"),
                "without its CA",
            ),
            (
                &kubeconfig("    certificate-authority-data: '%%%'\n"),
                "no base64",
            ),
            (
                &kubeconfig("    certificate-authority-data: AAAA\n"),
                "holds no certificate",
            ),
            (
                &kubeconfig("    certificate-authority: missing.crt\n"),
                "can't be read",
            ),
        ] {
            let error = read(text, None).expect_err(text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
