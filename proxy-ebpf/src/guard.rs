//! The guard: our addresses are for this node and its pods. In: a packet that looks for a listener, or (XDP) any
//! packet of an uplink. Out: a refusal, or the packet's own way.
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

use crate::connect::{address, config, mapped, service, words};
use crate::stats::count;

#[btf_map]
static HUB_IFACES: HashMap<u32, u32, MAX_INTERFACES> = HashMap::new();

const AF_INET: u32 = 2;
const MAPPED: u32 = 0xffff_u32.to_be();

/// Where a packet is going, as far as it concerns us.
enum To {
    /// Our address, or its /24.
    Ours,
    Loopback,
    Elsewhere,
}

/// A connection (or a datagram) looks for its listener.
#[inline(always)]
pub(crate) fn lookup(ctx: &SkLookupContext) -> u32 {
    let Some(config) = config() else {
        return sk_action::SK_PASS;
    };
    if config.flags & CONFIG_GUARD == 0 {
        return sk_action::SK_PASS;
    }
    let (ip, port, iface) = local(ctx);
    let to = destination(config, &ip);
    if let To::Elsewhere = to {
        return sk_action::SK_PASS;
    }
    // SAFETY: a whole word, replaced as a whole.
    let kind = unsafe { HUB_IFACES.get(&iface) }.copied().unwrap_or(0);
    let refused = match kind {
        IFACE_LOCAL => return sk_action::SK_PASS,
        IFACE_UPLINK => Decision::UplinkRefused,
        _ if may_pods(&to, ip, port) => return sk_action::SK_PASS,
        _ => Decision::PodRefused,
    };
    count(refused);
    sk_action::SK_DROP
}

/// May a pod reach this port?
#[inline(always)]
fn may_pods(to: &To, ip: Address, port: u16) -> bool {
    match service(ip, port) {
        Some(service) if service.flags & SERVICE_OWN != 0 => service.flags & SERVICE_PODS != 0,
        _ => matches!(to, To::Loopback),
    }
}

#[inline(always)]
fn destination(config: &Config, ip: &Address) -> To {
    let (there, ours) = (words(ip), words(&config.proxy));
    if there[0] | there[1] == 0 {
        if there[2] == MAPPED {
            if ip.ip[0] == 127 {
                return To::Loopback;
            }
            let slash_24 = 0xffff_ff00_u32.to_be();
            let near = ours[2] == MAPPED && (there[3] ^ ours[3]) & slash_24 == 0;
            return if near && ours[0] | ours[1] == 0 {
                To::Ours
            } else {
                To::Elsewhere
            };
        }
        if there[2] == 0 && there[3] == 1_u32.to_be() {
            return To::Loopback;
        }
    }
    let differs =
        (there[0] ^ ours[0]) | (there[1] ^ ours[1]) | (there[2] ^ ours[2]) | (there[3] ^ ours[3]);
    if differs == 0 {
        To::Ours
    } else {
        To::Elsewhere
    }
}

/// The address and port that are looked for, and the interface that the packet came by.
#[inline(always)]
fn local(ctx: &SkLookupContext) -> (Address, u16, u32) {
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
                mapped(v4)
            } else {
                address(v6)
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

/// A packet of an uplink: dropped when it is for our addresses or for the loopback.
#[inline(always)]
pub(crate) fn uplink(ctx: &XdpContext) -> u32 {
    let Some(config) = config().filter(|config| config.flags & CONFIG_GUARD != 0) else {
        return xdp_action::XDP_PASS;
    };
    match packet_to(ctx).map(|ip| destination(config, &ip)) {
        Some(To::Ours | To::Loopback) => {
            count(Decision::XdpDropped);
            xdp_action::XDP_DROP
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// The packet's destination; `None` when it is too short or no IP, behind up to two VLAN tags.
#[inline(always)]
fn packet_to(ctx: &XdpContext) -> Option<Address> {
    let mut at = size_of::<Ethernet>();
    let mut kind = read::<u16>(ctx, offset_of!(Ethernet, kind))?;
    for _ in 0..2 {
        if kind == KIND_VLAN[0] || kind == KIND_VLAN[1] {
            kind = read::<u16>(ctx, at + offset_of!(Vlan, kind))?;
            at += size_of::<Vlan>();
        }
    }
    match kind {
        KIND_IPV4 => read::<u32>(ctx, at + offset_of!(Ipv4, to)).map(mapped),
        KIND_IPV6 => read::<[u32; 4]>(ctx, at + offset_of!(Ipv6, to)).map(address),
        _ => None,
    }
}

/// Bytes of the packet, when it has them.
#[inline(always)]
fn read<T: Copy>(ctx: &XdpContext, at: usize) -> Option<T> {
    let begin = ctx.data();
    if begin + at + size_of::<T>() > ctx.data_end() {
        return None;
    }
    // SAFETY: within the packet, as just checked; packets are not aligned.
    Some(unsafe { ptr::read_unaligned((begin + at) as *const T) })
}
