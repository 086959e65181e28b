//! The effective configuration: one checked struct for each stage, made of the command line's flags
//! ([`flags`]) and the environment's `NODE_NAME`, and printable as JSON.

mod certs;
mod check;
mod cloud;
mod error;
pub mod flags;
mod listen;
mod node;
mod server;
mod setup;
mod steer;
mod store;
#[cfg(test)]
mod tests;
mod value;

use std::net::SocketAddr;

use serde::Serialize;

pub use certs::{BootstrapMode, CertsConfig};
pub use check::{Checked, check};
pub use cloud::{CloudConfig, LbMode, UPSTREAM_MARK};
pub use error::ConfigError;
pub use listen::ListenConfig;
pub use node::{Environment, WorkingMode};
pub use server::Server;
pub use setup::{DummyConfig, GuardConfig, SelectConfig, SetupConfig};
pub use steer::{PodSelector, Selector, Services};
pub use store::{CacheConfig, LocalConfig};

/// The daemon's configuration, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Config {
    /// `--node-name`: the serving certificate's CN is `system:node:NAME`.
    pub node_name: String,
    pub working_mode: WorkingMode,
    pub setup: SetupConfig,
    pub certs: CertsConfig,
    pub listen: ListenConfig,
    /// `--bind-address:--serve-port`: health, readiness, metrics, status.
    pub admin: SocketAddr,
    pub cloud: CloudConfig,
    pub cache: CacheConfig,
    pub local: LocalConfig,
    /// `--take-over`: replace the running daemon that has the same root directory.
    pub take_over: bool,
    /// `--v`: log verbosity, as klog's.
    pub verbosity: u8,
}

/// Serializes durations as seconds.
mod seconds {
    use std::time::Duration;

    pub(super) fn serialize<S: serde::Serializer>(
        value: &Duration,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.serialize_f64(value.as_secs_f64())
    }
}
