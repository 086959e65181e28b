//! `hub_getpeer4` and `hub_getpeer6` (optional, `--getpeername`): a steered client sees the address that it dialled as
//! its peer's. Linux 5.8 or later.

use core::ptr;

use aya_ebpf::programs::SockAddrContext;
use hublet_ebpf::{IDENT_ACCEPTED, IDENT_STEERED, Ident};

use crate::identity;
use crate::maps::address_words;

#[inline(always)]
pub(crate) fn restore_ipv4(ctx: &SockAddrContext) {
    let Some(ident) = steered_ident(ctx) else {
        return;
    };
    let addr = ctx.sock_addr;
    // SAFETY: as in `connect::steer_ipv4`.
    unsafe {
        ptr::write_volatile(
            &raw mut (*addr).user_ip4,
            u32::from_ne_bytes(ident.orig_ip.ip),
        );
        ptr::write_volatile(
            &raw mut (*addr).user_port,
            u32::from(ident.orig_port.to_be()),
        );
    }
}

#[inline(always)]
pub(crate) fn restore_ipv6(ctx: &SockAddrContext) {
    let Some(ident) = steered_ident(ctx) else {
        return;
    };
    let (addr, ip) = (ctx.sock_addr, address_words(&ident.orig_ip));
    // SAFETY: as in `connect::steer_ipv6`.
    unsafe {
        ptr::write_volatile(&raw mut (*addr).user_ip6[0], ip[0]);
        ptr::write_volatile(&raw mut (*addr).user_ip6[1], ip[1]);
        ptr::write_volatile(&raw mut (*addr).user_ip6[2], ip[2]);
        ptr::write_volatile(&raw mut (*addr).user_ip6[3], ip[3]);
        ptr::write_volatile(
            &raw mut (*addr).user_port,
            u32::from(ident.orig_port.to_be()),
        );
    }
}

/// The hook also runs for accept() and getpeername() on the server's side, whose records are marked as accepted.
#[inline(always)]
fn steered_ident<'a>(ctx: &SockAddrContext) -> Option<&'a Ident> {
    let ident = identity::peer_ident(ctx);
    if ident.is_null() {
        return None;
    }
    // SAFETY: not null; the socket outlives this call.
    let ident = unsafe { &*ident };
    (ident.flags & (IDENT_STEERED | IDENT_ACCEPTED) == IDENT_STEERED).then_some(ident)
}
