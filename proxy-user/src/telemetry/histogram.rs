//! A histogram of durations in fixed buckets: one observation is two relaxed atomic additions.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::registry::HistogramValues;

/// Upper bounds of the buckets, ascending; one more bucket has none.
pub(super) trait Bounds {
    const SECONDS: &'static [f64];
}

/// Requests: from the store (well below a millisecond) to a slow link.
#[derive(Debug)]
pub(super) struct RequestBounds;

impl Bounds for RequestBounds {
    const SECONDS: &'static [f64] = &[
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
    ];
}

/// Watches and upgraded connections: from a second to a day.
#[derive(Debug)]
pub(super) struct StreamBounds;

impl Bounds for StreamBounds {
    const SECONDS: &'static [f64] = &[
        1.0, 10.0, 60.0, 300.0, 600.0, 1800.0, 3600.0, 14_400.0, 86_400.0,
    ];
}

#[derive(Debug)]
pub(super) struct DurationHistogram<B> {
    buckets: [AtomicU64; 16],
    sum_nanoseconds: AtomicU64,
    _bounds: std::marker::PhantomData<B>,
}

impl<B> Default for DurationHistogram<B> {
    fn default() -> Self {
        Self {
            buckets: Default::default(),
            sum_nanoseconds: AtomicU64::new(0),
            _bounds: std::marker::PhantomData,
        }
    }
}

impl<B: Bounds> DurationHistogram<B> {
    pub(super) fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = B::SECONDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.sum_nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    pub(super) fn values(&self) -> HistogramValues {
        let bounds = B::SECONDS.iter().copied().chain([f64::INFINITY]);
        let counts = self.buckets.iter().map(|bucket| bucket.load(Relaxed));
        HistogramValues {
            sum_seconds: Duration::from_nanos(self.sum_nanoseconds.load(Relaxed)).as_secs_f64(),
            buckets: bounds.zip(counts).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_counts_in_the_bucket_of_its_bound() {
        let histogram = DurationHistogram::<RequestBounds>::default();
        for milliseconds in [0, 1, 2, 10_000, 31_000, 86_400_000] {
            histogram.observe(Duration::from_millis(milliseconds));
        }
        let values = histogram.values();
        let count = |bound: f64| values.buckets.iter().find(|(b, _)| *b == bound).unwrap().1;
        assert_eq!((count(0.0005), count(0.001), count(0.0025)), (1, 1, 1));
        assert_eq!((count(10.0), count(30.0), count(f64::INFINITY)), (1, 0, 2));
        assert_eq!(values.count(), 6);
        assert!((values.sum_seconds - 86_441.003).abs() < 1e-6);
    }

    #[test]
    fn bounds_ascend_and_fit_the_buckets() {
        for bounds in [RequestBounds::SECONDS, StreamBounds::SECONDS] {
            assert!(bounds.is_sorted() && bounds.len() < 16);
        }
    }
}
