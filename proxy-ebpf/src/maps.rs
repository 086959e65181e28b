//! Maps and address forms that several programs share: the daemon's configuration and the services.

use aya_ebpf::btf_maps::{Array, HashMap};
use aya_ebpf::macros::btf_map;
use hublet_ebpf::{Address, Config, MAX_SERVICES, PROTO_TCP, SERVICE_OWN, Service, ServiceKey};

#[btf_map]
static HUB_CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static HUB_SERVICES: HashMap<ServiceKey, Service, MAX_SERVICES> = HashMap::new();

pub(crate) const AF_INET: u32 = 2;
/// Third word of an IPv4-mapped address (`::ffff:0:0/96`), in network order.
pub(crate) const MAPPED: u32 = 0xffff_u32.to_be();

/// The daemon's configuration; `None` never happens, but the verifier wants the test.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    HUB_CONFIG.get(0)
}

/// True if a service or a listener may be on this port: spares all other connects the lookup.
#[inline(always)]
pub(crate) fn is_port_used(config: &Config, port: u16) -> bool {
    let mut found = false;
    for used in &config.ports {
        found |= *used == port;
    }
    found && port != 0
}

/// The service or own listener at an address.
#[inline(always)]
pub(crate) fn find_service(ip: Address, port: u16) -> Option<&'static Service> {
    let key = ServiceKey {
        ip,
        port,
        proto: PROTO_TCP,
        zero: 0,
    };
    // SAFETY: the daemon replaces an entry as a whole; the kernel frees the old one after the last reader.
    unsafe { HUB_SERVICES.get(&key) }
}

/// True for the address of one of hublet's own listeners.
#[inline(always)]
pub(crate) fn is_own_listener(ip: Address, port: u16) -> bool {
    find_service(ip, port).is_some_and(|service| service.flags & SERVICE_OWN != 0)
}

/// From four words in network order, as contexts hold an IPv6 address.
#[inline(always)]
pub(crate) fn address_from_words(words: [u32; 4]) -> Address {
    // SAFETY: both are sixteen plain bytes.
    unsafe { core::mem::transmute(words) }
}

/// The IPv4-mapped form of an IPv4 address in network order.
#[inline(always)]
pub(crate) fn ipv4_mapped(ip: u32) -> Address {
    address_from_words([0, 0, MAPPED, ip])
}

/// Four words in network order, as contexts hold an IPv6 address.
#[inline(always)]
pub(crate) fn address_words(ip: &Address) -> [u32; 4] {
    // SAFETY: both are sixteen plain bytes.
    unsafe { core::mem::transmute(*ip) }
}
