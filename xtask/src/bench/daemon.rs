//! The hublet under measurement, on core 0, with everything that a node has: its address, steering, identity, store.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::server::Server;
use crate::child::{Child, Pause};
use crate::plain_http;
use crate::project::Project;

const ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 10267);
const SECURE: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 2, 1)),
    10268,
);
const READY: Duration = Duration::from_secs(30);
const DRAIN: Duration = Duration::from_secs(30);

/// Parameters of its start, the same each time.
#[derive(Debug)]
pub(super) struct Daemon<'a> {
    pub(super) project: &'a Project,
    pub(super) binary: PathBuf,
    pub(super) dir: PathBuf,
    pub(super) cloud: String,
    pub(super) cgroup: Option<PathBuf>,
}

impl Daemon<'_> {
    /// Starts it and returns at once.
    pub(super) fn spawn(&self) -> Result<Child> {
        let root = self.dir.join("hublet");
        let mut command = self.project.command("taskset");
        command.args(["-c", "0"]).arg(&self.binary);
        command.args([
            "--node-name=bench",
            "--bootstrap-mode=development",
            "--node-ip=127.0.0.1",
            "--v=0",
        ]);
        command.arg(format!("--server-addr={}", self.cloud));
        command.arg(format!(
            "--bootstrap-file={}",
            self.dir.join("bootstrap.kubeconfig").display()
        ));
        command.arg(format!("--root-dir={}", root.display()));
        command.arg(format!(
            "--disk-cache-path={}",
            root.join("cache").display()
        ));
        match &self.cgroup {
            Some(cgroup) => {
                command.arg(format!("--cgroup={}", cgroup.display()));
                command.arg(format!("--bpffs={}", self.dir.join("bpffs").display()));
            }
            None => {
                command.arg("--steer=none");
            }
        }
        Child::start("hublet", &command, &self.dir.join("hublet.log"), DRAIN)
    }

    /// Starts it and waits until it is ready.
    pub(super) fn start_ready(&self) -> Result<(Child, Server)> {
        std::fs::create_dir_all(self.dir.join("bpffs"))?;
        let mut child = self.spawn()?;
        let deadline = Instant::now() + READY;
        let pause = Pause::new();
        let mut last = String::new();
        while Instant::now() < deadline {
            match plain_http::get(ADMIN, "/v1/readyz") {
                Ok((200, body)) if body == "OK" => {
                    let server = self.server(&child);
                    return Ok((child, server));
                }
                Ok((status, body)) => last = format!("{status} {body}"),
                Err(error) => last = format!("{error:#}"),
            }
            child.check_running()?;
            pause.wait(Duration::from_millis(20));
        }
        bail!("hublet is not ready after {} s: {last}", READY.as_secs());
    }

    /// Address of a daemon that is yet to be started.
    pub(super) fn future_server(&self) -> Server {
        Server::new("hublet", SECURE, &self.ca_path(), 0)
    }

    fn server(&self, child: &Child) -> Server {
        Server::new("hublet", SECURE, &self.ca_path(), child.pid())
    }

    /// The CA that clients trust.
    pub(super) fn ca_path(&self) -> PathBuf {
        self.pki_dir().join("dev-ca.crt")
    }

    /// Certificate and key that it serves with: nginx's too.
    pub(super) fn server_pem(&self) -> PathBuf {
        self.pki_dir().join("yurthub-server-current.pem")
    }

    fn pki_dir(&self) -> PathBuf {
        self.dir.join("hublet").join("pki")
    }
}

/// Ends it in order: only a store that was closed is measured again.
pub(super) fn stop_cleanly(mut child: Child) -> Result<()> {
    let status = child.stop()?;
    if !status.success() {
        bail!("hublet ended with {status}: its store was not closed in order");
    }
    Ok(())
}
