//! The choice of the serving certificate: the cluster's where it is valid, otherwise one that the
//! development CA signs.
//!
//! In development mode `PKI/yurthub-server-current.pem` is hublet's own: renewed when it is due or
//! the addresses have changed, set aside when it is unusable. In YurtHub's modes that file belongs
//! to the cluster: used when valid and never modified. A development certificate in
//! `PKI/dev-server.pem` stands in for it, so that the store can be served nevertheless.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::development::Authority;
use super::inspect::{CertificateInfo, is_signed_by, parse_certified_key};
use super::{CertsError, Subject, files};
use crate::config::BootstrapMode;

/// YurtHub's name for the file with the serving certificate and its key.
pub(super) const CURRENT: &str = "yurthub-server-current.pem";

const DEVELOPMENT: &str = "dev-server.pem";

const PURPOSE: &str = "serving certificate";

/// The selected certificate and its origin.
pub(super) struct Selected {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Origin {
    pub(super) file: PathBuf,
    /// The development CA that clients must trust; `None` of a certificate from the cluster.
    pub(super) development_ca: Option<PathBuf>,
    pub(super) expires: OffsetDateTime,
}

impl Origin {
    pub(super) fn describe_issuer(&self) -> String {
        match &self.development_ca {
            Some(ca) => format!("clients must trust {}", ca.display()),
            None => "from the cluster".to_owned(),
        }
    }
}

/// The certificate's requirements and the place where it is stored.
#[derive(Clone, Copy)]
pub(super) struct Selection<'a> {
    pub(super) mode: BootstrapMode,
    pub(super) pki: &'a Path,
    pub(super) subject: &'a Subject,
    pub(super) now: OffsetDateTime,
}

impl Selection<'_> {
    pub(super) fn select_certificate(&self) -> Result<Selected, CertsError> {
        let current = self.pki.join(CURRENT);
        if self.mode == BootstrapMode::Development {
            return self.development_certificate(&current);
        }
        self.load_cluster_certificate(&current).or_else(|reason| {
            tracing::debug!(
                "{} {reason}: serving with the development CA",
                current.display()
            );
            self.development_certificate(&self.pki.join(DEVELOPMENT))
        })
    }

    /// The cluster's certificate, or the reason why it is unusable.
    fn load_cluster_certificate(&self, file: &Path) -> Result<Selected, String> {
        let pem = files::read_text(file).map_err(|error| format!("can't be read ({error})"))?;
        let loaded = LoadedCertificate::parse(&pem)?;
        loaded.info.check_validity(self.now)?;
        self.warn_of_missing_names(file, &loaded.info);
        Ok(loaded.select(file, None))
    }

    fn warn_of_missing_names(&self, file: &Path, info: &CertificateInfo) {
        let missing = info.missing_names(self.subject);
        if !missing.is_empty() {
            warn!(
                "{} is not valid for {}: clients that dial these will reject it",
                file.display(),
                missing.join(", ")
            );
        }
    }

    /// The development certificate in this file, renewed where necessary.
    fn development_certificate(&self, file: &Path) -> Result<Selected, CertsError> {
        let authority = Authority::open(self.pki, self.now)?;
        let loaded = match self.load_current(file, &authority)? {
            Some(current) => current,
            None => self.issue_into(file, &authority)?,
        };
        Ok(loaded.select(file, Some(authority.path())))
    }

    /// The existing certificate, if it is still good; otherwise the way is free for a new one.
    fn load_current(
        &self,
        file: &Path,
        authority: &Authority,
    ) -> Result<Option<LoadedCertificate>, CertsError> {
        match load_existing(file)? {
            Existing::Absent => Ok(None),
            Existing::Unusable(reason) => {
                self.set_aside(file, &reason)?;
                Ok(None)
            }
            Existing::Certificate(loaded) => Ok(self.keep_unless_due(*loaded, file, authority)),
        }
    }

    fn keep_unless_due(
        &self,
        loaded: LoadedCertificate,
        file: &Path,
        authority: &Authority,
    ) -> Option<LoadedCertificate> {
        if let Some(reason) = self.renewal_reason(&loaded, authority) {
            info!("renewing {PURPOSE} {}: {reason}", file.display());
            return None;
        }
        files::restrict_to_owner(file);
        Some(loaded)
    }

    fn set_aside(&self, file: &Path, reason: &str) -> Result<(), CertsError> {
        let aside = files::set_aside(file, self.now)?;
        warn!(
            "{PURPOSE} {} {reason}: set aside as {} and replaced",
            file.display(),
            aside.display()
        );
        Ok(())
    }

    fn renewal_reason(
        &self,
        loaded: &LoadedCertificate,
        authority: &Authority,
    ) -> Option<&'static str> {
        let info = &loaded.info;
        if !info.is_valid(self.now) {
            Some("it is not valid at this time")
        } else if !loaded.is_signed_by(authority, self.now) {
            Some("it is signed by another CA")
        } else if !info.matches(self.subject) {
            Some("the node's name or addresses have changed")
        } else if self.now >= info.renew_after() {
            Some("it expires soon")
        } else {
            None
        }
    }

    fn issue_into(
        &self,
        file: &Path,
        authority: &Authority,
    ) -> Result<LoadedCertificate, CertsError> {
        let pem = authority.issue(self.subject, self.now)?;
        files::write_private(file, &pem)?;
        LoadedCertificate::parse(&pem).map_err(|reason| CertsError::content(PURPOSE, file, reason))
    }
}

/// The state of a certificate file.
enum Existing {
    Absent,
    /// The reason continues a sentence that begins with the file's name.
    Unusable(String),
    Certificate(Box<LoadedCertificate>),
}

impl Existing {
    fn parse(pem: &str) -> Self {
        match LoadedCertificate::parse(pem) {
            Ok(loaded) => Self::Certificate(Box::new(loaded)),
            Err(reason) => Self::Unusable(reason),
        }
    }
}

/// A certificate with its key, and the fields that decide whether it is kept.
struct LoadedCertificate {
    key: CertifiedKey,
    info: CertificateInfo,
}

impl LoadedCertificate {
    fn parse(pem: &str) -> Result<Self, String> {
        let key = parse_certified_key(pem)?;
        let info = CertificateInfo::from_chain(&key.cert)?;
        Ok(Self { key, info })
    }

    fn is_signed_by(&self, authority: &Authority, now: OffsetDateTime) -> bool {
        let leaf = self.key.cert.first();
        leaf.is_some_and(|leaf| is_signed_by(leaf, authority.certificate(), now))
    }

    fn select(self, file: &Path, development_ca: Option<&Path>) -> Selected {
        Selected {
            key: Arc::new(self.key),
            origin: Origin {
                file: file.to_owned(),
                development_ca: development_ca.map(Path::to_owned),
                expires: self.info.not_after,
            },
        }
    }
}

fn load_existing(file: &Path) -> Result<Existing, CertsError> {
    match files::read_text(file) {
        Ok(pem) => Ok(Existing::parse(&pem)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Existing::Absent),
        // Another user's file must not be set aside.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(CertsError::other_user(PURPOSE, file, error))
        }
        Err(error) => Ok(Existing::Unusable(format!("can't be read ({error})"))),
    }
}
