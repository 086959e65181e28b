//! Checks the flags and makes a [`Config`] of them. Pure: the environment is a function, no file is
//! opened.

use super::flags::Flags;
use super::node::Environment;
use super::{Config, ConfigError, certs, cloud, listen, node, setup, store};

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
    let certs = certs::check(&yurthub)?;

    let mut warnings = ignored.warnings;
    warnings.extend(setup::warn_without_ebpf(&own));
    warnings.extend(cloud::warn_of_unused_servers(&cloud.servers));
    warnings.extend(listeners.warn_if_exposed());
    warnings.extend(certs.warn_of_unimplemented());

    let config = Config {
        node_name,
        working_mode,
        certs: certs.with_names(&setup, &cloud.servers, listeners.addresses()),
        cloud,
        cache: store::check_cache(&yurthub, &own)?,
        local: store::check_local(&yurthub, &own)?,
        setup,
        listen: listeners.clients,
        admin: listeners.admin,
        take_over: own.take_over,
        verbosity: yurthub.v,
    };
    Ok(Checked { config, warnings })
}
