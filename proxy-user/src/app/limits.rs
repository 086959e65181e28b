//! Open files: every connection takes one, and its way to the cloud perhaps another. systemd starts services with a
//! soft limit of 1,024 for the sake of programs that use select(); hublet doesn't, so it takes what the hard limit
//! gives, and lowers `--max-connections` where even that is too little.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Store, eBPF, epoll, logs, connections to the cloud that serve many clients.
const RESERVE: usize = 256;

/// Raises the limit of open files; returns how many connections may be open.
pub(super) fn connections(wanted: usize) -> usize {
    let needed = 2 * wanted + RESERVE;
    let limit = open_files(needed);
    let possible = limit.saturating_sub(RESERVE) / 2;
    if possible >= wanted {
        return wanted;
    }
    let possible = possible.max(1);
    warn!(
        "--max-connections={wanted} is lowered to {possible}: this process may open {limit} files only; allow {needed} \
         (systemd: LimitNOFILE={needed})"
    );
    possible
}

/// The limit in force after it was raised as far as `needed` or as the hard limit allows.
fn open_files(needed: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return needed;
    };
    let needed = u64::try_from(needed).unwrap_or(u64::MAX);
    let raised = hard.min(needed);
    let limit = if raised > soft && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok() {
        raised
    } else {
        soft
    };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_and_never_lowered() {
        let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
        let wanted = usize::try_from((hard.min(1 << 16)) / 4).expect("small");
        assert_eq!(connections(wanted), wanted, "the hard limit gives it");
        let (after, same) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
        assert!(after >= before && same == hard);
        let beyond = usize::try_from(hard.min(1 << 40)).expect("64 bits");
        assert!(
            connections(beyond) < beyond,
            "no more than the hard limit gives"
        );
    }
}
