//! Termination signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::AppError;

/// Requests to shut down: the first one is graceful, the second immediate.
#[derive(Debug)]
pub struct Shutdown(mpsc::Receiver<()>);

impl Shutdown {
    /// Shuts down on SIGTERM and SIGINT. SIGHUP, SIGUSR1 and SIGUSR2, which make other daemons
    /// reload and would kill this one, are logged and ignored. Call on a runtime.
    ///
    /// # Errors
    /// The signal handlers can't be installed.
    pub fn on_signals() -> Result<Self, AppError> {
        let signals =
            Signals::install().map_err(|error| AppError::System("can't handle signals", error))?;
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(signals.forward(sender));
        Ok(Self(receiver))
    }

    /// Completes at the first request.
    pub(super) async fn graceful(&mut self) {
        self.0.recv().await;
    }

    /// Completes at the next request after [`Shutdown::graceful`].
    pub(super) async fn immediate(&mut self) {
        self.0.recv().await;
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn forward(mut self, to: mpsc::Sender<()>) {
        loop {
            let name = self.next_termination().await;
            info!("received {name}");
            if to.send(()).await.is_err() {
                return;
            }
        }
    }

    async fn next_termination(&mut self) -> &'static str {
        loop {
            let ignored = tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => "SIGHUP",
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
            };
            warn_ignored(ignored);
        }
    }
}

fn warn_ignored(signal: &str) {
    warn!(
        "{signal} is ignored: hublet does not reload its configuration; restart it, or start another with \
         --take-over"
    );
}

#[cfg(test)]
impl Shutdown {
    /// Is requested by a message in place of a signal.
    pub(super) fn on_messages() -> (mpsc::Sender<()>, Self) {
        let (sender, receiver) = mpsc::channel(2);
        (sender, Self(receiver))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use nix::sys::signal::{Signal, raise};
    use tokio::time::timeout;

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn the_first_signal_is_graceful_and_the_second_immediate() {
        let mut shutdown = Shutdown::on_signals().expect("handlers");
        raise(Signal::SIGHUP).expect("raised");
        let ignored = timeout(Duration::from_millis(50), shutdown.graceful()).await;
        assert!(ignored.is_err(), "SIGHUP ends nothing");
        raise(Signal::SIGTERM).expect("raised");
        timeout(MINUTE, shutdown.graceful()).await.expect("SIGTERM");
        raise(Signal::SIGINT).expect("raised");
        timeout(MINUTE, shutdown.immediate()).await.expect("SIGINT");
    }
}
