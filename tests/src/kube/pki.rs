//! The control plane's certificates and keys, made anew for every cloud.
//!
//! One CA signs the API server's certificate and every client's, as kubeadm's does. Kubernetes takes the user's
//! name from CN and the groups from O.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// A certificate with its key, both PEM.
#[derive(Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// Its private key (PKCS #8).
    pub key_pem: String,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity").field("certificate_pem", &self.certificate_pem).finish_non_exhaustive()
    }
}

impl Identity {
    /// Writes `NAME.crt` and `NAME.key` into `dir`.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn write(&self, dir: &Path, name: &str) -> Result<()> {
        for (suffix, text) in [("crt", &self.certificate_pem), ("key", &self.key_pem)] {
            let path = dir.join(format!("{name}.{suffix}"));
            std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        Ok(())
    }
}

/// The cluster's CA.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    identity: Identity,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new CA, valid for a day.
    ///
    /// # Errors
    /// The machine gives no randomness.
    pub fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = parameters("kubernetes", None)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let certificate = params.self_signed(&key)?;
        let identity = Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() };
        Ok(Self { issuer: Issuer::new(params, key), identity })
    }

    /// The CA's own certificate and key.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A client certificate: `user` is the CN, `group` the O.
    ///
    /// # Errors
    /// rcgen refuses a name.
    pub fn client(&self, user: &str, group: &str) -> Result<Identity> {
        let mut params = parameters(user, Some(group))?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// A serving certificate for these addresses and names.
    ///
    /// # Errors
    /// A name isn't one.
    pub fn server(&self, user: &str, addresses: &[IpAddr], names: &[&str]) -> Result<Identity> {
        let mut params = parameters(user, None)?;
        params.subject_alt_names = addresses
            .iter()
            .map(|address| Ok(rcgen::SanType::IpAddress(*address)))
            .chain(names.iter().map(|name| Ok(rcgen::SanType::DnsName((*name).try_into()?))))
            .collect::<Result<_>>()?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() })
    }
}

/// The key pair that signs service account tokens: (private, public), PEM.
///
/// # Errors
/// The machine gives no randomness.
pub fn service_account_key() -> Result<(String, String)> {
    let key = KeyPair::generate()?;
    Ok((key.serialize_pem(), key.public_key_pem()))
}

fn parameters(user: &str, group: Option<&str>) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    if let Some(group) = group {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    params.distinguished_name.push(DnType::CommonName, user);
    params.not_before = OffsetDateTime::now_utc() - Duration::hours(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    Ok(params)
}
