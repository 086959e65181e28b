//! Reading certificates: what one was made out for, until when, and whether a PEM file's key belongs to it.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::{ORGANIZATION, Subject};

/// Certificate and key out of one PEM text, or the reason why not, to follow the file's name in a sentence.
pub(super) fn certified_key(pem: &str) -> Result<CertifiedKey, String> {
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|error| format!("holds a damaged certificate ({error})"))?;
    if chain.is_empty() {
        return Err("holds no certificate".into());
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| format!("holds no key ({error})"))?;
    CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider()).map_err(
        |error| match error {
            rustls::Error::InconsistentKeys(_) => {
                "holds a key that doesn't belong to its certificate".into()
            }
            other => format!("is no usable certificate and key ({other})"),
        },
    )
}

/// What a certificate says.
#[derive(Debug)]
pub(super) struct CertificateInfo {
    pub(super) organizations: Vec<String>,
    pub(super) common_name: String,
    pub(super) dns: BTreeSet<String>,
    pub(super) ips: BTreeSet<IpAddr>,
    pub(super) not_before: OffsetDateTime,
    pub(super) not_after: OffsetDateTime,
    pub(super) public_key: Vec<u8>,
}

impl CertificateInfo {
    /// Reads the first certificate of a chain.
    pub(super) fn from_chain(chain: &[CertificateDer<'_>]) -> Result<Self, String> {
        let der = chain.first().ok_or("holds no certificate")?;
        let (_, certificate) = X509Certificate::from_der(der)
            .map_err(|e| format!("holds a damaged certificate ({e})"))?;
        let text = |name: &x509_parser::prelude::AttributeTypeAndValue<'_>| {
            name.as_str().unwrap_or("").to_owned()
        };
        let subject = certificate.subject();
        let (mut dns, mut ips) = (BTreeSet::new(), BTreeSet::new());
        let names = certificate.subject_alternative_name().ok().flatten();
        for name in names
            .iter()
            .flat_map(|extension| &extension.value.general_names)
        {
            match name {
                GeneralName::DNSName(name) => dns.extend([(*name).to_owned()]),
                GeneralName::IPAddress(octets) => ips.extend(address(octets)),
                _ => {}
            }
        }
        let validity = certificate.validity();
        Ok(Self {
            organizations: subject.iter_organization().map(text).collect(),
            common_name: subject
                .iter_common_name()
                .map(text)
                .next()
                .unwrap_or_default(),
            dns,
            ips,
            not_before: validity.not_before.to_datetime(),
            not_after: validity.not_after.to_datetime(),
            public_key: certificate.public_key().raw.to_vec(),
        })
    }

    /// Made out for exactly this subject.
    pub(super) fn matches(&self, subject: &Subject) -> bool {
        self.common_name == subject.common_name()
            && self.organizations == [ORGANIZATION]
            && self.dns.iter().map(String::as_str).eq(subject.dns_names())
            && self.ips == subject.ips.iter().copied().collect()
    }

    /// Names of the subject that the certificate lacks.
    pub(super) fn missing_names(&self, subject: &Subject) -> Vec<String> {
        let ips = subject
            .ips
            .iter()
            .filter(|ip| !self.ips.contains(ip))
            .map(ToString::to_string);
        let dns = subject
            .dns_names()
            .into_iter()
            .filter(|name| !self.dns.contains(*name))
            .map(ToString::to_string);
        ips.chain(dns).collect()
    }

    /// When a certificate should be replaced: after four fifths of its life.
    pub(super) fn renew_after(&self) -> OffsetDateTime {
        self.not_after - (self.not_after - self.not_before) / 5
    }

    pub(super) fn is_valid(&self, now: OffsetDateTime) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(octets)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(octets).map(IpAddr::from))
        .ok()
}

/// Whether this CA signed this certificate, and both are valid now.
pub(super) fn is_signed_by(
    certificate: &CertificateDer<'_>,
    ca: &CertificateDer<'_>,
    now: OffsetDateTime,
) -> bool {
    let mut roots = RootCertStore::empty();
    let Ok(seconds) = u64::try_from(now.unix_timestamp()) else {
        return false;
    };
    let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
    let algorithms =
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
    let Ok(parsed) = ParsedCertificate::try_from(certificate) else {
        return false;
    };
    roots.add(ca.clone().into_owned()).is_ok()
        && rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            &[],
            now,
            algorithms.all,
        )
        .is_ok()
}

/// A certificate and its key, shared with handshakes under way.
pub(super) type Shared = Arc<CertifiedKey>;
