//! Certificates: whom we trust as the cloud ([`cloud_roots`]) and what we show to clients ([`Certificates`]).
//!
//! In: [`CertsConfig`](crate::config::CertsConfig), the node's name and the time (always an argument: a node may
//! start with a clock of 1970). Out: a root store for `cloud`, and for `listen` a resolver whose certificate can be
//! replaced while connections are served. Certificates from the cluster (CSR, rotation) will be another source
//! beside `development`; the resolver is the seam for them.

mod development;
mod files;
mod inspect;
mod serving;
mod trust;

use std::path::{Path, PathBuf};

pub(crate) use serving::Certificates;
pub(crate) use trust::cloud_roots;

/// Why certificates can't be had.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A file can't be read.
    #[error("{what} {path} can't be read: {source}; {way_out}", path = path.display())]
    Read {
        /// What the file is for.
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
        way_out: &'static str,
    },
    /// A file was read and holds something else than expected.
    #[error("{what} {path} {reason}", path = path.display())]
    Content {
        /// What the file is for.
        what: &'static str,
        path: PathBuf,
        /// What is wrong and what is expected, to follow the path in a sentence.
        reason: String,
    },
    /// A file or directory can't be written.
    #[error("{path} can't be written: {source}; run as root, or choose another --root-dir", path = path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        source: std::io::Error,
    },
    /// Key or certificate generation failed.
    #[error("a certificate can't be made: {0}; this is a fault of hublet's")]
    Generate(#[from] rcgen::Error),
}

impl CertsError {
    fn content(what: &'static str, path: &Path, reason: impl Into<String>) -> Self {
        Self::Content {
            what,
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
    fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |source| Self::Write { path, source }
    }
}

/// What a serving certificate is made out for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The node: CN is `system:node:NODE`, O is `system:nodes` and nothing else (YurtHub's approver insists).
    pub(crate) node: String,
    pub(crate) ips: Vec<std::net::IpAddr>,
    /// DNS names besides [`DNS_NAMES`].
    pub(crate) dns: Vec<String>,
}

/// Our own files in this directory: the development CA, what it signed, what was set aside. A certificate of the
/// cluster's is not ours.
pub(crate) fn hublet_files(pki: &Path) -> Vec<PathBuf> {
    serving::hublet_files(pki)
}

/// The names under which pods know the API server.
const DNS_NAMES: [&str; 4] = [
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

const ORGANIZATION: &str = "system:nodes";

impl Subject {
    fn common_name(&self) -> String {
        format!("system:node:{}", self.node)
    }

    fn dns_names(&self) -> std::collections::BTreeSet<&str> {
        DNS_NAMES
            .into_iter()
            .chain(self.dns.iter().map(String::as_str))
            .collect()
    }
}
