//! Rate limit of warnings: one a minute for each caller and kind, of a bounded number of callers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

const WINDOW: Duration = Duration::from_secs(60);
/// Callers that are warned of in one window.
const MAX_CALLERS: usize = 16;

/// Kinds of events that are worth a warning; each has a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WarningKind {
    Handshake,
    Unauthorized,
    Forbidden,
    ServerError,
}

impl WarningKind {
    pub(super) fn of_status(status: u16) -> Option<Self> {
        match status {
            401 => Some(Self::Unauthorized),
            403 => Some(Self::Forbidden),
            500.. => Some(Self::ServerError),
            _ => None,
        }
    }
}

/// Identifies a caller among warnings; see [`Caller::warning_key`](super::Caller::warning_key).
pub(super) type WarningKey = u64;

/// Number of events of one kind that got no warning since the last one that did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Suppressed(pub(crate) u64);

impl std::fmt::Display for Suppressed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            0 => Ok(()),
            count => write!(f, "; {count} more since the last warning of this kind"),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct WarningLimits([Mutex<Window>; 4]);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    callers: HashSet<WarningKey>,
    suppressed: u64,
}

impl Window {
    fn is_over(&self, now: Instant) -> bool {
        self.began
            .is_none_or(|began| now.saturating_duration_since(began) >= WINDOW)
    }
}

impl WarningLimits {
    /// Admits a warning, or counts it as suppressed.
    pub(super) fn admit(
        &self,
        kind: WarningKind,
        caller: WarningKey,
        now: Instant,
    ) -> Option<Suppressed> {
        let mut window = self.0[kind as usize].lock();
        if window.is_over(now) {
            window.began = Some(now);
            window.callers.clear();
        }
        if window.callers.len() >= MAX_CALLERS || !window.callers.insert(caller) {
            window.suppressed += 1;
            return None;
        }
        Some(Suppressed(std::mem::take(&mut window.suppressed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_caller_is_warned_of_once_a_window_and_a_flood_of_callers_is_not() {
        let (limits, began) = (WarningLimits::default(), Instant::now());
        let admit = |caller, now| limits.admit(WarningKind::Handshake, caller, now);
        assert_eq!(admit(1, began), Some(Suppressed(0)));
        for _ in 0..9 {
            assert_eq!(admit(1, began), None);
        }
        assert_eq!(admit(1000, began), Some(Suppressed(9)), "another caller");
        let admitted = (0..=255).filter(|n| admit(*n, began).is_some()).count();
        assert_eq!(admitted, MAX_CALLERS - 2);
        assert_eq!(
            admit(1, began + WINDOW),
            Some(Suppressed(255 - 14)),
            "and those that were suppressed meanwhile"
        );
    }

    #[test]
    fn kinds_do_not_share_a_limit() {
        let (limits, now) = (WarningLimits::default(), Instant::now());
        for caller in 0..100 {
            limits.admit(WarningKind::ServerError, caller, now);
        }
        let forbidden = limits.admit(WarningKind::Forbidden, 1, now);
        assert_eq!(forbidden, Some(Suppressed(0)));
    }

    #[test]
    fn only_refusals_of_callers_and_server_errors_are_warned_of() {
        for (status, expected) in [
            (200, None),
            (401, Some(WarningKind::Unauthorized)),
            (403, Some(WarningKind::Forbidden)),
            (404, None),
            (409, None),
            (410, None),
            (429, None),
            (500, Some(WarningKind::ServerError)),
            (504, Some(WarningKind::ServerError)),
        ] {
            assert_eq!(WarningKind::of_status(status), expected, "{status}");
        }
    }

    #[test]
    fn suppressed_warnings_are_mentioned_only_if_there_are_any() {
        assert_eq!(Suppressed(0).to_string(), "");
        assert!(Suppressed(3).to_string().contains("3 more"));
    }
}
