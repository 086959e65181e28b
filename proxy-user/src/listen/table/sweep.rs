//! The state of a connection between sweeps, and the decision to close it. Pure.

use super::snapshot::ActivitySnapshot;
use crate::budget::WriteProgress;

/// Sweeps after which an incomplete request head closes the connection (30 to 45 s).
const SLOW_HEAD_SWEEPS: u32 = 3;
/// Sweeps after which a connection that never made a request is closed.
const NO_REQUEST_SWEEPS: u32 = 3;
/// Sweeps after which a connection without a request in flight is closed: 5 minutes, longer than
/// Go's clients keep an idle connection.
const IDLE_SWEEPS: u32 = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SweepAction {
    Keep,
    CloseIdle,
    /// Its request head does not end, or it is still there a sweep after [`Self::CloseIdle`].
    CloseSlow,
}

/// State of one connection between sweeps.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct SweepState {
    pub(super) requests: u32,
    pub(super) idle_sweeps: u32,
    slow_head_sweeps: u32,
    written: u32,
    stalled_checks: u32,
    is_draining: bool,
}

impl SweepState {
    /// Consecutive checks in which bytes were pending and none were read, this one included.
    pub(super) fn stalled_checks(&mut self, progress: WriteProgress) -> u32 {
        let stalled = progress.pending > 0 && progress.written == self.written;
        self.written = progress.written;
        self.stalled_checks = if stalled { self.stalled_checks + 1 } else { 0 };
        self.stalled_checks
    }

    pub(super) fn sweep(&mut self, now: ActivitySnapshot) -> SweepAction {
        let new_requests = self.requests != now.requests;
        self.requests = now.requests;
        if now.in_flight > 0 {
            self.reset_idle();
            return SweepAction::Keep;
        }
        if self.is_draining {
            return SweepAction::CloseSlow;
        }
        self.idle_sweeps = if new_requests {
            0
        } else {
            self.idle_sweeps + 1
        };
        self.slow_head_sweeps = self.next_slow_head_sweeps(now, new_requests);
        if self.slow_head_sweeps >= SLOW_HEAD_SWEEPS {
            return SweepAction::CloseSlow;
        }
        if self.idle_sweeps >= idle_limit(now) {
            self.is_draining = true;
            return SweepAction::CloseIdle;
        }
        SweepAction::Keep
    }

    /// The number of sweeps for which a request's head has been incomplete; 1 if it began since the
    /// last sweep.
    fn next_slow_head_sweeps(&self, now: ActivitySnapshot, new_requests: bool) -> u32 {
        match (now.has_unparsed_bytes, new_requests) {
            (true, false) => self.slow_head_sweeps + 1,
            (true, true) => 1,
            (false, _) => 0,
        }
    }

    fn reset_idle(&mut self) {
        self.idle_sweeps = 0;
        self.slow_head_sweeps = 0;
        self.is_draining = false;
    }
}

fn idle_limit(now: ActivitySnapshot) -> u32 {
    if now.requests == 0 {
        NO_REQUEST_SWEEPS
    } else {
        IDLE_SWEEPS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(requests: u32, in_flight: u32, has_unparsed_bytes: bool) -> ActivitySnapshot {
        ActivitySnapshot {
            requests,
            in_flight,
            has_unparsed_bytes,
        }
    }

    /// Sweeps until a connection that looks the same at each of them is closed.
    fn sweeps_until_closed(now: ActivitySnapshot) -> (u32, SweepAction) {
        let mut state = SweepState {
            requests: now.requests,
            ..SweepState::default()
        };
        for sweep in 1..1000 {
            match state.sweep(now) {
                SweepAction::Keep => {}
                other => return (sweep, other),
            }
        }
        (1000, SweepAction::Keep)
    }

    #[test]
    fn slow_heads_and_idle_connections_end_and_watches_do_not() {
        for (now, expected, case) in [
            (snapshot(1, 1, false), (1000, SweepAction::Keep), "a watch"),
            (
                snapshot(1, 1, true),
                (1000, SweepAction::Keep),
                "a slow upload",
            ),
            (
                snapshot(5, 0, false),
                (20, SweepAction::CloseIdle),
                "5 minutes idle",
            ),
            (
                snapshot(0, 0, false),
                (3, SweepAction::CloseIdle),
                "never a request",
            ),
            (
                snapshot(5, 0, true),
                (3, SweepAction::CloseSlow),
                "an endless head",
            ),
        ] {
            assert_eq!(sweeps_until_closed(now), expected, "{case}");
        }
    }

    #[test]
    fn a_busy_connection_is_never_taken_for_a_slow_one() {
        let mut state = SweepState::default();
        for sweep in 0..1000 {
            // Each sweep happens to see the first bytes of a new request.
            assert_eq!(state.sweep(snapshot(sweep * 7, 0, true)), SweepAction::Keep);
        }
    }

    #[test]
    fn a_connection_that_was_told_to_drain_and_stays_is_closed() {
        let mut state = SweepState {
            requests: 1,
            idle_sweeps: 19,
            ..SweepState::default()
        };
        assert_eq!(state.sweep(snapshot(1, 0, false)), SweepAction::CloseIdle);
        assert_eq!(state.sweep(snapshot(1, 0, false)), SweepAction::CloseSlow);
        assert_eq!(
            state.sweep(snapshot(2, 1, false)),
            SweepAction::Keep,
            "a last request"
        );
    }

    #[test]
    fn stalled_checks_count_from_the_last_byte_read() {
        let mut state = SweepState::default();
        let table = [
            (0, 0, 0),
            (9, 0, 1),
            (9, 0, 2),
            (9, 1, 0),
            (9, 1, 1),
            (0, 1, 0),
        ];
        for (pending, written, expected) in table {
            let progress = WriteProgress { pending, written };
            assert_eq!(state.stalled_checks(progress), expected, "{progress:?}");
        }
    }
}
