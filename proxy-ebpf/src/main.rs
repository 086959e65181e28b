//! The program list of hublet's BPF object (built for `bpfel-unknown-none`; an empty program elsewhere).
//!
//! | program | section | job |
//! |---|---|---|
//! | `hub_connect4` | `cgroup/connect4` | steer, or let pass; remember who called ([`connect`]) |
//! | `hub_connect6` | `cgroup/connect6` | the same for IPv6 sockets that dial an IPv4-mapped address |
//! | `hub_sockops` | `sockops` | hand what was remembered to the accepted socket ([`identity`]) |
//!
//! Nothing here refuses a connection: whatever is wrong, connect() goes where the client asked for.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", allow(unsafe_code, reason = "context and map access of BPF programs"))]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod identity;
#[cfg(target_arch = "bpf")]
mod stats;

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
mod list {
    //! Section names and symbols; the symbols are what bpftool shows.
    use aya_ebpf::macros::{cgroup_sock_addr, sock_ops};
    use aya_ebpf::programs::{SockAddrContext, SockOpsContext};

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
        crate::identity::established(&ctx);
        0
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
