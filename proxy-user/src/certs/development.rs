//! The embedded CA: kept in `PKI/dev-ca.crt` and `PKI/dev-ca.key`, made at the first start, and the serving
//! certificates that it signs.
//!
//! It lives until clients would have to be told anyway: a new one is made only when the files are missing, damaged,
//! don't belong together or are past their time, and the old files are set aside.

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

/// No real clock is before this, so a CA made under a wrong clock still lasts (2026-01-01).
const EARLIEST: i64 = 1_767_225_600;

const CA_LIFE: Duration = Duration::days(3653);
const LEAF_LIFE: Duration = Duration::days(365);

/// Clients' clocks may be behind.
const BACKDATED: Duration = Duration::days(1);

/// The CA, ready to sign.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    path: PathBuf,
}

impl Authority {
    /// Loads the CA, or makes one.
    pub(super) fn open(pki: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        let (crt, key) = (pki.join("dev-ca.crt"), pki.join("dev-ca.key"));
        if !crt.exists() && !key.exists() {
            return Self::create(crt, &key, now);
        }
        let reason = match Self::load(&crt, &key, now)? {
            Ok(authority) => return Ok(authority),
            Err(reason) => reason,
        };
        for file in [&crt, &key].into_iter().filter(|file| file.exists()) {
            let aside = files::set_aside(file, now)?;
            tracing::warn!(
                "development CA {}: {reason}; set aside as {}",
                file.display(),
                aside.display()
            );
        }
        tracing::warn!(
            "a new development CA is made: give clients the new {}",
            crt.display()
        );
        Self::create(crt, &key, now)
    }

    /// The CA on disk, or why it is of no use. Fails only when the files are there and can't be read.
    fn load(
        crt: &Path,
        key: &Path,
        now: OffsetDateTime,
    ) -> Result<Result<Self, String>, CertsError> {
        let (Some(crt_pem), Some(key_pem)) = (read_present(crt)?, read_present(key)?) else {
            return Ok(Err("the certificate or its key is missing".into()));
        };
        files::restrict_to_owner(key);
        let loaded = || {
            let certificate = CertificateDer::from_pem_slice(crt_pem.as_bytes())
                .map_err(|error| format!("the certificate is damaged ({error})"))?;
            let info = CertificateInfo::from_chain(std::slice::from_ref(&certificate))?;
            let pair = KeyPair::from_pem(&key_pem)
                .map_err(|error| format!("the key is damaged ({error})"))?;
            if info.public_key != pair.subject_public_key_info() {
                return Err("the key doesn't belong to the certificate".into());
            }
            if info.not_after <= now {
                return Err(format!("it ended on {}", info.not_after.date()));
            }
            Ok(Self {
                issuer: Issuer::new(ca_params(now), pair),
                certificate,
                path: crt.to_owned(),
            })
        };
        Ok(loaded())
    }

    fn create(crt: PathBuf, key: &Path, now: OffsetDateTime) -> Result<Self, CertsError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let params = ca_params(now);
        let certificate = params.self_signed(&pair)?;
        // The key first: a certificate without key is set aside at the next start, the reverse too.
        files::write_private(key, &pair.serialize_pem())?;
        files::write_private(&crt, &certificate.pem())?;
        Ok(Self {
            issuer: Issuer::new(params, pair),
            certificate: certificate.der().clone(),
            path: crt,
        })
    }

    /// A new P-256 key and a certificate for it, as one PEM text.
    pub(super) fn issue(
        &self,
        subject: &Subject,
        now: OffsetDateTime,
    ) -> Result<String, CertsError> {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = CertificateParams::new(
            subject
                .dns_names()
                .into_iter()
                .map(String::from)
                .collect::<Vec<_>>(),
        )?;
        params
            .subject_alt_names
            .extend(subject.ips.iter().map(|ip| SanType::IpAddress(*ip)));
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, ORGANIZATION);
        name.push(DnType::CommonName, subject.common_name());
        params.distinguished_name = name;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = now - BACKDATED;
        params.not_after = now + LEAF_LIFE;
        let certificate = params.signed_by(&pair, &self.issuer)?;
        Ok(format!("{}{}", certificate.pem(), pair.serialize_pem()))
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The file that clients are to trust.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The text of a file that may be missing.
fn read_present(path: &Path) -> Result<Option<String>, CertsError> {
    match files::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => Ok(Some(String::new())),
        Err(source) => Err(CertsError::Read {
            what: "development CA",
            path: path.to_owned(),
            source,
            way_out: "run as the user who made it, or choose another --root-dir",
        }),
    }
}

fn ca_params(now: OffsetDateTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "hublet");
    name.push(DnType::CommonName, CA_NAME);
    params.distinguished_name = name;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    // A node that starts in 1970 must find its CA valid.
    params.not_before = OffsetDateTime::UNIX_EPOCH;
    let earliest = OffsetDateTime::from_unix_timestamp(EARLIEST).unwrap_or(now);
    params.not_after = now.max(earliest) + CA_LIFE;
    params
}
