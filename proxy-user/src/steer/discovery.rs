//! Follows the store and keeps the services and the pods that are steered up to date. Each address is put into the
//! serving certificate before its callers are steered.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use super::Setup;
use super::pods::{self, NAMESPACES, PODS, PodOptIns, StoredOptIns};
use super::services::{self, API_SERVICE, ServicePolicy};
use crate::cache::feed::{FeedReader, Notice, StoreError, Subscription};
use crate::config::{CloudConfig, PodSelector, SetupConfig};
use crate::drain::Shared;

/// Keys of the store whose changes matter.
pub(crate) const FEED_PREFIXES: &[&[u8]] = &[PODS, NAMESPACES, API_SERVICE];

/// Least time between two reads of the store.
const MIN_PAUSE: Duration = Duration::from_millis(100);
/// The pause after a read is this many times as long as the read took: reads use at most 5 % of a core.
const PAUSE_FACTOR: u32 = 20;

/// Makes the serving certificate name an address; false if the certificate may not be changed and lacks it.
pub(crate) type CoverAddress =
    Box<dyn Fn(IpAddr) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// The result of one read of the store.
struct Findings {
    api_service: Vec<SocketAddr>,
    /// `None` when the pods were not read.
    opt_ins: Option<StoredOptIns>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ReadPods {
    Yes,
    No,
}

pub(crate) struct Discovery {
    setup: Shared<Setup>,
    subscription: Subscription,
    cover_address: CoverAddress,
    policy: ServicePolicy,
    /// `None` unless annotated pods are steered (`--steer-pods=annotated`).
    opt_ins: Option<PodOptIns>,
    steered: BTreeSet<SocketAddr>,
    read_due: bool,
    /// Pods or namespaces have changed since they were read.
    read_pods: ReadPods,
}

impl Discovery {
    /// `subscription` is one to [`FEED_PREFIXES`].
    pub(crate) fn new(
        setup: Shared<Setup>,
        setup_config: &SetupConfig,
        cloud_config: &CloudConfig,
        subscription: Subscription,
        cover_address: CoverAddress,
    ) -> Self {
        let annotated = setup_config.select.pods.contains(&PodSelector::Annotated);
        Self {
            setup,
            subscription,
            cover_address,
            policy: ServicePolicy::new(&setup_config.steer, cloud_config),
            opt_ins: annotated.then(PodOptIns::default),
            steered: BTreeSet::new(),
            read_due: true,
            read_pods: ReadPods::Yes,
        }
    }

    /// Follows the store until its writer ends. A pod's first connect comes some tenths of a second after the kubelet
    /// has seen it.
    pub(crate) async fn run(mut self) {
        let mut next_read = Instant::now();
        loop {
            tokio::select! {
                notice = self.subscription.next() => match notice {
                    Some(notice) => self.handle_notice(&notice),
                    None => return,
                },
                () = sleep_until(next_read), if self.read_due => {
                    let began = Instant::now();
                    self.read().await;
                    next_read = Instant::now() + MIN_PAUSE.max(began.elapsed() * PAUSE_FACTOR);
                }
            }
        }
    }

    /// Reads the store once: everything that an earlier daemon has stored is steered from the start.
    pub(crate) async fn read(&mut self) {
        let unread = self.opt_ins.as_mut().map(PodOptIns::begin_read);
        let read_pods = match unread {
            Some(_) => self.read_pods,
            None => ReadPods::No,
        };
        let (reader, policy) = (self.subscription.reader(), self.policy.clone());
        let read = tokio::task::spawn_blocking(move || read_store(&reader, &policy, read_pods));
        let findings = match read.await {
            Ok(Ok(findings)) => Some(findings),
            Ok(Err(error)) => {
                warn!("the steered services and pods can't be read from the store: {error}");
                None
            }
            Err(_) => None, // the runtime ends
        };
        // A failed read is tried again with the next notice.
        self.read_due = false;
        let stored = match findings {
            Some(findings) => {
                self.read_pods = ReadPods::No;
                self.steer_services(&findings.api_service);
                findings.opt_ins
            }
            None => None,
        };
        if let (Some(opt_ins), Some(unread)) = (&mut self.opt_ins, unread) {
            opt_ins.end_read(unread, stored);
            self.setup.set_opted_in(opt_ins.uids());
        }
    }

    fn handle_notice(&mut self, notice: &Notice) {
        match notice {
            Notice::Observed(objects) => {
                if let Some(opt_ins) = &mut self.opt_ins
                    && opt_ins.observe(objects)
                {
                    self.setup.set_opted_in(opt_ins.uids());
                }
            }
            Notice::Committed(prefixes) => {
                self.read_due |= prefixes.contains(&API_SERVICE);
                let opt_ins = self.opt_ins.as_mut();
                if opt_ins.is_some_and(|opt_ins| opt_ins.commit(prefixes)) {
                    (self.read_due, self.read_pods) = (true, ReadPods::Yes);
                }
            }
            Notice::Reset => {
                if let Some(opt_ins) = &mut self.opt_ins {
                    opt_ins.commit_all();
                }
                (self.read_due, self.read_pods) = (true, ReadPods::Yes);
            }
        }
    }

    fn steer_services(&mut self, api_service: &[SocketAddr]) {
        let services = self.policy.with_api_service(api_service);
        if services == self.steered {
            return;
        }
        for service in services.difference(&self.steered) {
            self.cover(service);
            if !self.policy.is_named(service) {
                info!("the API service is at {service}: connects to it are steered");
            }
        }
        match self.setup.set_services(&services) {
            Ok(()) => self.steered = services,
            Err(error) => warn!("{error}"),
        }
    }

    /// Steers even where this fails: clients that don't verify the address can use it.
    fn cover(&self, service: &SocketAddr) {
        let ip = service.ip();
        match (self.cover_address)(ip) {
            Ok(true) => {}
            Ok(false) => warn!(
                "{service} is steered, but the serving certificate does not name {ip}: clients that \
                 verify it by that address will reject it"
            ),
            Err(error) => warn!("the serving certificate can't be issued for {ip}: {error}"),
        }
    }
}

fn read_store(
    reader: &FeedReader,
    policy: &ServicePolicy,
    read_pods: ReadPods,
) -> Result<Findings, StoreError> {
    let snapshot = reader.snapshot()?;
    Ok(Findings {
        api_service: if policy.api_service {
            services::read_api_service(&snapshot)?
        } else {
            Vec::new()
        },
        opt_ins: match read_pods {
            ReadPods::Yes => Some(pods::read_opt_ins(&snapshot)?),
            ReadPods::No => None,
        },
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::cache::feed::testing::{store_with, subscribe};
    use crate::config::{GuardConfig, LbMode, SelectConfig, Services};
    use crate::drain::Owner;

    const NAMED: &str = "10.0.0.1:6443";

    /// A discovery over a store with the API service, and the addresses that it has covered.
    struct Fixture {
        discovery: Discovery,
        covered: Arc<Mutex<Vec<IpAddr>>>,
        _setup: Owner<Setup>,
        _dir: tempfile::TempDir,
    }

    fn setup_config(bpffs: &std::path::Path) -> SetupConfig {
        SetupConfig {
            ebpf: false,
            dummy: None,
            steer: Services {
                addresses: vec![NAMED.parse().expect("an address")],
                kubernetes: true,
                cloud: false,
            },
            select: SelectConfig {
                pods: vec![PodSelector::Annotated],
                ..SelectConfig::default()
            },
            guard: GuardConfig::default(),
            getpeername: false,
            cgroup: None,
            bpffs: bpffs.to_path_buf(),
            bpf_log: false,
        }
    }

    fn cloud_config() -> CloudConfig {
        CloudConfig {
            servers: Vec::new(),
            lb_mode: LbMode::Rr,
            probe_interval: Duration::from_secs(10),
            probe_timeout: Duration::from_secs(2),
            healthy_threshold: 1,
            mark: 0,
        }
    }

    async fn fixture() -> Fixture {
        let service = r#"{"kind":"Service","apiVersion":"v1","metadata":{"name":"kubernetes","namespace":"default",
            "uid":"u","resourceVersion":"1"},"spec":{"clusterIP":"10.96.0.1","ports":[{"port":443}]}}"#;
        let (dir, store) = store_with(&[("/services/default/kubernetes".into(), service.into())]);
        let config = setup_config(dir.path());
        let setup = Owner::new(Setup::prepare(&config, 0).await.expect("prepared"));
        let covered = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&covered);
        let discovery = Discovery::new(
            setup.share(),
            &config,
            &cloud_config(),
            subscribe(&Arc::new(store), FEED_PREFIXES),
            Box::new(move |ip| {
                log.lock().push(ip);
                Ok(true)
            }),
        );
        Fixture {
            discovery,
            covered,
            _setup: setup,
            _dir: dir,
        }
    }

    fn committed(prefix: &'static [u8]) -> Notice {
        Notice::Committed(vec![prefix].into())
    }

    #[tokio::test]
    async fn each_service_is_covered_once() {
        let mut fixture = fixture().await;
        fixture.discovery.read().await;
        let steered = BTreeSet::from([NAMED, "10.96.0.1:443"].map(|a| a.parse().expect("address")));
        assert_eq!(fixture.discovery.steered, steered);
        fixture.discovery.read().await;
        let covered = fixture.covered.lock();
        let ips: BTreeSet<_> = steered.iter().map(SocketAddr::ip).collect();
        assert_eq!(covered.len(), 2);
        assert_eq!(covered.iter().copied().collect::<BTreeSet<_>>(), ips);
    }

    #[tokio::test]
    async fn only_a_change_that_matters_causes_a_read() {
        let mut fixture = fixture().await;
        let discovery = &mut fixture.discovery;
        discovery.read().await;
        assert!(!discovery.read_due);
        discovery.handle_notice(&committed(PODS));
        assert!(!discovery.read_due);
        discovery.handle_notice(&committed(API_SERVICE));
        assert!(discovery.read_due && discovery.read_pods == ReadPods::No);
    }

    #[tokio::test]
    async fn a_reset_causes_everything_to_be_read() {
        let mut fixture = fixture().await;
        let discovery = &mut fixture.discovery;
        discovery.read().await;
        discovery.handle_notice(&Notice::Reset);
        assert!(discovery.read_due && discovery.read_pods == ReadPods::Yes);
    }
}
