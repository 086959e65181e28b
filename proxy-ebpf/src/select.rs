//! The selection of callers: by cgroup, user, command, and network namespace.
//!
//! Processes of the host are steered unless a selection excepts them, or (with `CONFIG_SELECTED`) unless one names
//! them. Processes in other network namespaces, pods, are steered only when one names them. An exception wins.

use aya_ebpf::btf_maps::HashMap;
use aya_ebpf::helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id};
use aya_ebpf::helpers::{bpf_get_current_comm, bpf_get_current_uid_gid};
use aya_ebpf::macros::btf_map;
use hublet_ebpf::{
    COMM_LEN, CONFIG_PODS, CONFIG_SELECTED, Config, Decision, MAX_COMMANDS, MAX_LEVELS, MAX_SELECT,
    SELECT_CGROUP, SELECT_POD_CGROUP, SELECT_POD_NETNS, SELECT_UID, SelectKey, VERDICT_EXCEPT,
    VERDICT_STEER,
};

#[btf_map]
static HUB_SELECT: HashMap<SelectKey, u32, MAX_SELECT> = HashMap::new();
#[btf_map]
static HUB_SELECT_CMD: HashMap<[u8; COMM_LEN], u32, MAX_COMMANDS> = HashMap::new();

/// The reason not to steer the calling task; `None` if it may be steered.
#[inline(always)]
pub(crate) fn refusal(config: &Config, netns: u64) -> Option<Decision> {
    // SAFETY: a helper without arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    if config.own_cgroup != 0 && cgroup == config.own_cgroup {
        return Some(Decision::OwnCgroup);
    }
    let host = netns == config.netns;
    if !host && config.flags & CONFIG_PODS == 0 {
        return Some(Decision::OtherNetns);
    }
    let mut verdicts = cgroup_verdicts(if host {
        SELECT_CGROUP
    } else {
        SELECT_POD_CGROUP
    });
    if host {
        verdicts |=
            verdict_of(SELECT_UID, u64::from(bpf_get_current_uid_gid() as u32)) | command_verdict();
    } else {
        verdicts |= verdict_of(SELECT_POD_NETNS, netns);
    }
    if verdicts & VERDICT_EXCEPT != 0 {
        return Some(Decision::NotSelected);
    }
    if verdicts & VERDICT_STEER != 0 || (host && config.flags & CONFIG_SELECTED == 0) {
        return None;
    }
    Some(if host {
        Decision::NotSelected
    } else {
        Decision::OtherNetns
    })
}

/// The verdicts on the task's cgroup and on those above it, the root excluded.
#[inline(always)]
fn cgroup_verdicts(kind: u32) -> u32 {
    let mut verdicts = 0;
    for level in 1..=MAX_LEVELS {
        // SAFETY: a helper that reads the current task.
        let id = unsafe { bpf_get_current_ancestor_cgroup_id(level) };
        if id == 0 {
            break;
        }
        verdicts |= verdict_of(kind, id);
    }
    verdicts
}

#[inline(always)]
fn verdict_of(kind: u32, value: u64) -> u32 {
    let key = SelectKey {
        value,
        kind,
        zero: 0,
    };
    // SAFETY: a whole word, replaced as a whole.
    unsafe { HUB_SELECT.get(&key) }.copied().unwrap_or(0)
}

/// The verdict on the task's name, which a process sets as it likes: a convenience, never a security attribute.
#[inline(always)]
fn command_verdict() -> u32 {
    let Ok(name) = bpf_get_current_comm() else {
        return 0;
    };
    // SAFETY: as above.
    unsafe { HUB_SELECT_CMD.get(&name) }.copied().unwrap_or(0)
}
