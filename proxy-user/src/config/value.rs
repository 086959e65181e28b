//! Checks that several flags share.

use std::net::IpAddr;
use std::time::Duration;

use super::ConfigError;

/// Catches typing errors; no sensible setting is near it.
const MAX_COUNT: usize = 1 << 20;

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
    match count {
        0 => Err(ConfigError::invalid(flag, count, "must be at least 1")),
        count if count > MAX_COUNT => Err(ConfigError::invalid(
            flag,
            count,
            format!("must be at most {MAX_COUNT}"),
        )),
        count => Ok(count),
    }
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
            let reason = format!("must be at least {}", self.min_text);
            return Err(ConfigError::invalid(flag, bytes, reason));
        }
        if bytes > self.max {
            let reason = format!("must be at most {}", self.max_text);
            return Err(ConfigError::invalid(flag, bytes, reason));
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
    const MAX_LEN: usize = 15;
    let is_allowed = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if name.len() > MAX_LEN {
        let reason = format!("an interface name has at most {MAX_LEN} characters");
        return Err(ConfigError::invalid(flag, name, reason));
    }
    if name.is_empty() || name == "." || name == ".." || !name.bytes().all(is_allowed) {
        return Err(ConfigError::invalid(
            flag,
            name,
            "must be an interface name, such as hub-dummy0",
        ));
    }
    Ok(())
}
