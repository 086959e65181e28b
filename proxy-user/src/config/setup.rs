//! The node's interface and its eBPF programs.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use serde::Serialize;

use super::ConfigError;
use super::flags::{OwnFlags, YurthubFlags};
use super::steer::{PodSelector, Selector, Services, parse_selectors, parse_services};
use super::value::interface_name;

const DEFAULT_DUMMY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 2, 1);
const DEFAULT_DUMMY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 2, 1);

#[derive(Debug, Clone, Serialize)]
pub struct SetupConfig {
    /// `--ebpf`: load and attach eBPF programs.
    pub ebpf: bool,
    /// The interface to create; `None` with `--enable-dummy-if=false`.
    pub dummy: Option<DummyConfig>,
    /// Service addresses whose connections are steered to hublet (`--steer`).
    pub steer: Services,
    pub select: SelectConfig,
    pub guard: GuardConfig,
    /// `--steer-getpeername`: getpeername() of a steered client returns the address that it dialled.
    pub getpeername: bool,
    /// The cgroup v2 directory to attach to; `None` = the root of cgroup v2.
    pub cgroup: Option<PathBuf>,
    /// `--bpffs`: mount point of bpffs, mounted by hublet where needed. Pins go to
    /// `BPFFS/hublet/HASH/`.
    pub bpffs: PathBuf,
    /// `--bpf-log`: log the decisions of the eBPF programs.
    pub bpf_log: bool,
}

/// Callers whose connections are steered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct SelectConfig {
    /// `--steer-only`: only these processes of the host; empty = all.
    pub only: Vec<Selector>,
    /// `--steer-except`: exceptions, which win over every other selection.
    pub except: Vec<Selector>,
    /// `--steer-pods`: pods; without a selection, none.
    pub pods: Vec<PodSelector>,
}

/// The guard in front of hublet's addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuardConfig {
    /// `--guard`: keep packets from uplinks and pods away.
    pub on: bool,
    /// `--uplink`: uplinks beside those that are discovered.
    pub uplinks: Vec<String>,
    /// `--xdp-uplink`: uplinks that get an XDP program.
    pub xdp: Vec<String>,
}

impl Default for GuardConfig {
    fn default() -> Self {
        Self {
            on: true,
            uplinks: Vec::new(),
            xdp: Vec::new(),
        }
    }
}

/// The dummy interface and its address.
#[derive(Debug, Clone, Serialize)]
pub struct DummyConfig {
    /// `--dummy-if-name`, at most 15 characters.
    pub name: String,
    /// `--dummy-if-ip`: the address that clients dial.
    pub ip: IpAddr,
}

pub(super) fn check(flags: &YurthubFlags, own: &OwnFlags) -> Result<SetupConfig, ConfigError> {
    Ok(SetupConfig {
        ebpf: own.ebpf,
        dummy: check_dummy(flags)?,
        steer: parse_services(&own.steer)?,
        select: check_selection(own)?,
        guard: check_guard(own)?,
        getpeername: own.steer_getpeername,
        cgroup: own.cgroup.clone(),
        bpffs: own.bpffs.clone(),
        bpf_log: own.bpf_log,
    })
}

fn check_selection(own: &OwnFlags) -> Result<SelectConfig, ConfigError> {
    Ok(SelectConfig {
        only: parse_selectors("steer-only", &own.steer_only)?,
        except: parse_selectors("steer-except", &own.steer_except)?,
        pods: parse_selectors("steer-pods", &own.steer_pods)?,
    })
}

fn check_guard(own: &OwnFlags) -> Result<GuardConfig, ConfigError> {
    Ok(GuardConfig {
        on: own.guard,
        uplinks: check_interfaces("uplink", &own.uplink)?,
        xdp: check_interfaces("xdp-uplink", &own.xdp_uplink)?,
    })
}

fn check_interfaces(flag: &'static str, names: &[String]) -> Result<Vec<String>, ConfigError> {
    for name in names {
        interface_name(flag, name)?;
    }
    Ok(names.to_vec())
}

/// Warns of flags that have no effect without eBPF.
pub(super) fn warn_without_ebpf(own: &OwnFlags) -> Option<String> {
    let flags = [
        ("--steer-only", !own.steer_only.is_empty()),
        ("--steer-except", !own.steer_except.is_empty()),
        ("--steer-getpeername", own.steer_getpeername),
        ("--uplink", !own.uplink.is_empty()),
        ("--xdp-uplink", !own.xdp_uplink.is_empty()),
        ("--cgroup", own.cgroup.is_some()),
        ("--bpf-log", own.bpf_log),
    ];
    let given: Vec<_> = flags
        .into_iter()
        .filter_map(|(flag, is_given)| is_given.then_some(flag))
        .collect();
    (!own.ebpf && !given.is_empty())
        .then(|| format!("{}: no effect with --ebpf=false", given.join(", ")))
}

fn check_dummy(flags: &YurthubFlags) -> Result<Option<DummyConfig>, ConfigError> {
    if !flags.enable_dummy_if {
        return Ok(None);
    }
    let name = &flags.dummy_if_name;
    interface_name("dummy-if-name", name)?;
    let ip = match &flags.dummy_if_ip {
        Some(text) => check_dummy_ip(text)?,
        None => default_dummy_ip(flags.node_ip),
    };
    Ok(Some(DummyConfig {
        name: name.clone(),
        ip,
    }))
}

/// Of the node's address family.
fn default_dummy_ip(node_ip: Option<IpAddr>) -> IpAddr {
    match node_ip {
        Some(IpAddr::V6(_)) => DEFAULT_DUMMY_V6.into(),
        _ => DEFAULT_DUMMY_V4.into(),
    }
}

fn check_dummy_ip(text: &str) -> Result<IpAddr, ConfigError> {
    parse_dummy_ip(text).map_err(|reason| ConfigError::invalid("dummy-if-ip", text, reason))
}

fn parse_dummy_ip(text: &str) -> Result<IpAddr, &'static str> {
    match text.parse() {
        Ok(IpAddr::V4(ip)) => check_dummy_v4(ip).map(|()| ip.into()),
        Ok(IpAddr::V6(ip)) if ip.is_unique_local() => Ok(ip.into()),
        Ok(IpAddr::V6(_)) => Err("outside fc00::/7, so other nodes might use it; use fd00::2:1"),
        Err(_) => Err("must be an IP address, such as 169.254.2.1"),
    }
}

fn check_dummy_v4(ip: Ipv4Addr) -> Result<(), &'static str> {
    match ip.octets() {
        // The ranges that YurtHub refuses, and addresses that no host can have.
        [169, 254, 31, _] => Err("169.254.31.0/24 is reserved; use 169.254.2.1"),
        [169, 254, 1, 1] => Err("it is the gateway that Calico gives its pods; use 169.254.2.1"),
        [169, 254, 0, 0] | [169, 254, 255, 255] => Err("not a host address; use 169.254.2.1"),
        [169, 254, ..] => Ok(()),
        _ => Err("outside 169.254.0.0/16, so other nodes might use it; use 169.254.2.1"),
    }
}
