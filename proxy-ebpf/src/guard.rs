//! The guard: hublet's addresses are for this node and its pods. `hub_lookup` judges each new connection (Linux 5.17,
//! whose sk_lookup context has the interface); `hub_xdp` drops packets on an uplink (Linux 5.9, for the link).
//!
//! | from | to our /24 | to 127/8, ::1 |
//! |---|---|---|
//! | this node (`lo`, our link) | yes | yes |
//! | a pod (whatever is not known) | ports for pods | but for our ports |
//! | an uplink | no | no |

use core::mem::offset_of;
use core::ptr;

use aya_ebpf::bindings::{sk_action, xdp_action};
use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{SkLookupContext, XdpContext};
use hublet_ebpf::{
    Address, CONFIG_GUARD, Config, Decision, IFACE_LOCAL, IFACE_UPLINK, MAX_INTERFACES,
    SERVICE_OWN, SERVICE_PODS,
};

use crate::maps::{
    AF_INET, MAPPED, address_from_words, address_words, config, find_service, ipv4_mapped,
};
use crate::stats::count;

#[btf_map]
static HUB_IFACES: HashMap<u32, u32, MAX_INTERFACES> = HashMap::new();

enum Destination {
    /// Our address, or its /24.
    Ours,
    Loopback,
    Elsewhere,
}

/// Judges a connection (or a datagram) that looks for its listener.
#[inline(always)]
pub(crate) fn filter_lookup(ctx: &SkLookupContext) -> u32 {
    let Some(config) = config() else {
        return sk_action::SK_PASS;
    };
    if config.flags & CONFIG_GUARD == 0 {
        return sk_action::SK_PASS;
    }
    let (ip, port, iface) = lookup_target(ctx);
    let to = classify_destination(config, &ip);
    if let Destination::Elsewhere = to {
        return sk_action::SK_PASS;
    }
    // SAFETY: a whole word, replaced as a whole.
    let kind = unsafe { HUB_IFACES.get(&iface) }.copied().unwrap_or(0);
    let refused = match kind {
        IFACE_LOCAL => return sk_action::SK_PASS,
        IFACE_UPLINK => Decision::UplinkRefused,
        _ if pods_allowed(&to, ip, port) => return sk_action::SK_PASS,
        _ => Decision::PodRefused,
    };
    count(refused);
    sk_action::SK_DROP
}

#[inline(always)]
fn pods_allowed(to: &Destination, ip: Address, port: u16) -> bool {
    match find_service(ip, port) {
        Some(service) if service.flags & SERVICE_OWN != 0 => service.flags & SERVICE_PODS != 0,
        _ => matches!(to, Destination::Loopback),
    }
}

#[inline(always)]
fn classify_destination(config: &Config, ip: &Address) -> Destination {
    let (there, ours) = (address_words(ip), address_words(&config.proxy));
    if there[0] | there[1] == 0 {
        if there[2] == MAPPED {
            if ip.ip[0] == 127 {
                return Destination::Loopback;
            }
            let slash_24 = 0xffff_ff00_u32.to_be();
            let near = ours[2] == MAPPED && (there[3] ^ ours[3]) & slash_24 == 0;
            return if near && ours[0] | ours[1] == 0 {
                Destination::Ours
            } else {
                Destination::Elsewhere
            };
        }
        if there[2] == 0 && there[3] == 1_u32.to_be() {
            return Destination::Loopback;
        }
    }
    let differs =
        (there[0] ^ ours[0]) | (there[1] ^ ours[1]) | (there[2] ^ ours[2]) | (there[3] ^ ours[3]);
    if differs == 0 {
        Destination::Ours
    } else {
        Destination::Elsewhere
    }
}

/// The address and port that are looked for, and the interface that the packet came by.
#[inline(always)]
fn lookup_target(ctx: &SkLookupContext) -> (Address, u16, u32) {
    let lookup = ctx.lookup;
    // SAFETY: fields of the context, all read before one is chosen.
    unsafe {
        let family = ptr::read_volatile(&raw const (*lookup).family);
        let v4 = ptr::read_volatile(&raw const (*lookup).local_ip4);
        let v6 = [
            ptr::read_volatile(&raw const (*lookup).local_ip6[0]),
            ptr::read_volatile(&raw const (*lookup).local_ip6[1]),
            ptr::read_volatile(&raw const (*lookup).local_ip6[2]),
            ptr::read_volatile(&raw const (*lookup).local_ip6[3]),
        ];
        let port = ptr::read_volatile(&raw const (*lookup).local_port);
        let iface = ptr::read_volatile(&raw const (*lookup).ingress_ifindex);
        (
            if family == AF_INET {
                ipv4_mapped(v4)
            } else {
                address_from_words(v6)
            },
            port as u16,
            iface,
        )
    }
}

#[repr(C)]
struct Ethernet {
    to: [u8; 6],
    from: [u8; 6],
    kind: u16,
}

/// A VLAN tag behind the addresses.
#[repr(C)]
struct Vlan {
    tag: u16,
    kind: u16,
}

#[repr(C, packed(2))]
struct Ipv4 {
    head: [u8; 16],
    to: u32,
}

#[repr(C, packed(2))]
struct Ipv6 {
    head: [u8; 24],
    to: [u32; 4],
}

const KIND_IPV4: u16 = 0x0800_u16.to_be();
const KIND_IPV6: u16 = 0x86dd_u16.to_be();
const KIND_VLAN: [u16; 2] = [0x8100_u16.to_be(), 0x88a8_u16.to_be()];

/// Drops a packet of an uplink to our addresses or to the loopback.
#[inline(always)]
pub(crate) fn filter_packet(ctx: &XdpContext) -> u32 {
    let Some(config) = config().filter(|config| config.flags & CONFIG_GUARD != 0) else {
        return xdp_action::XDP_PASS;
    };
    match packet_destination(ctx).map(|ip| classify_destination(config, &ip)) {
        Some(Destination::Ours | Destination::Loopback) => {
            count(Decision::XdpDropped);
            xdp_action::XDP_DROP
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// The packet's destination; `None` when it is too short or no IP, behind up to two VLAN tags.
#[inline(always)]
fn packet_destination(ctx: &XdpContext) -> Option<Address> {
    let mut at = size_of::<Ethernet>();
    let mut kind = read_packet::<u16>(ctx, offset_of!(Ethernet, kind))?;
    for _ in 0..2 {
        if kind == KIND_VLAN[0] || kind == KIND_VLAN[1] {
            kind = read_packet::<u16>(ctx, at + offset_of!(Vlan, kind))?;
            at += size_of::<Vlan>();
        }
    }
    match kind {
        KIND_IPV4 => read_packet::<u32>(ctx, at + offset_of!(Ipv4, to)).map(ipv4_mapped),
        KIND_IPV6 => {
            read_packet::<[u32; 4]>(ctx, at + offset_of!(Ipv6, to)).map(address_from_words)
        }
        _ => None,
    }
}

/// `None` beyond the end of the packet.
#[inline(always)]
fn read_packet<T: Copy>(ctx: &XdpContext, at: usize) -> Option<T> {
    let begin = ctx.data();
    if begin + at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, as just checked; packets are not aligned.
    Some(unsafe { ptr::read_unaligned((begin + at) as *const T) })
}
