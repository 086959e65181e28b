//! connect(): where does this socket go? In: the address that a process dials. Out: the same, or our listener's
//! address; who it was ([`identity::remember`]), for the accepted side and for the audit.
//!
//! Fails open twice over: without a listener in its slot (the daemon died) or with a stale heartbeat (it hangs)
//! the address stays as it was.

use core::ptr;

use aya_ebpf::btf_maps::{Array, HashMap, SockMap};
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use hublet_ebpf::{
    Address, CONFIG_STEER, Config, Decision, IDENT_DIRECT, IDENT_PASSED, IDENT_STEERED,
    MAX_LISTENERS, MAX_SERVICES, PROTO_TCP, SERVICE_OWN, Service, ServiceKey,
};

use crate::stats::count;
use crate::{audit, identity, select};

#[btf_map]
static HUB_CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static HUB_SERVICES: HashMap<ServiceKey, Service, MAX_SERVICES> = HashMap::new();
#[btf_map]
static HUB_LISTEN: SockMap<MAX_LISTENERS> = SockMap::new();

const SOCK_STREAM: u32 = 1;
/// `::ffff:0:0/96` in network order.
const MAPPED: u32 = 0xffff_u32.to_be();

/// An IPv4 socket.
#[inline(always)]
pub(crate) fn ipv4(ctx: &SockAddrContext) {
    let addr = ctx.sock_addr;
    // SAFETY: the context is valid for the program's run; volatile keeps LLVM from merging or widening the
    // accesses, which the verifier refuses on a context.
    unsafe {
        let ip = ptr::read_volatile(&raw const (*addr).user_ip4);
        if let Some(service) = decide(ctx, mapped(ip)) {
            ptr::write_volatile(&raw mut (*addr).user_ip4, u32::from_ne_bytes(service.ip.ip));
            ptr::write_volatile(&raw mut (*addr).user_port, u32::from(service.port.to_be()));
        }
    }
}

/// An IPv6 socket; also one that dials an IPv4-mapped address (Java and some C clients do).
#[inline(always)]
pub(crate) fn ipv6(ctx: &SockAddrContext) {
    let addr = ctx.sock_addr;
    // SAFETY: as above.
    unsafe {
        let ip = address([
            ptr::read_volatile(&raw const (*addr).user_ip6[0]),
            ptr::read_volatile(&raw const (*addr).user_ip6[1]),
            ptr::read_volatile(&raw const (*addr).user_ip6[2]),
            ptr::read_volatile(&raw const (*addr).user_ip6[3]),
        ]);
        if let Some(service) = decide(ctx, ip) {
            let to = words(&service.ip);
            ptr::write_volatile(&raw mut (*addr).user_ip6[0], to[0]);
            ptr::write_volatile(&raw mut (*addr).user_ip6[1], to[1]);
            ptr::write_volatile(&raw mut (*addr).user_ip6[2], to[2]);
            ptr::write_volatile(&raw mut (*addr).user_ip6[3], to[3]);
            ptr::write_volatile(&raw mut (*addr).user_port, u32::from(service.port.to_be()));
        }
    }
}

/// What the daemon told us.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    HUB_CONFIG.get(0)
}

/// Four words as the kernel holds them, in network order.
#[inline(always)]
pub(crate) fn address(words: [u32; 4]) -> Address {
    // SAFETY: both are sixteen plain bytes.
    unsafe { core::mem::transmute(words) }
}

/// The IPv4-mapped form of an IPv4 address in network order.
#[inline(always)]
pub(crate) fn mapped(ip: u32) -> Address {
    address([0, 0, MAPPED, ip])
}

/// An address as the kernel holds it.
#[inline(always)]
pub(crate) fn words(ip: &Address) -> [u32; 4] {
    // SAFETY: both are sixteen plain bytes.
    unsafe { core::mem::transmute(*ip) }
}

/// Could anything of ours be on this port?
#[inline(always)]
pub(crate) fn ours(config: &Config, port: u16) -> bool {
    let mut found = false;
    for ours in &config.ports {
        found |= *ours == port;
    }
    found && port != 0
}

/// The service at an address, if it is one of ours.
#[inline(always)]
pub(crate) fn service(ip: Address, port: u16) -> Option<&'static Service> {
    let key = ServiceKey {
        ip,
        port,
        proto: PROTO_TCP,
        zero: 0,
    };
    // SAFETY: the daemon replaces an entry as a whole; the kernel frees the old one after the last reader.
    unsafe { HUB_SERVICES.get(&key) }
}

/// Decides, counts, and remembers the caller. `Some` = go there instead.
#[inline(always)]
fn decide(ctx: &SockAddrContext, ip: Address) -> Option<&'static Service> {
    // SAFETY: as in `ipv4`.
    let (kind, protocol, port) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.sock_addr).type_),
            ptr::read_volatile(&raw const (*ctx.sock_addr).protocol),
            ptr::read_volatile(&raw const (*ctx.sock_addr).user_port),
        )
    };
    if kind != SOCK_STREAM || protocol != u32::from(PROTO_TCP) {
        return None;
    }
    count(Decision::Seen);
    let config = config()?;
    let port = u16::from_be(port as u16);
    let Some(service) = Some(port)
        .filter(|port| ours(config, *port))
        .and_then(|port| service(ip, port))
    else {
        count(Decision::NoService);
        return None;
    };
    // SAFETY: a helper that reads the context's socket.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let decision = if service.flags & SERVICE_OWN != 0 {
        // A loopback address means ours only in our own network namespace.
        if netns != config.netns && is_loopback(&ip) {
            return None;
        }
        Decision::Direct
    } else {
        judge(ctx, config, service, netns)
    };
    count(decision);
    #[cfg(feature = "log")]
    aya_log_ebpf::debug!(
        ctx,
        "connect to {:i}:{}: {}",
        ip.bytes(),
        port,
        decision.name()
    );
    let flags = match decision {
        Decision::Direct => IDENT_DIRECT,
        Decision::Steered => IDENT_STEERED,
        _ => IDENT_PASSED,
    };
    let cgroup = identity::remember(ctx, ip, port, flags);
    audit::decided(cgroup, ip, port, decision);
    if decision == Decision::Steered {
        Some(service)
    } else {
        None
    }
}

/// 127/8 or ::1.
#[inline(always)]
fn is_loopback(ip: &Address) -> bool {
    let words = words(ip);
    let v4 = words[2] == MAPPED && ip.ip[0] == 127;
    words[0] | words[1] == 0 && (v4 || (words[2] == 0 && words[3] == 1_u32.to_be()))
}

/// May this call be steered?
#[inline(always)]
fn judge(ctx: &SockAddrContext, config: &Config, service: &Service, netns: u64) -> Decision {
    if config.flags & CONFIG_STEER == 0 {
        return Decision::Off;
    }
    if config.bypass_mark != 0 && identity::mark(ctx) == config.bypass_mark {
        return Decision::Marked;
    }
    if let Some(not) = select::refuses(config, netns) {
        return not;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(config.heartbeat_ns) > config.ttl_ns {
        return Decision::Stale;
    }
    if listening(u32::from(service.slot)) {
        Decision::Steered
    } else {
        Decision::NoListener
    }
}

/// Does the slot hold a listener? The kernel takes it out when its last descriptor closes.
#[inline(always)]
fn listening(slot: u32) -> bool {
    // SAFETY: a lookup in a sockmap gives a referenced socket or null; the reference is given back at once.
    unsafe {
        let sock = bpf_map_lookup_elem(
            (&raw const HUB_LISTEN).cast_mut().cast(),
            (&raw const slot).cast(),
        );
        if sock.is_null() {
            return false;
        }
        bpf_sk_release(sock);
    }
    true
}
