//! Who is calling: from connect() to the accepted socket. In: the client's task at connect(). Out: an [`Ident`]
//! in the socket storage of the accepted socket, which the daemon reads by its descriptor.
//!
//! ```text
//! connect4/6 ──Ident──▶ storage of the client's socket
//!                         │ ACTIVE_ESTABLISHED (before the client's ACK leaves)
//!                         ▼
//!                      HUB_JOIN, by addresses and both sequence numbers
//!                         │ PASSIVE_ESTABLISHED (before accept() returns)
//!                         ▼
//!                      storage of the accepted socket
//! ```

use core::ptr;

use aya_ebpf::bindings::{
    BPF_SK_STORAGE_GET_F_CREATE, BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB,
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, bpf_sock,
};
use aya_ebpf::btf_maps::{LruHashMap, SkStorage};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_netns_cookie, bpf_get_socket_cookie, bpf_ktime_get_ns,
    bpf_sk_storage_get,
};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{SockAddrContext, SockOpsContext};
use hublet_ebpf::{
    Address, Decision, IDENT_ACCEPTED, IDENT_PASSED, Ident, JoinKey, MAX_JOINS, SERVICE_OWN,
};

use crate::audit;
use crate::connect::{address, config, mapped, ours, service};
use crate::stats::count;

#[btf_map]
static HUB_IDENT: SkStorage<Ident> = SkStorage::new();
#[btf_map]
static HUB_JOIN: LruHashMap<JoinKey, Ident, MAX_JOINS> = LruHashMap::new();

const AF_INET: u32 = 2;

/// SO_MARK of the socket that connects.
#[inline(always)]
pub(crate) fn mark(ctx: &SockAddrContext) -> u32 {
    // SAFETY: the hook runs with a socket; the verifier checks the null test.
    unsafe {
        let sk = (*ctx.sock_addr).__bindgen_anon_1.sk;
        if sk.is_null() {
            0
        } else {
            ptr::read_volatile(&raw const (*sk).mark)
        }
    }
}

/// The record of the socket of a [`connect`](crate::connect) or [`peer`](crate::peer) hook, or null.
#[inline(always)]
pub(crate) fn of(ctx: &SockAddrContext) -> *mut Ident {
    HUB_IDENT.get_ptr_mut(ctx)
}

/// Puts the calling task's identity into the storage of the socket that connects; gives its cgroup.
#[inline(always)]
pub(crate) fn remember(ctx: &SockAddrContext, orig_ip: Address, orig_port: u16, flags: u16) -> u64 {
    let (pid, user) = (bpf_get_current_pid_tgid(), bpf_get_current_uid_gid());
    // SAFETY: helpers that read the current task and the context's socket.
    let ident = unsafe {
        Ident {
            cgroup_id: bpf_get_current_cgroup_id(),
            netns: bpf_get_netns_cookie(ctx.sock_addr.cast()),
            cookie: bpf_get_socket_cookie(ctx.sock_addr.cast()),
            connect_ns: bpf_ktime_get_ns(),
            pid: (pid >> 32) as u32,
            uid: user as u32,
            gid: (user >> 32) as u32,
            mark: mark(ctx),
            orig_ip,
            orig_port,
            flags,
            zero: 0,
            comm: bpf_get_current_comm().unwrap_or_default(),
        }
    };
    let stored = HUB_IDENT.get_or_insert_ptr_mut(ctx, None);
    if stored.is_null() {
        count(Decision::NoStorage);
    } else {
        // SAFETY: the socket's own storage; connect() holds the socket's lock. A socket that tries a second
        // address overwrites what it left the first time.
        unsafe { *stored = ident }
    }
    ident.cgroup_id
}

/// The daemon asks for its network namespace's cookie: it dials no address and no port, which nobody else does, and
/// reads what is remembered.
#[inline(always)]
pub(crate) fn nowhere(ctx: &SockAddrContext) {
    // SAFETY: fields of the context.
    let (ip, port) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4),
            ptr::read_volatile(&raw const (*ctx.sock_addr).user_port),
        )
    };
    if ip == 0 && port == 0 {
        remember(ctx, mapped(ip), 0, IDENT_PASSED);
    }
}

/// A callback of a socket: established at either end, or another state of one that is audited.
#[inline(always)]
pub(crate) fn event(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_STATE_CB {
        if let Some(ident) = socket(ctx).and_then(record) {
            audit::state(ctx, ident);
        }
        return;
    }
    if op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return;
    }
    // Nearly every connection of the node ends here.
    let (Some(config), (local, remote)) = (config(), ports(ctx)) else {
        return;
    };
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        if ours(config, remote) {
            hand_over(ctx);
        }
    } else if ours(config, local) {
        take_over(ctx);
    }
}

/// The client's end: from its socket into `HUB_JOIN`.
#[inline(always)]
fn hand_over(ctx: &SockOpsContext) {
    let Some(ident) = socket(ctx).and_then(record) else {
        return;
    };
    audit::established(ctx, ident);
    let (local, remote) = ends(ctx);
    // The socket may have gone elsewhere after a first try at ours.
    if !is_own(remote) {
        return;
    }
    let (snd, rcv) = sequence(ctx);
    let key = JoinKey {
        client_ip: local.0,
        server_ip: remote.0,
        client_port: local.1,
        server_port: remote.1,
        client_seq: snd,
        server_seq: rcv,
    };
    if HUB_JOIN.insert(&key, ident, 0).is_err() {
        count(Decision::JoinFailed);
    }
}

/// The server's end: from `HUB_JOIN` to the accepted socket.
#[inline(always)]
fn take_over(ctx: &SockOpsContext) {
    let (local, remote) = ends(ctx);
    if !is_own(local) {
        return;
    }
    let Some(sk) = socket(ctx) else { return };
    let (snd, rcv) = sequence(ctx);
    let key = JoinKey {
        client_ip: remote.0,
        server_ip: local.0,
        client_port: remote.1,
        server_port: local.1,
        client_seq: rcv,
        server_seq: snd,
    };
    let Some(record) = HUB_JOIN.get_ptr_mut(&key) else {
        count(Decision::JoinMiss);
        return;
    };
    let stored = storage(sk, record, BPF_SK_STORAGE_GET_F_CREATE.into());
    // Taking the record out proves that it was still ours when it was copied: the table is an LRU, and another
    // CPU may have given the entry to someone else meanwhile.
    let ours = HUB_JOIN.remove(&key).is_ok();
    if stored.is_null() || !ours {
        let _gone = HUB_IDENT.delete(sk);
        count(Decision::JoinFailed);
        return;
    }
    // SAFETY: not null; nobody has the accepted socket yet.
    unsafe { (*stored).flags |= IDENT_ACCEPTED }
    count(Decision::Joined);
}

#[inline(always)]
fn storage(sk: *mut bpf_sock, value: *mut Ident, flags: u64) -> *mut Ident {
    // SAFETY: aya's wrapper takes a connect context only; the map and the socket are what the helper wants.
    unsafe {
        bpf_sk_storage_get(
            (&raw const HUB_IDENT).cast_mut().cast(),
            sk.cast(),
            value.cast(),
            flags,
        )
        .cast()
    }
}

/// A socket's record, if it has one.
#[inline(always)]
fn record<'a>(sk: *mut bpf_sock) -> Option<&'a Ident> {
    let ident = storage(sk, ptr::null_mut(), 0);
    // SAFETY: not null, and the socket outlives this callback.
    if ident.is_null() {
        None
    } else {
        Some(unsafe { &*ident })
    }
}

#[inline(always)]
fn socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: a field of the context; null when the socket is not a full one.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

#[inline(always)]
fn is_own(end: (Address, u16)) -> bool {
    service(end.0, end.1).is_some_and(|service| service.flags & SERVICE_OWN != 0)
}

/// Local and remote port.
#[inline(always)]
fn ports(ctx: &SockOpsContext) -> (u16, u16) {
    // SAFETY: fields of the context.
    unsafe {
        let local = ptr::read_volatile(&raw const (*ctx.ops).local_port);
        let remote = ptr::read_volatile(&raw const (*ctx.ops).remote_port);
        (local as u16, u32::from_be(remote) as u16)
    }
}

/// Local and remote address and port.
#[inline(always)]
fn ends(ctx: &SockOpsContext) -> ((Address, u16), (Address, u16)) {
    let ops = ctx.ops;
    let (local_port, remote_port) = ports(ctx);
    // SAFETY: fields of the context. All are read before one is chosen: LLVM would otherwise choose between
    // pointers into the context, which the verifier refuses.
    unsafe {
        let family = ptr::read_volatile(&raw const (*ops).family);
        let (local4, remote4) = (
            ptr::read_volatile(&raw const (*ops).local_ip4),
            ptr::read_volatile(&raw const (*ops).remote_ip4),
        );
        let local6 = [
            ptr::read_volatile(&raw const (*ops).local_ip6[0]),
            ptr::read_volatile(&raw const (*ops).local_ip6[1]),
            ptr::read_volatile(&raw const (*ops).local_ip6[2]),
            ptr::read_volatile(&raw const (*ops).local_ip6[3]),
        ];
        let remote6 = [
            ptr::read_volatile(&raw const (*ops).remote_ip6[0]),
            ptr::read_volatile(&raw const (*ops).remote_ip6[1]),
            ptr::read_volatile(&raw const (*ops).remote_ip6[2]),
            ptr::read_volatile(&raw const (*ops).remote_ip6[3]),
        ];
        let (local, remote) = if family == AF_INET {
            (mapped(local4), mapped(remote4))
        } else {
            (address(local6), address(remote6))
        };
        ((local, local_port), (remote, remote_port))
    }
}

/// Next sequence numbers to send and to receive.
#[inline(always)]
fn sequence(ctx: &SockOpsContext) -> (u32, u32) {
    // SAFETY: fields of the context.
    unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).snd_nxt),
            ptr::read_volatile(&raw const (*ctx.ops).rcv_nxt),
        )
    }
}
