//! The certificate that clients are shown, replaced without a restart.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use tracing::info;

use super::inspect::CertificateInfo;
use super::select::{Origin, Selected, Selection};
use super::{CertsError, Subject, files};
use crate::config::{BootstrapMode, CertsConfig};

/// Gives the current certificate to each handshake.
#[derive(Debug)]
pub(crate) struct Resolver {
    current: ArcSwap<CertifiedKey>,
}

impl Resolver {
    fn new(key: Arc<CertifiedKey>) -> Self {
        Self {
            current: ArcSwap::new(key),
        }
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// The serving certificate in `/v1/status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateStatus {
    pub(crate) file: String,
    #[serde(with = "time::serde::rfc3339")]
    pub(crate) not_after: OffsetDateTime,
    /// The development CA that clients must trust; `None` of a certificate from the cluster.
    pub(crate) development_ca: Option<String>,
}

/// The serving certificate and its origin.
#[derive(Debug)]
pub(crate) struct Certificates {
    mode: BootstrapMode,
    pki: PathBuf,
    /// Held during a selection, so that two at once don't issue two certificates.
    subject: Mutex<Subject>,
    resolver: Arc<Resolver>,
    origin: ArcSwap<Origin>,
}

impl Certificates {
    /// Loads or issues the serving certificate.
    ///
    /// # Errors
    /// The directory can't be written, or its files belong to another user.
    pub(crate) fn open(
        config: &CertsConfig,
        node: &str,
        now: OffsetDateTime,
    ) -> Result<Self, CertsError> {
        let pki = config.root_dir.join("pki");
        files::create_private_directory(&pki)?;
        let subject = Subject::new(node, config);
        let selection = Selection {
            mode: config.mode,
            pki: &pki,
            subject: &subject,
            now,
        };
        let Selected { key, origin } = selection.select_certificate()?;
        Ok(Self {
            mode: config.mode,
            pki,
            subject: Mutex::new(subject),
            resolver: Arc::new(Resolver::new(key)),
            origin: ArcSwap::from_pointee(origin),
        })
    }

    pub(crate) fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// Replaces the certificate when it is due for renewal, or when the cluster's has appeared.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the current certificate remains in use.
    pub(crate) fn refresh(&self, now: OffsetDateTime) -> Result<(), CertsError> {
        self.reselect(&self.subject.lock(), now)
    }

    /// Makes the certificate valid for an address that clients are about to be steered from.
    /// Returns false if it can't be: a certificate from the cluster is never modified.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the current certificate remains in use.
    pub(crate) fn cover(&self, ip: IpAddr, now: OffsetDateTime) -> Result<bool, CertsError> {
        let mut subject = self.subject.lock();
        if !subject.ips.contains(&ip) {
            subject.ips.push(ip);
            self.reselect(&subject, now)?;
        }
        Ok(self.names(ip))
    }

    fn names(&self, ip: IpAddr) -> bool {
        let current = self.resolver.current.load();
        let info = CertificateInfo::from_chain(&current.cert);
        info.is_ok_and(|info| info.ips.contains(&ip))
    }

    fn reselect(&self, subject: &Subject, now: OffsetDateTime) -> Result<(), CertsError> {
        let selection = Selection {
            mode: self.mode,
            pki: &self.pki,
            subject,
            now,
        };
        let selected = selection.select_certificate()?;
        if selected.key.cert != self.resolver.current.load().cert {
            self.replace(selected);
        }
        Ok(())
    }

    pub(crate) fn status(&self) -> CertificateStatus {
        let origin = self.origin.load();
        CertificateStatus {
            file: origin.file.display().to_string(),
            not_after: origin.expires,
            development_ca: origin
                .development_ca
                .as_ref()
                .map(|file| file.display().to_string()),
        }
    }

    fn replace(&self, Selected { key, origin }: Selected) {
        info!(
            "serving certificate replaced by {}, valid until {}",
            origin.file.display(),
            origin.expires.date()
        );
        self.resolver.current.store(key);
        self.origin.store(Arc::new(origin));
    }

    /// File, expiry and the CA to trust, in words.
    pub(crate) fn describe(&self) -> String {
        let origin = self.origin.load();
        format!(
            "{} until {}, {}",
            origin.file.display(),
            origin.expires.date(),
            origin.describe_issuer()
        )
    }
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
