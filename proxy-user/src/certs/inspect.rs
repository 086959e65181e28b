//! Parsing certificates: subject and validity, the key that belongs to one, and its issuer.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use rustls::RootCertStore;
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, GeneralName, X509Certificate};

use super::{ORGANIZATION, Subject};

/// Parses a certificate chain and its key from one PEM text.
///
/// # Errors
/// The reason continues a sentence that begins with the file's name.
pub(super) fn parse_certified_key(pem: &str) -> Result<CertifiedKey, String> {
    let chain = parse_chain(pem)?;
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| format!("holds no key ({error})"))?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key, &provider).map_err(unusable_key)
}

fn unusable_key(error: rustls::Error) -> String {
    match error {
        rustls::Error::InconsistentKeys(_) => {
            "holds a key that doesn't belong to its certificate".into()
        }
        other => format!("holds an unusable certificate or key ({other})"),
    }
}

fn parse_chain(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain = CertificateDer::pem_slice_iter(pem.as_bytes());
    let chain: Vec<_> = chain.collect::<Result<_, _>>().map_err(damaged)?;
    if chain.is_empty() {
        return Err("holds no certificate".into());
    }
    Ok(chain)
}

fn damaged(error: impl Display) -> String {
    format!("holds a damaged certificate ({error})")
}

/// The fields of a certificate that decide whether it is kept.
#[derive(Debug)]
pub(super) struct CertificateInfo {
    pub(super) organizations: Vec<String>,
    pub(super) common_name: String,
    pub(super) dns: BTreeSet<String>,
    pub(super) ips: BTreeSet<IpAddr>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    /// DER of the SubjectPublicKeyInfo.
    pub(super) public_key: Vec<u8>,
}

impl CertificateInfo {
    /// Parses the first certificate of a chain.
    pub(super) fn from_chain(chain: &[CertificateDer<'_>]) -> Result<Self, String> {
        let der = chain.first().ok_or("holds no certificate")?;
        let (_, certificate) = X509Certificate::from_der(der).map_err(damaged)?;
        let subject = certificate.subject();
        let validity = certificate.validity();
        let common_name = subject.iter_common_name().next().map(attribute_text);
        let mut info = Self {
            organizations: subject.iter_organization().map(attribute_text).collect(),
            common_name: common_name.unwrap_or_default(),
            dns: BTreeSet::new(),
            ips: BTreeSet::new(),
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            public_key: certificate.public_key().raw.to_vec(),
        };
        info.add_alternative_names(&certificate);
        Ok(info)
    }

    fn add_alternative_names(&mut self, certificate: &X509Certificate<'_>) {
        if let Ok(Some(names)) = certificate.subject_alternative_name() {
            for name in &names.value.general_names {
                self.add_alternative_name(name);
            }
        }
    }

    fn add_alternative_name(&mut self, name: &GeneralName<'_>) {
        match name {
            GeneralName::DNSName(name) => {
                self.dns.insert((*name).to_owned());
            }
            GeneralName::IPAddress(octets) => self.ips.extend(ip_from_octets(octets)),
            _ => {}
        }
    }

    /// True of a certificate for exactly this subject.
    pub(super) fn matches(&self, subject: &Subject) -> bool {
        self.common_name == subject.common_name()
            && self.organizations == [ORGANIZATION]
            && self.dns.iter().map(String::as_str).eq(subject.dns_names())
            && self.ips == subject.ips.iter().copied().collect()
    }

    /// Addresses and names of the subject that the certificate lacks.
    pub(super) fn missing_names(&self, subject: &Subject) -> Vec<String> {
        let ips = subject.ips.iter().filter(|ip| !self.ips.contains(ip));
        let dns = subject.dns_names();
        let dns = dns.iter().filter(|name| !self.dns.contains(**name));
        ips.map(ToString::to_string)
            .chain(dns.map(ToString::to_string))
            .collect()
    }

    /// The time to replace the certificate: after four fifths of its life.
    pub(super) fn renew_after(&self) -> OffsetDateTime {
        self.not_after - (self.not_after - self.not_before) / 5
    }

    /// # Errors
    /// The reason continues a sentence that begins with the file's name.
    pub(super) fn check_validity(&self, now: OffsetDateTime) -> Result<(), String> {
        if self.is_valid(now) {
            return Ok(());
        }
        let (from, to) = (self.not_before.date(), self.not_after.date());
        Err(format!("is only valid from {from} to {to}"))
    }

    pub(super) fn is_valid(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn attribute_text(attribute: &AttributeTypeAndValue<'_>) -> String {
    attribute.as_str().unwrap_or_default().to_owned()
}

fn ip_from_octets(octets: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(octets).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// True if this CA signed the certificate and both are valid now.
pub(super) fn is_signed_by(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: OffsetDateTime,
) -> bool {
    verify_signature(certificate, ca, now).is_some()
}

fn verify_signature(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: OffsetDateTime,
) -> Option<()> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned()).ok()?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let algorithms = provider.signature_verification_algorithms.all;
    let now = unix_time(now)?;
    verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], now, algorithms).ok()
}

fn unix_time(time: OffsetDateTime) -> Option<UnixTime> {
    let seconds = u64::try_from(time.unix_timestamp()).ok()?;
    Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
}
