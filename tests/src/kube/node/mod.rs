//! A real node: containerd, runc, CNI plugins and the kubelet in a network namespace. All of it ends with the value, or with
//! the test's process.
//!
//! Its processes have a process and a mount namespace of their own, and a cgroup below the root: nothing is left of
//! them on the machine but files in a temporary folder.

mod files;
mod image;

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

pub use self::image::PROGRAM;
use super::process::Component;
use crate::eventually::eventually;
use crate::netns::Netns;
use crate::require;

/// Folders of CNI plugins: Debian's, then the usual one.
const CNI: [&str; 2] = ["/usr/lib/cni", "/opt/cni/bin"];
/// Until containerd answers. It takes a second alone.
const READY: Duration = Duration::from_secs(60);

/// Settings of a node.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its name in the cluster.
    pub name: String,
    /// Its address in the cluster.
    pub address: IpAddr,
    pub netns: Netns,
    /// The kubelet's kubeconfig.
    pub kubeconfig: String,
    /// The CA of those who call the kubelet, PEM.
    pub ca_pem: String,
    /// Addresses of its pods, e.g. `10.244.7.0/24`.
    pub pod_network: String,
    /// The folder with `kube` and `pod` ([`super::Binaries::folder`]).
    pub programs: PathBuf,
}

#[derive(Debug)]
pub struct RealNode {
    processes: Option<Component>,
    name: String,
    cgroup: String,
    /// The machine had no [`files::KUBELET`] to mount over.
    made: bool,
    dir: tempfile::TempDir,
}

/// One call of the program [`PROGRAM`], as it says itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub struct Call {
    /// HTTP status; 0 when there was no answer.
    pub status: u16,
    /// The subject of the server's certificate, as Go writes it.
    pub subject: String,
    /// `X-Hublet-Source`
    pub source: String,
    /// Of the answer's body.
    pub sum: String,
    /// The error, if there was no answer.
    pub error: String,
    /// Until the whole answer was there, ms.
    pub ms: u64,
}

/// Can a real node run here: root, containerd, runc and the CNI plugins?
#[must_use]
#[track_caller]
pub fn can_run() -> bool {
    let all = ["containerd", "ctr", "runc", "unshare"]
        .into_iter()
        .all(is_installed)
        && cni_folder().is_some();
    require::bpf()
        && require::skip_unless(
            all,
            "a real node needs containerd, runc and containernetworking-plugins (Debian's names)",
        )
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn cni_folder() -> Option<&'static Path> {
    CNI.into_iter()
        .map(Path::new)
        .find(|folder| folder.join("ptp").is_file())
}

impl RealNode {
    /// Starts containerd and the kubelet, and brings the image in. The node registers itself some seconds later.
    ///
    /// # Errors
    /// A program is missing, or containerd doesn't answer; the message holds the ends of the logs.
    pub fn start(options: &Options) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hublet-node-").tempdir()?;
        let cni = cni_folder().context("no CNI plugins (Debian: containernetworking-plugins)")?;
        // "kube" is in the name of every folder that a kubelet keeps pods below: hublet looks for that.
        let unique = dir
            .path()
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let cgroup = format!("kube-{unique}");
        make_cgroups(&cgroup)?;
        let made = !Path::new(files::KUBELET).exists();
        fs::create_dir_all(files::KUBELET)?;
        files::write_files(dir.path(), options, cni, &format!("/{cgroup}"))?;
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
            "sh",
        ]);
        command.arg(dir.path().join("start.sh"));
        let processes = Component::spawn("node", command, dir.path(), Some(&options.netns))?;
        let mut node = Self {
            processes: Some(processes),
            name: options.name.clone(),
            cgroup,
            made,
            dir,
        };
        node.import_image(&options.programs.join("pod"))?;
        Ok(node)
    }

    fn import_image(&mut self, program: &Path) -> Result<()> {
        let archive = self.dir.path().join("image.tar");
        image::write_archive(program, &archive)?;
        let mut last = String::new();
        eventually(READY, "containerd takes the image", || {
            if let Some(Err(ended)) = self.processes.as_mut().map(Component::ensure_running) {
                return Some(Err(ended));
            }
            let output = self
                .ctr_command()
                .args(["images", "import"])
                .arg(&archive)
                .output();
            match output {
                Ok(output) if output.status.success() => return Some(Ok(())),
                Ok(output) => last = String::from_utf8_lossy(&output.stderr).into_owned(),
                Err(error) => last = format!("ctr: {error}"),
            }
            None
        })
        .with_context(|| format!("{last}\n{}", self.log_tails()))?
        .with_context(|| self.log_tails())
    }

    fn ctr_command(&self) -> Command {
        let mut command = Command::new("ctr");
        command
            .arg("--address")
            .arg(self.dir.path().join("containerd.sock"));
        command.args(["--namespace", "k8s.io"]);
        command
    }

    /// A pod on this node that runs [`PROGRAM`] with these words, as this service account, with the ConfigMap
    /// `trust` at `/trust`.
    #[must_use]
    pub fn pod_manifest(&self, name: &str, account: &str, words: &[&str]) -> Value {
        let command: Vec<&str> = [PROGRAM].into_iter().chain(words.iter().copied()).collect();
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "nodeName": self.name, "serviceAccountName": account, "terminationGracePeriodSeconds": 1,
                "enableServiceLinks": false,
                "containers": [{
                    "name": "main", "image": image::NAME, "imagePullPolicy": "Never", "command": command,
                    "volumeMounts": [{"name": "trust", "mountPath": "/trust"}],
                }],
                "volumes": [{"name": "trust", "configMap": {"name": "trust"}}],
            },
        })
    }

    /// Lines that the pod's container has printed, over all its starts.
    #[must_use]
    pub fn read_calls(&self, pod: &str, uid: &str) -> Vec<Call> {
        let folder = self
            .dir
            .path()
            .join("logs")
            .join(format!("default_{pod}_{uid}/main"));
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        let mut starts: Vec<(u32, PathBuf)> = entries
            .filter_map(|entry| {
                Some((
                    entry.path().file_stem()?.to_str()?.parse().ok()?,
                    entry.path(),
                ))
            })
            .collect();
        starts.sort();
        let text: String = starts
            .iter()
            .map(|(_, path)| fs::read_to_string(path).unwrap_or_default())
            .collect();
        // CRI's format: `TIME stdout F LINE`.
        let lines = text.lines().filter_map(|line| line.splitn(4, ' ').nth(3));
        lines
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// The ends of the logs.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let names = ["node.log", "containerd.log", "kubelet.log"];
        names
            .map(|name| {
                let text = fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                let tail = &lines[lines.len().saturating_sub(25)..];
                format!("the end of {name}:\n{}\n", tail.join("\n"))
            })
            .concat()
    }
}

impl Drop for RealNode {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tails());
        }
        drop(self.processes.take());
        if self.made {
            let _ = fs::remove_dir(files::KUBELET);
        }
        for root in cgroup_hierarchies() {
            let _ = eventually(
                Duration::from_secs(10),
                "the node's cgroups are empty",
                || remove_tree(&root.join(&self.cgroup)).ok(),
            );
        }
    }
}

/// The kubelet wants its root cgroup to be there, in every hierarchy.
fn make_cgroups(name: &str) -> Result<()> {
    let hierarchies = cgroup_hierarchies();
    if hierarchies.is_empty() {
        bail!("no cgroup hierarchy is mounted");
    }
    for root in hierarchies {
        let path = root.join(name);
        fs::create_dir_all(&path).with_context(|| format!("creating {}", path.display()))?;
        // A cpuset without processors takes no process.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if let Ok(all) = fs::read_to_string(root.join(file)) {
                let _ = fs::write(path.join(file), all.trim());
            }
        }
    }
    Ok(())
}

/// Mount points of cgroups: one with version 2 alone, one for each controller with version 1.
fn cgroup_hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let fields = mounts
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>());
    fields
        .filter(|fields| fields.get(2).is_some_and(|kind| kind.starts_with("cgroup")))
        .filter_map(|fields| fields.get(1).map(PathBuf::from))
        .collect()
}

/// Deepest first: a cgroup's files can't be removed, only the empty cgroup itself.
fn remove_tree(path: &Path) -> std::io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    for entry in fs::read_dir(path)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}
