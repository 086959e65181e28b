//! Counters: one slot of `HUB_STATS` a decision, per CPU, so that counting never contends.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use hublet_ebpf::{Decision, MAX_STATS};

#[btf_map]
static HUB_STATS: PerCpuArray<u64, MAX_STATS> = PerCpuArray::new();

/// Counts a decision.
#[inline(always)]
pub(crate) fn count(decision: Decision) {
    if let Some(slot) = HUB_STATS.get_ptr_mut(decision as u32) {
        // SAFETY: a slot of this CPU; programs of a CPU do not interrupt each other here.
        unsafe { *slot += 1 }
    }
}
