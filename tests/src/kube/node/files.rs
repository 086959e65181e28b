//! The configuration of containerd, its CNI plugins and the kubelet, and the script that starts them. All of it is in the
//! node's folder.

use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Value, json};

use super::super::flags::write_file;
use super::{Options, image};

/// Kernel settings that the kubelet wants for the whole machine, so that it finds nothing to do.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The kubelet's plugin sockets; no setting moves them.
pub(super) const KUBELET: &str = "/var/lib/kubelet";

/// Writes them all. `kubeconfig` is the kubelet's.
pub(super) fn write_files(dir: &Path, options: &Options, cni: &Path, cgroup: &str) -> Result<()> {
    for folder in ["cni", "manifests", "sysctl", "kubelet"] {
        fs::create_dir_all(dir.join(folder))?;
    }
    write_file(dir, "containerd.toml", &containerd_config(dir, cni))?;
    write_file(
        dir,
        "cni/10-ptp.conflist",
        &cni_config(dir, options).to_string(),
    )?;
    write_file(dir, "kubeconfig", &options.kubeconfig)?;
    // JSON is YAML, too.
    write_file(
        dir,
        "kubelet.yaml",
        &kubelet_config(dir, cgroup).to_string(),
    )?;
    write_file(dir, "ca.crt", &options.ca_pem)?;
    for (name, value) in SYSCTLS {
        write_file(dir, &format!("sysctl/{}", name.replace('/', ".")), value)?;
    }
    write_file(dir, "start.sh", &start_script(dir, options))
}

/// For 1.6 and later. `restrict_oom_score_adj`: machines without CAP_SYS_RESOURCE can't lower it.
fn containerd_config(dir: &Path, cni: &Path) -> String {
    format!(
        "version = 2\nroot = {root:?}\nstate = {state:?}\n\
         disabled_plugins = [\"io.containerd.internal.v1.opt\"]\n\
         [grpc]\naddress = {socket:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{image}\"\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{cni}\"\nconf_dir = {conf:?}\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshotter = \"overlayfs\"\n",
        root = dir.join("images"),
        state = dir.join("state"),
        socket = dir.join("containerd.sock"),
        image = image::NAME,
        cni = cni.display(),
        conf = dir.join("cni"),
    )
}

/// A veth for each pod, whose default route is the node.
fn cni_config(dir: &Path, options: &Options) -> Value {
    json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{
            "type": "ptp", "ipMasq": false,
            "ipam": {"type": "host-local", "dataDir": dir.join("addresses"),
                     "ranges": [[{"subnet": options.pod_network}]], "routes": [{"dst": "0.0.0.0/0"}]},
        }],
    })
}

fn kubelet_config(dir: &Path, cgroup: &str) -> Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true},
                           "x509": {"clientCAFile": dir.join("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "containerRuntimeEndpoint": format!("unix://{}", dir.join("containerd.sock").display()),
        "staticPodPath": dir.join("manifests"), "podLogsDir": dir.join("logs"), "resolvConf": "",
        "cgroupDriver": "cgroupfs", "cgroupRoot": cgroup, "enforceNodeAllocatable": [], "failCgroupV1": false,
        "failSwapOn": false, "oomScoreAdj": 0, "evictionHard": {}, "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false, "healthzPort": 0, "readOnlyPort": 0,
    })
}

/// The node's first process, in namespaces of its own for processes and mounts: when it ends, by its standard input
/// or by a signal, the kernel ends all that it started and forgets all that they mounted.
fn start_script(dir: &Path, options: &Options) -> String {
    let dir = dir.display();
    let mut script = format!(
        "set -eu\ncd {dir}\nunset KUBE_EXIT_WITH_STDIN\n\
         # Where shims and CNI keep sockets and namespaces, and the kubelet its plugins' sockets.\n\
         mount -t tmpfs node /run\n\
         mount -t tmpfs node {KUBELET}\n"
    );
    for (name, _) in SYSCTLS {
        let file = name.replace('/', ".");
        script +=
            &format!("[ ! -e /proc/sys/{name} ] || mount --bind sysctl/{file} /proc/sys/{name}\n");
    }
    script += &format!(
        "containerd --config containerd.toml >containerd.log 2>&1 &\n\
         # As systemd does: the kubelet gives up when containerd isn't there yet.\n\
         until {kube} kubelet --config=kubelet.yaml --kubeconfig=kubeconfig --hostname-override={name} \
         --node-ip={address} --root-dir={dir}/kubelet --cert-dir={dir}/kubelet/pki >>kubelet.log 2>&1\n\
         do sleep 1; done &\n\
         echo started\nread -r end || true\n",
        kube = options.programs.join("kube").display(),
        name = options.name,
        address = options.address,
    );
    script
}
