//! The kinds that the scriptable cloud serves: core objects that a node's clients use, and Calico's resources as its
//! CRDs define them. In: a path's group, version and resource. Out: a [`Kind`].

/// A kind of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group, `""` for the core group.
    pub group: &'static str,
    /// API version.
    pub version: &'static str,
    /// Plural, as in paths.
    pub resource: &'static str,
    /// Singular.
    pub singular: &'static str,
    /// The objects' kind.
    pub kind: &'static str,
    /// Lives in a namespace?
    pub namespaced: bool,
    /// Built into the API server (struct order, items without kind), or a custom resource?
    pub builtin: bool,
    /// Has a status subresource?
    pub status: bool,
    /// Short names.
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
    pub fn qualified(&self) -> String {
        qualify(self.resource, self.group)
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
pub fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() {
        name.to_owned()
    } else {
        format!("{name}.{group}")
    }
}

const fn builtin(
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

const fn calico(resource: &'static str, singular: &'static str, kind: &'static str) -> Kind {
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

const fn short(kind: Kind, short: &'static [&'static str]) -> Kind {
    Kind { short, ..kind }
}

const fn with_status(kind: Kind) -> Kind {
    Kind {
        status: true,
        ..kind
    }
}

const fn namespaced(kind: Kind) -> Kind {
    Kind {
        namespaced: true,
        ..kind
    }
}

/// All of them, groups in discovery's order.
pub static KINDS: &[Kind] = &[
    short(
        builtin("", ["configmaps", "configmap", "ConfigMap"], true, false),
        &["cm"],
    ),
    short(
        builtin("", ["endpoints", "endpoints", "Endpoints"], true, false),
        &["ep"],
    ),
    short(
        builtin("", ["events", "event", "Event"], true, false),
        &["ev"],
    ),
    short(
        builtin("", ["namespaces", "namespace", "Namespace"], false, true),
        &["ns"],
    ),
    short(builtin("", ["nodes", "node", "Node"], false, true), &["no"]),
    short(
        builtin(
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
    short(
        builtin(
            "",
            ["persistentvolumes", "persistentvolume", "PersistentVolume"],
            false,
            true,
        ),
        &["pv"],
    ),
    short(builtin("", ["pods", "pod", "Pod"], true, true), &["po"]),
    builtin("", ["secrets", "secret", "Secret"], true, false),
    short(
        builtin(
            "",
            ["serviceaccounts", "serviceaccount", "ServiceAccount"],
            true,
            false,
        ),
        &["sa"],
    ),
    short(
        builtin("", ["services", "service", "Service"], true, true),
        &["svc"],
    ),
    short(
        builtin(
            "networking.k8s.io",
            ["networkpolicies", "networkpolicy", "NetworkPolicy"],
            true,
            false,
        ),
        &["netpol"],
    ),
    builtin(
        "storage.k8s.io",
        ["csidrivers", "csidriver", "CSIDriver"],
        false,
        false,
    ),
    builtin(
        "storage.k8s.io",
        ["csinodes", "csinode", "CSINode"],
        false,
        false,
    ),
    builtin(
        "coordination.k8s.io",
        ["leases", "lease", "Lease"],
        true,
        false,
    ),
    builtin(
        "node.k8s.io",
        ["runtimeclasses", "runtimeclass", "RuntimeClass"],
        false,
        false,
    ),
    builtin(
        "discovery.k8s.io",
        ["endpointslices", "endpointslice", "EndpointSlice"],
        true,
        false,
    ),
    calico("bgpconfigurations", "bgpconfiguration", "BGPConfiguration"),
    calico("bgpfilters", "bgpfilter", "BGPFilter"),
    calico("bgppeers", "bgppeer", "BGPPeer"),
    calico("blockaffinities", "blockaffinity", "BlockAffinity"),
    with_status(calico(
        "caliconodestatuses",
        "caliconodestatus",
        "CalicoNodeStatus",
    )),
    calico(
        "clusterinformations",
        "clusterinformation",
        "ClusterInformation",
    ),
    calico(
        "felixconfigurations",
        "felixconfiguration",
        "FelixConfiguration",
    ),
    calico(
        "globalnetworkpolicies",
        "globalnetworkpolicy",
        "GlobalNetworkPolicy",
    ),
    calico("globalnetworksets", "globalnetworkset", "GlobalNetworkSet"),
    calico("hostendpoints", "hostendpoint", "HostEndpoint"),
    calico("ipamblocks", "ipamblock", "IPAMBlock"),
    calico("ipamconfigs", "ipamconfig", "IPAMConfig"),
    calico("ipamhandles", "ipamhandle", "IPAMHandle"),
    with_status(calico("ippools", "ippool", "IPPool")),
    calico("ipreservations", "ipreservation", "IPReservation"),
    with_status(calico(
        "kubecontrollersconfigurations",
        "kubecontrollersconfiguration",
        "KubeControllersConfiguration",
    )),
    namespaced(calico("networkpolicies", "networkpolicy", "NetworkPolicy")),
    namespaced(calico("networksets", "networkset", "NetworkSet")),
    calico(
        "stagedglobalnetworkpolicies",
        "stagedglobalnetworkpolicy",
        "StagedGlobalNetworkPolicy",
    ),
    namespaced(calico(
        "stagedkubernetesnetworkpolicies",
        "stagedkubernetesnetworkpolicy",
        "StagedKubernetesNetworkPolicy",
    )),
    namespaced(calico(
        "stagednetworkpolicies",
        "stagednetworkpolicy",
        "StagedNetworkPolicy",
    )),
    with_status(calico("tiers", "tier", "Tier")),
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
pub fn of(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|known| known.kind == kind && known.api_version() == api_version)
}
