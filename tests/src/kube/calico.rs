//! Calico in the cloud: its resource definitions, and the objects that its CNI plugin reads, in the shape that the
//! recordings in `tests/data/calico-cni` were made with.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use super::api::Api;

const TIMEOUT: Duration = Duration::from_secs(60);

/// One of Calico's resources: plural, kind, namespaced, with a status subresource.
struct Resource(&'static str, &'static str, bool, bool);

/// Every resource of `crd.projectcalico.org/v1`, with Calico's scopes.
const RESOURCES: [Resource; 22] = [
    Resource("bgpconfigurations", "BGPConfiguration", false, false),
    Resource("bgpfilters", "BGPFilter", false, false),
    Resource("bgppeers", "BGPPeer", false, false),
    Resource("blockaffinities", "BlockAffinity", false, false),
    Resource("caliconodestatuses", "CalicoNodeStatus", false, true),
    Resource("clusterinformations", "ClusterInformation", false, false),
    Resource("felixconfigurations", "FelixConfiguration", false, false),
    Resource("globalnetworkpolicies", "GlobalNetworkPolicy", false, false),
    Resource("globalnetworksets", "GlobalNetworkSet", false, false),
    Resource("hostendpoints", "HostEndpoint", false, false),
    Resource("ipamblocks", "IPAMBlock", false, false),
    Resource("ipamconfigs", "IPAMConfig", false, false),
    Resource("ipamhandles", "IPAMHandle", false, false),
    Resource("ippools", "IPPool", false, true),
    Resource("ipreservations", "IPReservation", false, false),
    Resource(
        "kubecontrollersconfigurations",
        "KubeControllersConfiguration",
        false,
        true,
    ),
    Resource("networkpolicies", "NetworkPolicy", true, false),
    Resource("networksets", "NetworkSet", true, false),
    Resource(
        "stagedglobalnetworkpolicies",
        "StagedGlobalNetworkPolicy",
        false,
        false,
    ),
    Resource(
        "stagedkubernetesnetworkpolicies",
        "StagedKubernetesNetworkPolicy",
        true,
        false,
    ),
    Resource("stagednetworkpolicies", "StagedNetworkPolicy", true, false),
    Resource("tiers", "Tier", false, true),
];

/// Registers Calico's resources, and waits until `/apis` shows them all.
///
/// # Errors
/// The API server refuses one, or doesn't serve them within a minute.
pub fn register_crds(api: &Api) -> Result<()> {
    let mut definitions: Vec<Value> = RESOURCES
        .iter()
        .map(|resource| crd_definition("crd.projectcalico.org", "v1", resource))
        .collect();
    // Calico's manifests bring the upstream network policy API along.
    let mut policies = crd_definition(
        "policy.networking.k8s.io",
        "v1alpha2",
        &Resource(
            "clusternetworkpolicies",
            "ClusterNetworkPolicy",
            false,
            true,
        ),
    );
    policies["spec"]["names"]["shortNames"] = json!(["cnp"]);
    policies["metadata"]["annotations"] = json!({"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/network-policy-api/pull/300"});
    definitions.push(policies);
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    for definition in &definitions {
        api.create(path, definition)?;
    }
    until_discovered(api, "crd.projectcalico.org", "v1", RESOURCES.len())?;
    until_discovered(api, "policy.networking.k8s.io", "v1alpha2", 1)?;
    // Until a resource's watch cache is filled, its lists are answered with 429 "storage is (re)initializing".
    for Resource(plural, ..) in &RESOURCES {
        api.wait_for(
            &format!("/apis/crd.projectcalico.org/v1/{plural}"),
            TIMEOUT,
            |_| true,
        )?;
    }
    Ok(())
}

/// Both forms of discovery show the group with so many resources; each is brought up to date by itself.
fn until_discovered(api: &Api, group: &str, version: &str, count: usize) -> Result<()> {
    api.wait_for(&format!("/apis/{group}/{version}"), TIMEOUT, |list| {
        list["resources"]
            .as_array()
            .is_some_and(|all| count_whole(all) == count)
    })?;
    let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    api.wait_for_as(aggregated, "/apis", TIMEOUT, |list| {
        let items = list["items"].as_array();
        let item = items
            .into_iter()
            .flatten()
            .find(|item| item["metadata"]["name"] == group);
        item.and_then(|item| item["versions"][0]["resources"].as_array())
            .is_some_and(|all| all.len() == count)
    })?;
    Ok(())
}

/// Resources of a plain APIResourceList, without the subresources.
fn count_whole(resources: &[Value]) -> usize {
    resources
        .iter()
        .filter(|one| !one["name"].as_str().unwrap_or("/").contains('/'))
        .count()
}

fn crd_definition(group: &str, version: &str, resource: &Resource) -> Value {
    let Resource(plural, kind, namespaced, status) = resource;
    let anything = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let mut schema = json!({
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": {"type": "object"},
            "spec": anything, "status": anything,
        },
    });
    if *plural == "ippools" {
        // A set in Calico's schema too: managedFields name its values.
        schema["properties"]["spec"]["properties"]["allowedUses"] =
            json!({"type": "array", "items": {"type": "string"}, "x-kubernetes-list-type": "set"});
    }
    let mut served = json!({"name": version, "served": true, "storage": true,
                            "schema": {"openAPIV3Schema": schema}});
    if *status {
        served["subresources"] = json!({"status": {}});
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": if *namespaced { "Namespaced" } else { "Cluster" },
            "names": {"plural": plural, "singular": kind.to_lowercase(), "kind": kind,
                      "listKind": format!("{kind}List")},
            "versions": [served],
        },
    })
}

/// Calico's service account with the rights of its manifests.
///
/// # Errors
/// The API server refuses.
pub fn grant_cni_rights(api: &Api) -> Result<()> {
    let rules = json!([
        {"apiGroups": [""], "resources": ["pods", "nodes", "namespaces"], "verbs": ["get"]},
        {"apiGroups": [""], "resources": ["pods/status"], "verbs": ["patch"]},
        {"apiGroups": ["crd.projectcalico.org"],
         "resources": ["blockaffinities", "ipamblocks", "ipamhandles", "clusterinformations", "ippools",
                       "ipreservations", "ipamconfigs"],
         "verbs": ["get", "list", "create", "update", "delete"]},
    ]);
    let name = "calico-cni-plugin";
    create_account(api, "kube-system", name)?;
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole",
                      "metadata": {"name": name}, "rules": rules});
    api.create(&format!("{rbac}/clusterroles"), &role)?;
    bind_role(api, name, name)
}

/// A service account, as soon as its namespace is there.
pub(super) fn create_account(api: &Api, namespace: &str, name: &str) -> Result<Value> {
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
    api.create_when_possible(
        &format!("/api/v1/namespaces/{namespace}/serviceaccounts"),
        &object,
        TIMEOUT,
    )
}

/// Gives a cluster role to a service account of kube-system.
pub(super) fn bind_role(api: &Api, role: &str, account: &str) -> Result<()> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": account},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"kind": "ServiceAccount", "namespace": "kube-system", "name": account}],
    });
    api.create(
        "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
        &binding,
    )?;
    Ok(())
}

/// The objects that a Calico installation has from its first minute: its own state and an address pool.
///
/// # Errors
/// The API server refuses, or doesn't serve the resources yet after a minute.
pub fn install_objects(api: &Api) -> Result<()> {
    let base = "/apis/crd.projectcalico.org/v1";
    let information = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "ClusterInformation",
        "metadata": {"annotations": {}, "name": "default"},
        "spec": {"calicoVersion": "v3.31.0", "clusterGUID": "4a7c3b0ad9d04c8c8f0f6a2d8f3b1c22",
                 "clusterType": "k8s,kdd,bgp", "datastoreReady": true},
    });
    let pool = json!({
        "apiVersion": "crd.projectcalico.org/v1", "kind": "IPPool",
        "metadata": {"annotations": {}, "name": "default-ipv4-ippool"},
        "spec": {"allowedUses": ["Workload", "Tunnel"], "assignmentMode": "Automatic", "blockSize": 26,
                 "cidr": "10.244.0.0/16", "ipipMode": "Always", "natOutgoing": true, "nodeSelector": "all()",
                 "vxlanMode": "Never"},
    });
    apply_object(api, &format!("{base}/clusterinformations"), information)?;
    apply_object(api, &format!("{base}/ippools"), pool)
}

/// Creates an object as `kubectl apply` does: with its annotation and under its field manager's name.
pub(super) fn apply_object(api: &Api, path: &str, mut object: Value) -> Result<()> {
    let applied = format!("{object}\n");
    object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
        json!(applied);
    let path = format!("{path}?fieldManager=kubectl-client-side-apply");
    api.create_when_possible(&path, &object, TIMEOUT)?;
    Ok(())
}
