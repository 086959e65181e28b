//! The steering flags: `--steer`, `--steer-only`, `--steer-except`, `--steer-pods`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use super::ConfigError;

/// More than one node has any use for; the eBPF map holds more.
const MAX_SERVICES: usize = 64;
/// The size of the smallest eBPF map of selections, the one of task names.
const MAX_SELECTORS: usize = 64;

/// Service addresses whose connections are steered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Services {
    /// Addresses given as such.
    pub addresses: Vec<SocketAddr>,
    /// `kubernetes`: the Service default/kubernetes, once its ClusterIP is known.
    pub kubernetes: bool,
    /// `cloud`: the API servers' own addresses, for clients that are configured with them.
    pub cloud: bool,
}

impl Services {
    fn add(&mut self, text: &str) -> Result<(), &'static str> {
        match text {
            "kubernetes" => self.kubernetes = true,
            "cloud" => self.cloud = true,
            _ => self.add_address(parse_service_address(text)?),
        }
        Ok(())
    }

    fn add_address(&mut self, address: SocketAddr) {
        if !self.addresses.contains(&address) {
            self.addresses.push(address);
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A selection of the host's processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// Processes in this cgroup or below it; a path relative to the root of cgroup v2.
    Cgroup(PathBuf),
    /// Processes of this user.
    Uid(u32),
    /// Processes whose `/proc/PID/comm` (15 bytes) is this executable's name. A process can rename
    /// itself: this selects, it does not protect.
    Command(String),
}

/// A selection of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSelector {
    /// Pods with the annotation or label `hublet.io/steer: "true"`, on themselves or their
    /// namespace.
    Annotated,
    /// Pods in this cgroup or below it.
    Cgroup(PathBuf),
    /// Pods in the network namespace with this cookie (`SO_NETNS_COOKIE`).
    Netns(u64),
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("cgroup", path)) => parse_cgroup(path).map(Self::Cgroup),
            Some(("uid", uid)) => parse_uid(uid).map(Self::Uid),
            Some(("command", name)) => parse_command(name).map(Self::Command),
            _ => Err("use cgroup:PATH, uid:NUMBER or command:NAME".into()),
        }
    }
}

impl FromStr for PodSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "annotated" => Ok(Self::Annotated),
            Some(("cgroup", path)) => parse_cgroup(path).map(Self::Cgroup),
            Some(("netns", cookie)) => parse_cookie(cookie).map(Self::Netns),
            _ => Err("use annotated, cgroup:PATH, netns:COOKIE or none".into()),
        }
    }
}

fn parse_uid(uid: &str) -> Result<u32, String> {
    uid.parse()
        .map_err(|_| "the user must be a number, as in uid:0".into())
}

fn parse_command(name: &str) -> Result<String, String> {
    if name.is_empty() || name.contains(['/', '\0']) {
        return Err("use an executable's file name, as in command:kubelet".into());
    }
    Ok(name.to_owned())
}

fn parse_cookie(cookie: &str) -> Result<u64, String> {
    cookie
        .parse()
        .map_err(|_| "the cookie must be a number, as in netns:4026".into())
}

fn parse_cgroup(path: &str) -> Result<PathBuf, String> {
    if !is_below_root(path) {
        return Err(
            "the path must be below the root of cgroup v2, as in cgroup:/system.slice".into(),
        );
    }
    Ok(PathBuf::from(path))
}

fn is_below_root(path: &str) -> bool {
    path.starts_with('/')
        && !path.trim_matches('/').is_empty()
        && path.split('/').all(|component| component != "..")
}

pub(super) fn parse_services(texts: &[String]) -> Result<Services, ConfigError> {
    const FLAG: &str = "steer";
    let mut services = Services::default();
    for text in list_or_none(FLAG, texts)? {
        services
            .add(text)
            .map_err(|reason| ConfigError::invalid(FLAG, text, reason))?;
    }
    if services.addresses.len() > MAX_SERVICES {
        let reason = format!("at most {MAX_SERVICES} addresses are supported");
        return Err(ConfigError::invalid(FLAG, texts.join(","), reason));
    }
    Ok(services)
}

fn parse_service_address(text: &str) -> Result<SocketAddr, &'static str> {
    let address: SocketAddr = text.parse().map_err(
        |_| "use an IP address and a port, as in 10.96.0.1:443, or kubernetes, cloud or none",
    )?;
    if address.port() == 0 || address.ip().is_unspecified() || address.ip().is_multicast() {
        return Err("no client can dial it; use an API service's address, as in 10.96.0.1:443");
    }
    Ok(address)
}

/// Parses `--steer-only`, `--steer-except` or `--steer-pods`.
pub(super) fn parse_selectors<S: FromStr<Err = String>>(
    flag: &'static str,
    texts: &[String],
) -> Result<Vec<S>, ConfigError> {
    let texts = list_or_none(flag, texts)?;
    if texts.len() > MAX_SELECTORS {
        let reason = format!("at most {MAX_SELECTORS} selections are supported");
        return Err(ConfigError::invalid(flag, texts.join(","), reason));
    }
    let selectors = texts.into_iter().map(|text| parse_selector(flag, text));
    selectors.collect()
}

fn parse_selector<S: FromStr<Err = String>>(
    flag: &'static str,
    text: &str,
) -> Result<S, ConfigError> {
    text.parse()
        .map_err(|reason: String| ConfigError::invalid(flag, text, reason))
}

/// The non-empty values; an empty list for the value `none`.
fn list_or_none<'a>(flag: &'static str, texts: &'a [String]) -> Result<Vec<&'a str>, ConfigError> {
    let values = non_empty(texts);
    if values == ["none"] {
        return Ok(Vec::new());
    }
    if values.contains(&"none") {
        let reason = "none can't be combined with other values";
        return Err(ConfigError::invalid(flag, values.join(","), reason));
    }
    Ok(values)
}

fn non_empty(texts: &[String]) -> Vec<&str> {
    let values = texts.iter().map(|text| text.trim());
    values.filter(|value| !value.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn steering_is_addresses_words_or_none() {
        let list = |texts: &[&str]| parse_services(&strings(texts));
        assert!(list(&["none"]).expect("nothing").is_empty());
        let all = list(&[
            "10.96.0.1:443",
            "[fd00::1]:443",
            "10.96.0.1:443",
            "kubernetes",
            "cloud",
        ])
        .expect("all");
        assert_eq!(
            (all.addresses.len(), all.kubernetes, all.cloud),
            (2, true, true),
            "twice is one"
        );
        for wrong in [
            "10.96.0.1",
            "10.96.0.1:0",
            "0.0.0.0:443",
            "kubernetes:443",
            "224.0.0.1:443",
        ] {
            assert!(
                list(&[wrong])
                    .expect_err(wrong)
                    .to_string()
                    .contains("10.96.0.1:443"),
                "{wrong}"
            );
        }
        assert!(
            list(&["none", "10.96.0.1:443"])
                .expect_err("mixed")
                .to_string()
                .contains("none")
        );
    }

    #[test]
    fn selections_are_kinds_and_values() {
        let parse = |text: &str| text.parse::<Selector>();
        assert_eq!(parse("uid:0"), Ok(Selector::Uid(0)));
        assert_eq!(
            parse("command:kubelet"),
            Ok(Selector::Command("kubelet".into()))
        );
        assert_eq!(
            parse("cgroup:/system.slice"),
            Ok(Selector::Cgroup("/system.slice".into()))
        );
        for wrong in [
            "",
            "kubelet",
            "uid:",
            "uid:root",
            "command:",
            "command:/usr/bin/kubelet",
            "cgroup:",
            "cgroup:/",
            "cgroup:x",
            "cgroup:/a/../b",
            "pid:1",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        let pods = |texts: &[&str]| parse_selectors::<PodSelector>("steer-pods", &strings(texts));
        assert_eq!(pods(&["none"]), Ok(vec![]));
        assert_eq!(
            pods(&["annotated", "netns:7"]),
            Ok(vec![PodSelector::Annotated, PodSelector::Netns(7)])
        );
        let error = pods(&["all"]).expect_err("no such word").to_string();
        assert!(
            error.contains("--steer-pods") && error.contains("annotated"),
            "{error}"
        );
    }
}
