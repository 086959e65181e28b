//! What is steered beyond what was named: the API service's ClusterIP, the API servers' own addresses, the pods that
//! opt in. In: the store, as it fills. Out: [`Setup::services`] and [`Setup::opt_in`], and a certificate that is good
//! for each address before its callers are steered.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use tracing::{info, warn};

use super::Setup;
use crate::cache::Cache;
use crate::cache::steering::{api_service, opted_in};
use crate::certs::Certificates;
use crate::config::{CloudConfig, PodSelector, Services, SetupConfig};

/// At least so long between two looks at the store, and so many times as long as a look takes.
const PAUSE: (Duration, u32) = (Duration::from_millis(100), 20);

/// Where discoveries come from and go to.
pub(crate) struct Discovery {
    pub(crate) cache: Arc<Cache>,
    pub(crate) setup: Arc<Setup>,
    pub(crate) certificates: Arc<Certificates>,
    named: BTreeSet<SocketAddr>,
    kubernetes: bool,
    pods: bool,
    steered: BTreeSet<SocketAddr>,
}

impl Discovery {
    pub(crate) fn new(
        config: (&SetupConfig, &CloudConfig),
        cache: &Arc<Cache>,
        setup: &Arc<Setup>,
        certificates: &Arc<Certificates>,
    ) -> Self {
        let Services {
            addresses,
            kubernetes,
            cloud,
        } = &config.0.steer;
        let servers = config.1.servers.iter().filter(|_| *cloud);
        // Names are for DNS, which is what a node that is cut off has not; clients are steered by addresses.
        let servers =
            servers.filter_map(|s| s.host.parse().ok().map(|ip| SocketAddr::new(ip, s.port)));
        Self {
            cache: Arc::clone(cache),
            setup: Arc::clone(setup),
            certificates: Arc::clone(certificates),
            named: addresses.iter().copied().chain(servers).collect(),
            kubernetes: *kubernetes,
            pods: config.0.select.pods.contains(&PodSelector::Annotated),
            steered: BTreeSet::new(),
        }
    }

    /// Looks once: what an earlier life of the daemon has stored is steered from the start.
    pub(crate) async fn once(&mut self) {
        let (kubernetes, pods, cache) = (self.kubernetes, self.pods, Arc::clone(&self.cache));
        let looked = tokio::task::spawn_blocking(move || {
            let wanting = cache.ingest().wanting();
            let snapshot = cache.stored()?;
            let service = if kubernetes {
                api_service(&snapshot)?
            } else {
                Vec::new()
            };
            let pods = if pods {
                &opted_in(&snapshot)? | &wanting
            } else {
                BTreeSet::new()
            };
            Ok::<_, crate::cache::store::StoreError>((service, pods))
        });
        match looked.await {
            Ok(Ok((service, pods))) => {
                self.serve(service);
                self.setup.opt_in(pods);
            }
            Ok(Err(error)) => warn!("whom to steer can't be read from the store: {error}"),
            Err(_) => {} // the runtime ends
        }
    }

    /// Looks for ever: whenever a pod, a namespace or the API service is written to the store. A pod's first connect
    /// comes some tenths of a second after the kubelet has seen it.
    pub(crate) async fn watch(mut self) {
        loop {
            self.cache.ingest().steering().await;
            let begin = Instant::now();
            self.once().await;
            tokio::time::sleep(PAUSE.0.max(begin.elapsed() * PAUSE.1)).await;
        }
    }

    fn serve(&mut self, service: Vec<SocketAddr>) {
        let mut services = self.named.clone();
        services.extend(service);
        if services == self.steered {
            return;
        }
        let now = OffsetDateTime::now_utc();
        for new in services.difference(&self.steered) {
            match self.certificates.cover(new.ip(), now) {
                Ok(true) => {}
                Ok(false) => warn!(
                    "{new} is steered, but the serving certificate is not good for {}: clients that verify it by that \
                     address will refuse it",
                    new.ip()
                ),
                Err(error) => warn!(
                    "the serving certificate can't be made good for {}: {error}",
                    new.ip()
                ),
            }
            if !self.named.contains(new) {
                info!("the API service is {new}: what dials it is steered, too");
            }
        }
        match self.setup.services(&services) {
            Ok(()) => self.steered = services,
            Err(error) => warn!("{error}"),
        }
    }
}
