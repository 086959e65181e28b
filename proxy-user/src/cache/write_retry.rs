//! The time in which the disk accepts no writes. In: failures. Out: the time of the next retry, and how long this has lasted.

use std::time::{Duration, Instant};

const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// A time in which the disk accepts no writes.
#[derive(Debug)]
pub(super) struct WriteOutage {
    since: Instant,
    wait: Duration,
    /// Time of the next try.
    pub(super) next: Instant,
}

impl WriteOutage {
    /// It has just failed.
    pub(super) fn begin(now: Instant) -> Self {
        Self {
            since: now,
            wait: FIRST_WAIT,
            next: now + FIRST_WAIT,
        }
    }

    /// It has failed again.
    pub(super) fn back_off(&mut self, now: Instant) {
        self.wait = (self.wait * 2).min(LONGEST_WAIT);
        self.next = now + self.wait;
    }

    /// Time since its begin.
    pub(super) fn lasts(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }
}

/// Admits one log line a minute.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    last: Option<Instant>,
}

impl LogLimit {
    pub(super) fn admits(&mut self, now: Instant) -> bool {
        let is_due = self
            .last
            .is_none_or(|last| now.duration_since(last) > LOG_INTERVAL);
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_logged_once_a_minute() {
        let (mut limit, now) = (LogLimit::default(), Instant::now());
        let logged = (0..130).filter(|n| limit.admits(now + Duration::from_secs(*n)));
        assert_eq!(logged.collect::<Vec<_>>(), [0, 61, 122]);
    }

    #[test]
    fn retries_back_off_up_to_a_limit() {
        let now = Instant::now();
        let mut outage = WriteOutage::begin(now);
        let mut waits = vec![outage.next - now];
        for _ in 0..6 {
            outage.back_off(now);
            waits.push(outage.next - now);
        }
        let millis: Vec<u128> = waits.iter().map(Duration::as_millis).collect();
        assert_eq!(millis, [500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
        assert_eq!(
            outage.lasts(now + Duration::from_secs(3)),
            Duration::from_secs(3)
        );
    }
}
