//! The program list of hublet's BPF object (built for `bpfel-unknown-none`; an empty program elsewhere).
//!
//! | program | section | job | Linux |
//! |---|---|---|---|
//! | `hub_connect4` | `cgroup/connect4` | steers or passes a connect(), records the caller ([`connect`]) | 5.8 |
//! | `hub_connect6` | `cgroup/connect6` | the same for IPv6 sockets, also those that dial an IPv4-mapped address | 5.8 |
//! | `hub_sockops` | `sockops` | hands the record to the accepted socket ([`identity`]), counts ([`flows`]) | 5.8 |
//! | `hub_getpeer4`, `6` | `cgroup/getpeername4`, `6` | shows a steered client the address that it dialled ([`peer`]) | 5.8 |
//! | `hub_lookup` | `sk_lookup` | refuses packets that must not reach hublet's addresses ([`guard`]) | 5.17 |
//! | `hub_xdp` | `xdp` | the same on uplinks that the user names | 5.9 |
//! | `hub_netns` | `cgroup/connect4` | tells the daemon its network namespace at the start ([`identity`]) | 5.8, unused since 5.14 |
//!
//! No program refuses a connect(): when anything is wrong, it goes to the address that the client asked for.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(unsafe_code, reason = "context and map access of BPF programs")
)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod flows;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod identity;
#[cfg(target_arch = "bpf")]
mod maps;
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

    /// Lets the call go on; 0 would be EPERM, which no program here returns.
    const ALLOW: i32 = 1;

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn hub_connect4(ctx: SockAddrContext) -> i32 {
        crate::connect::steer_ipv4(&ctx);
        ALLOW
    }

    #[cgroup_sock_addr(connect6)]
    pub(crate) fn hub_connect6(ctx: SockAddrContext) -> i32 {
        crate::connect::steer_ipv6(&ctx);
        ALLOW
    }

    #[sock_ops]
    pub(crate) fn hub_sockops(ctx: SockOpsContext) -> u32 {
        crate::identity::handle_event(&ctx);
        0
    }

    #[cgroup_sock_addr(getpeername4)]
    pub(crate) fn hub_getpeer4(ctx: SockAddrContext) -> i32 {
        crate::peer::restore_ipv4(&ctx);
        ALLOW
    }

    #[cgroup_sock_addr(getpeername6)]
    pub(crate) fn hub_getpeer6(ctx: SockAddrContext) -> i32 {
        crate::peer::restore_ipv6(&ctx);
        ALLOW
    }

    #[sk_lookup]
    pub(crate) fn hub_lookup(ctx: SkLookupContext) -> u32 {
        crate::guard::filter_lookup(&ctx)
    }

    #[xdp]
    pub(crate) fn hub_xdp(ctx: XdpContext) -> u32 {
        crate::guard::filter_packet(&ctx)
    }

    #[cgroup_sock_addr(connect4)]
    pub(crate) fn hub_netns(ctx: SockAddrContext) -> i32 {
        crate::identity::record_netns_probe(&ctx);
        ALLOW
    }
}

/// `bpf_sk_storage_get` and others are for GPL-compatible programs only; this crate is Apache-2.0 OR GPL-2.0-only.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
