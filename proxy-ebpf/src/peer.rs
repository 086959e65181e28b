//! getpeername(): a steered client sees the address that it dialled. Off unless wanted. In: the address that the
//! kernel would tell. Out: the one that the client knows.

use core::ptr;

use aya_ebpf::programs::SockAddrContext;
use hublet_ebpf::{IDENT_ACCEPTED, IDENT_STEERED, Ident};

use crate::connect::words;
use crate::identity;

/// An IPv4 socket.
#[inline(always)]
pub(crate) fn ipv4(ctx: &SockAddrContext) {
    let Some(ident) = steered(ctx) else { return };
    let addr = ctx.sock_addr;
    // SAFETY: as in `connect::ipv4`.
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

/// An IPv6 socket.
#[inline(always)]
pub(crate) fn ipv6(ctx: &SockAddrContext) {
    let Some(ident) = steered(ctx) else { return };
    let (addr, ip) = (ctx.sock_addr, words(&ident.orig_ip));
    // SAFETY: as in `connect::ipv6`.
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

/// The hook runs for accept() and getpeername() on the server's side, too: its record is marked.
#[inline(always)]
fn steered<'a>(ctx: &SockAddrContext) -> Option<&'a Ident> {
    let ident = identity::of(ctx);
    if ident.is_null() {
        return None;
    }
    // SAFETY: not null; the socket outlives this call.
    let ident = unsafe { &*ident };
    (ident.flags & (IDENT_STEERED | IDENT_ACCEPTED) == IDENT_STEERED).then_some(ident)
}
