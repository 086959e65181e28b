//! Builds every stage, in the order of [`super`]; [`build_proxy`] those that a request passes.

use std::net::TcpListener;
use std::sync::Arc;

use rustls::{RootCertStore, ServerConfig};

use super::bind::{Sockets, inherit_or_bind};
use super::certificates::{self, add_node_address};
use super::handover::Inheritance;
use super::tasks::Tasks;
use super::{AppError, Bound, limits, startup_log};
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
use crate::config::{Checked, Config};
use crate::drain::Owner;
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
        // A successor fails, if it does, while the old daemon still runs.
        let early_certificates = match config.take_over {
            true => Some(certificates::open(&config)?),
            false => None,
        };
        let mut inheritance = match config.take_over {
            true => Inheritance::request(&config.certs.root_dir)?,
            false => Inheritance::default(),
        };

        let state = State::new(config.node_name.clone());
        let admin_socket = inherit_or_bind(config.admin, Purpose::Admin, &mut inheritance)?;
        let admin = start_admin(&admin_socket, &state)?;
        let certificates = match early_certificates {
            Some(certificates) => certificates,
            None => certificates::open(&config)?,
        };
        let dummy = config.setup.dummy.as_ref().map(|dummy| dummy.ip);
        let mut sockets = Sockets::bind_host(&config.listen, dummy, &mut inheritance)?;
        let inherited = std::mem::take(&mut inheritance.setup);
        let setup = Setup::take_over(&config.setup, config.cloud.mark, inherited).await?;
        let serving = match sockets.bind_interface(&config.listen, &setup, &mut inheritance) {
            Ok(()) => Serving::build(&config, &certificates, &roots),
            Err(error) => Err(error.into()),
        };
        let Serving { proxy, tls } = match serving {
            Ok(serving) => serving,
            Err(error) => {
                setup.undo().await;
                return Err(error);
            }
        };
        state.set_met(Condition::Store);

        let setup = Owner::new(setup);
        let table = ConnectionTable::new(
            limits::max_connections(config.listen.max_connections),
            config.listen.reader_timeout,
        );
        let counters = Arc::new(Counters::default());
        let acceptor = Acceptor::new(
            Arc::clone(&proxy),
            setup.share(),
            tls,
            Arc::clone(&table),
            Arc::clone(&counters),
        );
        state.attach_stages(Handles {
            proxy: Arc::clone(&proxy),
            setup: setup.share(),
            certificates: Arc::clone(&certificates),
            table: Arc::clone(&table),
            counters: Arc::clone(&counters),
            listeners: startup_log::describe_listeners(&sockets, admin.address()),
            warnings,
        });
        admin
            .runtime()
            .spawn(certificates::renew(Arc::clone(&certificates)));
        Ok(Self {
            _dir_locks: DirectoryLocks::lock_shared([&config.certs.root_dir, &config.cache.dir]),
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
            inheritance,
            tasks: Tasks::default(),
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

fn build_cloud(
    config: &Config,
    roots: &Arc<RootCertStore>,
    metrics: &Arc<Metrics>,
) -> Result<Cloud, AppError> {
    let server = config.cloud.servers.first().ok_or(AppError::NoServer)?;
    let dialer = Dialer::new(server, roots, config.cloud.mark).map_err(|_| AppError::Host {
        host: server.host.clone(),
    })?;
    let pool = Arc::new(Pool::new(dialer, Arc::clone(metrics)));
    let health = Health::start(
        &config.cloud,
        Arc::clone(&pool),
        pool.dialer().activity(),
        Arc::clone(metrics),
    );
    Ok(Cloud { pool, health })
}
