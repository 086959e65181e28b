//! hublet's command line for `run`: the user's flags, defaults for the others, and the addresses that follow from them.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};

use super::LOOPBACK;

const DUMMY_IP: &str = "169.254.2.1";

/// A command line in the making.
#[derive(Debug)]
pub(super) struct Flags(Vec<String>);

impl Flags {
    pub(super) fn from_user(flags: &[String]) -> Self {
        Self(flags.to_vec())
    }

    /// Value of `--name=value` or `--name value`; the last one wins.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().enumerate().rev().find_map(|(at, flag)| {
            let rest = flag.strip_prefix(name)?;
            match rest.strip_prefix('=') {
                Some(value) => Some(value),
                None if rest.is_empty() => self.0.get(at + 1).map(String::as_str),
                None => None,
            }
        })
    }

    /// Adds a flag that the user did not give.
    pub(super) fn set_default(&mut self, name: &str, value: &str) {
        if self.value(name).is_none() {
            self.0.push(format!("{name}={value}"));
        }
    }

    pub(super) fn as_slice(&self) -> &[String] {
        &self.0
    }

    /// Address of health and readiness.
    pub(super) fn admin_address(&self) -> Result<SocketAddr> {
        let address = self.value("--bind-address").unwrap_or("127.0.0.1");
        let address: IpAddr = address
            .parse()
            .with_context(|| format!("--bind-address={address}"))?;
        Ok(SocketAddr::new(
            address,
            self.port_flag("--serve-port", 10267)?,
        ))
    }

    /// TLS address for clients: the dummy address, or the proxy address without one.
    pub(super) fn secure_address(&self) -> Result<SocketAddr> {
        let loopback = LOOPBACK.to_string();
        let no_dummy = ["false", "False", "FALSE", "f", "F", "0"];
        let address = if self
            .value("--enable-dummy-if")
            .is_some_and(|value| no_dummy.contains(&value))
        {
            self.value("--bind-proxy-address").unwrap_or(&loopback)
        } else {
            self.value("--dummy-if-ip").unwrap_or(DUMMY_IP)
        };
        let address: IpAddr = address
            .parse()
            .with_context(|| format!("{address} is no IP address"))?;
        Ok(SocketAddr::new(
            address,
            self.port_flag("--proxy-secure-port", 10268)?,
        ))
    }

    fn port_flag(&self, name: &str, default: u16) -> Result<u16> {
        self.value(name).map_or(Ok(default), |port| {
            port.parse().with_context(|| format!("{name}={port}"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(line: &str) -> Flags {
        Flags::from_user(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn a_flag_of_the_user_wins_over_ours_in_both_spellings() {
        let mut joined = flags("--node-name=mine --v=2");
        joined.set_default("--node-name", "dev-node");
        assert_eq!(joined.as_slice(), ["--node-name=mine", "--v=2"]);
        let mut apart = flags("--node-name mine");
        apart.set_default("--node-name", "dev-node");
        assert_eq!(apart.as_slice(), ["--node-name", "mine"]);
    }

    #[test]
    fn a_longer_name_is_another_flag() {
        let mut other = flags("--node-name-prefix=x");
        other.set_default("--node-name", "dev-node");
        assert_eq!(other.value("--node-name"), Some("dev-node"));
    }

    #[test]
    fn the_secure_address_moves_to_loopback_without_the_dummy_interface() {
        assert_eq!(
            flags("--v=2").secure_address().unwrap().to_string(),
            "169.254.2.1:10268"
        );
        assert_eq!(
            flags("--enable-dummy-if=false")
                .secure_address()
                .unwrap()
                .to_string(),
            "127.0.0.1:10268"
        );
        let moved = flags("--dummy-if-ip=169.254.9.9 --proxy-secure-port=11268");
        assert_eq!(
            moved.secure_address().unwrap().to_string(),
            "169.254.9.9:11268"
        );
        assert!(flags("--proxy-secure-port=x").secure_address().is_err());
    }
}
