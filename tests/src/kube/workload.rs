//! The node and the pods that the recordings speak of.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::api::Api;
use super::calico::{apply_object, create_account};

const TIMEOUT: Duration = Duration::from_secs(60);

/// The pods that exist from the start, in namespace `default`, on the node.
pub const PODS: [&str; 2] = ["pod-a", "pod-b"];

/// Creates the node. Without a controller manager (`managed` is false) what that would have added is added here.
///
/// # Errors
/// The API server refuses, or the controller manager doesn't look at the node within a minute.
pub fn add_node(api: &Api, name: &str, managed: bool) -> Result<()> {
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"annotations": {"projectcalico.org/IPv4Address": "198.51.100.11/24"},
                     "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}, "name": name},
        "spec": {"podCIDR": "10.244.0.0/24"},
    });
    apply_object(api, "/api/v1/nodes", node)?;
    let path = format!("/api/v1/nodes/{name}");
    let ttl = "node.alpha.kubernetes.io/ttl";
    if !managed {
        let patch = json!({"metadata": {"annotations": {ttl: "0"}}});
        api.merge_patch(&format!("{path}?fieldManager=kcm"), &patch)?;
    }
    api.wait_for(&path, TIMEOUT, |node| {
        node["metadata"]["annotations"][ttl] == "0"
    })?;
    Ok(())
}

/// Creates the pods as `kubectl run` does, once namespace `default` has its service account.
///
/// # Errors
/// The API server refuses, or the service account doesn't come within a minute.
pub fn add_pods(api: &Api, node: &str, managed: bool) -> Result<()> {
    if !managed {
        create_account(api, "default", "default")?;
    }
    for name in PODS {
        let path = "/api/v1/namespaces/default/pods?fieldManager=kubectl-run";
        api.create_when_possible(path, &pod_manifest(name, node), TIMEOUT)?;
    }
    Ok(())
}

/// A pod that is bound to its node.
pub fn pod_manifest(name: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"labels": {"run": name}, "name": name},
        "spec": {"containers": [{"image": "registry.k8s.io/pause:3.9", "name": name, "resources": {}}],
                 "dnsPolicy": "ClusterFirst", "nodeName": node, "restartPolicy": "Always"},
        "status": {},
    })
}
