//! Files that hublet may delete when it is uninstalled.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::OffsetDateTime;

use super::files::read_text;
use super::inspect::{is_signed_by, parse_certified_key};
use super::select::CURRENT;

/// hublet's own files in the PKI directory: the development CA, the certificates that it signed,
/// and files that were set aside. A certificate from the cluster isn't among them.
pub(crate) fn hublet_files(pki: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(pki).into_iter().flatten().flatten();
    let files = entries.map(|entry| entry.path());
    files.filter(|file| is_own(file, pki)).collect()
}

fn is_own(file: &Path, pki: &Path) -> bool {
    has_own_name(file) || (*file == pki.join(CURRENT) && is_signed_by_development_ca(file, pki))
}

fn has_own_name(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("dev-ca.") || name.starts_with("dev-server.")
}

fn is_signed_by_development_ca(file: &Path, pki: &Path) -> bool {
    let ca = load_ca(pki);
    ca.zip(load_leaf(file))
        .is_some_and(|(ca, leaf)| is_signed_by(&leaf, &ca, OffsetDateTime::now_utc()))
}

fn load_ca(pki: &Path) -> Option<CertificateDer<'static>> {
    let pem = read_text(&pki.join("dev-ca.crt")).ok()?;
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

fn load_leaf(file: &Path) -> Option<CertificateDer<'static>> {
    let key = parse_certified_key(&read_text(file).ok()?).ok()?;
    key.cert.first().cloned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::certs::Certificates;
    use crate::config::{BootstrapMode, CertsConfig};

    fn open(root: &Path, mode: BootstrapMode) {
        let config = CertsConfig {
            mode,
            bootstrap_file: None,
            root_dir: root.to_owned(),
            organizations: vec![],
            ip_sans: vec![],
            dns_sans: vec![],
            node_ip: None,
        };
        Certificates::open(&config, "edge-1", OffsetDateTime::now_utc()).expect("certificates");
    }

    fn names(pki: &Path) -> Vec<String> {
        let mut names: Vec<_> = hublet_files(pki)
            .iter()
            .filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_development_certificate_is_hublets_and_the_clusters_is_not() {
        let (development, token) = (
            tempfile::tempdir().expect("directory"),
            tempfile::tempdir().expect("directory"),
        );
        open(development.path(), BootstrapMode::Development);
        open(token.path(), BootstrapMode::Token);
        let (development, token) = (development.path().join("pki"), token.path().join("pki"));
        assert_eq!(
            names(&development),
            ["dev-ca.crt", "dev-ca.key", CURRENT],
            "signed by the CA beside it"
        );
        std::fs::copy(development.join(CURRENT), token.join(CURRENT)).expect("copied");
        std::fs::write(token.join("kubelet.pem"), "").expect("written");
        assert_eq!(
            names(&token),
            ["dev-ca.crt", "dev-ca.key", "dev-server.pem"],
            "signed by another CA: the cluster's"
        );
    }

    #[test]
    fn a_missing_directory_has_no_files() {
        assert_eq!(
            hublet_files(Path::new("/nonexistent/pki")),
            Vec::<PathBuf>::new()
        );
    }
}
