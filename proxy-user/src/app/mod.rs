//! Builds the stages in their order, runs them, and takes them down in the reverse one.
//!
//! Start: admin socket → certificates → the host's listeners → interface and eBPF (switched off) → the interface's
//! listeners → store and cloud → accept → self-probe → steering on. The host's listeners come before the interface,
//! so that a second hublet fails on a taken port before it touches what the first one made.
//! Shutdown: steering off → no new connections → finish answers, up to `--drain-timeout` → close the store → undo.

mod announce;
mod bind;
mod build;
mod dir_locks;
mod handover;
mod limits;
mod shutdown;

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use time::OffsetDateTime;
use tracing::{info, warn};

use crate::admin::{Admin, Condition, Handles, State};
use crate::authz::caller::Port;
use crate::certs::{Certificates, CertsError, cloud_roots};
use crate::config::{Checked, Config};
use crate::listen::{self, Acceptor, ConnectionTable, Counters, ListenError, PROBE_INTERVAL};
use crate::node::error::SetupError;
use crate::proxy::Proxy;
use crate::steer::Setup;
use crate::steer::discovery::{Discovery, FEED_PREFIXES};
use build::{BuildError, build_proxy};

use bind::Sockets;
pub use dir_locks::{DaemonRunning, DirectoryLocks};
pub use handover::HandoverError;
use handover::{HandoverListener, Inheritance, Successor};
pub use shutdown::Shutdown;

/// How often the serving certificate is looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(600);

/// Why hublet could not start.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// A certificate or the bootstrap file.
    #[error(transparent)]
    Certs(#[from] CertsError),
    #[error(transparent)]
    Listen(#[from] ListenError),
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The store or the cloud.
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Handover(#[from] HandoverError),
    #[error("{0}: {1}")]
    System(&'static str, io::Error),
}

/// A hublet whose sockets are bound and which accepts.
#[derive(Debug)]
pub struct Bound {
    config: Config,
    admin: Admin,
    state: Arc<State>,
    setup: Arc<Setup>,
    proxy: Arc<Proxy>,
    acceptor: Arc<Acceptor>,
    certificates: Arc<Certificates>,
    table: Arc<ConnectionTable>,
    counters: Arc<Counters>,
    sockets: Sockets,
    /// The admin socket once more, for a successor.
    admin_socket: TcpListener,
    taken: Inheritance,
    _dir_locks: DirectoryLocks,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Bound {
    /// Builds every stage up to accepting connections. Call on the traffic runtime.
    ///
    /// # Errors
    /// The first stage that can't be built; what was made until then is undone.
    pub async fn build(
        Checked {
            mut config,
            warnings,
        }: Checked,
    ) -> Result<Self, AppError> {
        let roots = cloud_roots(&config.certs)?;
        add_node_address(&mut config);
        let (mut taken, certificates) = take_over(&config)?;
        let state = State::new(config.node_name.clone());
        let admin_socket = bind::bind_or_take(config.admin, listen::Purpose::Admin, &mut taken)?;
        let admin = admin_socket
            .try_clone()
            .and_then(|socket| Admin::start(socket, Arc::clone(&state)));
        let admin = admin.map_err(|e| AppError::System("admin thread", e))?;
        let certificates = certificates.map_or_else(|| open_certificates(&config), Ok)?;
        let mut sockets = Sockets::of_the_host(&config, &mut taken)?;
        let inherited = std::mem::take(&mut taken.setup);
        let setup = Setup::take_over(&config.setup, config.cloud.mark, inherited).await?;
        let built = async {
            sockets.add_dummy(&config, &setup, &mut taken)?;
            let tls = listen::server_config(certificates.resolver()).map_err(ListenError::from)?;
            Ok::<_, AppError>((build_proxy(&config, &roots)?, tls))
        };
        let (proxy, tls) = match Box::pin(built).await {
            Ok(built) => built,
            Err(error) => {
                setup.undo().await;
                return Err(error);
            }
        };
        state.mark(Condition::Store);
        let setup = Arc::new(setup);
        let (table, counters) = (
            ConnectionTable::new(
                limits::connections(config.listen.max_connections),
                config.listen.reader_timeout,
            ),
            Arc::new(Counters::default()),
        );
        let parts = (
            Arc::clone(&proxy),
            Arc::clone(&setup),
            Arc::clone(&table),
            Arc::clone(&counters),
        );
        let acceptor = Acceptor::new(parts.0, parts.1, tls, parts.2, parts.3);
        state.attach(Handles {
            proxy: Arc::clone(&proxy),
            setup: Arc::clone(&setup),
            certificates: Arc::clone(&certificates),
            table: Arc::clone(&table),
            counters: Arc::clone(&counters),
            listeners: announce::listeners(&sockets, admin.address()),
            warnings,
        });
        admin.runtime().spawn(renew(Arc::clone(&certificates)));
        Ok(Self {
            _dir_locks: DirectoryLocks::declare([&config.certs.root_dir, &config.cache.dir]),
            config,
            admin,
            state,
            setup,
            proxy,
            acceptor,
            certificates,
            table,
            counters,
            sockets,
            admin_socket,
            taken,
            tasks: Vec::new(),
        })
    }

    /// Accepts, steers, and serves until told to stop; then drains and undoes.
    pub async fn run(mut self, mut shutdown: Shutdown) {
        for listener in self.sockets.listeners() {
            self.tasks.push(listen::spawn(&self.acceptor, listener));
        }
        self.tasks.push(tokio::spawn(
            Arc::clone(&self.table).run_sweeps(Arc::clone(&self.counters)),
        ));
        let (table, counters) = (Arc::clone(&self.table), Arc::clone(&self.counters));
        self.tasks
            .push(tokio::spawn(table.run_stall_checks(counters)));
        self.state.mark(Condition::Listeners);
        let mut discovery = self.discovery();
        discovery.read().await;
        self.steer().await;
        self.tasks.push(tokio::spawn(discovery.run()));
        self.tasks.push(tokio::spawn(self.heartbeat()));
        announce::all(&self);
        if let Some(old) = std::mem::take(&mut self.taken).serving() {
            let setup = Arc::clone(&self.setup);
            self.tasks.push(tokio::spawn(async move {
                old.ended().await;
                setup.predecessor_ended();
            }));
        }
        let mut door = HandoverListener::open(&self.config.certs.root_dir);
        let successor = loop {
            tokio::select! {
                () = shutdown.graceful() => break None,
                successor = asked(&mut door) => match shutdown::give_place(&self, &successor) {
                    Ok(()) => break Some(successor),
                    Err(error) => warn!("a new hublet asked for our place and did not take it: {error}"),
                },
            }
        };
        match successor {
            None => {
                if let Some(door) = door {
                    door.close();
                }
                shutdown::drain(self, shutdown).await;
            }
            // The socket in the root directory is the successor's from now on.
            Some(successor) => shutdown::hand_over(self, successor).await,
        }
    }

    fn discovery(&self) -> Discovery {
        let certificates = Arc::clone(&self.certificates);
        Discovery::new(
            &self.setup,
            &self.config.setup,
            &self.config.cloud,
            self.proxy.stages().cache.subscribe(FEED_PREFIXES),
            Box::new(move |ip| Ok(certificates.cover(ip, OffsetDateTime::now_utc())?)),
        )
    }

    /// Steering on, once the listener has answered a probe.
    async fn steer(&self) {
        match listen::probe(self.sockets.secure_address(), &self.counters).await {
            Ok(()) => self.state.probed(),
            Err(error) => {
                warn!(
                    "{} doesn't answer its own probe ({error}): steering stays off",
                    self.sockets.secure_address()
                );
                return;
            }
        }
        for plain in self
            .sockets
            .listeners()
            .iter()
            .filter(|listener| listener.port == Port::Plain)
        {
            if let Err(error) = self.setup.attest(plain.socket.as_fd()) {
                warn!("callers aren't attested: {error}");
            }
        }
        if let Err(error) = self.setup.defend(self.admin.address()) {
            warn!("pods aren't kept from the admin port: {error}");
        }
        if !self.sockets.on_dummy() {
            if self.config.setup.ebpf && !self.config.setup.steer.is_empty() {
                warn!(
                    "steering stays off: it needs the interface, and TLS is on {}",
                    self.sockets.secure_address()
                );
            }
            return;
        }
        if let Err(error) = self.setup.steer(self.sockets.secure().socket.as_fd()) {
            warn!("steering stays off: {error}");
        }
        self.setup.heartbeat();
    }

    /// Probes twice a second for ever; each answer is a heartbeat.
    fn heartbeat(&self) -> impl Future<Output = ()> + Send + 'static {
        let (setup, state, counters) = (
            Arc::clone(&self.setup),
            Arc::clone(&self.state),
            Arc::clone(&self.counters),
        );
        let secure = self.sockets.secure_address();
        async move {
            let mut interval = tokio::time::interval(PROBE_INTERVAL);
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let mut well = true;
            loop {
                interval.tick().await;
                let probed = listen::probe(secure, &counters).await;
                match &probed {
                    Ok(()) => {
                        setup.heartbeat();
                        state.probed();
                        if !well {
                            info!("{secure} answers its own probe again");
                        }
                    }
                    Err(error) => {
                        counters.probe_failed();
                        if well {
                            warn!(
                                "{secure} doesn't answer its own probe: {error}; new connections of host processes \
                                pass to the API server by themselves"
                            );
                        }
                    }
                }
                well = probed.is_ok();
            }
        }
    }
}

async fn asked(door: &mut Option<HandoverListener>) -> Successor {
    match door {
        Some(door) => door.asked().await,
        None => std::future::pending().await,
    }
}

/// The old daemon's place, if we are to have it; what can fail without it fails before the old one stops.
fn take_over(config: &Config) -> Result<(Inheritance, Option<Arc<Certificates>>), AppError> {
    if !config.take_over {
        return Ok((Inheritance::default(), None));
    }
    let certificates = open_certificates(config)?;
    Ok((
        Inheritance::ask(&config.certs.root_dir)?,
        Some(certificates),
    ))
}

fn open_certificates(config: &Config) -> Result<Arc<Certificates>, AppError> {
    let certificates =
        Certificates::open(&config.certs, &config.node_name, OffsetDateTime::now_utc())?;
    Ok(Arc::new(certificates))
}

/// Looks at the serving certificate now and then; runs on the admin runtime.
async fn renew(certificates: Arc<Certificates>) {
    loop {
        tokio::time::sleep(CERTIFICATE_CHECK).await;
        if let Err(error) = certificates.refresh(OffsetDateTime::now_utc()) {
            warn!("the serving certificate can't be renewed: {error}");
        }
    }
}

/// The node's own address, when `--node-ip` doesn't say it: the source address towards the first API server.
fn add_node_address(config: &mut Config) {
    let Some(ip) = config
        .cloud
        .servers
        .first()
        .and_then(|server| source_towards(&server.host, server.port))
    else {
        return;
    };
    if config.certs.node_ip.is_none() && !config.certs.ip_sans.contains(&ip) {
        config.certs.ip_sans.push(ip);
    }
}

/// Connecting a UDP socket sends nothing; the kernel only chooses a route. Names are not looked up: this is the start.
fn source_towards(host: &str, port: u16) -> Option<IpAddr> {
    let server: IpAddr = host.parse().ok()?;
    let any: IpAddr = if server.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        [0; 16].into()
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((server, port)).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_unspecified()).then_some(ip)
}
