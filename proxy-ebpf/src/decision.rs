//! The programs' decisions and their counters: one list, from which the enum, the counters, their names and their part
//! of the layout's hash are made.

use crate::{Sealed, Shared};

macro_rules! decisions {
    ($($(#[$doc:meta])* $name:ident = $slot:literal $field:ident,)*) => {
        /// A program's decision; its place in [`Stats`].
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum Decision { $($(#[$doc])* $name = $slot,)* }

        impl Decision {
            /// All, in their order.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// Its name, as bpftool and metrics show it.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($field),)* }
            }
        }

        /// One CPU's counts; the only entry of `HUB_STATS`. One `u64` a [`Decision`], in their order.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Stats { $($(#[$doc])* pub $field: u64,)* }

        impl Sealed for Stats {}
        impl Shared for Stats {}
        const _: () = assert!(size_of::<Stats>() == 8 * Decision::ALL.len());

        impl Stats {
            /// The number of times that a decision was taken.
            pub const fn of(&self, decision: Decision) -> u64 {
                match decision { $(Decision::$name => self.$field,)* }
            }
        }
        /// The decisions' part of [`crate::LAYOUT`].
        pub(crate) const TEXT: &str = concat!($(stringify!($slot), stringify!($field), ";",)*);
    };
}

decisions! {
    /// A TCP connect was looked at.
    Seen = 0 seen,
    /// It dials nothing of ours.
    NoService = 1 no_service,
    /// It dials our own listener: attested, not rewritten.
    Direct = 2 direct,
    /// Rewritten to our listener.
    Steered = 3 steered,
    /// Passed through: steering is switched off.
    Off = 4 off,
    /// Passed through: the daemon's own upstream socket, by its mark.
    Marked = 5 marked,
    /// Passed through: a socket of another network namespace.
    OtherNetns = 6 other_netns,
    /// Passed through: the heartbeat is too old, so the daemon hangs.
    Stale = 7 stale,
    /// Passed through: no listener, so the daemon is dead.
    NoListener = 8 no_listener,
    /// The identity could not be kept on the client's socket (no memory); the connection will be "unknown".
    NoStorage = 9 no_storage,
    /// An accepted socket got its client's identity.
    Joined = 10 joined,
    /// An accepted socket has no record: off-node client, or connected before we were attached.
    JoinMiss = 11 join_miss,
    /// The record could not be handed over (table full, no memory).
    JoinFailed = 12 join_failed,
    /// Passed through: a process of the daemon's own cgroup.
    OwnCgroup = 13 own_cgroup,
    /// Passed through: no selection names this caller, or one excepts it.
    NotSelected = 14 not_selected,
    /// Refused by the guard: a packet from an uplink to one of our addresses, or to 127/8.
    UplinkRefused = 15 uplink_refused,
    /// Refused by the guard: a pod's packet to a port that is not for pods.
    PodRefused = 16 pod_refused,
    /// Dropped on an uplink by XDP.
    XdpDropped = 17 xdp_dropped,
    /// A connection could not be counted in `HUB_FLOWS` (no memory).
    FlowFailed = 18 flow_failed,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_decision_has_its_own_slot() {
        for (slot, decision) in Decision::ALL.iter().enumerate() {
            assert_eq!(*decision as usize, slot, "{}", decision.name());
        }
        assert_eq!(
            core::mem::offset_of!(Stats, steered),
            8 * Decision::Steered as usize
        );
        assert_eq!(
            Stats {
                marked: 7,
                ..Stats::default()
            }
            .of(Decision::Marked),
            7
        );
    }
}
