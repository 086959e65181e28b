//! The real Kubernetes control plane as a test's cloud: etcd, kube-apiserver and kube-controller-manager on
//! loopback, with Calico's resources, a node and two pods in it.
//!
//! ```no_run
//! # fn example() -> anyhow::Result<()> {
//! use hublet_tests::kube::{KubeCloud, Options};
//! let cloud = KubeCloud::start(Options::default())?;
//! let node = cloud.admin().get("/api/v1/nodes/edge-1")?;
//! # Ok(()) }
//! ```
//!
//! Everything is made anew for each cloud (certificates, data, ports) and is gone when the value is dropped. The
//! programs come from [`binaries`]; where they can't be had, [`Binaries::find`] says how to get them.

pub mod api;
pub mod binaries;
pub mod calico;
pub mod dev;
pub mod edge;
mod flags;
pub mod node;
pub mod process;
pub mod workload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

pub use self::api::Api;
pub use self::binaries::{Binaries, Unavailable};
use self::process::Component;
use crate::client;
use crate::eventually::eventually;
use crate::netns::Netns;
use crate::pki::{Ca, Identity};

/// Until the API server is ready. It takes 2–3 s alone, more beside a build.
const READY: Duration = Duration::from_secs(90);

/// Settings of a cloud.
#[derive(Debug, Clone)]
pub struct Options {
    /// The network namespace that the control plane listens in; `None` is the caller's.
    pub netns: Option<Netns>,
    /// The node that exists from the start.
    pub node: String,
    /// Further addresses that the API server's certificate names (a proxy that passes TLS through).
    pub addresses: Vec<IpAddr>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            netns: None,
            node: "edge-1".into(),
            addresses: Vec::new(),
        }
    }
}

impl Options {
    /// A client on the same network namespace.
    fn client(
        server: &str,
        ca_pem: &str,
        netns: Option<&Netns>,
        identity: Option<Identity>,
    ) -> client::Options {
        client::Options {
            netns: netns.cloned(),
            identity,
            ..client::Options::new(server, ca_pem, None)
        }
    }
}

/// A running control plane.
#[derive(Debug)]
pub struct KubeCloud {
    // In the order in which they are to end.
    controller_manager: Option<Component>,
    apiserver: Component,
    _etcd: Component,
    admin: Api,
    authority: Ca,
    calico_token: String,
    admin_token: String,
    address: SocketAddr,
    netns: Option<Netns>,
    dir: tempfile::TempDir,
}

impl KubeCloud {
    /// Starts the control plane and fills it; ready for use when this returns.
    ///
    /// # Errors
    /// No programs (the message says how to get them), a component that ends or isn't ready in time (with the end
    /// of its log), or a refusal of the API server.
    pub fn start(options: Options) -> Result<Self> {
        let binaries = Binaries::find()?;
        let binaries = binaries.map_err(|why| anyhow::anyhow!("{why}"))?;
        Self::start_with(&binaries, options)
    }

    /// As [`KubeCloud::start`], with programs that were found before.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(binaries: &Binaries, options: Options) -> Result<Self> {
        let netns = options.netns.as_ref();
        let dir = tempfile::Builder::new().prefix("hublet-kube-").tempdir()?;
        let ports = flags::Ports::pick_free(netns)?;
        let authority = Ca::new("kubernetes")?;
        flags::write_files(dir.path(), &authority, &options.addresses)?;

        let etcd = binaries.etcd_command(&dir.path().join("etcd"), &ports.etcd_url());
        let mut etcd = Component::spawn("etcd", etcd, dir.path(), netns)?;
        // An API server that finds etcd's port closed tries again only after a second.
        until_it_listens(&mut etcd, ports.etcd, netns)?;
        let command = flags::apiserver_command(binaries, dir.path(), &ports);
        let mut apiserver = Component::spawn("kube-apiserver", command, dir.path(), netns)?;
        until_it_listens(&mut apiserver, ports.apiserver, netns)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, ports.apiserver));
        let server = format!("https://{address}");
        let controller_manager =
            flags::controller_manager_command(binaries, dir.path(), &authority, &server)?
                .map(|command| {
                    Component::spawn("kube-controller-manager", command, dir.path(), netns)
                })
                .transpose()?;

        let administrator = authority.issue_client_cert("kubernetes-admin", &["system:masters"])?;
        let admin = Api::new(Options::client(
            &server,
            authority.pem(),
            netns,
            Some(administrator),
        ))?;
        until_ready(&admin, &mut apiserver)?;

        let managed = controller_manager.is_some();
        let (calico_token, admin_token) = fill_cluster(&admin, &options.node, managed).with_context(|| {
            let log = controller_manager.as_ref().map_or_else(String::new, Component::log_tail);
            format!(
                "filling the cloud failed; the ends of the logs: kube-apiserver\n{}\nkube-controller-manager\n{log}",
                apiserver.log_tail()
            )
        })?;
        Ok(Self {
            controller_manager,
            apiserver,
            _etcd: etcd,
            admin,
            authority,
            calico_token,
            admin_token,
            address,
            netns: options.netns,
            dir,
        })
    }

    /// The API server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Settings of a client that reaches the API server itself, past every proxy.
    pub fn client_options(&self, token: Option<&str>) -> client::Options {
        let server = format!("https://{}", self.address);
        let options = Options::client(&server, self.ca_pem(), self.netns.as_ref(), None);
        client::Options {
            token: token.map(str::to_owned),
            ..options
        }
    }

    /// The CA that the API server and its clients are trusted by, PEM.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// The administrator, straight to the API server.
    pub fn admin(&self) -> &Api {
        &self.admin
    }

    /// The token of `kube-system/calico-cni-plugin`.
    pub fn calico_token(&self) -> &str {
        &self.calico_token
    }

    /// The token of a service account with every right.
    pub fn admin_token(&self) -> &str {
        &self.admin_token
    }

    /// A client certificate of a node: `O=system:nodes, CN=system:node:NAME`.
    ///
    /// # Errors
    /// The name can't stand in a certificate.
    pub fn node_identity(&self, name: &str) -> Result<Identity> {
        self.authority
            .issue_client_cert(&format!("system:node:{name}"), &["system:nodes"])
    }

    /// The cluster's CA, for certificates of other kinds.
    pub fn cluster_ca(&self) -> &Ca {
        &self.authority
    }

    /// Stops the API server where it stands: connections and the port stay open, nothing answers.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause_apiserver(&self) -> Result<()> {
        self.apiserver.pause()
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume_apiserver(&self) -> Result<()> {
        self.apiserver.resume()
    }

    /// A controller manager runs (it doesn't where `KUBEBUILDER_ASSETS` has none).
    pub fn has_controller_manager(&self) -> bool {
        self.controller_manager.is_some()
    }

    /// The API server's audit events of stage `ResponseComplete`.
    ///
    /// # Errors
    /// The audit log can't be read.
    pub fn audit_events(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(self.dir.path().join("audit.log"))?;
        // The last line may be half written.
        Ok(text
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect())
    }

    /// The folder with the logs, certificates and data; gone with the cloud.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }
}

/// Puts everything into the fresh cluster: (Calico's token, the administrator's token).
fn fill_cluster(admin: &Api, node: &str, managed: bool) -> Result<(String, String)> {
    std::thread::scope(|scope| {
        let others = [
            scope.spawn(|| {
                let api = admin.open_another()?;
                calico::register_crds(&api)?;
                calico::install_objects(&api)
            }),
            scope.spawn(|| {
                let api = admin.open_another()?;
                workload::add_node(&api, node, managed)?;
                workload::add_pods(&api, node, managed)
            }),
        ];
        let tokens = create_accounts(admin);
        for other in others {
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        tokens
    })
}

/// The tokens of Calico's account and of an administrator.
fn create_accounts(admin: &Api) -> Result<(String, String)> {
    calico::grant_cni_rights(admin)?;
    let name = "hublet-tests-admin";
    calico::create_account(admin, "kube-system", name)?;
    calico::bind_role(admin, "cluster-admin", name)?;
    Ok((
        admin.request_token("kube-system", "calico-cni-plugin")?,
        admin.request_token("kube-system", name)?,
    ))
}

/// Waits for the component's port to open.
fn until_it_listens(component: &mut Component, port: u16, netns: Option<&Netns>) -> Result<()> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually(READY, "the port is open", || {
        let ended = component.ensure_running().err();
        let open = run_in_netns(netns, || std::net::TcpStream::connect(address)).is_ok();
        ended.map(Err).or_else(|| open.then_some(Ok(())))
    })
    .with_context(|| {
        format!(
            "nothing listens on {address}; the log ends:\n{}",
            component.log_tail()
        )
    })?
}

fn until_ready(admin: &Api, apiserver: &mut Component) -> Result<()> {
    let mut last = String::new();
    eventually(READY, "kube-apiserver is ready", || {
        if let Err(ended) = apiserver.ensure_running() {
            return Some(Err(ended));
        }
        last = match admin.request("GET", "/readyz", None) {
            Ok(answer) if answer.status == 200 => return Some(Ok(())),
            Ok(answer) => answer.text(),
            Err(cause) => format!("{cause:#}"),
        };
        None
    })
    .with_context(|| format!("{last}\nits log ends:\n{}", apiserver.log_tail()))?
}

/// Does something in the network namespace; `None` is the caller's own.
fn run_in_netns<T: Send>(netns: Option<&Netns>, work: impl FnOnce() -> T + Send) -> T {
    match netns {
        None => work(),
        Some(netns) => netns.run(work),
    }
}
