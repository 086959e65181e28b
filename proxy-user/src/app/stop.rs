//! The two ends of a daemon: a shutdown, which undoes everything, and a hand-over, which leaves
//! everything to the successor.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tracing::{info, warn};

use super::handover::{PeerProcess, Successor};
use super::{Bound, Shutdown};
use crate::drain::Owner;
use crate::steer::Setup;

/// Time for closed connections to be gone, and then for the last user of the setup.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The part of a drain's time in which requests are answered that still wait for the cloud, at most a
/// quarter of it.
const LAST_ANSWERS: Duration = Duration::from_millis(250);

/// Least time for the store to be closed, when open answers have used up the drain's time. A close
/// takes a few syncs; a disk that hangs must not keep the process from ending.
const MIN_STORE_CLOSE: Duration = Duration::from_millis(500);

/// Longest time that the disk may take for a test write before a hand-over. Closing and opening the
/// store take several writes, for which new connections would wait.
const DISK_TEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Time for open answers during a hand-over. New connections queue up meanwhile, and none is to
/// wait longer than 2.5 s. A read that the store can answer takes 0.8 s at most, however dead the
/// link is.
const HANDOVER_DRAIN: Duration = Duration::from_millis(1500);

/// Finishes open answers, up to `--drain-timeout`, and undoes the setup of the node.
pub(super) async fn shut_down(bound: Bound, mut shutdown: Shutdown) {
    let started = Instant::now();
    bound.setup.stop_steering();
    let limit = bound.config.listen.drain;
    info!(
        "stopping: {} open connections have up to {limit:?} to finish",
        bound.table.open()
    );
    // It has been logged; the lock on the file ends with the process.
    let _ = drain_connections(&bound, limit, shutdown.immediate()).await;
    undo_setup(bound).await;
    info!("stopped after {:.1?}", started.elapsed());
}

/// Stops accepting, ends streams, waits for the other answers, and closes the store. `cut_off` ends
/// the wait.
///
/// # Errors
/// The store isn't closed: its writer still waits for the disk.
async fn drain_connections(
    bound: &Bound,
    limit: Duration,
    cut_off: impl Future<Output = ()>,
) -> Result<(), Elapsed> {
    bound.state.start_draining();
    // First, since a probe that is not accepted would be the successor's, which takes it for a client.
    bound.probing.start();
    bound.probing.drained().await;
    bound.table.drain();
    bound.proxy.stages().end_streams();
    let remaining = wait_for_answers(bound, limit, cut_off).await;
    bound.table.close_all();
    let _ = timeout(CLOSE_TIMEOUT, bound.table.drained()).await;
    bound.tasks.abort_all();
    close_store(bound, remaining.max(MIN_STORE_CLOSE)).await
}

async fn close_store(bound: &Bound, limit: Duration) -> Result<(), Elapsed> {
    let closed = bound.proxy.stages().close_within(limit).await;
    if closed.is_err() {
        warn!(
            "the store is not closed after {limit:.1?}, since the disk is slow or hangs: responses and revocations received since its last write may be lost"
        );
    }
    closed
}

/// Returns what remains of `limit`; nothing after `cut_off`.
async fn wait_for_answers(
    bound: &Bound,
    limit: Duration,
    cut_off: impl Future<Output = ()>,
) -> Duration {
    let started = Instant::now();
    tokio::select! {
        drained = finish_requests(bound, limit) => {
            if drained.is_err() {
                warn!("closing {} connections after {limit:?}", bound.table.open());
            }
            limit.saturating_sub(started.elapsed())
        }
        () = cut_off => {
            warn!("second signal: closing {} connections", bound.table.open());
            Duration::ZERO
        }
    }
}

/// Requests that the cloud has not answered in time are answered without it, rather than cut off
/// without a status.
async fn finish_requests(bound: &Bound, limit: Duration) -> Result<(), Elapsed> {
    let last_answers = LAST_ANSWERS.min(limit / 4);
    let drained = timeout(limit - last_answers, bound.table.drained()).await;
    if drained.is_ok() {
        return drained;
    }
    bound.proxy.stages().answer_without_cloud();
    timeout(last_answers, bound.table.drained()).await
}

async fn undo_setup(bound: Bound) {
    let Bound {
        setup,
        acceptor,
        state,
        admin,
        tasks,
        sockets,
        ..
    } = bound;
    state.detach_stages();
    drop((acceptor, sockets));
    tasks.end().await;
    match setup.reclaim(CLOSE_TIMEOUT).await {
        Some(setup) => setup.undo().await,
        None => warn!(
            "a connection is still being accepted: interface and eBPF pins are left in place for the next start"
        ),
    }
    admin.stop();
}

/// Gives a successor the sockets and locks, if the disk lets the store be closed in time.
///
/// # Errors
/// The disk is too slow, or the successor has exited: nothing was given away.
pub(super) async fn begin_hand_over(bound: &Bound, successor: &Successor) -> io::Result<()> {
    let tested = bound.proxy.stages().cache.test_disk(DISK_TEST_TIMEOUT);
    tested.await.map_err(|_| slow_disk())?;
    send_items(bound, successor)
}

fn slow_disk() -> io::Error {
    let problem = format!(
        "the disk of the store has not finished a write within {DISK_TEST_TIMEOUT:?}: check it, and try again"
    );
    io::Error::new(io::ErrorKind::TimedOut, problem)
}

fn send_items(bound: &Bound, successor: &Successor) -> io::Result<()> {
    let mut listeners = Vec::new();
    for listener in bound.sockets.listeners() {
        listeners.push((listener.socket.local_addr()?, listener.socket.as_fd()));
    }
    listeners.push((bound.admin.address(), bound.admin_socket.as_fd()));
    successor.send_items(&listeners, &bound.setup.hand_over())
}

/// Finishes open answers, then waits until the successor serves. If it dies before that, or the
/// store can't be closed for it, this process re-executes itself.
pub(super) async fn hand_over(bound: Bound, successor: Successor) {
    let started = Instant::now();
    info!(
        "a new hublet takes over: no longer accepting, {} connections are open",
        bound.table.open()
    );
    let limit = bound.config.listen.drain.min(HANDOVER_DRAIN);
    let closed = drain_connections(&bound, limit, std::future::pending()).await;
    let setup = release_stages(bound).await;
    if closed.is_err() {
        // The writer may still write: until its thread ends, no other process may open the file.
        dismiss(successor).await;
        re_exec();
    } else if wait_for_successor(successor).await {
        // Pins, interface and their locks belong to the successor: they are not undone.
        drop(setup);
        info!("handed over after {:.1?}", started.elapsed());
    } else {
        re_exec();
    }
}

/// Ends every stage, and closes this process's copies of the sockets. The setup of the node stays.
async fn release_stages(bound: Bound) -> Owner<Setup> {
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
    state.detach_stages();
    drop((acceptor, sockets, admin_socket));
    tasks.end().await;
    admin.stop();
    drop(proxy);
    setup
}

/// True once the successor serves; false if it never will.
async fn wait_for_successor(successor: Successor) -> bool {
    let process = successor.process();
    let waiting = tokio::task::spawn_blocking(|| successor.wait_until_serving());
    let Err(error) = waiting.await.map_err(io::Error::other).flatten() else {
        return true;
    };
    warn!("the new hublet did not start serving ({error}): starting again");
    if error.kind() == io::ErrorKind::TimedOut {
        kill_hanging(process).await;
    }
    false
}

/// Ends a successor that can't have the store, and waits until it has released the sockets.
async fn dismiss(successor: Successor) {
    let process = successor.process();
    // It exits when this connection does.
    drop(successor);
    match process {
        Some(process) => {
            if timeout(CLOSE_TIMEOUT, process.wait_for_exit())
                .await
                .is_err()
            {
                kill_hanging(Some(process)).await;
            }
        }
        None => tokio::time::sleep(CLOSE_TIMEOUT).await,
    }
}

/// While a hanging one has the sockets, no other process can listen there.
async fn kill_hanging(process: Option<PeerProcess>) {
    if let Some(process) = process
        && let Err(error) = process.kill().await
    {
        warn!("the new hublet hangs and can't be killed: {error}");
    }
}

/// Re-executes the binary with its original arguments. The sockets are close-on-exec, so callers
/// reach the API server directly in the meantime.
fn re_exec() {
    let mut arguments = std::env::args_os();
    let mut command = std::process::Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        command.arg0(name);
    }
    let error = command.args(arguments).exec();
    tracing::error!("hublet can't be started again: {error}");
}
