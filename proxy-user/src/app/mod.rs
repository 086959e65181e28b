//! The composition root: builds the stages, runs them, and takes them down.
//!
//! Start: admin socket → certificates → the host's listeners → interface and eBPF (switched off) →
//! the interface's listeners → store and cloud → accept → self-probe → steering on. The host's
//! listeners come before the interface, so that a second hublet fails on a port in use before it
//! touches the first one's interface.
//!
//! Shutdown: steering off → no new connections → open answers, up to `--drain-timeout` → store
//! closed → setup undone.

mod bind;
mod build;
mod certificates;
mod handover;
mod limits;
mod self_probe;
mod shutdown;
mod startup_log;
mod stop;
mod tasks;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::sync::Arc;

use time::OffsetDateTime;
use tracing::warn;

use crate::admin::{Admin, Condition, State};
use crate::cache::store::StoreError;
use crate::caller::Port;
use crate::certs::{Certificates, CertsError};
use crate::config::Config;
use crate::drain::{DrainTrigger, Owner};
use crate::listen::{self, Acceptor, ConnectionTable, Counters, ListenError};
use crate::node::dir_locks::DirectoryLocks;
use crate::proxy::Proxy;
use crate::steer::discovery::{Discovery, FEED_PREFIXES};
use crate::steer::{Setup, SetupError};

use bind::Sockets;
use handover::{HandoverListener, Inheritance, Successor};
use self_probe::SelfProbe;
use tasks::Tasks;

pub use handover::HandoverError;
pub use shutdown::Shutdown;

/// Errors that keep hublet from starting.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Certs(#[from] CertsError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("invalid --server-addr: the host {host:?} is neither a DNS name nor an IP address")]
    Host { host: String },
    #[error("--server-addr is required: give the API server's URL, https://HOST:PORT")]
    NoServer,
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// A hublet whose stages are built and whose sockets are bound.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    admin: Admin,
    state: Arc<State>,
    setup: Owner<Setup>,
    proxy: Arc<Proxy>,
    acceptor: Arc<Acceptor>,
    certificates: Arc<Certificates>,
    table: Arc<ConnectionTable>,
    counters: Arc<Counters>,
    sockets: Sockets,
    /// A duplicate of the admin socket, for a successor.
    admin_socket: TcpListener,
    inheritance: Inheritance,
    /// Ends the self-probe.
    probing: DrainTrigger,
    tasks: Tasks,
    _dir_locks: DirectoryLocks,
}

/// The reason for which [`Bound::run`] ends.
enum End {
    Shutdown,
    Handover(Successor),
}

impl Bound {
    /// Accepts, steers and serves until shutdown or hand-over; then drains and undoes the setup.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        self.start().await;
        let mut handover = HandoverListener::start(&self.config.certs.root_dir);
        match self.serve(&mut shutdown, handover.as_mut()).await {
            End::Shutdown => {
                if let Some(handover) = handover {
                    handover.remove_socket();
                }
                stop::shut_down(self, shutdown).await;
            }
            // The socket in the root directory is the successor's from now on.
            End::Handover(successor) => stop::hand_over(self, successor).await,
        }
    }

    /// Starts accepting, then steering if the secure listener answers.
    async fn start(&mut self) {
        self.start_listeners();
        let mut discovery = self.discovery();
        discovery.read().await;
        let probe = self.self_probe();
        if probe.run_once().await {
            self.start_steering();
        }
        self.tasks.spawn("discovery", discovery.run());
        let probing = probe.run(self.probing.watcher());
        self.tasks.spawn("self-probe", probing);
        startup_log::log_components(self);
        self.release_predecessor();
    }

    fn self_probe(&self) -> SelfProbe {
        SelfProbe {
            address: self.sockets.secure_address(),
            setup: self.setup.share(),
            state: Arc::clone(&self.state),
            counters: Arc::clone(&self.counters),
        }
    }

    fn discovery(&self) -> Discovery {
        let certificates = Arc::clone(&self.certificates);
        Discovery::new(
            self.setup.share(),
            &self.config.setup,
            &self.config.cloud,
            self.proxy.stages().cache.subscribe(FEED_PREFIXES),
            Box::new(move |ip| Ok(certificates.cover(ip, OffsetDateTime::now_utc())?)),
        )
    }

    fn start_listeners(&mut self) {
        for listener in self.sockets.listeners() {
            let accepting = listen::spawn(&self.acceptor, listener);
            self.tasks.add("listener", accepting);
        }
        self.spawn_table_tasks();
        self.state.set_met(Condition::Listeners);
    }

    fn spawn_table_tasks(&mut self) {
        let sweeps = Arc::clone(&self.table).run_sweeps(Arc::clone(&self.counters));
        self.tasks.spawn("connection sweep", sweeps);
        let checks = Arc::clone(&self.table).run_stall_checks(Arc::clone(&self.counters));
        self.tasks.spawn("stall check", checks);
    }

    fn start_steering(&self) {
        self.attest_plain_listeners();
        if let Err(error) = self.setup.defend(self.admin.address()) {
            warn!("the guard can't close the admin port to pods: {error}");
        }
        if !self.sockets.is_secure_on_interface() {
            self.warn_of_missing_interface();
            return;
        }
        if let Err(error) = self.setup.steer(self.sockets.secure().socket.as_fd()) {
            warn!("steering stays off: {error}");
        }
        self.setup.write_heartbeat();
    }

    fn attest_plain_listeners(&self) {
        for listener in self.sockets.listeners() {
            if listener.port == Port::Plain
                && let Err(error) = self.setup.attest(listener.socket.as_fd())
            {
                warn!("callers aren't attested: {error}");
            }
        }
    }

    fn warn_of_missing_interface(&self) {
        if self.config.setup.ebpf && !self.config.setup.steer.is_empty() {
            warn!(
                "steering stays off: it needs the interface, and TLS is on {}",
                self.sockets.secure_address()
            );
        }
    }

    /// Lets the daemon that this one replaces exit.
    fn release_predecessor(&mut self) {
        let inheritance = std::mem::take(&mut self.inheritance);
        if let Some(predecessor) = inheritance.confirm_serving() {
            let setup = self.setup.share();
            self.tasks.spawn("predecessor", async move {
                predecessor.wait_for_exit().await;
                setup.predecessor_ended();
            });
        }
    }

    /// Waits for the end, while the tasks serve.
    async fn serve(
        &self,
        shutdown: &mut Shutdown,
        mut handover: Option<&mut HandoverListener>,
    ) -> End {
        loop {
            let successor = tokio::select! {
                () = shutdown.graceful() => return End::Shutdown,
                successor = next_successor(handover.as_deref_mut()) => successor,
            };
            match stop::begin_hand_over(self, &successor).await {
                Ok(()) => return End::Handover(successor),
                Err(error) => {
                    warn!("can't hand over to a new hublet, so this one keeps serving: {error}");
                }
            }
        }
    }
}

async fn next_successor(handover: Option<&mut HandoverListener>) -> Successor {
    match handover {
        Some(handover) => handover.next_successor().await,
        None => std::future::pending().await,
    }
}
