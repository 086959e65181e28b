//! Promise: kubectl gets the same output through hublet as directly from the API server. After the link is cut, it
//! reads and watches what it has read before, and prints a clear error for each write (I1).
//!
//! kubectl asks for Tables, with 500 rows a page, and reads discovery first: three things that the store has to have
//! for it to work at all.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use hublet_tests::daemon::SECURE;
use hublet_tests::fault::Fault;
use hublet_tests::kube::edge::Edge;
use hublet_tests::kube::workload::pod_manifest;
use hublet_tests::require;
use serde_json::Value;

const PODS: &str = "/api/v1/namespaces/default/pods";

/// kubectl as the administrator, through hublet or past it, on the node.
struct Kubectl<'a> {
    edge: &'a Edge,
    server: String,
    ca: tempfile::NamedTempFile,
}

impl<'a> Kubectl<'a> {
    fn through_hublet(edge: &'a Edge) -> Result<Self> {
        Self::new(edge, SECURE.to_owned(), &edge.daemon.ca_pem()?)
    }

    fn past_hublet(edge: &'a Edge) -> Result<Self> {
        Self::new(
            edge,
            format!("https://{}", edge.cloud.address()),
            edge.cloud.ca_pem(),
        )
    }

    fn new(edge: &'a Edge, server: String, ca_pem: &str) -> Result<Self> {
        let ca = tempfile::NamedTempFile::new()?;
        std::fs::write(ca.path(), ca_pem)?;
        Ok(Self { edge, server, ca })
    }

    /// A command with a home of its own: nothing is remembered from one call to the next, so that each one asks for
    /// discovery again.
    fn command(&self, home: &tempfile::TempDir, words: &str) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(words.split_whitespace())
            .arg(format!("--server={}", self.server))
            .arg(format!("--token={}", self.edge.cloud.admin_token()))
            .arg(format!(
                "--certificate-authority={}",
                self.ca.path().display()
            ))
            .env("HOME", home.path())
            .env_remove("KUBECONFIG")
            .stdin(Stdio::null());
        command
    }

    fn run(&self, words: &str) -> Result<Output> {
        let home = tempfile::tempdir()?;
        let mut command = self.command(&home, words);
        command.arg("--request-timeout=20s");
        self.edge
            .netns
            .run(|| command.output())
            .context("running kubectl")
    }

    /// Standard output of a call that must succeed.
    fn text(&self, words: &str) -> Result<String> {
        let output = self.run(words)?;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "kubectl {words}: {}: {error}",
            output.status
        );
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, words: &str) -> Result<Value> {
        Ok(serde_json::from_str(
            &self.text(&format!("{words} -o json"))?,
        )?)
    }

    /// The table without its last column, the age.
    fn table(&self, words: &str) -> Result<Vec<Vec<String>>> {
        let row = |line: &str| {
            let mut cells: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            cells.pop();
            cells
        };
        Ok(self.text(words)?.lines().map(row).collect())
    }

    /// `kubectl get --watch`, line by line.
    fn watch(&self, words: &str) -> Result<Watch> {
        let home = tempfile::tempdir()?;
        let mut command = self.command(&home, words);
        command
            .args(["--watch", "-o", "name"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = self
            .edge
            .netns
            .run(|| command.spawn())
            .context("running kubectl")?;
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().context("stdout is piped")?);
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Ok(Watch {
            child,
            lines,
            _home: home,
        })
    }
}

/// A running watch; dropping it ends it.
struct Watch {
    child: Child,
    lines: Receiver<String>,
    _home: tempfile::TempDir,
}

impl Watch {
    /// Waits for a line.
    fn expect(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut seen = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left).with_context(|| {
                format!(
                    "{wanted} did not come; lines: {seen:?}, kubectl: {:?}",
                    self.child.try_wait()
                )
            })?;
            if line == wanted {
                return Ok(());
            }
            seen.push(line);
        }
    }

    /// Nothing comes and nothing ends for so long.
    fn stays_open(&mut self, time: Duration) -> Result<()> {
        let line = self.lines.recv_timeout(time);
        assert!(line.is_err(), "a change out of nowhere: {line:?}");
        let ended = self.child.try_wait()?;
        assert!(ended.is_none(), "the watch has ended: {ended:?}");
        Ok(())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn on_an_edge(test: impl FnOnce(&Edge) -> Result<()>) -> Result<()> {
    let kubectl = Command::new("kubectl")
        .args(["version", "--client"])
        .output();
    let there = kubectl.is_ok_and(|output| output.status.success());
    if !require::skip_unless(
        there,
        "it needs kubectl: install it (https://kubernetes.io/docs/tasks/tools/)",
    ) {
        return Ok(());
    }
    Edge::run(test)
}

#[test]
fn kubectl_prints_the_same_directly_through_hublet_and_after_the_cut() -> Result<()> {
    on_an_edge(|edge| {
        let objects = [
            "get pods --all-namespaces",
            "get pod pod-a --namespace=default",
            "get nodes",
            "get ippools.crd.projectcalico.org",
            "get clusterinformations.crd.projectcalico.org default",
            "get services --all-namespaces",
            // A Table in pages.
            "get configmaps --all-namespaces --chunk-size=2",
        ];
        let (past, through) = (Kubectl::past_hublet(edge)?, Kubectl::through_hublet(edge)?);
        let mut online = Vec::new();
        for words in objects {
            let (json, table) = (through.json(words)?, through.table(words)?);
            assert_eq!(json, past.json(words)?, "online: {words} -o json");
            assert_eq!(table, past.table(words)?, "online: {words}");
            online.push((words, json, table));
        }
        for fault in [Fault::Refuse, Fault::Blackhole(None)] {
            edge.fault.set(fault)?;
            for (words, json, table) in &online {
                assert_eq!(&through.json(words)?, json, "{fault}: {words} -o json");
                assert_eq!(&through.table(words)?, table, "{fault}: {words}");
            }
            // What was never read isn't known: an error, and no empty list.
            let output = through.run("get secrets --all-namespaces")?;
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success() && output.stdout.is_empty(),
                "{output:?}"
            );
            assert!(error.contains("ServiceUnavailable"), "{error}");
            let client = edge.daemon.client(Some(edge.cloud.admin_token()))?;
            edge.restore_link(&client, PODS)?;
        }
        Ok(())
    })
}

#[test]
fn kubectl_watches_online_and_after_the_cut_i5() -> Result<()> {
    on_an_edge(|edge| {
        let kubectl = Kubectl::through_hublet(edge)?;
        let words = "get pods --namespace=default";

        let mut watch = kubectl.watch(words)?;
        watch.expect("pod/pod-b")?;
        edge.cloud
            .admin()
            .create(PODS, &pod_manifest("pod-c", "edge-1"))?;
        watch.expect("pod/pod-c")?;
        drop(watch);

        edge.fault.set(Fault::Refuse)?;
        let mut watch = kubectl.watch(words)?;
        for name in ["pod/pod-a", "pod/pod-b", "pod/pod-c"] {
            watch.expect(name)?;
        }
        watch.stays_open(Duration::from_secs(3))?;

        let client = edge.daemon.client(Some(edge.cloud.admin_token()))?;
        edge.restore_link(&client, PODS)?;
        edge.cloud
            .admin()
            .create(PODS, &pod_manifest("pod-d", "edge-1"))?;
        kubectl.watch(words)?.expect("pod/pod-d")
    })
}

#[test]
fn after_the_cut_kubectl_reports_that_nothing_was_written_i1() -> Result<()> {
    on_an_edge(|edge| {
        let kubectl = Kubectl::through_hublet(edge)?;
        kubectl.json("get node edge-1")?;
        kubectl.json("get configmaps --namespace=default")?;
        edge.fault.set(Fault::Refuse)?;
        for words in [
            "create configmap kept --from-literal=a=b --namespace=default",
            "label node edge-1 kept=yes",
            "delete pod pod-a --namespace=default --wait=false",
        ] {
            let output = kubectl.run(words)?;
            let error = String::from_utf8_lossy(&output.stderr);
            assert!(
                !output.status.success(),
                "kubectl {words} said that it was done"
            );
            assert!(
                error.contains("hublet: the cloud is away"),
                "kubectl {words}: {error}"
            );
        }
        let client = edge.daemon.client(Some(edge.cloud.admin_token()))?;
        edge.restore_link(&client, PODS)?;
        let absent = edge.cloud.admin().request(
            "GET",
            "/api/v1/namespaces/default/configmaps/kept",
            None,
        )?;
        assert_eq!(absent.status, 404, "{}", absent.text());
        let node = edge.cloud.admin().get("/api/v1/nodes/edge-1")?;
        assert!(node["metadata"]["labels"]["kept"].is_null(), "{node}");
        let kept = edge.cloud.admin().get(&format!("{PODS}/pod-a"))?;
        assert!(kept["metadata"]["deletionTimestamp"].is_null(), "{kept}");
        Ok(())
    })
}
