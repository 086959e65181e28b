//! The certificate that clients see: found or made at start, looked at again now and then, replaced without a
//! restart.
//!
//! `PKI/yurthub-server-current.pem` holds certificate and key. In development mode it is ours: renewed when its time
//! is nearly up or the addresses have changed, set aside when it is unusable. In YurtHub's modes that file belongs
//! to the cluster: it is used when it is valid and never touched; otherwise a development certificate is kept
//! beside it in `PKI/dev-server.pem`, so that the store can still be served.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use time::OffsetDateTime;
use tracing::{info, warn};

use super::development::Authority;
use super::inspect::{CertificateInfo, Shared, certified_key, is_signed_by};
use super::{CertsError, Subject, files};
use crate::config::{BootstrapMode, CertsConfig};

/// YurtHub's name for the serving certificate and its key.
const CURRENT: &str = "yurthub-server-current.pem";

/// Hands the current certificate to each handshake.
#[derive(Debug)]
pub(crate) struct Resolver {
    current: ArcSwap<CertifiedKey>,
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// The serving certificate and where it comes from.
#[derive(Debug)]
pub(crate) struct Certificates {
    mode: BootstrapMode,
    pki: PathBuf,
    /// Held while the files are looked at, so that two looks don't issue two certificates.
    subject: Mutex<Subject>,
    resolver: Arc<Resolver>,
    origin: ArcSwap<Origin>,
}

/// Where the current certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Origin {
    file: PathBuf,
    /// The development CA that clients must trust, if it is one of ours.
    ca: Option<PathBuf>,
    expires: OffsetDateTime,
}

impl Certificates {
    /// Finds or makes the serving certificate.
    ///
    /// # Errors
    /// The directory can't be written, or the files there belong to another user.
    pub(crate) fn open(
        config: &CertsConfig,
        node: &str,
        now: OffsetDateTime,
    ) -> Result<Self, CertsError> {
        let pki = config.root_dir.join("pki");
        files::private_directory(&pki)?;
        let subject = Subject {
            node: node.to_owned(),
            ips: config.ip_sans.clone(),
            dns: config.dns_sans.clone(),
        };
        let (key, origin) = select_certificate(config.mode, &pki, &subject, now)?;
        let resolver = Arc::new(Resolver {
            current: ArcSwap::new(key),
        });
        let (subject, origin) = (Mutex::new(subject), ArcSwap::from_pointee(origin));
        Ok(Self {
            mode: config.mode,
            pki,
            subject,
            resolver,
            origin,
        })
    }

    /// For the TLS listeners.
    pub(crate) fn resolver(&self) -> Arc<Resolver> {
        Arc::clone(&self.resolver)
    }

    /// Looks at the certificate again and replaces it when its time is nearly up, or when a better one has appeared.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the certificate in use stays.
    pub(crate) fn refresh(&self, now: OffsetDateTime) -> Result<(), CertsError> {
        self.reselect(&self.subject.lock(), now)
    }

    /// Makes sure that the certificate is good for this address, too: clients are steered from it. True when it is;
    /// a certificate that belongs to the cluster stays as it is.
    ///
    /// # Errors
    /// As [`Certificates::open`]; the certificate in use stays.
    pub(crate) fn cover(&self, ip: IpAddr, now: OffsetDateTime) -> Result<bool, CertsError> {
        let mut subject = self.subject.lock();
        if !subject.ips.contains(&ip) {
            subject.ips.push(ip);
            self.reselect(&subject, now)?;
        }
        let current = self.resolver.current.load();
        Ok(CertificateInfo::from_chain(&current.cert).is_ok_and(|info| info.ips.contains(&ip)))
    }

    fn reselect(&self, subject: &Subject, now: OffsetDateTime) -> Result<(), CertsError> {
        let (key, origin) = select_certificate(self.mode, &self.pki, subject, now)?;
        if key.cert != self.resolver.current.load().cert {
            info!(
                "serving certificate replaced by {}, valid until {}",
                origin.file.display(),
                origin.expires.date()
            );
            self.resolver.current.store(key);
            self.origin.store(Arc::new(origin));
        }
        Ok(())
    }

    /// For people: which certificate, until when, and whom clients must trust.
    pub(crate) fn describe(&self) -> String {
        let origin = self.origin.load();
        let trust = match &origin.ca {
            Some(ca) => format!("clients must trust {}", ca.display()),
            None => "from the cluster".to_owned(),
        };
        format!(
            "{} until {}, {trust}",
            origin.file.display(),
            origin.expires.date()
        )
    }
}

pub(super) fn hublet_files(pki: &Path) -> Vec<PathBuf> {
    let current = pki.join(CURRENT);
    let ca = files::read(&pki.join("dev-ca.crt")).ok();
    let ca = ca.and_then(|pem| CertificateDer::from_pem_slice(pem.as_bytes()).ok());
    let signed = |file: &Path| {
        let key = files::read(file)
            .ok()
            .and_then(|pem| certified_key(&pem).ok());
        let leaf = key.and_then(|key| key.cert.first().cloned());
        ca.as_ref()
            .zip(leaf)
            .is_some_and(|(ca, leaf)| is_signed_by(&leaf, ca, OffsetDateTime::now_utc()))
    };
    let entries = std::fs::read_dir(pki)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let ours = |path: &PathBuf| {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        name.starts_with("dev-ca.")
            || name.starts_with("dev-server.")
            || (*path == current && signed(path))
    };
    entries.filter(ours).collect()
}

type Choice = (Shared, Origin);

fn select_certificate(
    mode: BootstrapMode,
    pki: &Path,
    subject: &Subject,
    now: OffsetDateTime,
) -> Result<Choice, CertsError> {
    let current = pki.join(CURRENT);
    if mode == BootstrapMode::Development {
        return development_certificate(&current, pki, subject, now);
    }
    match from_cluster(&current, subject, now) {
        Ok(choice) => Ok(choice),
        Err(reason) => {
            tracing::debug!(
                "{} {reason}: serving with the development CA",
                current.display()
            );
            development_certificate(&pki.join("dev-server.pem"), pki, subject, now)
        }
    }
}

/// The cluster's certificate, or why it can't be used.
fn from_cluster(file: &Path, subject: &Subject, now: OffsetDateTime) -> Result<Choice, String> {
    let pem = files::read(file).map_err(|error| format!("can't be read ({error})"))?;
    let key = certified_key(&pem)?;
    let info = CertificateInfo::from_chain(&key.cert)?;
    if !info.is_valid(now) {
        return Err(format!(
            "is valid from {} to {} only",
            info.not_before.date(),
            info.not_after.date()
        ));
    }
    let lacks = info.missing_names(subject);
    if !lacks.is_empty() {
        warn!(
            "{} isn't made out for {}: clients that dial these will refuse it",
            file.display(),
            lacks.join(", ")
        );
    }
    let origin = Origin {
        file: file.to_owned(),
        ca: None,
        expires: info.not_after,
    };
    Ok((Arc::new(key), origin))
}

/// Our own certificate, kept in this file.
fn development_certificate(
    file: &Path,
    pki: &Path,
    subject: &Subject,
    now: OffsetDateTime,
) -> Result<Choice, CertsError> {
    let authority = Authority::open(pki, now)?;
    let origin = |info: &CertificateInfo| Origin {
        file: file.to_owned(),
        ca: Some(authority.path().to_owned()),
        expires: info.not_after,
    };
    match load_existing(file)? {
        Existing::Nothing => {}
        Existing::Unusable(reason) => {
            let aside = files::set_aside(file, now)?;
            warn!(
                "serving certificate {} {reason}: set aside as {}, a new one is made",
                file.display(),
                aside.display()
            );
        }
        Existing::Certificate(key, info) => {
            let ours = key
                .cert
                .first()
                .is_some_and(|leaf| is_signed_by(leaf, authority.certificate(), now));
            if ours && info.matches(subject) && now < info.renew_after() {
                files::restrict_to_owner(file);
                let origin = origin(&info);
                return Ok((Arc::new(*key), origin));
            }
            info!(
                "serving certificate {} is renewed: {}",
                file.display(),
                renewal_reason(ours, &info, subject, now)
            );
        }
    }
    let pem = authority.issue(subject, now)?;
    files::write_private(file, &pem)?;
    let broken = |reason| CertsError::content("serving certificate", file, reason);
    let key = certified_key(&pem).map_err(broken)?;
    let info = CertificateInfo::from_chain(&key.cert).map_err(broken)?;
    let origin = origin(&info);
    Ok((Arc::new(key), origin))
}

/// Why a readable certificate is renewed.
fn renewal_reason(
    ours: bool,
    info: &CertificateInfo,
    subject: &Subject,
    now: OffsetDateTime,
) -> &'static str {
    if !info.is_valid(now) {
        "it isn't valid at this time"
    } else if !ours {
        "another CA signed it"
    } else if !info.matches(subject) {
        "the node's name or addresses have changed"
    } else {
        "its time is nearly up"
    }
}

/// What a file holds.
enum Existing {
    Nothing,
    Unusable(String),
    Certificate(Box<CertifiedKey>, CertificateInfo),
}

fn load_existing(file: &Path) -> Result<Existing, CertsError> {
    let pem = match files::read(file) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Existing::Nothing),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Err(CertsError::Read {
                what: "serving certificate",
                path: file.to_owned(),
                source: error,
                way_out: "run as the user who made it, or choose another --root-dir",
            });
        }
        Err(error) => return Ok(Existing::Unusable(format!("can't be read ({error})"))),
    };
    Ok(
        match certified_key(&pem)
            .and_then(|key| CertificateInfo::from_chain(&key.cert).map(|info| (key, info)))
        {
            Ok((key, info)) => Existing::Certificate(Box::new(key), info),
            Err(reason) => Existing::Unusable(reason),
        },
    )
}

#[cfg(test)]
#[path = "serving_tests.rs"]
mod tests;
