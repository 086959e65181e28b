//! Promise: on a real node (kubelet, containerd, runc, CNI plugins), a pod that opted in dials `https://10.96.0.1` with
//! its own token, as any pod does, and hublet serves it and identifies it by pod UID and container id, before and after
//! the link is cut. The pod next to it, which did not opt in, reaches the cloud itself.
//!
//! Cgroup paths and veths are made by programs that hublet doesn't control; the other suites only imitate them.
//! ```text
//! namespace "cloud"                                   namespace "node"
//! kube-apiserver 127.0.0.1:PORT                       hublet 169.254.2.1, kubelet, containerd
//!   ^  198.51.100.1:6443 (for hublet)  --- veth ---     |- pod "steered"  10.244.7.x
//!   '- 10.96.0.1:443 (as kube-proxy does for pods)      '- pod "plain"    10.244.7.y
//! ```
#![allow(
    clippy::print_stdout,
    reason = "how many calls the pods made, and the slowest, stand in the suite's log"
)]

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use hublet_tests::daemon::{self, Daemon, SECURE};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::FaultProxy;
use hublet_tests::kube::edge::find_or_skip;
use hublet_tests::kube::node::{self, Call, RealNode};
use hublet_tests::kube::{Api, KubeCloud, Options};
use hublet_tests::netns::{Netns, Veth};
use hublet_tests::pki::{Credential, render_kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const NODE: &str = "edge-real";
const CLOUD_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const NODE_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
const POD_NETWORK: &str = "10.244.7.0/24";
/// The URL that both pods request.
const ASKED: &str = "https://10.96.0.1/api/v1/namespaces/default/configmaps/greeting";
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
/// The servers, by the subjects of their certificates.
const HUBLET: &str = "CN=system:node:edge-real,O=system:nodes";
const APISERVER: &str = "CN=kube-apiserver";
/// From a pod's creation to its first call. Ten seconds alone.
const STARTS: Duration = Duration::from_secs(90);
/// Calls that must be alike.
const SEVERAL: usize = 3;

/// Cloud and node, in the order in which they end.
struct Field {
    node: RealNode,
    daemon: Daemon,
    /// The server that pods reach as 10.96.0.1 if they aren't steered.
    service: FaultProxy,
    _front: FaultProxy,
    there: Netns,
    link: Veth,
    cloud: KubeCloud,
}

impl Field {
    /// `None`: the machine can't, which has been said (in CI that fails).
    fn start() -> Result<Option<Self>> {
        if !node::can_run() {
            return Ok(None);
        }
        let Some(binaries) = find_or_skip()? else {
            return Ok(None);
        };
        let Some(programs) = binaries.folder() else {
            let reason = "it needs the kubelet that is built with Go: unset KUBEBUILDER_ASSETS";
            let _skipped = hublet_tests::require::skip_unless(false, reason);
            return Ok(None);
        };
        let (there, here) = (Netns::new("cloud")?, Netns::new("node")?);
        let link = there.link_to(CLOUD_ADDRESS.into(), &here, NODE_ADDRESS.into())?;
        there.run_ip(&format!("addr add {SERVICE}/32 dev lo"))?;
        here.run_ip(&format!("route add default via {CLOUD_ADDRESS}"))?;

        let addresses = vec![IpAddr::V4(CLOUD_ADDRESS)];
        let options = Options {
            netns: Some(there.clone()),
            addresses,
            ..Options::default()
        };
        let cloud = KubeCloud::start_with(&binaries, options)?;
        let front = FaultProxy::start((CLOUD_ADDRESS, 6443).into(), cloud.address(), Some(&there))?;
        let service = FaultProxy::start((SERVICE, 443).into(), cloud.address(), Some(&there))?;

        let mut options = daemon::Options::new(&front.url(), cloud.ca_pem(), Some(&here));
        options.node_name = NODE.into();
        options.steer = "10.96.0.1:443".into();
        options.bpffs = true;
        let daemon = Daemon::start(options)?;

        // A token, for certificates end at hublet.
        let credential = Credential::Token(cloud.admin_token());
        let node = RealNode::start(&node::Options {
            name: NODE.into(),
            address: NODE_ADDRESS.into(),
            netns: here,
            kubeconfig: render_kubeconfig(SECURE, &daemon.ca_pem()?, credential),
            ca_pem: cloud.ca_pem().into(),
            pod_network: POD_NETWORK.into(),
            programs: programs.into(),
        })?;
        let field = Self {
            node,
            daemon,
            service,
            _front: front,
            there,
            link,
            cloud,
        };
        field.plug(true)?;
        Ok(Some(field))
    }

    /// Plugs the cable in, or pulls it.
    fn plug(&self, plugged: bool) -> Result<()> {
        self.link.set_up(plugged)?;
        if plugged {
            // The kernel drops a route together with its link.
            self.there
                .run_ip(&format!("route replace {POD_NETWORK} via {NODE_ADDRESS}"))?;
        }
        Ok(())
    }

    fn api(&self) -> &Api {
        self.cloud.admin()
    }

    /// Creates everything that the pods need: an account that may read, a CA to trust, an object to read.
    fn fill(&self) -> Result<()> {
        let api = self.api();
        let namespace = "/api/v1/namespaces/default";
        let account =
            json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "caller"}});
        api.create_when_possible(&format!("{namespace}/serviceaccounts"), &account, STARTS)?;
        let trusted = format!("{}{}", self.cloud.ca_pem(), self.daemon.ca_pem()?);
        for (name, key, value) in [
            ("trust", "ca.crt", trusted.as_str()),
            ("greeting", "text", "hello"),
        ] {
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
                             "data": {key: value}});
            api.create(&format!("{namespace}/configmaps"), &map)?;
        }
        let path = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": "caller"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"},
            "subjects": [{"kind": "ServiceAccount", "name": "caller", "namespace": "default"}],
        });
        api.create(path, &binding)?;
        let ready = |node: &Value| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.is_some_and(|all| {
                all.iter()
                    .any(|c| c["type"] == "Ready" && c["status"] == "True")
            })
        };
        api.wait_for(&format!("/api/v1/nodes/{NODE}"), STARTS, ready)?;
        Ok(())
    }

    /// Creates a pod that calls for ever.
    fn pod(&self, name: &'static str, annotations: &Value) -> Result<Caller<'_>> {
        let mut pod =
            self.node
                .pod_manifest(name, "caller", &["call", ASKED, "/trust/ca.crt", TOKEN]);
        pod["metadata"]["annotations"] = annotations.clone();
        let pod = self.api().create("/api/v1/namespaces/default/pods", &pod)?;
        let uid = pod["metadata"]["uid"]
            .as_str()
            .context("a pod without a UID")?
            .to_owned();
        Ok(Caller {
            field: self,
            name,
            uid,
        })
    }
}

/// A pod that calls.
struct Caller<'a> {
    field: &'a Field,
    name: &'static str,
    uid: String,
}

impl Caller<'_> {
    fn calls(&self) -> Vec<Call> {
        self.field.node.read_calls(self.name, &self.uid)
    }

    /// Waits until its last calls were all so.
    fn until(&self, what: &str, timeout: Duration, so: impl Fn(&Call) -> bool) -> Result<()> {
        let before = self.calls().len();
        let done = eventually(timeout, what, || {
            let calls = self.calls();
            let last = calls.get(before.max(calls.len().saturating_sub(SEVERAL))..)?;
            (last.len() == SEVERAL && last.iter().all(&so)).then_some(())
        });
        done.with_context(|| {
            let calls = self.calls();
            format!(
                "pod {}: {:#?}",
                self.name,
                &calls[calls.len().saturating_sub(3)..]
            )
        })
    }

    /// The id of its running container, as the cloud knows it.
    fn container(&self) -> Result<String> {
        let path = format!("/api/v1/namespaces/default/pods/{}", self.name);
        let id = |pod: &Value| {
            let id = pod["status"]["containerStatuses"][0]["containerID"].as_str()?;
            id.strip_prefix("containerd://").map(str::to_owned)
        };
        let pod = self
            .field
            .api()
            .wait_for(&path, STARTS, |pod| id(pod).is_some())?;
        id(&pod).context("a container without an id")
    }

    /// Its entries among hublet's last callers.
    fn attested(&self) -> Result<Vec<Value>> {
        let status = self.field.daemon.fetch_status()?;
        let callers = status["callers"].as_array().cloned().unwrap_or_default();
        Ok(callers
            .into_iter()
            .filter(|caller| caller["process"]["podUid"] == *self.uid)
            .collect())
    }
}

/// The pod's one process is known for what it is; hands out its pid and how often it has called.
fn check_attested(caller: &Value, container: &str) -> Result<(i32, u64)> {
    let process = &caller["process"];
    let expected = json!({
        "containerId": container, "command": "pod", "executable": "/pod", "uid": 0,
        "original": "10.96.0.1:443", "steered": true,
    });
    for (key, value) in expected.as_object().into_iter().flatten() {
        ensure!(process[key] == *value, "{key} is not {value}: {caller:#}");
    }
    let pid = process["pid"].as_i64().context("no pid")?.try_into()?;
    Ok((pid, caller["connections"].as_u64().context("no count")?))
}

fn only(mut attested: Vec<Value>) -> Result<Value> {
    ensure!(
        attested.len() == 1,
        "one process has called, hublet knows of {attested:#?}"
    );
    attested.pop().context("no caller")
}

#[test]
fn a_pod_that_opts_in_is_served_and_attested_and_its_neighbour_is_not() -> Result<()> {
    let Some(field) = Field::start()? else {
        return Ok(());
    };
    run(&field).inspect_err(|_| {
        let ebpf = field
            .daemon
            .fetch_status()
            .map(|status| status["ebpf"].clone());
        eprintln!(
            "{}\nhublet's log:\n{}{ebpf:#?}",
            field.node.log_tails(),
            field.daemon.read_log()
        );
    })
}

fn run(field: &Field) -> Result<()> {
    field.fill()?;
    let steered = field.pod("steered", &json!({"hublet.io/steer": "true"}))?;
    let plain = field.pod("plain", &json!({}))?;

    // Online: each is served by its own.
    let from =
        |source: &'static str| move |call: &Call| call.status == 200 && call.source == source;
    steered.until("served by hublet", STARTS, |c| {
        from("cloud")(c) && c.subject == HUBLET
    })?;
    let past_hublet =
        |call: &Call| call.status == 200 && call.subject == APISERVER && call.source.is_empty();
    plain.until("served by the cloud", STARTS, past_hublet)?;
    let container = steered.container()?;
    let (pid, online) = check_attested(&only(steered.attested()?)?, &container)?;
    let past = field.service.stats().connections;
    ensure!(past > 0, "nobody has gone to the cloud itself");
    ensure!(
        plain.attested()?.is_empty(),
        "the other pod never came to hublet"
    );

    // The cable is pulled: no call of the steered pod fails, and hublet knows it still.
    field.plug(false)?;
    steered.until(
        "served from the store",
        Duration::from_secs(15),
        from("store"),
    )?;
    plain.until("cut off", Duration::from_secs(60), |call| call.status == 0)?;
    let (same, cut) = check_attested(&only(steered.attested()?)?, &container)?;
    ensure!(
        same == pid && cut > online,
        "the same process, {online} calls before, {cut} now"
    );

    // Its program ends; the kubelet starts it anew, without the cloud: another container of the same pod.
    kill(Pid::from_raw(pid), Signal::SIGKILL)?;
    let mut restarted = Vec::new();
    eventually(STARTS, "the container is back", || {
        restarted = steered.attested().ok()?;
        (restarted.len() == 2).then_some(())
    })?;
    let id = restarted[0]["process"]["containerId"]
        .as_str()
        .context("no container id")?;
    ensure!(
        id != container && id.len() == container.len(),
        "a container of its own: {id}"
    );
    check_attested(&restarted[0], id)?;
    steered.until("served from the store again", STARTS, from("store"))?;

    // The cable is back.
    field.plug(true)?;
    steered.until(
        "served from the cloud",
        Duration::from_secs(15),
        from("cloud"),
    )?;
    plain.until(
        "served by the cloud itself",
        Duration::from_secs(60),
        past_hublet,
    )?;
    check_calls(&steered.calls(), &plain.calls())
}

/// Over its whole life the steered pod was served by hublet alone, always with the same bytes; the other one by the
/// cloud alone.
fn check_calls(steered: &[Call], plain: &[Call]) -> Result<()> {
    for (at, call) in steered.iter().enumerate() {
        if call.status != 200 || call.subject != HUBLET || call.sum != steered[0].sum {
            bail!(
                "call {at} of {} of the steered pod was {call:?}",
                steered.len()
            );
        }
    }
    if let Some(call) = plain
        .iter()
        .find(|call| call.status != 0 && call.subject != APISERVER)
    {
        bail!("the pod that did not opt in met {call:?}");
    }
    let slowest = steered.iter().map(|call| call.ms).max().unwrap_or_default();
    println!(
        "steered: {} calls, none failed, the slowest {slowest} ms; plain: {}",
        steered.len(),
        plain.len()
    );
    Ok(())
}
