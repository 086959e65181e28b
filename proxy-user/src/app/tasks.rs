//! Background tasks by name, all ended before the stages that they use are taken down.

use std::time::Duration;

use tokio::task::{JoinError, JoinHandle};
use tokio::time::timeout;
use tracing::{error, warn};

/// An aborted task ends at its next await, so this passes only while one blocks its thread.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug)]
struct Task {
    name: &'static str,
    handle: JoinHandle<()>,
}

#[derive(Debug, Default)]
pub(super) struct Tasks(Vec<Task>);

impl Tasks {
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) {
        self.add(name, tokio::spawn(future));
    }

    pub(super) fn add(&mut self, name: &'static str, handle: JoinHandle<()>) {
        self.0.push(Task { name, handle });
    }

    pub(super) fn abort_all(&self) {
        for task in &self.0 {
            task.handle.abort();
        }
    }

    /// Aborts the tasks, and waits until what they held has been dropped.
    pub(super) async fn end(self) {
        self.abort_all();
        for Task { name, handle } in self.0 {
            match timeout(JOIN_TIMEOUT, handle).await {
                Ok(joined) => log_panic(name, joined),
                Err(_) => warn!("task {name} has not ended within {JOIN_TIMEOUT:?}"),
            }
        }
    }
}

fn log_panic(name: &str, joined: Result<(), JoinError>) {
    if let Err(error) = joined
        && error.is_panic()
    {
        error!("task {name} panicked: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn ended_tasks_have_dropped_what_they_held() {
        let held = Arc::new(());
        let mut tasks = Tasks::default();
        for name in ["waits for ever", "sleeps"] {
            let held = Arc::clone(&held);
            tasks.spawn(name, async move {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                drop(held);
            });
        }
        tokio::task::yield_now().await;
        let began = Instant::now();
        tasks.end().await;
        assert_eq!(Arc::strong_count(&held), 1);
        assert_eq!(began.elapsed(), Duration::ZERO, "nothing is waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_panicked_task_holds_up_no_other() {
        let mut tasks = Tasks::default();
        tasks.spawn("panics", async { panic!("on purpose") });
        tasks.spawn("returns", async {});
        tasks.end().await;
    }
}
