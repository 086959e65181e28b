//! Waiting for what must come: by asking again until a deadline, never by sleeping and hoping.
use std::time::{Duration, Instant};

use anyhow::bail;

/// The factor by which this machine is slower than a real one: `HUBLET_TEST_SLOWNESS`, or 1. `cargo xtask vm` sets it, for its
/// processors are emulated. It stretches only how long tests wait for what must come.
#[must_use]
pub fn slowness_factor() -> u32 {
    std::env::var("HUBLET_TEST_SLOWNESS")
        .ok()
        .and_then(|times| times.parse().ok())
        .unwrap_or(1)
}

/// Asks every 10 ms until there is an answer; fails with `what` after `timeout` (see [`slowness_factor`]).
pub fn eventually<T>(
    timeout: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let timeout = timeout * slowness_factor();
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            crate::keep::hold_failed_test();
            bail!("not within {timeout:?}: {what}");
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
