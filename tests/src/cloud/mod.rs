//! The scriptable cloud: a small TLS server that answers a node's clients as the API server does, fails on command,
//! and records its requests.
//!
//! It speaks JSON only (a client that accepts nothing else gets 406) and stops where the API server's semantics get deep:
//! see `write` and `read` for the limits.
//!
//! Phases of a request: `serve` (record, fail, authenticate, authorize) → `discovery` | `read` | `watch` | `write` → `answer`.
mod answer;
mod discovery;
mod faults;
pub mod json;
pub mod kinds;
mod patch;
mod rbac;
mod read;
mod record;
mod request;
mod selector;
mod serve;
mod status;
mod store;
mod watch;
mod write;

use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use http::{Method, Uri};
use serde_json::Value;
use tokio_rustls::TlsAcceptor;

pub(crate) use answer::{Answer, json_answer, text_answer};
pub use faults::{Rule as ServerFaultRule, ServerFault, ServerFaults};
pub use rbac::{Rbac, Rule, User};
pub use record::{Record, Request};
pub use status::Failure;

use crate::netns::Netns;
use crate::pki::{Ca, Identity};
use crate::worker::{Spawner, Worker};
use json::Json;
use request::Target;
use store::Store;

/// The objects of a fresh cloud, one a line: a small cluster with Calico and the node `edge-1`.
const SEED: &str = include_str!("seed.jsonl");

/// Settings of a cloud.
#[derive(Clone, Debug)]
pub struct Options {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Names and addresses in its certificate, beside 127.0.0.1, localhost and the address it listens on.
    pub names: Vec<String>,
    /// The network namespace it lives in.
    pub netns: Option<Netns>,
    /// Starts with the seed of objects, or empty.
    pub seeded: bool,
    /// Interval of bookmarks, for watches that ask for them.
    pub bookmark_every: Duration,
    /// Offset of its clock (`Date`, `creationTimestamp`).
    pub clock_skew: time::Duration,
    /// Its serving certificate, when the test has one of its own (of the authority given with it).
    pub identity: Option<(Arc<Ca>, Identity)>,
    /// The protocols that it speaks.
    pub alpn: Vec<&'static str>,
    /// Streams that it allows on an HTTP/2 connection (`--http2-max-streams-per-connection`).
    pub max_streams: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            names: Vec::new(),
            netns: None,
            seeded: true,
            bookmark_every: Duration::from_secs(60),
            clock_skew: time::Duration::ZERO,
            identity: None,
            alpn: vec!["h2", "http/1.1"],
            max_streams: 250,
        }
    }
}

/// State shared by all parts of a cloud.
#[derive(Debug)]
struct Shared {
    store: Store,
    rbac: Rbac,
    server_faults: ServerFaults,
    record: Record,
    options: Options,
    spawner: Spawner,
    flow_schema: String,
    priority_level: String,
}

/// A handle on a running cloud; clones are the same cloud.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
}

/// A running cloud. Dropping it ends it, and passes on its panics.
#[derive(Debug)]
pub struct Cloud {
    handle: Handle,
    /// The authority of its certificate.
    pub ca: Arc<Ca>,
    pub address: SocketAddr,
    /// The token of Calico's CNI plugin: exactly its rights.
    pub calico_token: String,
    /// A token that may do everything.
    pub admin_token: String,
    worker: Worker,
}

/// An authority, and a serving certificate for the address, the usual names and these.
fn create_identity(address: IpAddr, names: &[String]) -> anyhow::Result<(Arc<Ca>, Identity)> {
    let ca = Ca::new("scriptable cloud")?;
    let address = address.to_string();
    let mut all = vec![
        "127.0.0.1",
        "localhost",
        "kubernetes.default.svc",
        "10.96.0.1",
        &address,
    ];
    all.extend(names.iter().map(String::as_str));
    all.dedup();
    let identity = ca.issue_server_cert("kube-apiserver", &all)?;
    Ok((Arc::new(ca), identity))
}

impl Cloud {
    pub fn start(options: Options) -> anyhow::Result<Cloud> {
        let worker = Worker::start("cloud", options.netns.as_ref())?;
        let listen = options.listen;
        let (listener, address) = worker
            .spawner()
            .block_on(async move { serve::bind_listener(listen).await })?;
        let (ca, identity) = match options.identity.clone() {
            Some(own) => own,
            None => create_identity(address.ip(), &options.names)?,
        };
        let mut tls = ca.tls_server(&identity)?;
        tls.alpn_protocols = options
            .alpn
            .iter()
            .map(|name| name.as_bytes().to_vec())
            .collect();
        let tls = TlsAcceptor::from(Arc::new(tls));
        let shared = Arc::new(Shared {
            store: Store::new(options.clock_skew),
            rbac: Rbac::default(),
            server_faults: ServerFaults::default(),
            record: Record::default(),
            spawner: worker.spawner().clone(),
            flow_schema: crate::pki::random_uuid(),
            priority_level: crate::pki::random_uuid(),
            options,
        });
        let handle = Handle {
            shared: Arc::clone(&shared),
        };
        if shared.options.seeded {
            handle.put_seed()?;
        }
        let calico_token = shared
            .rbac
            .issue_token(User::service_account("kube-system", "calico-cni-plugin"));
        let admin_token = shared
            .rbac
            .issue_token(User::new("admin", &["system:masters"]));
        worker
            .spawner()
            .spawn(serve::accept_connections(shared, listener, tls));
        Ok(Cloud {
            handle,
            ca,
            address,
            calico_token,
            admin_token,
            worker,
        })
    }

    /// `https://ADDRESS`
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// A handle that outlives borrows.
    #[must_use]
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Ends it now; panics with its panic, if there was one.
    pub fn join(self) {
        self.worker.join();
    }
}

impl Deref for Cloud {
    type Target = Handle;

    fn deref(&self) -> &Handle {
        &self.handle
    }
}

impl Handle {
    /// Tokens and rules.
    #[must_use]
    pub fn rbac(&self) -> &Rbac {
        &self.shared.rbac
    }

    /// The rules for false answers.
    #[must_use]
    pub fn server_faults(&self) -> &ServerFaults {
        &self.shared.server_faults
    }

    /// The requests received so far.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.shared.record
    }

    /// The version of its last change.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.shared.store.version()
    }

    /// Forgets the past: watches and pages from before get 410.
    pub fn compact(&self) {
        self.shared.store.compact();
    }

    fn put_seed(&self) -> anyhow::Result<()> {
        for line in SEED.lines() {
            let object: Json =
                serde_json::from_str(line).context("the seed is one object a line")?;
            self.put(object)?;
        }
        Ok(())
    }

    /// Creates an object, or puts it in the place of the one with its name; `apiVersion` and `kind` say what it is.
    /// Past all rights and conflicts: what the rest of the cluster does. Out: the object as it is now.
    pub fn put(&self, object: impl Into<Json>) -> anyhow::Result<Value> {
        let mut object: Json = object.into();
        let (version, name) = (
            object.text_at(&["apiVersion"]).to_owned(),
            object.text_at(&["kind"]).to_owned(),
        );
        let kind = kinds::find_by_kind(&version, &name)
            .ok_or_else(|| anyhow!("the cloud has no kind {name} in {version}"))?;
        let namespace = match object.text_at(&["metadata", "namespace"]) {
            "" => "default".to_owned(),
            namespace => namespace.to_owned(),
        };
        let key = write::object_key(kind, &namespace, object.text_at(&["metadata", "name"]));
        let store = &self.shared.store;
        let put = store.change_object(kind, &key, |present| {
            match present {
                None => store.stamp_new(kind, &mut object, &key),
                Some(present) => {
                    for field in [
                        "namespace",
                        "uid",
                        "resourceVersion",
                        "generation",
                        "creationTimestamp",
                    ] {
                        if let Some(value) = present.get_path(&["metadata", field]) {
                            object.set(&["metadata", field], value.clone());
                        }
                    }
                }
            }
            Ok(Some(object))
        });
        Ok(put.map_err(|failure| anyhow!(failure.message))?.to_value())
    }

    /// The object at a path such as `/api/v1/nodes/edge-1`.
    pub fn get(&self, path: &str) -> anyhow::Result<Option<Value>> {
        let (kind, key) = locate_object(path)?;
        Ok(self
            .shared
            .store
            .get(kind, &key)
            .map(|object| object.to_value()))
    }

    /// Deletes the object at a path, at once.
    pub fn delete(&self, path: &str) -> anyhow::Result<()> {
        let (kind, key) = locate_object(path)?;
        self.shared
            .store
            .change_object(kind, &key, |_| Ok(None))
            .map_err(|failure| anyhow!(failure.message))?;
        Ok(())
    }
}

fn locate_object(path: &str) -> anyhow::Result<(&'static kinds::Kind, store::Key)> {
    let uri: Uri = path.parse()?;
    let resource = Target::parse(&Method::GET, &uri)
        .resource
        .with_context(|| format!("{path} is no resource"))?;
    let kind = kinds::find(&resource.group, &resource.version, &resource.resource)
        .with_context(|| format!("the cloud has no {path}"))?;
    Ok((
        kind,
        write::object_key(kind, &resource.namespace, &resource.name),
    ))
}
