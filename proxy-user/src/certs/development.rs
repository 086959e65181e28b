//! The embedded development CA in `PKI/dev-ca.crt` and `PKI/dev-ca.key`, and the serving
//! certificates that it signs.
//!
//! Replacing the CA means that every client must be given the new one. So that happens only when
//! its files are missing, damaged, mismatched or expired; the old ones are set aside.

use std::io;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use time::{Duration, OffsetDateTime};

use super::inspect::CertificateInfo;
use super::{CertsError, ORGANIZATION, Subject, files};

const CA_NAME: &str = "hublet development CA";

/// 2026-01-01, before which no correct clock is: a CA that was made under a wrong one lasts as long
/// as any other.
const EARLIEST: i64 = 1_767_225_600;

const CA_LIFETIME: Duration = Duration::days(3653);
const LEAF_LIFETIME: Duration = Duration::days(365);

/// Allowance for clients' clocks that are slow.
const BACKDATE: Duration = Duration::days(1);

pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    path: PathBuf,
}

impl Authority {
    /// Loads the CA, or creates one.
    pub(super) fn open(pki: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        let (crt, key) = (pki.join("dev-ca.crt"), pki.join("dev-ca.key"));
        if !crt.exists() && !key.exists() {
            return Self::create(crt, &key, now);
        }
        match Self::load(&crt, &key, now)? {
            Ok(authority) => Ok(authority),
            Err(reason) => {
                set_aside(&[&crt, &key], &reason, now)?;
                Self::replace(crt, &key, now)
            }
        }
    }

    fn replace(crt: PathBuf, key: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        tracing::warn!(
            "creating a new development CA: give clients the new {}",
            crt.display()
        );
        Self::create(crt, key, now)
    }

    /// The CA on disk; the inner error is the reason why it is unusable.
    ///
    /// # Errors
    /// The files exist and can't be read.
    fn load(
        crt: &Path,
        key: &Path,
        now: OffsetDateTime,
    ) -> Result<Result<Self, String>, CertsError> {
        let (Some(crt_pem), Some(key_pem)) = (read_if_present(crt)?, read_if_present(key)?) else {
            return Ok(Err("the certificate or its key is missing".into()));
        };
        files::restrict_to_owner(key);
        Ok(
            Self::parse(&crt_pem, &key_pem, now).map(|(issuer, certificate)| Self {
                issuer,
                certificate,
                path: crt.to_owned(),
            }),
        )
    }

    fn parse(
        crt_pem: &str,
        key_pem: &str,
        now: OffsetDateTime,
    ) -> Result<(Issuer<'static, KeyPair>, CertificateDer<'static>), String> {
        let certificate = CertificateDer::from_pem_slice(crt_pem.as_bytes())
            .map_err(|error| format!("the certificate is damaged ({error})"))?;
        let info = CertificateInfo::from_chain(std::slice::from_ref(&certificate))?;
        let pair = parse_key(key_pem, &info)?;
        if info.not_after <= now {
            return Err(format!("it expired on {}", info.not_after.date()));
        }
        Ok((Issuer::new(ca_params(now), pair), certificate))
    }

    fn create(crt: PathBuf, key: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        let pair = generate_key()?;
        let params = ca_params(now);
        let certificate = params.self_signed(&pair)?;
        // In any order: one of the files without the other is set aside at the next start.
        files::write_private(key, &pair.serialize_pem())?;
        files::write_private(&crt, &certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, pair),
            certificate: certificate.der().clone(),
            path: crt,
        })
    }

    /// Issues a certificate for a new P-256 key; returns both as one PEM text.
    pub(super) fn issue(
        &self,
        subject: &Subject,
        now: OffsetDateTime,
    ) -> Result<String, CertsError> {
        let pair = generate_key()?;
        let certificate = leaf_params(subject, now)?.signed_by(&pair, &self.issuer)?;
        Ok(format!("{}{}", certificate.pem(), pair.serialize_pem()))
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The file that clients must trust.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

fn generate_key() -> Result<KeyPair, rcgen::Error> {
    KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
}

fn parse_key(pem: &str, certificate: &CertificateInfo) -> Result<KeyPair, String> {
    let pair = KeyPair::from_pem(pem).map_err(|error| format!("the key is damaged ({error})"))?;
    if certificate.public_key != pair.subject_public_key_info() {
        return Err("the key doesn't belong to the certificate".into());
    }
    Ok(pair)
}

fn set_aside(files: &[&Path], reason: &str, now: OffsetDateTime) -> Result<(), CertsError> {
    for file in files.iter().filter(|file| file.exists()) {
        let aside = files::set_aside(file, now)?;
        tracing::warn!(
            "development CA {}: {reason}; set aside as {}",
            file.display(),
            aside.display()
        );
    }
    Ok(())
}

fn read_if_present(path: &Path) -> Result<Option<String>, CertsError> {
    match files::read_text(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Text that isn't UTF-8 is damaged, which the parser reports.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(source) => Err(CertsError::other_user("development CA", path, source)),
    }
}

fn distinguished_name(organization: &str, common_name: String) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, organization);
    name.push(DnType::CommonName, common_name);
    name
}

fn ca_params(now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name("hublet", CA_NAME.to_owned());
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A node that starts in 1970 must find its CA valid.
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    params.not_after = plausible_time(now) + CA_LIFETIME;
    params
}

fn plausible_time(now: OffsetDateTime) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(EARLIEST).map_or(now, |earliest| now.max(earliest))
}

fn leaf_params(subject: &Subject, now: OffsetDateTime) -> Result<CertificateParams, rcgen::Error> {
    let dns_names: Vec<_> = subject.dns_names().into_iter().map(String::from).collect();
    let mut params = CertificateParams::new(dns_names)?;
    params
        .subject_alt_names
        .extend(subject.ips.iter().map(|ip| SanType::IpAddress(*ip)));
    params.distinguished_name = distinguished_name(ORGANIZATION, subject.common_name());
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    params.not_before = now - BACKDATE;
    params.not_after = now + LEAF_LIFETIME;
    Ok(params)
}
