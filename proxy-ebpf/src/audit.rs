//! The audit: what each cgroup dialled of ours, what became of it, and how many bytes went each way. Independent of
//! the daemon's own counters, and it sees what the daemon can't: calls that passed it by. In: decisions of
//! [`connect`](crate::connect), ends of connections. Out: `HUB_AUDIT`.

use core::ptr;

use aya_ebpf::bindings::BPF_SOCK_OPS_STATE_CB_FLAG;
use aya_ebpf::btf_maps::LruPerCpuHashMap;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockOpsContext;
use hublet_ebpf::{Address, Audit, AuditKey, Decision, Ident, LATENCY_BUCKETS, MAX_AUDIT};

use crate::stats::count;

#[btf_map]
static HUB_AUDIT: LruPerCpuHashMap<AuditKey, Audit, MAX_AUDIT> = LruPerCpuHashMap::new();

/// Where new entries are copied from: too large for the stack.
#[unsafe(link_section = ".rodata")]
static EMPTY: Audit = Audit {
    steered: 0,
    direct: 0,
    off: 0,
    own: 0,
    unselected: 0,
    stale: 0,
    dead: 0,
    established: 0,
    closed: 0,
    bytes_up: 0,
    bytes_down: 0,
    retransmits: 0,
    latency_us: 0,
    latency: [0; LATENCY_BUCKETS],
};

const TCP_CLOSE: u32 = 7;

/// A connect() was decided.
#[inline(always)]
pub(crate) fn decided(cgroup_id: u64, ip: Address, port: u16, decision: Decision) {
    let Some(audit) = entry(cgroup_id, ip, port) else {
        return;
    };
    // SAFETY: this CPU's part of the entry.
    unsafe {
        let counter = match decision {
            Decision::Steered => &raw mut (*audit).steered,
            Decision::Direct => &raw mut (*audit).direct,
            Decision::Stale => &raw mut (*audit).stale,
            Decision::NoListener => &raw mut (*audit).dead,
            Decision::Off => &raw mut (*audit).off,
            Decision::Marked | Decision::OwnCgroup => &raw mut (*audit).own,
            _ => &raw mut (*audit).unselected,
        };
        *counter += 1;
    }
}

/// The client's end is established: how long it took; and its end is to be told, too.
#[inline(always)]
pub(crate) fn established(ctx: &SockOpsContext, ident: &Ident) {
    let _without = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    let Some(audit) = entry(ident.cgroup_id, ident.orig_ip, ident.orig_port) else {
        return;
    };
    // SAFETY: a helper without arguments; this CPU's part of the entry.
    unsafe {
        let us = bpf_ktime_get_ns().wrapping_sub(ident.connect_ns) / 1000;
        (*audit).established += 1;
        (*audit).latency_us += us;
        let bucket = (&raw mut (*audit).latency).cast::<u64>().add(bucket(us));
        *bucket += 1;
    }
}

/// A state of the client's end begins.
#[inline(always)]
pub(crate) fn state(ctx: &SockOpsContext, ident: &Ident) {
    // SAFETY: fields of the context, read before anything is chosen.
    let (new, up, down, again) = unsafe {
        (
            ptr::read_volatile(&raw const (*ctx.ops).__bindgen_anon_1.args[1]),
            ptr::read_volatile(&raw const (*ctx.ops).bytes_acked),
            ptr::read_volatile(&raw const (*ctx.ops).bytes_received),
            ptr::read_volatile(&raw const (*ctx.ops).total_retrans),
        )
    };
    if new != TCP_CLOSE {
        return;
    }
    let Some(audit) = entry(ident.cgroup_id, ident.orig_ip, ident.orig_port) else {
        return;
    };
    // SAFETY: this CPU's part of the entry.
    unsafe {
        (*audit).closed += 1;
        // Acknowledged bytes count the SYN.
        (*audit).bytes_up += up.saturating_sub(1);
        (*audit).bytes_down += down;
        (*audit).retransmits += u64::from(again);
    }
}

/// This CPU's part of an entry, made when there is none.
#[inline(always)]
fn entry(cgroup_id: u64, ip: Address, port: u16) -> Option<*mut Audit> {
    let key = AuditKey {
        cgroup_id,
        ip,
        port,
        zero: [0; 6],
    };
    if let Some(found) = HUB_AUDIT.get_ptr_mut(&key) {
        return Some(found);
    }
    let _or_made_meanwhile = HUB_AUDIT.insert(&key, &EMPTY, 1);
    let made = HUB_AUDIT.get_ptr_mut(&key);
    if made.is_none() {
        count(Decision::AuditFailed);
    }
    made
}

/// Bucket `i` is for less than 2^(i+4) µs.
#[inline(always)]
fn bucket(us: u64) -> usize {
    let mut bucket = 0;
    let mut rest = us >> 4;
    while rest != 0 && bucket < LATENCY_BUCKETS - 1 {
        rest >>= 1;
        bucket += 1;
    }
    bucket
}
