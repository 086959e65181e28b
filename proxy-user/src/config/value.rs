//! Checks that several flags share.

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use super::ConfigError;

/// Catches typing errors; no sensible setting is near it.
const MAX_COUNT: usize = 1 << 20;

/// IFNAMSIZ without the final zero.
const MAX_INTERFACE_NAME: usize = 15;

pub(super) fn positive_duration(
    flag: &'static str,
    duration: Duration,
) -> Result<Duration, ConfigError> {
    if duration.is_zero() {
        return Err(ConfigError::invalid(flag, 0, "must be greater than zero"));
    }
    Ok(duration)
}

pub(super) fn positive_count(flag: &'static str, count: usize) -> Result<usize, ConfigError> {
    if count == 0 {
        return Err(below(flag, count, 1));
    }
    if count > MAX_COUNT {
        return Err(above(flag, count, MAX_COUNT));
    }
    Ok(count)
}

fn above(flag: &'static str, value: usize, max: impl Display) -> ConfigError {
    ConfigError::invalid(flag, value, format!("must be at most {max}"))
}

fn below(flag: &'static str, value: usize, min: impl Display) -> ConfigError {
    ConfigError::invalid(flag, value, format!("must be at least {min}"))
}

/// A size in bytes and the range that it must lie in, as the flag's text would say it.
pub(super) struct SizeLimits {
    pub(super) min: usize,
    pub(super) min_text: &'static str,
    pub(super) max: usize,
    pub(super) max_text: &'static str,
}

impl SizeLimits {
    pub(super) fn check(&self, flag: &'static str, bytes: usize) -> Result<usize, ConfigError> {
        if bytes < self.min {
            return Err(below(flag, bytes, self.min_text));
        }
        if bytes > self.max {
            return Err(above(flag, bytes, self.max_text));
        }
        Ok(bytes)
    }
}

pub(super) fn port(flag: &'static str, port: u16) -> Result<u16, ConfigError> {
    match port {
        0 => Err(ConfigError::invalid(
            flag,
            port,
            "must be between 1 and 65535",
        )),
        port => Ok(port),
    }
}

pub(super) fn listen_address(flag: &'static str, text: &str) -> Result<IpAddr, ConfigError> {
    match text.trim_matches(['[', ']']).parse::<IpAddr>() {
        Ok(ip) if !ip.is_multicast() => Ok(ip),
        _ => Err(ConfigError::invalid(
            flag,
            text,
            "must be a unicast IP address, such as 127.0.0.1",
        )),
    }
}

/// The rules of Linux's `dev_valid_name`.
pub(super) fn interface_name(flag: &'static str, name: &str) -> Result<(), ConfigError> {
    let reason = if name.len() > MAX_INTERFACE_NAME {
        "an interface name has at most 15 characters"
    } else if !is_interface_name(name) {
        "must be an interface name, such as hub-dummy0"
    } else {
        return Ok(());
    };
    Err(ConfigError::invalid(flag, name, reason))
}

fn is_interface_name(name: &str) -> bool {
    !matches!(name, "" | "." | "..")
        && name
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':')
}
