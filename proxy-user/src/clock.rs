//! The wall clock, injected wherever an age is judged, so that tests move it instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch, plus an offset that tests set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    offset: Arc<AtomicI64>,
}

impl Clock {
    /// Now, in milliseconds since the epoch.
    pub(crate) fn now(&self) -> u64 {
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis());
        let real = u64::try_from(real).unwrap_or(u64::MAX);
        real.saturating_add_signed(self.offset.load(Ordering::Relaxed))
    }

    /// Moves the clock by this many milliseconds.
    #[cfg(test)]
    pub(crate) fn advance(&self, millis: i64) {
        self.offset.fetch_add(millis, Ordering::Relaxed);
    }
}
