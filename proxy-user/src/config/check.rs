//! Checks the flags and makes a [`Config`] of them. Pure: the environment is a function, no file is
//! opened.

use super::flags::Flags;
use super::node::Environment;
use super::{Config, ConfigError, certs, cloud, listen, node, setup, store};

/// A checked configuration.
#[derive(Debug)]
pub struct Checked {
    pub config: Config,
    /// One sentence for each setting that has no effect, or an unexpected one.
    pub warnings: Vec<String>,
}

/// Checks the flags.
///
/// # Errors
/// The first invalid or missing value.
pub fn check(flags: Flags, environment: Environment<'_>) -> Result<Checked, ConfigError> {
    let Flags {
        yurthub,
        own,
        ignored,
    } = flags;
    let working_mode = node::check_working_mode(&yurthub.working_mode)?;
    let node_name = node::node_name(yurthub.node_name.as_deref(), environment)?;
    let setup = setup::check(&yurthub, &own)?;
    let listeners = listen::check(&yurthub, &own, setup.dummy.as_ref())?;
    let cloud = cloud::check(&yurthub)?;
    let listen_ips = [listeners.admin.ip(), listeners.clients.plain[0].ip()];

    let mut warnings = ignored.warnings;
    warnings.extend(setup::warn_without_ebpf(&own));
    warnings.extend(cloud::warn_of_unused_servers(&cloud.servers));
    for (flag, ip) in ["bind-address", "bind-proxy-address"]
        .iter()
        .zip(listen_ips)
    {
        warnings.extend(listen::warn_if_exposed(flag, ip));
    }

    let mut certs = certs::check(&yurthub, &mut warnings)?;
    let mut sans = certs::Sans::default();
    sans.add_steered(&setup.steer, &cloud.servers);
    sans.add_dummy(setup.dummy.as_ref());
    listen_ips
        .into_iter()
        .chain(certs.node_ip)
        .for_each(|ip| sans.add_ip(ip));
    (certs.ip_sans, certs.dns_sans) = (sans.ips, sans.dns);

    let config = Config {
        node_name,
        working_mode,
        cloud,
        cache: store::check_cache(&yurthub, &own)?,
        local: store::check_local(&yurthub, &own)?,
        setup,
        certs,
        listen: listeners.clients,
        admin: listeners.admin,
        take_over: own.take_over,
        verbosity: yurthub.v,
    };
    Ok(Checked { config, warnings })
}
