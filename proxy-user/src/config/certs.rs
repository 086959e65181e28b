//! The certificates' files, and the names that the serving certificate is issued for.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::Serialize;

use super::flags::YurthubFlags;
use super::{ConfigError, Server, Services, SetupConfig};

/// The source of hublet's certificates (`--bootstrap-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BootstrapMode {
    /// An embedded CA signs the serving certificate.
    Development,
    /// YurtHub's `token`. Not implemented yet: falls back to the development CA and logs it.
    Token,
    /// YurtHub's `kubeletcertificate`; handled as `Token`.
    KubeletCertificate,
}

#[derive(Debug, Clone, Serialize)]
pub struct CertsConfig {
    pub mode: BootstrapMode,
    /// `--bootstrap-file`: a kubeconfig with the CA of the API servers.
    pub bootstrap_file: Option<PathBuf>,
    /// `--root-dir`; certificates are in `ROOT_DIR/pki`.
    pub root_dir: PathBuf,
    /// `--hub-cert-organizations` other than `system:nodes`, for the client certificate.
    pub organizations: Vec<String>,
    /// IP addresses of the serving certificate: the steered service addresses, the dummy
    /// interface's, the listeners', the node's own.
    pub ip_sans: Vec<IpAddr>,
    /// DNS names beside Kubernetes' own: the API servers', with `--steer=cloud`.
    pub dns_sans: Vec<String>,
    /// `--node-ip`; `None` = determined at start.
    pub node_ip: Option<IpAddr>,
}

/// Checks everything but the names, which depend on other stages ([`CertsConfig::with_names`]).
pub(super) fn check(flags: &YurthubFlags) -> Result<CertsConfig, ConfigError> {
    let mode = BootstrapMode::parse(&flags.bootstrap_mode)?;
    Ok(CertsConfig {
        mode,
        bootstrap_file: check_bootstrap_file(flags, mode)?,
        root_dir: flags.root_dir.clone(),
        organizations: client_organizations(flags),
        ip_sans: Vec::new(),
        dns_sans: Vec::new(),
        node_ip: flags.node_ip,
    })
}

fn check_bootstrap_file(
    flags: &YurthubFlags,
    mode: BootstrapMode,
) -> Result<Option<PathBuf>, ConfigError> {
    let file = flags.bootstrap_file.clone();
    let file = file.filter(|file| !file.as_os_str().is_empty());
    if file.is_none() && mode != BootstrapMode::KubeletCertificate {
        return Err(ConfigError::missing(
            "bootstrap-file",
            "name a kubeconfig with the CA of the API servers, as in \
             --bootstrap-file=/var/lib/yurthub/bootstrap-hub.conf",
        ));
    }
    Ok(file)
}

impl BootstrapMode {
    fn parse(mode: &str) -> Result<Self, ConfigError> {
        match mode {
            "development" => Ok(Self::Development),
            "token" => Ok(Self::Token),
            "kubeletcertificate" => Ok(Self::KubeletCertificate),
            _ => Err(ConfigError::invalid(
                "bootstrap-mode",
                mode,
                "use token, kubeletcertificate or development",
            )),
        }
    }

    /// The flag's value.
    fn as_str(self) -> &'static str {
        match self {
            Self::Development => "development",
            Self::Token => "token",
            Self::KubeletCertificate => "kubeletcertificate",
        }
    }
}

impl CertsConfig {
    /// Adds the names of the serving certificate: every address that clients dial.
    pub(super) fn with_names(
        mut self,
        setup: &SetupConfig,
        servers: &[Server],
        listeners: [IpAddr; 2],
    ) -> Self {
        let mut sans = Sans::default();
        sans.add_steered(&setup.steer, servers);
        sans.add_ips(setup.dummy.as_ref().map(|dummy| dummy.ip));
        sans.add_ips(listeners);
        sans.add_ips(self.node_ip);
        (self.ip_sans, self.dns_sans) = (sans.ips, sans.dns);
        self
    }

    /// Warns of flags that have no effect yet.
    pub(super) fn warn_of_unimplemented(&self) -> Vec<String> {
        let warnings = [self.warn_of_mode(), self.warn_of_organizations()];
        warnings.into_iter().flatten().collect()
    }

    fn warn_of_mode(&self) -> Option<String> {
        (self.mode != BootstrapMode::Development).then(|| {
            format!(
                "--bootstrap-mode={}: certificates from the cluster are not implemented yet; unless --root-dir has a \
                 valid certificate, hublet serves with its development CA, which clients must trust",
                self.mode.as_str()
            )
        })
    }

    fn warn_of_organizations(&self) -> Option<String> {
        (!self.organizations.is_empty()).then(|| {
            format!(
                "--hub-cert-organizations={} has no effect yet: it is for the client certificate, which hublet can't \
                 request yet",
                self.organizations.join(",")
            )
        })
    }
}

fn client_organizations(flags: &YurthubFlags) -> Vec<String> {
    flags
        .hub_cert_organizations
        .iter()
        .filter(|organization| !organization.is_empty() && *organization != "system:nodes")
        .cloned()
        .collect()
}

/// The serving certificate's subject alternative names, each once.
#[derive(Default)]
struct Sans {
    ips: Vec<IpAddr>,
    dns: Vec<String>,
}

impl Sans {
    /// Addresses and names that clients dial when they are steered.
    fn add_steered(&mut self, steer: &Services, servers: &[Server]) {
        self.add_ips(steer.addresses.iter().map(SocketAddr::ip));
        if steer.cloud {
            // Clients verify the API servers' own names.
            servers.iter().for_each(|server| self.add_host(server));
        }
    }

    fn add_host(&mut self, server: &Server) {
        match server.host.parse::<IpAddr>() {
            Ok(ip) => self.add_ips([ip]),
            Err(_) => self.dns.push(server.host.clone()),
        }
    }

    /// Adds addresses that clients can dial; the unspecified one isn't such an address.
    fn add_ips(&mut self, ips: impl IntoIterator<Item = IpAddr>) {
        for ip in ips {
            if !ip.is_unspecified() && !self.ips.contains(&ip) {
                self.ips.push(ip);
            }
        }
    }
}
