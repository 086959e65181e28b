//! The certificates' files, and the names that the serving certificate is issued for.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::flags::YurthubFlags;
use super::{ConfigError, DummyConfig, Server, Services};

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
    /// `--bootstrap-mode`.
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

/// Checks everything but the names, which depend on other stages (see [`Sans`]).
pub(super) fn check(
    flags: &YurthubFlags,
    warnings: &mut Vec<String>,
) -> Result<CertsConfig, ConfigError> {
    let mode = check_mode(&flags.bootstrap_mode)?;
    let bootstrap_file = flags
        .bootstrap_file
        .clone()
        .filter(|file| !file.as_os_str().is_empty());
    if bootstrap_file.is_none() && mode != BootstrapMode::KubeletCertificate {
        return Err(ConfigError::missing(
            "bootstrap-file",
            "name a kubeconfig with the CA of the API servers, as in \
             --bootstrap-file=/var/lib/yurthub/bootstrap-hub.conf",
        ));
    }
    if mode != BootstrapMode::Development {
        warnings.push(format!(
            "--bootstrap-mode={}: certificates from the cluster are not implemented yet; unless --root-dir has a \
             valid certificate, hublet serves with its development CA, which clients must trust",
            flags.bootstrap_mode
        ));
    }
    let organizations = client_organizations(flags);
    if !organizations.is_empty() {
        warnings.push(format!(
            "--hub-cert-organizations={} has no effect yet: it is for the client certificate, which hublet can't \
             request yet",
            organizations.join(",")
        ));
    }
    Ok(CertsConfig {
        mode,
        bootstrap_file,
        root_dir: flags.root_dir.clone(),
        organizations,
        ip_sans: Vec::new(),
        dns_sans: Vec::new(),
        node_ip: flags.node_ip,
    })
}

fn check_mode(mode: &str) -> Result<BootstrapMode, ConfigError> {
    match mode {
        "development" => Ok(BootstrapMode::Development),
        "token" => Ok(BootstrapMode::Token),
        "kubeletcertificate" => Ok(BootstrapMode::KubeletCertificate),
        _ => Err(ConfigError::invalid(
            "bootstrap-mode",
            mode,
            "use token, kubeletcertificate or development",
        )),
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
pub(super) struct Sans {
    pub(super) ips: Vec<IpAddr>,
    pub(super) dns: Vec<String>,
}

impl Sans {
    /// Addresses and names that clients dial when they are steered.
    pub(super) fn add_steered(&mut self, steer: &Services, servers: &[Server]) {
        for address in &steer.addresses {
            self.add_ip(address.ip());
        }
        if !steer.cloud {
            return;
        }
        // With --steer=cloud clients verify the API servers' own names.
        for server in servers {
            match server.host.parse() {
                Ok(ip) => self.add_ip(ip),
                Err(_) => self.dns.push(server.host.clone()),
            }
        }
    }

    pub(super) fn add_dummy(&mut self, dummy: Option<&DummyConfig>) {
        if let Some(dummy) = dummy {
            self.add_ip(dummy.ip);
        }
    }

    /// Adds an address that clients can dial; the unspecified one isn't such an address.
    pub(super) fn add_ip(&mut self, ip: IpAddr) {
        if !ip.is_unspecified() && !self.ips.contains(&ip) {
            self.ips.push(ip);
        }
    }
}
