//! The end: signals, and the stages taken down in the reverse of their order.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{info, warn};

use super::handover::Successor;
use super::{AppError, Bound};
use crate::steer::Setup;

/// How long a dropped connection may take to be gone, and the last reference to setup.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long answers may take while a successor waits: new connections queue up meanwhile, and none is to wait longer than
/// 2.5 s. A read that the store can answer takes 0.8 s at most, however dead the link is.
const HANDOVER_DRAIN: Duration = Duration::from_millis(1500);

/// When to stop: the first message ends gracefully, a second one at once.
#[derive(Debug)]
pub struct Shutdown(mpsc::Receiver<()>);

impl Shutdown {
    /// SIGTERM and SIGINT. Those by which other daemons are told something and that would end this one as it stands
    /// (SIGHUP, SIGUSR1, SIGUSR2) are logged, and nothing else. Call on a runtime.
    ///
    /// # Errors
    /// The signal handlers can't be installed.
    pub fn on_signals() -> Result<Self, AppError> {
        let wrong = |error: io::Error| AppError::System("signal handlers", error);
        let listen = |kind: SignalKind| -> Result<Signal, AppError> { signal(kind).map_err(wrong) };
        let (mut term, mut int) = (
            listen(SignalKind::terminate())?,
            listen(SignalKind::interrupt())?,
        );
        let (mut hup, mut usr1, mut usr2) = (
            listen(SignalKind::hangup())?,
            listen(SignalKind::user_defined1())?,
            listen(SignalKind::user_defined2())?,
        );
        let (sender, receiver) = mpsc::channel(2);
        tokio::spawn(async move {
            loop {
                let (name, ends) = tokio::select! {
                    _ = term.recv() => ("SIGTERM", true),
                    _ = int.recv() => ("SIGINT", true),
                    _ = hup.recv() => ("SIGHUP", false),
                    _ = usr1.recv() => ("SIGUSR1", false),
                    _ = usr2.recv() => ("SIGUSR2", false),
                };
                if !ends {
                    warn!(
                        "{name} is ignored: nothing is read again while hublet runs; start it anew, or another by --take-over"
                    );
                    continue;
                }
                info!("{name}");
                if sender.send(()).await.is_err() {
                    return;
                }
            }
        });
        Ok(Self(receiver))
    }

    /// Waits for the first message; what is left hears the second.
    pub(super) async fn graceful(&mut self) {
        self.0.recv().await;
    }

    async fn immediate(&mut self) {
        self.0.recv().await;
    }
}

/// Ends everything; returns when the node is as it was.
pub(super) async fn drain(bound: Bound, mut shutdown: Shutdown) {
    let started = Instant::now();
    bound.setup.stop_steering();
    bound.state.draining();
    bound.table.drain();
    bound.proxy.stages().end_streams();
    let open = bound.table.open();
    info!(
        "stopping: {open} connections are open, up to {:?} for their answers",
        bound.config.listen.drain
    );
    tokio::select! {
        finished = timeout(bound.config.listen.drain, bound.table.drained()) => {
            if finished.is_err() {
                warn!("{} connections are cut after {:?}", bound.table.open(), bound.config.listen.drain);
            }
        }
        () = shutdown.immediate() => warn!("second signal: {} connections are cut", bound.table.open()),
    }
    bound.table.close_all();
    let _ = timeout(CLOSE_TIMEOUT, bound.table.drained()).await;
    for task in &bound.tasks {
        task.abort();
    }
    bound.proxy.stages().close().await;
    undo(bound).await;
    info!("stopped after {:.1?}", started.elapsed());
}

/// Gives a successor our sockets and locks.
///
/// # Errors
/// It has gone: nothing was given away.
pub(super) fn give_place(bound: &Bound, successor: &Successor) -> io::Result<()> {
    let admin = (bound.admin.address(), bound.admin_socket.as_fd());
    let listeners =
        bound.sockets.listeners().iter().filter_map(|listener| {
            Some((listener.socket.local_addr().ok()?, listener.socket.as_fd()))
        });
    let listeners: Vec<_> = listeners.chain([admin]).collect();
    successor.give(&listeners, &bound.setup.hand_over())
}

/// Leaves everything to a successor, who has our place. Returns when it serves; when it dies before, this process starts
/// itself anew.
pub(super) async fn hand_over(bound: Bound, successor: Successor) {
    let started = Instant::now();
    let process = successor.process();
    info!(
        "a new hublet takes over: no new connections, {} are open",
        bound.table.open()
    );
    bound.state.draining();
    bound.table.drain();
    bound.proxy.stages().end_streams();
    let patience = bound.config.listen.drain.min(HANDOVER_DRAIN);
    if timeout(patience, bound.table.drained()).await.is_err() {
        warn!(
            "{} connections are cut after {patience:?}",
            bound.table.open()
        );
    }
    bound.table.close_all();
    let _ = timeout(CLOSE_TIMEOUT, bound.table.drained()).await;
    for task in &bound.tasks {
        task.abort();
    }
    bound.proxy.stages().close().await;
    let Bound {
        acceptor,
        state,
        admin,
        tasks,
        sockets,
        proxy,
        setup,
        admin_socket,
        ..
    } = bound;
    state.detach();
    drop((acceptor, sockets, admin_socket));
    for task in tasks {
        let _ = task.await;
    }
    admin.stop();
    drop(proxy);
    let serving = tokio::task::spawn_blocking(|| successor.wait()).await;
    match serving {
        Ok(Ok(())) => {
            // Pins, interface and their locks are the successor's.
            drop(setup);
            info!("handed over after {:.1?}", started.elapsed());
        }
        Ok(Err(error)) => {
            warn!("the new hublet did not come up ({error}): starting again");
            // As long as it has our sockets, nobody else can listen there.
            if error.kind() == io::ErrorKind::TimedOut
                && let Some(process) = process
                && let Err(error) = process.kill().await
            {
                warn!("the new hublet hangs and can't be ended: {error}");
            }
            re_exec();
        }
        Err(_) => re_exec(),
    }
}

/// This program anew, as it was started. Our sockets close with the old image, so that callers pass through meanwhile.
fn re_exec() {
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    tracing::error!("hublet can't be started again: {error}");
}

/// Undoes the setup, once nobody else holds it.
async fn undo(bound: Bound) {
    let Bound {
        setup,
        acceptor,
        state,
        admin,
        tasks,
        sockets,
        ..
    } = bound;
    state.detach();
    drop((acceptor, sockets));
    for task in tasks {
        let _ = task.await;
    }
    match into_sole_owner(setup).await {
        Some(setup) => setup.undo().await,
        None => {
            warn!(
                "a connection is still being accepted: interface and eBPF pins are left for the next start"
            )
        }
    }
    admin.stop();
}

/// The setup itself; connections under way and an admin request hold it for moments only.
async fn into_sole_owner(mut setup: Arc<Setup>) -> Option<Setup> {
    let deadline = Instant::now() + CLOSE_TIMEOUT;
    loop {
        match Arc::try_unwrap(setup) {
            Ok(setup) => return Some(setup),
            Err(_) if Instant::now() > deadline => return None,
            Err(shared) => setup = shared,
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
