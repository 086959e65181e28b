//! Builds the stages that a request passes: store, cloud, local, and the proxy over them.

use std::sync::Arc;

use crate::authz::authorizer::Authorizer;
use crate::authz::reader::StoreReader;
use crate::budget::Budget;
use crate::cache::Cache;
use crate::cache::store::StoreError;
use crate::clock::Clock;
use crate::cloud::dial::Dialer;
use crate::cloud::forward::Cloud;
use crate::cloud::health::Health;
use crate::cloud::pool::Pool;
use crate::config::Config;
use crate::local::Local;
use crate::proxy::stages::{Limits, Stages};
use crate::proxy::{Policy, Proxy};
use crate::telemetry::Metrics;

#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("invalid --server-addr: the host {host:?} is neither a DNS name nor an IP address")]
    Host { host: String },
    #[error("--server-addr is required: give the API server's URL, https://HOST:PORT")]
    NoServer,
}

/// Opens the store, and starts its writer and the cloud's health monitor on the current runtime.
///
/// # Errors
/// The store's directory can't be made or written, or the server's name isn't one.
pub(super) fn build_proxy(
    config: &Config,
    roots: &Arc<rustls::RootCertStore>,
) -> Result<Arc<Proxy>, BuildError> {
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
    roots: &Arc<rustls::RootCertStore>,
    metrics: &Arc<Metrics>,
) -> Result<Cloud, BuildError> {
    let server = config.cloud.servers.first().ok_or(BuildError::NoServer)?;
    let dialer = Dialer::new(server, roots, config.cloud.mark).map_err(|_| BuildError::Host {
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
