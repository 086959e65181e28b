//! Drains: one trigger asks for the end, and is done when the last watcher has been dropped.

use tokio::sync::watch;

/// Starts a drain, and waits for its end.
#[derive(Debug)]
pub(crate) struct DrainTrigger(watch::Sender<bool>);

/// Held for as long as a drain has to wait for its holder.
#[derive(Debug, Clone)]
pub(crate) struct DrainWatcher(watch::Receiver<bool>);

impl DrainTrigger {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn watcher(&self) -> DrainWatcher {
        DrainWatcher(self.0.subscribe())
    }

    /// Tells all watchers, present and future ones.
    pub(crate) fn start(&self) {
        self.0.send_replace(true);
    }

    /// Completes when no watcher exists, whether the drain has been started or not.
    pub(crate) async fn drained(&self) {
        self.0.closed().await;
    }
}

impl DrainWatcher {
    /// Completes when the drain starts, or can't start any more. Cancel safe.
    pub(crate) async fn started(&mut self) {
        let _ = self.0.wait_for(|started| *started).await;
    }

    pub(crate) fn has_started(&self) -> bool {
        *self.0.borrow()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{sleep, timeout};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_with_its_last_watcher() {
        let trigger = DrainTrigger::new();
        let (mut first, second) = (trigger.watcher(), trigger.watcher());
        let task = tokio::spawn(async move {
            first.started().await;
            sleep(MINUTE).await;
        });
        assert!(!second.has_started());
        trigger.start();
        assert!(second.has_started() && trigger.watcher().has_started());
        drop(second);
        assert!(timeout(MINUTE / 2, trigger.drained()).await.is_err());
        assert!(timeout(MINUTE, trigger.drained()).await.is_ok());
        task.await.expect("it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_without_watchers_ends_at_once() {
        let trigger = DrainTrigger::new();
        trigger.start();
        assert!(timeout(Duration::ZERO, trigger.drained()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_watcher_outlives_its_trigger() {
        let trigger = DrainTrigger::new();
        let mut watcher = trigger.watcher();
        drop(trigger);
        assert!(timeout(MINUTE, watcher.started()).await.is_ok());
    }
}
