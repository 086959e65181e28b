//! The kinds that the scriptable cloud serves: core objects that a node's clients use, and Calico's resources as its CRDs
//! define them.

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, `""` for the core group.
    pub group: &'static str,
    pub version: &'static str,
    /// Plural, as in paths.
    pub resource: &'static str,
    pub singular: &'static str,
    pub kind: &'static str,
    /// Lives in a namespace?
    pub namespaced: bool,
    /// Built into the API server (struct order, items without kind), or a custom resource?
    pub builtin: bool,
    /// Has a status subresource?
    pub status: bool,
    pub short: &'static [&'static str],
}

impl Kind {
    /// `v1`, `apps/v1` …
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `pods`, `ippools.crd.projectcalico.org` …: the name in error texts.
    #[must_use]
    pub fn qualified_name(&self) -> String {
        qualify_name(self.resource, self.group)
    }

    /// The verbs in discovery's order.
    #[must_use]
    pub fn verbs(&self) -> &'static [&'static str] {
        if !self.builtin {
            &[
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "create",
                "update",
                "watch",
            ]
        } else if self.resource == "namespaces" {
            &[
                "create", "delete", "get", "list", "patch", "update", "watch",
            ]
        } else {
            &[
                "create",
                "delete",
                "deletecollection",
                "get",
                "list",
                "patch",
                "update",
                "watch",
            ]
        }
    }
}

/// `name.group`, or the bare name in the core group.
#[must_use]
pub fn qualify_name(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

const fn builtin_kind(
    group: &'static str,
    names: [&'static str; 3],
    namespaced: bool,
    status: bool,
) -> Kind {
    let [resource, singular, kind] = names;
    Kind {
        group,
        version: "v1",
        resource,
        singular,
        kind,
        namespaced,
        builtin: true,
        status,
        short: &[],
    }
}

const fn calico_kind(resource: &'static str, singular: &'static str, kind: &'static str) -> Kind {
    let (group, version) = ("crd.projectcalico.org", "v1");
    Kind {
        group,
        version,
        resource,
        singular,
        kind,
        namespaced: false,
        builtin: false,
        status: false,
        short: &[],
    }
}

const fn with_short_names(kind: Kind, short: &'static [&'static str]) -> Kind {
    Kind { short, ..kind }
}

const fn with_status(kind: Kind) -> Kind {
    Kind {
        status: true,
        ..kind
    }
}

const fn in_namespaces(kind: Kind) -> Kind {
    Kind {
        namespaced: true,
        ..kind
    }
}

/// All of them, groups in discovery's order.
pub static KINDS: &[Kind] = &[
    with_short_names(
        builtin_kind("", ["configmaps", "configmap", "ConfigMap"], true, false),
        &["cm"],
    ),
    with_short_names(
        builtin_kind("", ["endpoints", "endpoints", "Endpoints"], true, false),
        &["ep"],
    ),
    with_short_names(
        builtin_kind("", ["events", "event", "Event"], true, false),
        &["ev"],
    ),
    with_short_names(
        builtin_kind("", ["namespaces", "namespace", "Namespace"], false, true),
        &["ns"],
    ),
    with_short_names(
        builtin_kind("", ["nodes", "node", "Node"], false, true),
        &["no"],
    ),
    with_short_names(
        builtin_kind(
            "",
            [
                "persistentvolumeclaims",
                "persistentvolumeclaim",
                "PersistentVolumeClaim",
            ],
            true,
            true,
        ),
        &["pvc"],
    ),
    with_short_names(
        builtin_kind(
            "",
            ["persistentvolumes", "persistentvolume", "PersistentVolume"],
            false,
            true,
        ),
        &["pv"],
    ),
    with_short_names(
        builtin_kind("", ["pods", "pod", "Pod"], true, true),
        &["po"],
    ),
    builtin_kind("", ["secrets", "secret", "Secret"], true, false),
    with_short_names(
        builtin_kind(
            "",
            ["serviceaccounts", "serviceaccount", "ServiceAccount"],
            true,
            false,
        ),
        &["sa"],
    ),
    with_short_names(
        builtin_kind("", ["services", "service", "Service"], true, true),
        &["svc"],
    ),
    with_short_names(
        builtin_kind(
            "networking.k8s.io",
            ["networkpolicies", "networkpolicy", "NetworkPolicy"],
            true,
            false,
        ),
        &["netpol"],
    ),
    builtin_kind(
        "storage.k8s.io",
        ["csidrivers", "csidriver", "CSIDriver"],
        false,
        false,
    ),
    builtin_kind(
        "storage.k8s.io",
        ["csinodes", "csinode", "CSINode"],
        false,
        false,
    ),
    builtin_kind(
        "coordination.k8s.io",
        ["leases", "lease", "Lease"],
        true,
        false,
    ),
    builtin_kind(
        "node.k8s.io",
        ["runtimeclasses", "runtimeclass", "RuntimeClass"],
        false,
        false,
    ),
    builtin_kind(
        "discovery.k8s.io",
        ["endpointslices", "endpointslice", "EndpointSlice"],
        true,
        false,
    ),
    calico_kind("bgpconfigurations", "bgpconfiguration", "BGPConfiguration"),
    calico_kind("bgpfilters", "bgpfilter", "BGPFilter"),
    calico_kind("bgppeers", "bgppeer", "BGPPeer"),
    calico_kind("blockaffinities", "blockaffinity", "BlockAffinity"),
    with_status(calico_kind(
        "caliconodestatuses",
        "caliconodestatus",
        "CalicoNodeStatus",
    )),
    calico_kind(
        "clusterinformations",
        "clusterinformation",
        "ClusterInformation",
    ),
    calico_kind(
        "felixconfigurations",
        "felixconfiguration",
        "FelixConfiguration",
    ),
    calico_kind(
        "globalnetworkpolicies",
        "globalnetworkpolicy",
        "GlobalNetworkPolicy",
    ),
    calico_kind("globalnetworksets", "globalnetworkset", "GlobalNetworkSet"),
    calico_kind("hostendpoints", "hostendpoint", "HostEndpoint"),
    calico_kind("ipamblocks", "ipamblock", "IPAMBlock"),
    calico_kind("ipamconfigs", "ipamconfig", "IPAMConfig"),
    calico_kind("ipamhandles", "ipamhandle", "IPAMHandle"),
    with_status(calico_kind("ippools", "ippool", "IPPool")),
    calico_kind("ipreservations", "ipreservation", "IPReservation"),
    with_status(calico_kind(
        "kubecontrollersconfigurations",
        "kubecontrollersconfiguration",
        "KubeControllersConfiguration",
    )),
    in_namespaces(calico_kind(
        "networkpolicies",
        "networkpolicy",
        "NetworkPolicy",
    )),
    in_namespaces(calico_kind("networksets", "networkset", "NetworkSet")),
    calico_kind(
        "stagedglobalnetworkpolicies",
        "stagedglobalnetworkpolicy",
        "StagedGlobalNetworkPolicy",
    ),
    in_namespaces(calico_kind(
        "stagedkubernetesnetworkpolicies",
        "stagedkubernetesnetworkpolicy",
        "StagedKubernetesNetworkPolicy",
    )),
    in_namespaces(calico_kind(
        "stagednetworkpolicies",
        "stagednetworkpolicy",
        "StagedNetworkPolicy",
    )),
    with_status(calico_kind("tiers", "tier", "Tier")),
];

/// The kind at a place in the API.
#[must_use]
pub fn find(group: &str, version: &str, resource: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|kind| kind.group == group && kind.version == version && kind.resource == resource)
}

/// The kind that an object says to be.
#[must_use]
pub fn find_by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|known| known.kind == kind && known.api_version() == api_version)
}
