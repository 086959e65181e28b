//! Flow counts of each cgroup and service: connects by outcome, bytes, latency, retransmits (`HUB_FLOWS`). Independent
//! of the daemon's own counters; it also sees connects that pass the daemon by.

use core::ptr;

use aya_ebpf::bindings::BPF_SOCK_OPS_STATE_CB_FLAG;
use aya_ebpf::btf_maps::LruPerCpuHashMap;
use aya_ebpf::helpers::generated::bpf_ktime_get_ns;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::SockOpsContext;
use hublet_ebpf::{Address, Decision, FlowCounts, FlowKey, Ident, LATENCY_BUCKETS, MAX_FLOWS};

use crate::stats::count;

#[btf_map]
static HUB_FLOWS: LruPerCpuHashMap<FlowKey, FlowCounts, MAX_FLOWS> = LruPerCpuHashMap::new();

/// New entries are copied from here: the struct is too large for the stack. The name is fixed, since a mangled one
/// has a hash of all dependencies' versions, and the object is to change with its own sources only.
#[unsafe(export_name = "EMPTY_FLOW")]
#[unsafe(link_section = ".rodata")]
static EMPTY: FlowCounts = FlowCounts {
    steered: 0,
    direct: 0,
    off: 0,
    own: 0,
    not_selected: 0,
    stale: 0,
    no_listener: 0,
    established: 0,
    closed: 0,
    bytes_up: 0,
    bytes_down: 0,
    retransmits: 0,
    latency_us: 0,
    latency: [0; LATENCY_BUCKETS],
};

const TCP_CLOSE: u32 = 7;

#[inline(always)]
pub(crate) fn count_connect(cgroup_id: u64, ip: Address, port: u16, decision: Decision) {
    let Some(counts) = flow_entry(cgroup_id, ip, port) else {
        return;
    };
    // SAFETY: this CPU's part of the entry.
    unsafe {
        let counter = match decision {
            Decision::Steered => &raw mut (*counts).steered,
            Decision::Direct => &raw mut (*counts).direct,
            Decision::Stale => &raw mut (*counts).stale,
            Decision::NoListener => &raw mut (*counts).no_listener,
            Decision::Off => &raw mut (*counts).off,
            Decision::Marked | Decision::OwnCgroup => &raw mut (*counts).own,
            _ => &raw mut (*counts).not_selected,
        };
        *counter += 1;
    }
}

/// Counts the client's end as established, and asks for callbacks of its later states.
#[inline(always)]
pub(crate) fn count_established(ctx: &SockOpsContext, ident: &Ident) {
    let _without = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    let Some(counts) = flow_entry(ident.cgroup_id, ident.orig_ip, ident.orig_port) else {
        return;
    };
    // SAFETY: a helper without arguments; this CPU's part of the entry.
    unsafe {
        let us = bpf_ktime_get_ns().wrapping_sub(ident.connect_ns) / 1000;
        (*counts).established += 1;
        (*counts).latency_us += us;
        let bucket = (&raw mut (*counts).latency)
            .cast::<u64>()
            .add(latency_bucket(us));
        *bucket += 1;
    }
}

/// Counts the client's end when its new state is closed.
#[inline(always)]
pub(crate) fn count_close(ctx: &SockOpsContext, ident: &Ident) {
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
    let Some(counts) = flow_entry(ident.cgroup_id, ident.orig_ip, ident.orig_port) else {
        return;
    };
    // SAFETY: this CPU's part of the entry.
    unsafe {
        (*counts).closed += 1;
        // Acknowledged bytes count the SYN.
        (*counts).bytes_up += up.saturating_sub(1);
        (*counts).bytes_down += down;
        (*counts).retransmits += u64::from(again);
    }
}

/// This CPU's part of an entry, made when there is none.
#[inline(always)]
fn flow_entry(cgroup_id: u64, ip: Address, port: u16) -> Option<*mut FlowCounts> {
    let key = FlowKey {
        cgroup_id,
        ip,
        port,
        zero: [0; 6],
    };
    if let Some(found) = HUB_FLOWS.get_ptr_mut(&key) {
        return Some(found);
    }
    let _or_made_meanwhile = HUB_FLOWS.insert(&key, &EMPTY, 1);
    let made = HUB_FLOWS.get_ptr_mut(&key);
    if made.is_none() {
        count(Decision::FlowFailed);
    }
    made
}

/// Bucket `i` is for less than 2^(i+4) µs.
#[inline(always)]
fn latency_bucket(us: u64) -> usize {
    let mut bucket = 0;
    let mut rest = us >> 4;
    while rest != 0 && bucket < LATENCY_BUCKETS - 1 {
        rest >>= 1;
        bucket += 1;
    }
    bucket
}
