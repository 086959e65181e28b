//! The API servers and their health checks.

use std::time::Duration;

use serde::Serialize;

use super::ConfigError;
use super::flags::YurthubFlags;
use super::server::{Server, parse_servers};
use super::value::positive_duration;

/// SO_MARK of hublet's own connections ("hubl"), which the eBPF programs never steer.
pub const UPSTREAM_MARK: u32 = 0x6875_626c;

/// The order in which servers are used (`--lb-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LbMode {
    /// Round robin.
    Rr,
    Priority,
}

/// The API servers and their health checks.
#[derive(Debug, Clone, Serialize)]
pub struct CloudConfig {
    /// `--server-addr`, in the order given.
    pub servers: Vec<Server>,
    pub lb_mode: LbMode,
    /// `--heartbeat-interval-seconds`: probe interval while connected.
    #[serde(with = "super::seconds")]
    pub probe_interval: Duration,
    /// `--heartbeat-timeout-seconds`: timeout of one probe.
    #[serde(with = "super::seconds")]
    pub probe_timeout: Duration,
    /// `--heartbeat-healthy-threshold`: consecutive successful probes after which the cloud counts
    /// as connected again.
    pub healthy_threshold: u32,
    /// SO_MARK of hublet's own connections, which are never steered.
    pub mark: u32,
}

pub(super) fn check(flags: &YurthubFlags) -> Result<CloudConfig, ConfigError> {
    Ok(CloudConfig {
        servers: parse_servers(&flags.server_addr)?,
        lb_mode: check_lb_mode(&flags.lb_mode)?,
        probe_interval: positive_seconds(
            "heartbeat-interval-seconds",
            flags.heartbeat_interval_seconds,
        )?,
        probe_timeout: positive_seconds(
            "heartbeat-timeout-seconds",
            flags.heartbeat_timeout_seconds,
        )?,
        healthy_threshold: check_threshold(flags.heartbeat_healthy_threshold)?,
        mark: UPSTREAM_MARK,
    })
}

fn check_threshold(threshold: u32) -> Result<u32, ConfigError> {
    if threshold == 0 {
        return Err(ConfigError::invalid(
            "heartbeat-healthy-threshold",
            threshold,
            "must be at least 1",
        ));
    }
    Ok(threshold)
}

fn positive_seconds(flag: &'static str, seconds: u32) -> Result<Duration, ConfigError> {
    positive_duration(flag, Duration::from_secs(seconds.into()))
}

fn check_lb_mode(mode: &str) -> Result<LbMode, ConfigError> {
    match mode {
        "rr" => Ok(LbMode::Rr),
        "priority" => Ok(LbMode::Priority),
        _ => Err(ConfigError::invalid("lb-mode", mode, "use rr or priority")),
    }
}

/// Warns of servers that no request is sent to.
pub(super) fn warn_of_unused_servers(servers: &[Server]) -> Option<String> {
    let (first, unused) = servers
        .split_first()
        .filter(|(_, unused)| !unused.is_empty())?;
    let unused: Vec<_> = unused.iter().map(Server::to_string).collect();
    Some(format!(
        "--server-addr: every request goes to {first}, even while it is unreachable and whatever --lb-mode says; \
         not used yet: {}",
        unused.join(", ")
    ))
}
