//! `hub_connect4` and `hub_connect6`: rewrite a connect() to a service so that it reaches hublet's listener, and record
//! the caller. Linux 5.8 or later (listener in a sockmap, `bpf_get_netns_cookie`, cgroup links).
//!
//! They fail open twice over: the address stays as it was while no listener is in its slot (the daemon is dead) and
//! while the heartbeat is stale (the daemon hangs).

use core::ptr;

use aya_ebpf::btf_maps::SockMap;
use aya_ebpf::helpers::generated::{
    bpf_get_netns_cookie, bpf_ktime_get_ns, bpf_map_lookup_elem, bpf_sk_release,
};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockAddrContext;
use hublet_ebpf::{
    Address, CONFIG_STEER, Config, Decision, IDENT_DIRECT, IDENT_PASSED, IDENT_STEERED,
    MAX_LISTENERS, PROTO_TCP, SERVICE_OWN, Service,
};

use crate::maps::{
    MAPPED, address_from_words, address_words, config, find_service, ipv4_mapped, is_port_used,
};
use crate::stats::count;
use crate::{flows, identity, select};

#[btf_map]
static HUB_LISTEN: SockMap<MAX_LISTENERS> = SockMap::new();

const SOCK_STREAM: u32 = 1;

#[inline(always)]
pub(crate) fn steer_ipv4(ctx: &SockAddrContext) {
    let addr = ctx.sock_addr;
    // SAFETY: the context is valid for the program's run; volatile keeps LLVM from merging or widening the
    // accesses, which the verifier refuses on a context.
    unsafe {
        let ip = ptr::read_volatile(&raw const (*addr).user_ip4);
        if let Some(service) = choose_target(ctx, ipv4_mapped(ip)) {
            ptr::write_volatile(&raw mut (*addr).user_ip4, u32::from_ne_bytes(service.ip.ip));
            ptr::write_volatile(&raw mut (*addr).user_port, u32::from(service.port.to_be()));
        }
    }
}

/// Also for sockets that dial an IPv4-mapped address, as Java and some C clients do.
#[inline(always)]
pub(crate) fn steer_ipv6(ctx: &SockAddrContext) {
    let addr = ctx.sock_addr;
    // SAFETY: as above.
    unsafe {
        let ip = address_from_words([
            ptr::read_volatile(&raw const (*addr).user_ip6[0]),
            ptr::read_volatile(&raw const (*addr).user_ip6[1]),
            ptr::read_volatile(&raw const (*addr).user_ip6[2]),
            ptr::read_volatile(&raw const (*addr).user_ip6[3]),
        ]);
        if let Some(service) = choose_target(ctx, ip) {
            let to = address_words(&service.ip);
            ptr::write_volatile(&raw mut (*addr).user_ip6[0], to[0]);
            ptr::write_volatile(&raw mut (*addr).user_ip6[1], to[1]);
            ptr::write_volatile(&raw mut (*addr).user_ip6[2], to[2]);
            ptr::write_volatile(&raw mut (*addr).user_ip6[3], to[3]);
            ptr::write_volatile(&raw mut (*addr).user_port, u32::from(service.port.to_be()));
        }
    }
}

/// Decides, counts, and records the caller. `Some` is the address to go to instead.
#[inline(always)]
fn choose_target(ctx: &SockAddrContext, ip: Address) -> Option<&'static Service> {
    // SAFETY: as in `steer_ipv4`.
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
        .filter(|port| is_port_used(config, *port))
        .and_then(|port| find_service(ip, port))
    else {
        count(Decision::NoService);
        return None;
    };
    // SAFETY: a helper that reads the context's socket.
    let netns = unsafe { bpf_get_netns_cookie(ctx.sock_addr.cast()) };
    let decision = if service.flags & SERVICE_OWN != 0 {
        // In another network namespace a loopback address is not ours.
        if netns != config.netns && is_loopback(&ip) {
            return None;
        }
        Decision::Direct
    } else {
        decide(ctx, config, service, netns)
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
    let cgroup = identity::record_caller(ctx, ip, port, flags);
    flows::count_connect(cgroup, ip, port, decision);
    if decision == Decision::Steered {
        Some(service)
    } else {
        None
    }
}

/// True for 127/8 and ::1.
#[inline(always)]
fn is_loopback(ip: &Address) -> bool {
    let words = address_words(ip);
    let v4 = words[2] == MAPPED && ip.ip[0] == 127;
    words[0] | words[1] == 0 && (v4 || (words[2] == 0 && words[3] == 1_u32.to_be()))
}

/// The decision on a connect() to a service.
#[inline(always)]
fn decide(ctx: &SockAddrContext, config: &Config, service: &Service, netns: u64) -> Decision {
    if config.flags & CONFIG_STEER == 0 {
        return Decision::Off;
    }
    if config.bypass_mark != 0 && identity::socket_mark(ctx) == config.bypass_mark {
        return Decision::Marked;
    }
    if let Some(refusal) = select::refusal(config, netns) {
        return refusal;
    }
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now.wrapping_sub(config.heartbeat_ns) > config.ttl_ns {
        return Decision::Stale;
    }
    if has_listener(u32::from(service.slot)) {
        Decision::Steered
    } else {
        Decision::NoListener
    }
}

/// True while the slot holds a listener; the kernel empties it when the last descriptor closes.
#[inline(always)]
fn has_listener(slot: u32) -> bool {
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
