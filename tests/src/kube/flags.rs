//! The flags and files of the components, and the ports they listen on.

use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::binaries::Binaries;
use crate::netns::Netns;
use crate::pki::{Ca, Credential, Identity, render_kubeconfig};

const SERVICE_NETWORK: &str = "10.96.0.0/16";

/// Names in the API server's certificate, as kubeadm's has them; 10.96.0.1 is its own service.
const SERVED: [&str; 7] = [
    "127.0.0.1",
    "10.96.0.1",
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Controllers that the tests need. Left out are those that act on a node's silence: no kubelet
/// renews the test node's lease, and its pods must not be evicted while a test looks at them.
const CONTROLLERS: &str = "serviceaccount-controller,serviceaccount-token-controller,\
    root-ca-certificate-publisher-controller,certificatesigningrequest-signing-controller,\
    certificatesigningrequest-approving-controller,certificatesigningrequest-cleaner-controller,\
    endpoints-controller,endpointslice-controller,namespace-controller,garbage-collector-controller,\
    deployment-controller,replicaset-controller,daemonset-controller,ttl-controller,\
    clusterrole-aggregation-controller,bootstrap-signer-controller,token-cleaner-controller";

/// Every request that the API server finished, without bodies.
const AUDIT_POLICY: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived, ResponseStarted]\nrules: [{level: Metadata}]\n";

/// Free loopback ports of one control plane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) etcd: u16,
    pub(super) apiserver: u16,
}

impl Ports {
    /// Ports that are free in the namespace now.
    pub(super) fn pick_free(netns: Option<&Netns>) -> Result<Self> {
        let listeners = super::run_in_netns(netns, || {
            [(); 2].map(|()| {
                TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
                    .and_then(|one| one.local_addr().map(|a| (one, a)))
            })
        });
        // Both listeners live until here, so that the ports differ.
        let [etcd, apiserver] = listeners.map(|one| {
            one.context("no free port on 127.0.0.1: is `lo` up in this network namespace?")
        });
        Ok(Self {
            etcd: etcd?.1.port(),
            apiserver: apiserver?.1.port(),
        })
    }

    pub(super) fn etcd_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.etcd)
    }
}

pub(super) fn write_file(dir: &Path, name: &str, text: &str) -> Result<()> {
    let path = dir.join(name);
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))
}

fn write_pair(dir: &Path, name: &str, identity: &Identity) -> Result<()> {
    write_file(dir, &format!("{name}.crt"), &identity.cert_pem)?;
    write_file(dir, &format!("{name}.key"), &identity.key_pem)
}

/// Writes certificates, keys and the audit policy into `dir`.
pub(super) fn write_files(dir: &Path, authority: &Ca, addresses: &[IpAddr]) -> Result<()> {
    write_file(dir, "ca.crt", authority.pem())?;
    write_file(dir, "ca.key", &authority.key_pem())?;
    let further: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let names: Vec<&str> = SERVED
        .into_iter()
        .chain(further.iter().map(String::as_str))
        .collect();
    write_pair(
        dir,
        "apiserver",
        &authority.issue_server_cert("kube-apiserver", &names)?,
    )?;
    write_pair(
        dir,
        "kubelet-client",
        &authority.issue_client_cert("kube-apiserver-kubelet-client", &["system:masters"])?,
    )?;
    // The key pair that signs service account tokens.
    let key = rcgen::KeyPair::generate()?;
    write_file(dir, "sa.key", &key.serialize_pem())?;
    write_file(dir, "sa.pub", &key.public_key_pem())?;
    write_file(dir, "audit-policy.yaml", AUDIT_POLICY)
}

/// `--FLAG=DIR/NAME`.
fn file_flag(flag: &str, dir: &Path, name: &str) -> String {
    format!("--{flag}={}", dir.join(name).display())
}

/// kube-apiserver with its flags.
pub(super) fn apiserver_command(binaries: &Binaries, dir: &Path, ports: &Ports) -> Command {
    let mut command = binaries.apiserver_command();
    command.args([
        format!("--etcd-servers={}", ports.etcd_url()),
        "--bind-address=127.0.0.1".into(),
        "--advertise-address=127.0.0.1".into(),
        "--endpoint-reconciler-type=none".into(), // it refuses a loopback advertise address otherwise
        format!("--secure-port={}", ports.apiserver),
        file_flag("tls-cert-file", dir, "apiserver.crt"),
        file_flag("tls-private-key-file", dir, "apiserver.key"),
        file_flag("client-ca-file", dir, "ca.crt"),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        file_flag("service-account-key-file", dir, "sa.pub"),
        file_flag("service-account-signing-key-file", dir, "sa.key"),
        format!("--service-cluster-ip-range={SERVICE_NETWORK}"),
        "--authorization-mode=Node,RBAC".into(),
        "--enable-admission-plugins=NodeRestriction".into(),
        "--enable-bootstrap-token-auth".into(),
        "--allow-privileged=true".into(),
        "--kubelet-preferred-address-types=InternalIP".into(),
        file_flag("kubelet-client-certificate", dir, "kubelet-client.crt"),
        file_flag("kubelet-client-key", dir, "kubelet-client.key"),
        file_flag("audit-policy-file", dir, "audit-policy.yaml"),
        file_flag("audit-log-path", dir, "audit.log"),
        "--profiling=false".into(),
    ]);
    command
}

/// kube-controller-manager with its flags, where there is one.
pub(super) fn controller_manager_command(
    binaries: &Binaries,
    dir: &Path,
    authority: &Ca,
    server: &str,
) -> Result<Option<Command>> {
    let Some(mut command) = binaries.controller_manager_command() else {
        return Ok(None);
    };
    let user = "system:kube-controller-manager";
    let identity = authority.issue_client_cert(user, &[user])?;
    let config = render_kubeconfig(server, authority.pem(), Credential::Certificate(&identity));
    write_file(dir, "kcm.kubeconfig", &config)?;
    command.args([
        file_flag("kubeconfig", dir, "kcm.kubeconfig"),
        "--secure-port=0".into(),
        "--leader-elect=false".into(),
        "--use-service-account-credentials".into(),
        format!("--controllers={CONTROLLERS}"),
        file_flag("service-account-private-key-file", dir, "sa.key"),
        file_flag("root-ca-file", dir, "ca.crt"),
        file_flag("cluster-signing-cert-file", dir, "ca.crt"),
        file_flag("cluster-signing-key-file", dir, "ca.key"),
        "--kube-api-qps=200".into(),
        "--kube-api-burst=400".into(),
    ]);
    Ok(Some(command))
}
