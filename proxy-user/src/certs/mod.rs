//! Certificates: the CAs that the cloud is verified by ([`cloud_roots`]), and the certificate that
//! clients are shown ([`Certificates`]), which can be replaced while connections are served.
//!
//! The time is always an argument: a node may start with a clock of 1970. Certificates from the
//! cluster (CSR, rotation) will be another source beside [`development`].

mod development;
mod files;
mod inspect;
mod owned;
mod select;
mod serving;
mod trust;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

pub(crate) use owned::hublet_files;
pub(crate) use serving::{CertificateStatus, Certificates};
pub(crate) use trust::cloud_roots;

use crate::config::CertsConfig;

#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    #[error("can't read {purpose} {path}: {source}; {fix}", path = path.display())]
    Read {
        /// The file's role, such as "cluster CA".
        purpose: &'static str,
        path: PathBuf,
        source: io::Error,
        fix: &'static str,
    },
    #[error("{purpose} {path} {reason}", path = path.display())]
    Content {
        purpose: &'static str,
        path: PathBuf,
        /// Continues the sentence that begins with the path.
        reason: String,
    },
    #[error(
        "can't write {path}: {source}; run as root, or choose another --root-dir",
        path = path.display()
    )]
    Write { path: PathBuf, source: io::Error },
    #[error("can't generate a certificate: {0}; please report this bug")]
    Generate(#[from] rcgen::Error),
}

impl CertsError {
    fn content(purpose: &'static str, path: &Path, reason: impl Into<String>) -> Self {
        Self::Content {
            purpose,
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    /// A file that another user's daemon has created.
    fn other_user(purpose: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Read {
            purpose,
            path: path.to_owned(),
            source,
            fix: "run as the user who created it, or choose another --root-dir",
        }
    }

    fn write(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Write { path, source }
    }
}

/// The only organization that YurtHub's approver accepts in a serving certificate.
const ORGANIZATION: &str = "system:nodes";

/// The names by which pods address the API server.
const DNS_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// The subject of the serving certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Subject {
    node: String,
    ips: Vec<IpAddr>,
    /// In addition to [`DNS_NAMES`].
    dns: Vec<String>,
}

impl Subject {
    fn new(node: &str, config: &CertsConfig) -> Self {
        Self {
            node: node.to_owned(),
            ips: config.ip_sans.clone(),
            dns: config.dns_sans.clone(),
        }
    }

    fn common_name(&self) -> String {
        format!("system:node:{}", self.node)
    }

    fn dns_names(&self) -> BTreeSet<&str> {
        DNS_NAMES
            .into_iter()
            .chain(self.dns.iter().map(String::as_str))
            .collect()
    }
}
