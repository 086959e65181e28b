//! Background tasks that end with their owner.

use std::future::Future;

use tokio::task::JoinHandle;

/// Aborted when it is dropped.
#[derive(Debug)]
pub(super) struct OwnedTask(Option<JoinHandle<()>>);

impl OwnedTask {
    pub(super) fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(Some(tokio::spawn(task)))
    }

    /// Ends the task. When this returns, everything that the task has held is dropped.
    pub(super) async fn stop(mut self) {
        if let Some(handle) = self.0.take() {
            handle.abort();
            let _aborted = handle.await;
        }
    }
}

impl Drop for OwnedTask {
    fn drop(&mut self) {
        if let Some(handle) = &self.0 {
            handle.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_stopped_task_has_dropped_what_it_held() {
        let shared = Arc::new(());
        let held = Arc::clone(&shared);
        let task = OwnedTask::spawn(async move {
            let _held = held;
            pending::<()>().await;
        });
        tokio::task::yield_now().await;
        task.stop().await;
        assert!(Arc::into_inner(shared).is_some());
    }
}
