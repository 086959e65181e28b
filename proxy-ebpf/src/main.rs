//! The program list of hublet's BPF object (built for `bpfel-unknown-none`; an empty program elsewhere).
//!
//! | program | section | job |
//! |---|---|---|
//! | `hub_connect4` | `cgroup/connect4` | steer, or let pass; remember who called ([`connect`]) |
//! | `hub_connect6` | `cgroup/connect6` | the same for IPv6 sockets, those among them that dial an IPv4-mapped address |
//! | `hub_sockops` | `sockops` | hand what was remembered to the accepted socket ([`identity`]); [`audit`] |
//! | `hub_getpeer4`, `6` | `cgroup/getpeername4`, `6` | show a steered client the address that it dialled ([`peer`]) |
//! | `hub_lookup` | `sk_lookup` | refuse who has no business with our addresses ([`guard`]; Linux 5.17) |
//! | `hub_xdp` | `xdp` | the same on uplinks that the user names |
//! | `hub_netns` | `cgroup/connect4` | at the daemon's start, tell it its network namespace ([`identity`]; before 5.14) |
//!
//! connect() itself is never refused: whatever is wrong, it goes where the client asked for.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "context and map access of BPF programs")
)]

#[cfg(target_arch = "bpf")]
mod audit;
#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod identity;
#[cfg(target_arch = "bpf")]
mod peer;
#[cfg(target_arch = "bpf")]
mod select;
#[cfg(target_arch = "bpf")]
mod stats;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod list {
    //! Section names and symbols; the symbols are what bpftool shows.
    use aya_ebpf::macros::{cgroup_sock_addr, sk_lookup, sock_ops, xdp};
    use aya_ebpf::programs::{SkLookupContext, SockAddrContext, SockOpsContext, XdpContext};

    /// connect()'s hook: 1 lets the call go on, 0 would be EPERM. We never say 0.
    const GO_ON: i32 = 1;

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn hub_connect4(ctx: SockAddrContext) -> i32 {
        crate::connect::ipv4(&ctx);
        GO_ON
    }

    #[cgroup_sock_addr(connect6)]
    pub(crate) fn hub_connect6(ctx: SockAddrContext) -> i32 {
        crate::connect::ipv6(&ctx);
        GO_ON
    }

    #[sock_ops]
    pub(crate) fn hub_sockops(ctx: SockOpsContext) -> u32 {
        crate::identity::event(&ctx);
        0
    }

    #[cgroup_sock_addr(getpeername4)]
    pub(crate) fn hub_getpeer4(ctx: SockAddrContext) -> i32 {
        crate::peer::ipv4(&ctx);
        GO_ON
    }

    #[cgroup_sock_addr(getpeername6)]
    pub(crate) fn hub_getpeer6(ctx: SockAddrContext) -> i32 {
        crate::peer::ipv6(&ctx);
        GO_ON
    }

    #[sk_lookup]
    pub(crate) fn hub_lookup(ctx: SkLookupContext) -> u32 {
        crate::guard::lookup(&ctx)
    }

    #[xdp]
    pub(crate) fn hub_xdp(ctx: XdpContext) -> u32 {
        crate::guard::uplink(&ctx)
    }

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn hub_netns(ctx: SockAddrContext) -> i32 {
        crate::identity::nowhere(&ctx);
        GO_ON
    }
}

/// `bpf_sk_storage_get` and friends are for GPL-compatible programs only; this crate is dual-licensed.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
