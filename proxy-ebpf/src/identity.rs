//! `hub_sockops` hands the caller's identity from its socket to the accepted one, where the daemon reads it by the
//! socket's descriptor. Linux 5.8 or later. `hub_netns`, before Linux 5.14, tells the daemon its own network namespace.
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
use hublet_ebpf::{Address, Decision, IDENT_ACCEPTED, IDENT_PASSED, Ident, JoinKey, MAX_JOINS};

use crate::flows;
use crate::maps::{
    AF_INET, address_from_words, config, ipv4_mapped, is_own_listener, is_port_used,
};
use crate::stats::count;

#[btf_map]
static HUB_IDENT: SkStorage<Ident> = SkStorage::new();
#[btf_map]
static HUB_JOIN: LruHashMap<JoinKey, Ident, MAX_JOINS> = LruHashMap::new();

/// SO_MARK of the socket that connects.
#[inline(always)]
pub(crate) fn socket_mark(ctx: &SockAddrContext) -> u32 {
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

/// The record on the socket of a [`peer`](crate::peer) hook, or null.
#[inline(always)]
pub(crate) fn peer_ident(ctx: &SockAddrContext) -> *mut Ident {
    HUB_IDENT.get_ptr_mut(ctx)
}

/// Puts the calling task's identity into the storage of the socket that connects. Returns its cgroup.
#[inline(always)]
pub(crate) fn record_caller(
    ctx: &SockAddrContext,
    orig_ip: Address,
    orig_port: u16,
    flags: u16,
) -> u64 {
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
            mark: socket_mark(ctx),
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

/// Records the network namespace of the daemon's probe, which dials address 0.0.0.0 and port 0: no other program does.
#[inline(always)]
pub(crate) fn record_netns_probe(ctx: &SockAddrContext) {
    // SAFETY: fields of the context.
    let (ip, port) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.sock_addr).user_ip4),
            ptr::read_volatile(&raw const (*ctx.sock_addr).user_port),
        )
    };
    if ip == 0 && port == 0 {
        record_caller(ctx, ipv4_mapped(ip), 0, IDENT_PASSED);
    }
}

/// Dispatches a socket callback: established at either end, or the state change of a counted connection.
#[inline(always)]
pub(crate) fn handle_event(ctx: &SockOpsContext) {
    let op = ctx.op();
    if op == BPF_SOCK_OPS_STATE_CB {
        if let Some(ident) = event_socket(ctx).and_then(stored_ident) {
            flows::count_close(ctx, ident);
        }
        return;
    }
    if op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && op != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
        return;
    }
    // Nearly every connection of the node ends here.
    let (Some(config), (local, remote)) = (config(), event_ports(ctx)) else {
        return;
    };
    if op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB {
        if is_port_used(config, remote) {
            publish_ident(ctx);
        }
    } else if is_port_used(config, local) {
        claim_ident(ctx);
    }
}

/// At the client's end: copies the record from the socket into `HUB_JOIN`.
#[inline(always)]
fn publish_ident(ctx: &SockOpsContext) {
    let Some(ident) = event_socket(ctx).and_then(stored_ident) else {
        return;
    };
    flows::count_established(ctx, ident);
    let Ends { local, remote } = socket_ends(ctx);
    // The socket may have gone elsewhere after a first try at ours.
    if !is_own_listener(remote.ip, remote.port) {
        return;
    }
    let (snd, rcv) = sequence_numbers(ctx);
    let key = JoinKey {
        client_ip: local.ip,
        server_ip: remote.ip,
        client_port: local.port,
        server_port: remote.port,
        client_seq: snd,
        server_seq: rcv,
    };
    if HUB_JOIN.insert(&key, ident, 0).is_err() {
        count(Decision::JoinFailed);
    }
}

/// At the server's end: moves the record from `HUB_JOIN` to the accepted socket.
#[inline(always)]
fn claim_ident(ctx: &SockOpsContext) {
    let Ends { local, remote } = socket_ends(ctx);
    if !is_own_listener(local.ip, local.port) {
        return;
    }
    let Some(sk) = event_socket(ctx) else { return };
    let (snd, rcv) = sequence_numbers(ctx);
    let key = JoinKey {
        client_ip: remote.ip,
        server_ip: local.ip,
        client_port: remote.port,
        server_port: local.port,
        client_seq: rcv,
        server_seq: snd,
    };
    let Some(record) = HUB_JOIN.get_ptr_mut(&key) else {
        count(Decision::JoinMiss);
        return;
    };
    let stored = socket_storage(sk, record, BPF_SK_STORAGE_GET_F_CREATE.into());
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
fn socket_storage(sk: *mut bpf_sock, value: *mut Ident, flags: u64) -> *mut Ident {
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

#[inline(always)]
fn stored_ident<'a>(sk: *mut bpf_sock) -> Option<&'a Ident> {
    let ident = socket_storage(sk, ptr::null_mut(), 0);
    // SAFETY: not null, and the socket outlives this callback.
    if ident.is_null() {
        None
    } else {
        Some(unsafe { &*ident })
    }
}

/// `None` for a socket that is not a full one, such as a request socket.
#[inline(always)]
fn event_socket(ctx: &SockOpsContext) -> Option<*mut bpf_sock> {
    // SAFETY: a field of the context.
    let sk = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    if sk.is_null() { None } else { Some(sk) }
}

/// Local and remote port.
#[inline(always)]
fn event_ports(ctx: &SockOpsContext) -> (u16, u16) {
    // SAFETY: fields of the context.
    unsafe {
        let local = ptr::read_volatile(&raw const (*ctx.ops).local_port);
        let remote = ptr::read_volatile(&raw const (*ctx.ops).remote_port);
        (local as u16, u32::from_be(remote) as u16)
    }
}

#[derive(Clone, Copy)]
struct End {
    ip: Address,
    port: u16,
}

struct Ends {
    local: End,
    remote: End,
}

#[inline(always)]
fn socket_ends(ctx: &SockOpsContext) -> Ends {
    let ops = ctx.ops;
    let (local_port, remote_port) = event_ports(ctx);
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
            (ipv4_mapped(local4), ipv4_mapped(remote4))
        } else {
            (address_from_words(local6), address_from_words(remote6))
        };
        Ends {
            local: End {
                ip: local,
                port: local_port,
            },
            remote: End {
                ip: remote,
                port: remote_port,
            },
        }
    }
}

/// Next sequence numbers to send and to receive.
#[inline(always)]
fn sequence_numbers(ctx: &SockOpsContext) -> (u32, u32) {
    // SAFETY: fields of the context.
    unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).snd_nxt),
            ptr::read_volatile(&raw const (*ctx.ops).rcv_nxt),
        )
    }
}
