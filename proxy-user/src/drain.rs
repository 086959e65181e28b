//! Drains: a trigger starts one, which ends when the last watcher has been dropped.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

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

    /// Starts the drain for all watchers, present and future ones.
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

/// A value that others use through [`Shared`] references, until its owner reclaims it.
#[derive(Debug)]
pub(crate) struct Owner<T> {
    value: Arc<T>,
    users: DrainTrigger,
}

/// A reference that the value's [`Owner`] waits for.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    // Declared, and so dropped, before the watcher: once no watcher exists, no reference does.
    value: Arc<T>,
    watcher: DrainWatcher,
}

impl<T> Owner<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            value: Arc::new(value),
            users: DrainTrigger::new(),
        }
    }

    pub(crate) fn share(&self) -> Shared<T> {
        Shared {
            value: Arc::clone(&self.value),
            watcher: self.users.watcher(),
        }
    }

    /// Takes the value back when the last reference has been dropped; `None` after the timeout.
    pub(crate) async fn reclaim(self, limit: Duration) -> Option<T> {
        timeout(limit, self.users.drained()).await.ok()?;
        Arc::into_inner(self.value)
    }
}

impl<T> Deref for Owner<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self {
            value: Arc::clone(&self.value),
            watcher: self.watcher.clone(),
        }
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::{Instant, sleep};

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

    #[tokio::test(start_paused = true)]
    async fn a_value_returns_to_its_owner_with_the_last_reference() {
        let owner = Owner::new("setup".to_owned());
        let shared = owner.share();
        assert_eq!(*shared, *owner);
        let task = tokio::spawn({
            let shared = shared.clone();
            async move {
                sleep(MINUTE).await;
                drop(shared);
            }
        });
        drop(shared);
        let began = Instant::now();
        assert_eq!(owner.reclaim(2 * MINUTE).await.as_deref(), Some("setup"));
        assert_eq!(began.elapsed(), MINUTE);
        task.await.expect("it has ended");
    }

    #[tokio::test(start_paused = true)]
    async fn a_value_that_is_still_in_use_is_not_taken_back() {
        let owner = Owner::new(());
        let shared = owner.share();
        let began = Instant::now();
        assert_eq!(owner.reclaim(MINUTE).await, None);
        assert_eq!(began.elapsed(), MINUTE);
        drop(shared);
    }
}
