//! The end: signals, and the stages taken down in the reverse of their order.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::{AppError, Bound};
use crate::setup::Setup;

/// How long a dropped connection may take to be gone, and the last reference to setup.
const AT_ONCE: Duration = Duration::from_secs(1);

/// When to stop: the first message ends gracefully, a second one at once.
#[derive(Debug)]
pub struct Stop(mpsc::Receiver<()>);

impl Stop {
    /// SIGTERM and SIGINT. Call on a runtime.
    ///
    /// # Errors
    /// The signal handlers can't be installed.
    pub fn by_signals() -> Result<Self, AppError> {
        let wrong = |error: io::Error| AppError::System("signal handlers", error);
        let (mut term, mut int): (Signal, Signal) = (
            signal(SignalKind::terminate()).map_err(wrong)?,
            signal(SignalKind::interrupt()).map_err(wrong)?,
        );
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            loop {
                let name = tokio::select! {
                    _ = term.recv() => "SIGTERM",
                    _ = int.recv() => "SIGINT",
                };
                info!("{name}");
                if sender.send(()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the first message; what is left hears the second.
    pub(super) async fn first(mut self) -> Self {
        self.0.recv().await;
        self
    }

    async fn second(&mut self) {
        self.0.recv().await;
    }
}

/// Ends everything; returns when the node is as it was.
pub(super) async fn drain(bound: Bound, mut stop: Stop) {
    let started = Instant::now();
    bound.setup.stop_steering();
    bound.state.draining();
    bound.stop_accepting.cancel();
    bound.registry.drain(false);
    bound.handler.end_streams();
    let open = bound.registry.open();
    info!("stopping: {open} connections are open, up to {:?} for their answers", bound.config.listen.drain);
    tokio::select! {
        finished = timeout(bound.config.listen.drain, bound.registry.emptied()) => {
            if finished.is_err() {
                warn!("{} connections are cut after {:?}", bound.registry.open(), bound.config.listen.drain);
            }
        }
        () = stop.second() => warn!("second signal: {} connections are cut", bound.registry.open()),
    }
    bound.registry.drain(true);
    let _ = timeout(AT_ONCE, bound.registry.emptied()).await;
    for task in &bound.tasks {
        task.abort();
    }
    bound.handler.close().await;
    undo(bound).await;
    info!("stopped after {:.1?}", started.elapsed());
}

/// Undoes the setup, once nobody else holds it.
async fn undo(bound: Bound) {
    let Bound { setup, front, state, admin, tasks, sockets, .. } = bound;
    state.detach();
    drop((front, sockets));
    for task in tasks {
        let _ = task.await;
    }
    match alone(setup).await {
        Some(setup) => setup.undo().await,
        None => {
            warn!("a connection is still being accepted: interface and eBPF pins are left for the next start")
        }
    }
    admin.stop();
}

/// The setup itself; connections under way and an admin request hold it for moments only.
async fn alone(mut setup: Arc<Setup>) -> Option<Setup> {
    let deadline = Instant::now() + AT_ONCE;
    loop {
        match Arc::try_unwrap(setup) {
            Ok(setup) => return Some(setup),
            Err(_) if Instant::now() > deadline => return None,
            Err(shared) => setup = shared,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
