//! Counters: `HUB_STATS`, per CPU, so that counting never contends.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::macros::btf_map;
use hublet_ebpf::{Decision, Stats};

#[btf_map]
static HUB_STATS: PerCpuArray<Stats, 1> = PerCpuArray::new();

#[inline(always)]
pub(crate) fn count(decision: Decision) {
    if let Some(stats) = HUB_STATS.get_ptr_mut(0) {
        // SAFETY: `Stats` is one u64 a decision, in their order. (A task preempted between load and store by another
        // that connects may lose one count; the target has no atomic add, and nothing is decided by these numbers.)
        unsafe { *stats.cast::<u64>().add(decision as usize) += 1 }
    }
}
