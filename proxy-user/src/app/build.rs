//! Builds every stage, in the order of [`super`]; [`build_proxy`] those that a request passes.

use std::net::TcpListener;
use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig};

use super::bind::{Sockets, inherit_or_bind};
use super::certificates::{self, add_node_address};
use super::handover::Inheritance;
use super::tasks::Tasks;
use super::{AppError, Bound, limits};
use crate::admin::{Admin, Condition, Handles, State};
use crate::authz::authorizer::Authorizer;
use crate::authz::reader::StoreReader;
use crate::budget::Budget;
use crate::cache::Cache;
use crate::certs::{Certificates, cloud_roots};
use crate::clock::Clock;
use crate::cloud::dial::Dialer;
use crate::cloud::forward::Cloud;
use crate::cloud::health::Health;
use crate::cloud::pool::Pool;
use crate::config::{Checked, CloudConfig, Config, ListenConfig};
use crate::drain::{DrainTrigger, Owner};
use crate::listen::{self, Acceptor, ConnectionTable, Counters, ListenError, Purpose};
use crate::local::Local;
use crate::node::dir_locks::DirectoryLocks;
use crate::proxy::stages::{Limits, Stages};
use crate::proxy::{Policy, Proxy};
use crate::steer::Setup;
use crate::telemetry::Metrics;

impl Bound {
    /// Builds every stage, up to accepting connections. Call on the traffic runtime.
    ///
    /// # Errors
    /// The first stage that can't be built; the setup of the node is undone.
    pub async fn build(checked: Checked) -> Result<Self, AppError> {
        let Checked {
            mut config,
            warnings,
        } = checked;
        let roots = cloud_roots(&config.certs)?;
        add_node_address(&mut config);
        let Predecessor {
            mut inheritance,
            early_certificates,
        } = Predecessor::take_over(&config)?;

        let admin = AdminServer::start(&config, &mut inheritance)?;
        let certificates = match early_certificates {
            Some(certificates) => certificates,
            None => certificates::open(&config)?,
        };
        let node = PreparedNode::build(&config, &certificates, &roots, &mut inheritance).await?;
        admin.state.set_met(Condition::Store);

        let bound = Self::assemble(config, admin, certificates, node, inheritance);
        bound.attach_stages(warnings);
        let renewal = certificates::renew(Arc::clone(&bound.certificates));
        bound.admin.runtime().spawn(renewal);
        Ok(bound)
    }

    fn assemble(
        config: Config,
        admin: AdminServer,
        certificates: Arc<Certificates>,
        node: PreparedNode,
        inheritance: Inheritance,
    ) -> Self {
        let Serving { proxy, tls } = node.serving;
        let setup = Owner::new(node.setup);
        let table = build_table(&config.listen);
        let counters = Arc::new(Counters::default());
        let acceptor = Acceptor::new(
            Arc::clone(&proxy),
            setup.share(),
            tls,
            Arc::clone(&table),
            Arc::clone(&counters),
        );
        Self {
            _dir_locks: DirectoryLocks::lock_shared([&config.certs.root_dir, &config.cache.dir]),
            config,
            admin: admin.thread,
            state: admin.state,
            setup,
            proxy,
            acceptor,
            certificates,
            table,
            counters,
            sockets: node.sockets,
            admin_socket: admin.socket,
            inheritance,
            probing: DrainTrigger::new(),
            tasks: Tasks::default(),
        }
    }

    /// Gives the admin server access to the stages, which it reports on.
    fn attach_stages(&self, warnings: Vec<String>) {
        self.state.attach_stages(Handles {
            proxy: Arc::clone(&self.proxy),
            setup: self.setup.share(),
            certificates: Arc::clone(&self.certificates),
            table: Arc::clone(&self.table),
            counters: Arc::clone(&self.counters),
            listeners: self.sockets.statuses(self.admin.address()),
            warnings,
        });
    }
}

/// The admin server, which reports on the start from its beginning.
struct AdminServer {
    thread: Admin,
    state: Arc<State>,
    /// A duplicate of the thread's socket, for a successor.
    socket: TcpListener,
}

impl AdminServer {
    fn start(config: &Config, inheritance: &mut Inheritance) -> Result<Self, AppError> {
        let state = State::new(config.node_name.clone());
        let socket = inherit_or_bind(config.admin, Purpose::Admin, inheritance)?;
        let thread = start_admin(&socket, &state)?;
        Ok(Self {
            thread,
            state,
            socket,
        })
    }
}

/// The setup of the node, the sockets of clients, and the stages that serve them.
struct PreparedNode {
    setup: Setup,
    sockets: Sockets,
    serving: Serving,
}

impl PreparedNode {
    /// # Errors
    /// Something can't be bound, set up or built; the setup is undone.
    async fn build(
        config: &Config,
        certificates: &Certificates,
        roots: &Arc<RootCertStore>,
        inheritance: &mut Inheritance,
    ) -> Result<Self, AppError> {
        let dummy = config.setup.dummy.as_ref().map(|dummy| dummy.ip);
        let mut sockets = Sockets::bind_host(&config.listen, dummy, inheritance)?;
        let inherited = std::mem::take(&mut inheritance.setup);
        let setup = Setup::take_over(&config.setup, config.cloud.mark, inherited).await?;
        let serving = match sockets.bind_interface(&config.listen, &setup, inheritance) {
            Ok(()) => Serving::build(config, certificates, roots),
            Err(error) => Err(error.into()),
        };
        match serving {
            Ok(serving) => Ok(Self {
                setup,
                sockets,
                serving,
            }),
            Err(error) => {
                setup.undo().await;
                Err(error)
            }
        }
    }
}

/// A daemon that hands over, or nothing.
struct Predecessor {
    inheritance: Inheritance,
    /// Opened before the old daemon gives its place up: a start that fails, fails while that one runs.
    early_certificates: Option<Arc<Certificates>>,
}

impl Predecessor {
    fn take_over(config: &Config) -> Result<Self, AppError> {
        if !config.take_over {
            return Ok(Self {
                inheritance: Inheritance::default(),
                early_certificates: None,
            });
        }
        let certificates = certificates::open(config)?;
        Ok(Self {
            inheritance: Inheritance::request(&config.certs.root_dir)?,
            early_certificates: Some(certificates),
        })
    }
}

/// The stages whose failure undoes the setup of the node.
struct Serving {
    proxy: Arc<Proxy>,
    tls: Arc<ServerConfig>,
}

impl Serving {
    fn build(
        config: &Config,
        certificates: &Certificates,
        roots: &Arc<RootCertStore>,
    ) -> Result<Self, AppError> {
        let tls = listen::server_config(certificates.resolver()).map_err(ListenError::from)?;
        let proxy = build_proxy(config, roots)?;
        Ok(Self { proxy, tls })
    }
}

fn start_admin(socket: &TcpListener, state: &Arc<State>) -> Result<Admin, AppError> {
    socket
        .try_clone()
        .and_then(|socket| Admin::start(socket, Arc::clone(state)))
        .map_err(|error| AppError::System("can't start the admin thread", error))
}

/// Opens the store, and starts its writer and the cloud's health monitor on the current runtime.
fn build_proxy(config: &Config, roots: &Arc<RootCertStore>) -> Result<Arc<Proxy>, AppError> {
    let metrics = Arc::new(Metrics::default());
    let cache = Arc::new(Cache::open(&config.cache, Clock::default())?);
    let authorizer = Authorizer::load(Arc::clone(&cache), config.local.grant_max_age)?;
    let authorizer = Arc::new(authorizer);
    let late = Arc::clone(&authorizer);
    tokio::spawn(async move { late.load_late().await });
    let cloud = build_cloud(config, roots, &metrics)?;
    let local = Local::new(
        Arc::clone(&authorizer),
        StoreReader::new(Arc::clone(&cache)),
        &config.local,
        cloud.health.subscribe_connected(),
    );
    let stages = Stages {
        cache,
        authorizer,
        cloud,
        local,
        metrics,
        budget: Budget::new(config.listen.max_bytes_under_way),
        limits: Limits::new(config.listen.max_requests),
    };
    let policy = Policy {
        working_mode: config.working_mode,
    };
    Ok(Arc::new(Proxy::new(stages, policy)))
}

fn build_dialer(config: &CloudConfig, roots: &Arc<RootCertStore>) -> Result<Dialer, AppError> {
    let server = config.servers.first().ok_or(AppError::NoServer)?;
    Dialer::new(server, roots, config.mark).map_err(|_| AppError::Host {
        host: server.host.clone(),
    })
}

fn build_table(config: &ListenConfig) -> Arc<ConnectionTable> {
    let limit = limits::max_connections(config.max_connections);
    ConnectionTable::new(limit, config.reader_timeout)
}

fn build_cloud(
    config: &Config,
    roots: &Arc<RootCertStore>,
    metrics: &Arc<Metrics>,
) -> Result<Cloud, AppError> {
    let dialer = build_dialer(&config.cloud, roots)?;
    let pool = Arc::new(Pool::new(dialer, Arc::clone(metrics)));
    let health = Health::start(
        &config.cloud,
        Arc::clone(&pool),
        pool.dialer().activity(),
        Arc::clone(metrics),
    );
    Ok(Cloud { pool, health })
}
