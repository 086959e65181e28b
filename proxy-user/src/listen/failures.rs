//! Which failed TLS handshakes are warned of: a caller's first one in a while, and not more callers' than a person reads.

use std::collections::HashSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// How long a caller that has been warned of stays quiet, and so all others beyond [`CALLERS`].
const WHILE: Duration = Duration::from_secs(60);
/// Callers that are warned of in that time.
const CALLERS: usize = 16;

#[derive(Debug, Default)]
pub(super) struct Failures(Mutex<Recent>);

#[derive(Debug, Default)]
struct Recent {
    since: Option<Instant>,
    callers: HashSet<Caller>,
    untold: u64,
}

/// The caller of a handshake: its address and, where that is attested, its process's name.
pub(super) type Caller = (IpAddr, Option<String>);

impl Failures {
    /// One more; `Some` is to be warned of, with the number of those since the last warning that weren't.
    pub(super) fn one_more(&self, caller: Caller, now: Instant) -> Option<u64> {
        let mut recent = self.0.lock();
        if recent
            .since
            .is_none_or(|since| now.saturating_duration_since(since) >= WHILE)
        {
            recent.since = Some(now);
            recent.callers.clear();
        }
        if recent.callers.len() >= CALLERS || !recent.callers.insert(caller) {
            recent.untold += 1;
            return None;
        }
        Some(std::mem::take(&mut recent.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(n: u8) -> Caller {
        ([10, 244, 0, n].into(), None)
    }

    #[test]
    fn each_caller_is_told_once_in_a_while_and_a_flood_of_them_is_not() {
        let (failures, begin) = (Failures::default(), Instant::now());
        assert_eq!(failures.one_more(caller(1), begin), Some(0));
        for _ in 0..9 {
            assert_eq!(failures.one_more(caller(1), begin), None);
        }
        assert_eq!(
            failures.one_more(([10, 244, 0, 1].into(), Some("curl".into())), begin),
            Some(9),
            "another"
        );
        let told = (0..=255)
            .filter(|n| failures.one_more(caller(*n), begin).is_some())
            .count();
        assert_eq!(told, CALLERS - 2);
        assert_eq!(
            failures.one_more(caller(1), begin + WHILE),
            Some(255 - 14),
            "and what was not told meanwhile"
        );
    }
}
