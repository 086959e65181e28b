//! Which calls are steered: `--steer`, `--steer-only`, `--steer-except`, `--steer-pods`. Texts in, checked values out.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use super::ConfigError;

/// As many service addresses as make sense on one node; the eBPF map holds more.
const MAX_STEERED: usize = 64;
/// Selections at most: the eBPF map for names is the smallest one.
const MAX_SELECTIONS: usize = 64;

/// What callers dial and are steered away from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Services {
    /// Addresses that were named.
    pub addresses: Vec<SocketAddr>,
    /// `kubernetes`: the Service default/kubernetes, as soon as its ClusterIP is known.
    pub kubernetes: bool,
    /// `cloud`: the API servers' own addresses, for clients that were configured with them.
    pub cloud: bool,
}

impl Services {
    /// Nothing is steered: `--steer=none`.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Which processes of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Selector {
    /// Those in this cgroup (a path below the root of cgroup v2) or below it.
    Cgroup(PathBuf),
    /// Those of this user.
    Uid(u32),
    /// Those whose name (`/proc/PID/comm`, 15 bytes) is that of this executable. A process can rename itself: this
    /// selects, it does not protect.
    Command(String),
}

/// Which pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSelector {
    /// Those with the annotation or label `hublet.io/steer: "true"`, or whose namespace has one of them.
    Annotated,
    /// Those in this cgroup or below it.
    Cgroup(PathBuf),
    /// Those in the network namespace with this cookie (`SO_NETNS_COOKIE`).
    Netns(u64),
}

impl FromStr for Selector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("cgroup", path)) => cgroup(path).map(Self::Cgroup),
            Some(("uid", uid)) => uid
                .parse()
                .map(Self::Uid)
                .map_err(|_| "has no number as its user".into()),
            Some(("command", name)) if !name.is_empty() && !name.contains(['/', '\0']) => {
                Ok(Self::Command(name.to_owned()))
            }
            Some(("command", _)) => {
                Err("names no executable: write its file name, as in command:kubelet".into())
            }
            _ => Err("is no selection: write cgroup:PATH, uid:NUMBER or command:NAME".into()),
        }
    }
}

impl FromStr for PodSelector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "annotated" => Ok(Self::Annotated),
            Some(("cgroup", path)) => cgroup(path).map(Self::Cgroup),
            Some(("netns", cookie)) => cookie
                .parse()
                .map(Self::Netns)
                .map_err(|_| "has no number as its cookie".into()),
            _ => Err("selects no pods: write annotated, cgroup:PATH, netns:COOKIE, or none".into()),
        }
    }
}

fn cgroup(path: &str) -> Result<PathBuf, String> {
    if !path.starts_with('/')
        || path.trim_matches('/').is_empty()
        || path.split('/').any(|part| part == "..")
    {
        return Err(
            "has no path below the root of cgroup v2: write one as in cgroup:/system.slice".into(),
        );
    }
    Ok(PathBuf::from(path))
}

/// `--steer`.
///
/// # Errors
/// A value that is neither `ADDR:PORT` nor a word that is known, or `none` beside others.
pub(super) fn services(texts: &[String]) -> Result<Services, ConfigError> {
    const FLAG: &str = "steer";
    let mut services = Services::default();
    for text in unless_none(FLAG, texts)? {
        let wrong = |reason: &str| Err(ConfigError::value(FLAG, text, reason));
        match text {
            "kubernetes" => services.kubernetes = true,
            "cloud" => services.cloud = true,
            _ => {
                let Ok(address) = text.parse::<SocketAddr>() else {
                    return wrong(
                        "is no ADDR:PORT: write an IP address and a port, as in 10.96.0.1:443, or kubernetes, \
                         cloud, none",
                    );
                };
                if address.port() == 0
                    || address.ip().is_unspecified()
                    || address.ip().is_multicast()
                {
                    return wrong(
                        "can't be dialled: write the address and port of an API service, as in 10.96.0.1:443",
                    );
                }
                if !services.addresses.contains(&address) {
                    services.addresses.push(address);
                }
            }
        }
    }
    match services.addresses.len() {
        n if n > MAX_STEERED => Err(ConfigError::value(
            FLAG,
            format!("({n} addresses)"),
            format!("are too many: at most {MAX_STEERED}"),
        )),
        _ => Ok(services),
    }
}

/// `--steer-only`, `--steer-except`, `--steer-pods`; `none` is an empty list.
///
/// # Errors
/// A value that is no selection, or too many of them.
pub(super) fn selections<S: FromStr<Err = String>>(
    flag: &'static str,
    texts: &[String],
) -> Result<Vec<S>, ConfigError> {
    let texts = unless_none(flag, texts)?;
    if texts.len() > MAX_SELECTIONS {
        return Err(ConfigError::value(
            flag,
            format!("({} selections)", texts.len()),
            format!("are too many: at most {MAX_SELECTIONS}"),
        ));
    }
    texts
        .into_iter()
        .map(|text| {
            text.parse()
                .map_err(|why: String| ConfigError::value(flag, text, why))
        })
        .collect()
}

fn unless_none<'a>(flag: &'static str, texts: &'a [String]) -> Result<Vec<&'a str>, ConfigError> {
    let texts: Vec<&str> = texts
        .iter()
        .map(|text| text.trim())
        .filter(|text| !text.is_empty())
        .collect();
    match (texts.contains(&"none"), texts.len()) {
        (true, 1) => Ok(Vec::new()),
        (true, _) => Err(ConfigError::value(
            flag,
            texts.join(","),
            "mixes none with others: write one or the other",
        )),
        _ => Ok(texts),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn steering_is_addresses_words_or_none() {
        let list = |texts: &[&str]| services(&strings(texts));
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
        let pods = |texts: &[&str]| selections::<PodSelector>("steer-pods", &strings(texts));
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
