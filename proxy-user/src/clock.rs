//! The wall clock, injected wherever an age matters, so that tests can set it instead of sleeping.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use hublet_wire::meta::Timestamp;
use time::OffsetDateTime;

/// Converts a time, to whole seconds.
pub(crate) fn to_datetime(time: Timestamp) -> OffsetDateTime {
    let seconds = i64::try_from(time.as_millis() / 1000).unwrap_or_default();
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// The system's clock, plus an offset that tests set.
#[derive(Debug, Clone, Default)]
pub(crate) struct Clock {
    offset: Arc<AtomicI64>,
}

impl Clock {
    pub(crate) fn now(&self) -> Timestamp {
        let real = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |d| d.as_millis());
        let real = u64::try_from(real).unwrap_or(u64::MAX);
        Timestamp::from_millis(real.saturating_add_signed(self.offset.load(Ordering::Relaxed)))
    }

    #[cfg(test)]
    pub(crate) fn advance(&self, millis: i64) {
        self.offset.fetch_add(millis, Ordering::Relaxed);
    }
}
