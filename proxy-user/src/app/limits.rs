//! The limit of open files. A connection takes one descriptor, and its upstream connection perhaps
//! another.
//!
//! systemd starts services with a soft limit of 1,024 for the sake of programs that use select().
//! hublet doesn't, so it raises the soft limit, and lowers `--max-connections` where even the hard
//! limit is too low.

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tracing::warn;

/// Descriptors of the store, eBPF, epoll, logs, and upstream connections that many clients share.
const RESERVE: usize = 256;

/// Raises the limit of open files for this many connections; returns how many are possible.
pub(super) fn max_connections(wanted: usize) -> usize {
    let needed = 2 * wanted + RESERVE;
    let limit = raise_open_files(needed);
    let possible = limit.saturating_sub(RESERVE) / 2;
    if possible >= wanted {
        return wanted;
    }
    let possible = possible.max(1);
    warn!(
        "--max-connections={wanted} is lowered to {possible}: this process may open only {limit} files; raise its limit to {needed} \
         (systemd: LimitNOFILE={needed})"
    );
    possible
}

/// Returns the limit in force, after it was raised to `needed` or the hard limit.
fn raise_open_files(needed: usize) -> usize {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return needed;
    };
    let raised = hard.min(u64::try_from(needed).unwrap_or(u64::MAX));
    let is_raised = raised > soft && setrlimit(Resource::RLIMIT_NOFILE, raised, hard).is_ok();
    let limit = if is_raised { raised } else { soft };
    usize::try_from(limit).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_and_never_lowered() {
        let (before, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
        let wanted = usize::try_from((hard.min(1 << 16)) / 4).expect("small");
        assert_eq!(max_connections(wanted), wanted, "within the hard limit");
        let (after, same) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
        assert!(after >= before && same == hard);
        let beyond = usize::try_from(hard.min(1 << 40)).expect("64 bits");
        assert!(max_connections(beyond) < beyond, "beyond the hard limit");
    }
}
