//! Plain data shared between the eBPF programs and user space: keys and values of the maps, their limits, the
//! names of maps and programs, and one hash over all of it ([`LAYOUT`]), which is part of the pins' path.
//!
//! Addresses are an [`Address`], whose last four bytes are the IPv4 address of an IPv4 one, and ports are in host
//! order, so that `bpftool map dump` reads well. No struct has padding: what user space writes is exactly what a
//! program compares.
#![forbid(unsafe_code)]
#![no_std]

mod decision;

pub use decision::{Decision, Stats};

/// Service addresses and own listeners at most ([`ServiceKey`] entries of `HUB_SERVICES`).
pub const MAX_SERVICES: usize = 1024;
/// Connections between their two "established" callbacks at most; the least recently used goes first.
pub const MAX_JOINS: usize = 4096;
/// Listeners of `HUB_LISTEN` at most.
pub const MAX_LISTENERS: usize = 8;
/// Selections of callers at most ([`SelectKey`] entries of `HUB_SELECT`).
pub const MAX_SELECT: usize = 4096;
/// Task names of `HUB_SELECT_CMD` at most.
pub const MAX_COMMANDS: usize = 64;
/// Callers and services of `HUB_FLOWS` at most; the least recently used goes first.
pub const MAX_FLOWS: usize = 1024;
/// Interfaces that the guard knows at most.
pub const MAX_INTERFACES: usize = 1024;
/// Different ports of services and listeners at most ([`Config::ports`]).
pub const MAX_PORTS: usize = 8;
/// Levels of the cgroup tree that a selection looks at, counted from the root.
pub const MAX_LEVELS: i32 = 10;
/// Length of a task's name.
pub const COMM_LEN: usize = 16;
/// Buckets of the latency histogram: bucket `i` counts connects that took less than 2^(i+4) µs; the last, all others.
pub const LATENCY_BUCKETS: usize = 16;

/// [`Config::flags`]: steering is on.
pub const CONFIG_STEER: u32 = 1;
/// [`Config::flags`]: of the host's processes only those that a selection names are steered.
pub const CONFIG_SELECTED: u32 = 2;
/// [`Config::flags`]: some pods are steered.
pub const CONFIG_PODS: u32 = 4;
/// [`Config::flags`]: the guard refuses what has no business with our addresses.
pub const CONFIG_GUARD: u32 = 8;

/// [`Service::flags`]: steer what dials this address.
pub const SERVICE_STEER: u32 = 1;
/// [`Service::flags`]: this is one of our own listeners; what dials it is attested but not rewritten.
pub const SERVICE_OWN: u32 = 2;
/// [`Service::flags`], with [`SERVICE_OWN`]: pods may reach it, too.
pub const SERVICE_PODS: u32 = 4;

/// [`SelectKey::kind`]: a host process in this cgroup or below it (cgroup v2 id).
pub const SELECT_CGROUP: u32 = 1;
/// [`SelectKey::kind`]: a host process of this user.
pub const SELECT_UID: u32 = 2;
/// [`SelectKey::kind`]: a process of a pod, in this cgroup or below it.
pub const SELECT_POD_CGROUP: u32 = 3;
/// [`SelectKey::kind`]: a process of a pod, in this network namespace (its cookie).
pub const SELECT_POD_NETNS: u32 = 4;

/// Verdict of a selection: steer.
pub const VERDICT_STEER: u32 = 1;
/// Verdict of a selection: do not steer, whatever other selections say.
pub const VERDICT_EXCEPT: u32 = 2;

/// Kind of an interface for the guard: packets of this node (`lo`, and the link that carries our address).
pub const IFACE_LOCAL: u32 = 1;
/// Kind of an interface for the guard: packets from elsewhere. What the guard doesn't know is a pod's.
pub const IFACE_UPLINK: u32 = 2;

/// [`Ident::flags`]: the client dialled our address itself.
pub const IDENT_DIRECT: u16 = 1;
/// [`Ident::flags`]: the client dialled [`Ident::orig_ip`] and was steered.
pub const IDENT_STEERED: u16 = 2;
/// [`Ident::flags`]: the record sits on the accepted socket, as opposed to the client's.
pub const IDENT_ACCEPTED: u16 = 4;
/// [`Ident::flags`]: the client dialled a service and was not steered; for `HUB_FLOWS` only.
pub const IDENT_PASSED: u16 = 8;

/// `IPPROTO_TCP`, the only protocol of [`ServiceKey::proto`] so far.
pub const PROTO_TCP: u8 = 6;

/// Names of the maps, as pinned and as bpftool shows them (15 characters at most).
pub mod maps {
    /// Array of one [`super::Config`].
    pub const CONFIG: &str = "HUB_CONFIG";
    /// Hash [`super::ServiceKey`] → [`super::Service`].
    pub const SERVICES: &str = "HUB_SERVICES";
    /// Sockmap: the serving listeners; the kernel empties a slot when the last descriptor closes.
    pub const LISTEN: &str = "HUB_LISTEN";
    /// Socket storage: [`super::Ident`] of a client's socket and of the accepted one.
    pub const IDENT: &str = "HUB_IDENT";
    /// LRU hash [`super::JoinKey`] → [`super::Ident`], from the client's callback to the server's.
    pub const JOIN: &str = "HUB_JOIN";
    /// Per-CPU array of one [`super::Stats`].
    pub const STATS: &str = "HUB_STATS";
    /// Hash [`super::SelectKey`] → verdict.
    pub const SELECT: &str = "HUB_SELECT";
    /// Hash task name → verdict.
    pub const SELECT_CMD: &str = "HUB_SELECT_CMD";
    /// Per-CPU LRU hash [`super::FlowKey`] → [`super::FlowCounts`].
    pub const FLOWS: &str = "HUB_FLOWS";
    /// Hash ifindex → kind of interface.
    pub const IFACES: &str = "HUB_IFACES";
    pub const ALL: [&str; 10] = [
        CONFIG, SERVICES, LISTEN, IDENT, JOIN, STATS, SELECT, SELECT_CMD, FLOWS, IFACES,
    ];
}

/// Names of the programs.
pub mod programs {
    /// `cgroup/connect4`: steers and attests connects of IPv4 sockets.
    pub const CONNECT4: &str = "hub_connect4";
    /// `cgroup/connect6`: clients whose IPv6 socket dials an IPv4-mapped address.
    pub const CONNECT6: &str = "hub_connect6";
    /// `sockops`: hands the identity from the client's socket to the accepted one, and counts flows.
    pub const SOCKOPS: &str = "hub_sockops";
    /// `cgroup/getpeername4`: a steered client sees the address that it dialled.
    pub const GETPEER4: &str = "hub_getpeer4";
    /// `cgroup/getpeername6`: the same for IPv6 sockets, IPv4-mapped ones among them.
    pub const GETPEER6: &str = "hub_getpeer6";
    /// `sk_lookup`: the guard of our addresses.
    pub const LOOKUP: &str = "hub_lookup";
    /// `xdp`: the guard on an uplink.
    pub const XDP: &str = "hub_xdp";
    /// `cgroup/connect4`: tells the daemon its network namespace's cookie, where the kernel doesn't (before 5.14).
    pub const NETNS: &str = "hub_netns";
    pub const ALL: [&str; 8] = [
        CONNECT4, CONNECT6, SOCKOPS, GETPEER4, GETPEER6, LOOKUP, XDP, NETNS,
    ];
}

/// Defines the structs and, from their very text, [`LAYOUT`]: a field that is added, moved, renamed or retyped
/// changes the hash, so that a daemon never takes over maps whose bytes mean something else.
macro_rules! shared {
    ($($(#[$meta:meta])* pub struct $name:ident { $($(#[$doc:meta])* pub $field:ident: $type:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            pub struct $name { $($(#[$doc])* pub $field: $type,)* }

            impl Sealed for $name {}
            impl Shared for $name {}
            // No padding: the fields' sizes add up to the struct's.
            const _: () = assert!(size_of::<$name>() == 0 $(+ size_of::<$type>())*);
        )*
        const TEXT: &str = concat!($(stringify!($name), "{", $(stringify!($field), ":", stringify!($type), ";",)* "}",)*);
    };
}

trait Sealed {}

/// A type of this crate that is plain bytes: `repr(C)`, no padding, every bit pattern valid.
#[expect(
    private_bounds,
    reason = "sealed: only this crate knows which of its types are plain"
)]
pub trait Shared: Sealed + Copy + 'static {}

shared! {
    /// The daemon's configuration of the programs; the only entry of `HUB_CONFIG`.
    pub struct Config {
        /// The time at which the daemon last proved that it serves (CLOCK_MONOTONIC).
        pub heartbeat_ns: u64,
        /// The time for which that proof holds.
        pub ttl_ns: u64,
        /// Cookie of the network namespace whose sockets are steered: the daemon's own.
        pub netns: u64,
        /// The daemon's cgroup, if it has one of its own: never steered; 0 = none.
        pub own_cgroup: u64,
        /// [`CONFIG_STEER`] and the others.
        pub flags: u32,
        /// SO_MARK of the daemon's own upstream sockets, never steered; 0 = none.
        pub bypass_mark: u32,
        /// Our address: of an IPv4 one the guard defends the whole /24.
        pub proxy: Address,
        /// The ports of all services and listeners; 0 = none. What is on another port is left alone at once.
        pub ports: [u16; MAX_PORTS],
    }

    /// An IP address. An IPv4 one is IPv4-mapped: `ip` is the address, `prefix` is `::ffff:0:0/96`.
    pub struct Address {
        /// The first twelve bytes.
        pub prefix: [u8; 12],
        /// The last four bytes.
        pub ip: [u8; 4],
    }

    /// The address of a service or of an own listener.
    pub struct ServiceKey {
        pub ip: Address,
        pub port: u16,
        /// Protocol number: [`PROTO_TCP`].
        pub proto: u8,
        /// Always 0: fills the struct, which has no padding.
        pub zero: u8,
    }

    /// The target of an address that is steered, or the marks of an own listener.
    pub struct Service {
        /// Steer to this address.
        pub ip: Address,
        /// Steer to this port.
        pub port: u16,
        /// Slot of `HUB_LISTEN` that must hold a listener.
        pub slot: u16,
        /// [`SERVICE_STEER`] or [`SERVICE_OWN`], the latter perhaps with [`SERVICE_PODS`].
        pub flags: u32,
    }

    /// The caller of a connect(), as the kernel attests it.
    pub struct Ident {
        /// cgroup v2 id: the inode of the directory.
        pub cgroup_id: u64,
        /// Cookie of the network namespace (`SO_NETNS_COOKIE`).
        pub netns: u64,
        /// Cookie of the client's socket (`ss -e` shows it).
        pub cookie: u64,
        /// The time at which connect() was called (CLOCK_MONOTONIC).
        pub connect_ns: u64,
        /// Thread group id in the initial pid namespace.
        pub pid: u32,
        /// User id in the initial user namespace.
        pub uid: u32,
        /// Group id in the initial user namespace.
        pub gid: u32,
        /// SO_MARK of the client's socket.
        pub mark: u32,
        /// The address that was dialled.
        pub orig_ip: Address,
        /// The port that was dialled.
        pub orig_port: u16,
        /// [`IDENT_DIRECT`] and the others.
        pub flags: u16,
        /// Always 0: fills the struct, which has no padding.
        pub zero: u32,
        /// The task's name (`comm`).
        pub comm: [u8; COMM_LEN],
    }

    /// A selection of callers; its value is a verdict.
    pub struct SelectKey {
        /// cgroup id, user id, or network namespace cookie.
        pub value: u64,
        /// [`SELECT_CGROUP`] and the others.
        pub kind: u32,
        /// Always 0: fills the struct, which has no padding.
        pub zero: u32,
    }

    /// A caller and the address that it dialled.
    pub struct FlowKey {
        /// cgroup v2 id: the inode of the directory.
        pub cgroup_id: u64,
        /// The address that was dialled.
        pub ip: Address,
        /// The port that was dialled.
        pub port: u16,
        /// Always 0: fills the struct, which has no padding.
        pub zero: [u8; 6],
    }

    /// The outcome of its connects; one CPU's share.
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    #[cfg_attr(feature = "serde", serde(rename_all = "camelCase"))]
    pub struct FlowCounts {
        /// connect() calls that were steered.
        pub steered: u64,
        /// connect() calls to our own address.
        pub direct: u64,
        /// connect() calls that passed through because steering is off.
        pub off: u64,
        /// connect() calls that passed through because they are the daemon's own.
        pub own: u64,
        /// connect() calls that passed through because nobody selected the caller, or somebody excepted it.
        pub not_selected: u64,
        /// connect() calls that passed through because the daemon hangs (stale heartbeat).
        pub stale: u64,
        /// connect() calls that passed through because the daemon is dead (no listener).
        pub no_listener: u64,
        pub established: u64,
        /// Connections closed, whose bytes are counted.
        pub closed: u64,
        /// Payload bytes that the peer acknowledged (one more for a close by FIN).
        pub bytes_up: u64,
        /// Payload bytes received (one more for a close by the peer's FIN).
        pub bytes_down: u64,
        /// Segments that were retransmitted.
        pub retransmits: u64,
        /// Time from connect() to established, in all, in µs.
        pub latency_us: u64,
        /// Connects by that time ([`LATENCY_BUCKETS`]).
        pub latency: [u64; LATENCY_BUCKETS],
    }

    /// One connection, named alike by both of its ends: the addresses and both initial sequence numbers. The
    /// latter are 64 bits that nobody else knows, so a namespace with the same addresses can't claim a record.
    pub struct JoinKey {
        pub client_ip: Address,
        pub server_ip: Address,
        pub client_port: u16,
        pub server_port: u16,
        /// The client's next sequence number when established.
        pub client_seq: u32,
        /// The server's next sequence number when established.
        pub server_seq: u32,
    }
}

impl Address {
    /// IPv4-mapped, as all IPv4 addresses in the maps.
    pub const fn v4(ip: [u8; 4]) -> Self {
        Self {
            prefix: [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff],
            ip,
        }
    }

    /// Sixteen bytes in network order.
    pub const fn v6(bytes: [u8; 16]) -> Self {
        let (mut prefix, mut ip) = ([0; 12], [0; 4]);
        let mut i = 0;
        while i < 16 {
            if i < 12 {
                prefix[i] = bytes[i];
            } else {
                ip[i - 12] = bytes[i];
            }
            i += 1;
        }
        Self { prefix, ip }
    }

    /// The sixteen bytes in network order.
    pub const fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let mut i = 0;
        while i < 16 {
            bytes[i] = if i < 12 {
                self.prefix[i]
            } else {
                self.ip[i - 12]
            };
            i += 1;
        }
        bytes
    }
}

/// Hash over everything that the programs and user space must agree on; part of the pins' path.
pub const LAYOUT: u64 = {
    let limits = [
        MAX_SERVICES as u64,
        MAX_JOINS as u64,
        MAX_LISTENERS as u64,
        MAX_SELECT as u64,
        MAX_COMMANDS as u64,
        MAX_FLOWS as u64,
        MAX_INTERFACES as u64,
        MAX_PORTS as u64,
        LATENCY_BUCKETS as u64,
    ];
    let mut hash = fnv(
        fnv(0xcbf2_9ce4_8422_2325, TEXT.as_bytes()),
        decision::TEXT.as_bytes(),
    );
    let mut i = 0;
    while i < limits.len() {
        hash = fnv(hash, &limits[i].to_le_bytes());
        i += 1;
    }
    hash
};

/// FNV-1a with 64 bits.
const fn fnv(mut hash: u64, bytes: &[u8]) -> u64 {
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0000_0100_0000_01b3);
        i += 1;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_what_the_maps_are_documented_with() {
        assert_eq!(size_of::<Config>(), 72);
        assert_eq!(size_of::<ServiceKey>(), 20);
        assert_eq!(size_of::<Service>(), 24);
        assert_eq!(size_of::<Ident>(), 88);
        assert_eq!(size_of::<JoinKey>(), 44);
        assert_eq!(size_of::<FlowKey>(), 32);
        assert_eq!(size_of::<FlowCounts>(), 232);
    }

    #[test]
    fn kernel_cuts_no_name() {
        for name in maps::ALL.iter().chain(&programs::ALL) {
            assert!(name.len() <= 15, "{name}");
        }
    }

    #[test]
    fn addresses_are_sixteen_bytes_in_network_order() {
        assert_eq!(
            Address::v4([10, 96, 0, 1]).bytes(),
            [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 255, 255, 10, 96, 0, 1]
        );
        let v6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
        assert_eq!(Address::v6(v6).bytes(), v6);
        assert_eq!(
            Address::v6(Address::v4([1, 2, 3, 4]).bytes()),
            Address::v4([1, 2, 3, 4])
        );
    }

    #[test]
    fn layout_follows_names_types_and_order() {
        let one = fnv(1, b"Ident{pid:u32;uid:u32;}");
        assert_ne!(one, fnv(1, b"Ident{uid:u32;pid:u32;}"));
        assert_ne!(one, fnv(1, b"Ident{pid:u64;uid:u32;}"));
        assert!(TEXT.contains("Ident{cgroup_id:u64;netns:u64;"), "{TEXT}");
    }
}
