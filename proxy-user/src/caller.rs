//! Callers: the process that eBPF attests, and the client that limits are shared by.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The party that a connection counts for where clients share something. It is attested where possible, so that another
/// address or, without privileges, another process gives nobody a second share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// This daemon: its own probe.
    Own,
    /// A root process of the node, in no pod: kubelet, container runtime, CNI plugin. By pid.
    Root(u32),
    /// A pod, by its UID.
    Pod(u128),
    /// Processes of the node, by user id.
    User(u32),
    /// Attested processes that may be a pod's or not: by cgroup id.
    Cgroup(u64),
    /// Nobody attests who it is: an IPv4 address, or the /64 of an IPv6 one.
    Address(IpAddr),
}

impl Client {
    /// `host` is the cookie of the daemon's network namespace.
    pub fn of(process: Option<&Process>, remote: IpAddr, host: Option<u64>) -> Self {
        let Some(process) = process else {
            return Self::Address(network(remote));
        };
        if process.pid == std::process::id() {
            return Self::Own;
        }
        if let Some(uid) = &process.pod_uid {
            return Self::Pod(digits(uid));
        }
        match (process.uid, &process.cgroup) {
            (0, Some(_)) if Some(process.netns) == host => Self::Root(process.pid),
            (uid, Some(_)) if Some(process.netns) == host => Self::User(uid),
            _ => Self::Cgroup(process.cgroup_id),
        }
    }

    /// True if connections and requests are reserved for it.
    pub fn is_privileged(self) -> bool {
        matches!(self, Self::Own | Self::Root(_))
    }
}

/// A pod's UID: 32 hexadecimal digits, with dashes or without.
fn digits(uid: &str) -> u128 {
    uid.chars()
        .filter_map(|c| c.to_digit(16))
        .fold(0, |number, digit| number << 4 | u128::from(digit))
}

/// The /64 of an IPv6 address: a machine chooses its address within it.
fn network(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// The listening socket that accepted a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Port {
    Plain,
    Secure,
}

impl Port {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Secure => "secure",
        }
    }
}

/// The process that called connect(), as the kernel saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Thread group id, in the initial pid namespace.
    pub pid: u32,
    /// User id, in the initial user namespace.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// cgroup v2 id (the inode of the cgroup's directory).
    pub cgroup_id: u64,
    /// Path of that cgroup below the v2 root, when it could be resolved at accept.
    pub cgroup: Option<String>,
    /// UID of the pod whose cgroup that is.
    pub pod_uid: Option<String>,
    /// Id of the container whose cgroup that is.
    pub container_id: Option<String>,
    /// Network namespace cookie (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// `comm`: settable by the process; a convenience, never a security attribute.
    pub command: String,
    /// Its executable, as its mount namespace names it; `None` when it had ended by the time of accept().
    pub executable: Option<String>,
    /// The address that the client dialled before steering.
    pub original: Option<SocketAddr>,
    /// Steered here, as opposed to dialled directly.
    pub steered: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: u64 = 7;

    fn process(uid: u32, cgroup: Option<&str>, pod: Option<&str>, netns: u64) -> Process {
        Process {
            pid: 1,
            uid,
            gid: 0,
            cgroup_id: 42,
            cgroup: cgroup.map(str::to_owned),
            pod_uid: pod.map(str::to_owned),
            container_id: None,
            netns,
            command: "c".into(),
            executable: None,
            original: None,
            steered: false,
        }
    }

    #[test]
    fn places_are_kept_for_root_on_the_node_alone() {
        const POD: &str = "0a1b2c3d-0000-4000-8000-0123456789ab";
        let pod = Client::Pod(0x0a1b_2c3d_0000_4000_8000_0123_4567_89ab);
        let of = |process: Process| Client::of(Some(&process), [10, 0, 0, 1].into(), Some(HOST));
        for (process, expected) in [
            (
                process(0, Some("/kubelet.service"), None, HOST),
                Client::Root(1),
            ),
            (process(0, Some("/kubepods/x"), Some(POD), HOST), pod),
            (
                process(
                    0,
                    Some("/kubepods/x"),
                    Some(&POD.replace('-', "")),
                    HOST + 1,
                ),
                pod,
            ),
            (
                process(0, Some("/docker/x"), None, HOST + 1),
                Client::Cgroup(42),
            ),
            (process(0, None, None, HOST), Client::Cgroup(42)),
            (
                process(1000, Some("/user.slice"), None, HOST),
                Client::User(1000),
            ),
        ] {
            assert_eq!(of(process), expected);
            assert_eq!(expected.is_privileged(), expected == Client::Root(1));
        }
    }

    #[test]
    fn addresses_of_one_machine_are_one_client() {
        let of = |ip: &str| Client::of(None, ip.parse().unwrap(), Some(HOST));
        assert_eq!(of("fd00::1:2:3:4"), of("fd00::5:6:7:8"));
        assert_ne!(of("fd00:0:0:1::1"), of("fd00:0:0:2::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
