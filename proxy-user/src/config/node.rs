//! The node's name and YurtHub's working mode.

use serde::Serialize;

use super::ConfigError;

/// Looks up an environment variable.
pub type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

const NODE_NAME: &str = "node-name";

/// Kubernetes' limit for a DNS subdomain (RFC 1123).
const MAX_DNS_SUBDOMAIN: usize = 253;

/// The place where hublet runs (`--working-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkingMode {
    /// Responses are stored, and answer reads while the cloud is away.
    Edge,
    /// Everything is forwarded and nothing stored, for a node that is never cut off.
    Cloud,
}

pub(super) fn check_working_mode(mode: &str) -> Result<WorkingMode, ConfigError> {
    let reason = match mode {
        "edge" => return Ok(WorkingMode::Edge),
        "cloud" => return Ok(WorkingMode::Cloud),
        "local" => "not implemented: it is YurtHub's iptables load balancer, not a proxy; use edge",
        _ => "use edge or cloud",
    };
    Err(ConfigError::invalid("working-mode", mode, reason))
}

pub(super) fn node_name(
    flag: Option<&str>,
    environment: Environment<'_>,
) -> Result<String, ConfigError> {
    let name = given_node_name(flag, environment)?;
    if !is_dns_subdomain(&name) {
        return Err(ConfigError::invalid(
            NODE_NAME,
            name,
            "must consist of lower-case letters, digits, - and . (see `kubectl get nodes`)",
        ));
    }
    Ok(name)
}

/// The flag's value, or the environment's.
fn given_node_name(
    flag: Option<&str>,
    environment: Environment<'_>,
) -> Result<String, ConfigError> {
    let from_environment = environment(NODE_NAME_VARIABLE).filter(|name| !name.is_empty());
    match flag {
        None | Some("") => from_environment.ok_or_else(missing_node_name),
        // The kubelet expands $(NODE_NAME) only when the container's env has it; systemd and
        // shells never do.
        Some(literal @ ("$(NODE_NAME)" | "${NODE_NAME}" | "$NODE_NAME")) => {
            from_environment.ok_or_else(|| unexpanded_node_name(literal))
        }
        Some(name) => Ok(name.to_owned()),
    }
}

const NODE_NAME_VARIABLE: &str = "NODE_NAME";

fn missing_node_name() -> ConfigError {
    ConfigError::missing(
        NODE_NAME,
        "name this node, as in --node-name=edge-1, or set NODE_NAME",
    )
}

fn unexpanded_node_name(literal: &str) -> ConfigError {
    ConfigError::invalid(
        NODE_NAME,
        literal,
        "not expanded, and the environment has no NODE_NAME: in a pod, set env NODE_NAME \
         from spec.nodeName; elsewhere write the name itself",
    )
}

fn is_dns_subdomain(name: &str) -> bool {
    name.len() <= MAX_DNS_SUBDOMAIN && name.split('.').all(is_dns_label)
}

fn is_dns_label(label: &str) -> bool {
    !label.is_empty()
        && label.bytes().all(is_dns_byte)
        && !label.starts_with('-')
        && !label.ends_with('-')
}

fn is_dns_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}
