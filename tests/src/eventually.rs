//! Waiting for what must come: by asking again until a deadline, never by sleeping and hoping.
use std::time::{Duration, Instant};

use anyhow::bail;

/// Asks every 10 ms until there is an answer; fails with `what` after `patience`.
pub fn eventually<T>(
    patience: Duration,
    what: &str,
    mut ask: impl FnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(answer) = ask() {
            return Ok(answer);
        }
        if Instant::now() >= deadline {
            bail!("not within {patience:?}: {what}");
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
