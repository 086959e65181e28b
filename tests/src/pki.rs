//! Throwaway certificates (P-256), kubeconfigs and service-account tokens. They open nothing but the test's own cloud.
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use time::OffsetDateTime;

/// Lifetime of a leaf certificate.
const YEAR: time::Duration = time::Duration::days(365);

pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").finish_non_exhaustive()
    }
}

/// A certificate with its key.
#[derive(Debug)]
pub struct Identity {
    /// The certificate, PEM.
    pub cert_pem: String,
    /// The key, PEM (PKCS#8).
    pub key_pem: String,
    cert: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Identity {
            cert_pem: self.cert_pem.clone(),
            key_pem: self.key_pem.clone(),
            cert: self.cert.clone(),
            key: self.key.clone_key(),
        }
    }
}

impl Ca {
    /// Makes an authority with this common name, valid from an hour ago for ten years.
    pub fn new(common_name: &str) -> anyhow::Result<Ca> {
        let mut params = cert_params(common_name, &[], 10 * YEAR);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = KeyPair::generate()?;
        let cert = params.self_signed(&key)?;
        Ok(Ca {
            pem: cert.pem(),
            der: cert.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// Its certificate, PEM.
    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key, PEM (PKCS#8): for a controller manager that signs CSRs with it.
    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A serving certificate for these addresses and names, valid for a year.
    pub fn issue_server_cert(&self, common_name: &str, names: &[&str]) -> anyhow::Result<Identity> {
        let mut params = cert_params(common_name, &[], YEAR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => (*name).try_into().map(SanType::DnsName),
            })
            .collect::<Result<_, _>>()?;
        self.sign_params(params)
    }

    /// A client certificate: the user is the common name, the groups are the organizations.
    pub fn issue_client_cert(&self, user: &str, groups: &[&str]) -> anyhow::Result<Identity> {
        let mut params = cert_params(user, groups, YEAR);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign_params(params)
    }

    fn sign_params(&self, mut params: CertificateParams) -> anyhow::Result<Identity> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Identity {
            cert_pem: cert.pem(),
            key_pem: key.serialize_pem(),
            cert: cert.der().clone(),
            key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
        })
    }

    /// A TLS server that shows `identity`, asks for client certificates of this authority without insisting, and
    /// speaks h2 and http/1.1.
    pub fn tls_server(&self, identity: &Identity) -> anyhow::Result<rustls::ServerConfig> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.der.clone())?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        )
        .allow_unauthenticated()
        .build()?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![identity.cert.clone()], identity.key.clone_key())?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Identity {
    /// The chain and key, for a rustls client configuration.
    #[must_use]
    pub fn chain_and_key(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (vec![self.cert.clone()], self.key.clone_key())
    }
}

fn cert_params(
    common_name: &str,
    organizations: &[&str],
    lifetime: time::Duration,
) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    for organization in organizations {
        params
            .distinguished_name
            .push(DnType::OrganizationName, *organization);
    }
    params
        .distinguished_name
        .push(DnType::CommonName, common_name);
    // Clocks of a test's processes may differ by a little.
    params.not_before = now() - time::Duration::HOUR;
    params.not_after = now() + lifetime;
    params
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from(SystemTime::now())
}

/// A subject as OpenSSL and curl write it, e.g. `O=system:nodes; CN=system:node:edge-1`.
pub fn format_subject(cert: &CertificateDer<'_>) -> anyhow::Result<String> {
    let (common_name, organizations) = parse_names(cert)?;
    let parts = organizations
        .iter()
        .map(|name| format!("O={name}"))
        .chain([format!("CN={common_name}")]);
    Ok(parts.collect::<Vec<_>>().join("; "))
}

/// The common name and the organizations of a certificate: to Kubernetes, the user and the groups.
pub fn parse_names(cert: &CertificateDer<'_>) -> anyhow::Result<(String, Vec<String>)> {
    let (_, cert) =
        x509_parser::parse_x509_certificate(cert).context("a certificate that cannot be parsed")?;
    let common_name = cert
        .subject()
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .collect();
    let organizations = cert
        .subject()
        .iter_organization()
        .filter_map(|name| name.as_str().ok());
    Ok((common_name, organizations.map(str::to_owned).collect()))
}

/// The user of a kubeconfig.
#[derive(Clone, Copy, Debug)]
pub enum Credential<'a> {
    /// Nobody: server and CA only.
    None,
    Token(&'a str),
    Certificate(&'a Identity),
}

/// A kubeconfig for one server, with its CA and a credential inside.
#[must_use]
pub fn render_kubeconfig(server: &str, ca_pem: &str, credential: Credential<'_>) -> String {
    let user = match credential {
        Credential::None => "{}".to_owned(),
        Credential::Token(token) => format!("{{token: {token}}}"),
        Credential::Certificate(identity) => format!(
            "{{client-certificate-data: {}, client-key-data: {}}}",
            STANDARD.encode(&identity.cert_pem),
            STANDARD.encode(&identity.key_pem)
        ),
    };
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: cloud\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {ca}\nusers:\n- name: user\n  user: {user}\ncontexts:\n- name: cloud\n  \
         context: {{cluster: cloud, user: user}}\ncurrent-context: cloud\n",
        ca = STANDARD.encode(ca_pem)
    )
}

/// A token shaped like a service account's (a JWT good for a day), with a signature that nobody made: the scriptable
/// cloud knows its tokens by heart.
#[must_use]
pub fn service_account_token(namespace: &str, name: &str) -> String {
    let issued = now().unix_timestamp();
    let header = json!({"alg": "ES256", "kid": "scripted"});
    let claims = json!({
        "aud": ["https://kubernetes.default.svc"], "iss": "https://kubernetes.default.svc",
        "iat": issued, "nbf": issued, "exp": issued + 86_400, "jti": random_uuid(),
        "kubernetes.io": {"namespace": namespace, "serviceaccount": {"name": name, "uid": random_uuid()}},
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    });
    let parts = [
        header.to_string().into_bytes(),
        claims.to_string().into_bytes(),
        random_bytes::<64>().to_vec(),
    ];
    parts.map(|part| URL_SAFE_NO_PAD.encode(part)).join(".")
}

/// Random bytes from the kernel.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    use std::io::Read as _;
    let mut bytes = [0; N];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .expect("every Linux has a readable /dev/urandom");
    bytes
}

/// A random (version 4) UUID.
#[must_use]
pub fn random_uuid() -> String {
    let mut bits = u128::from_be_bytes(random_bytes());
    bits = bits & !(0xf << 76) | (4 << 76);
    bits = bits & !(0b11 << 62) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    [
        &hex[..8],
        &hex[8..12],
        &hex[12..16],
        &hex[16..20],
        &hex[20..],
    ]
    .join("-")
}
