//! The real daemon as a child process, with folders and a log of its own. It can be stopped, killed, and started again over
//! the same disk.
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::cgroup;
use crate::client::{self, Client};
use crate::eventually::eventually;
use crate::netns::Netns;
use crate::pki::{Credential, render_kubeconfig};

/// The secure port, for clients in the node's namespace.
pub const SECURE: &str = "https://169.254.2.1:10268";
pub const ADMIN: &str = "http://127.0.0.1:10267";
/// Limits for start and end.
const READY: Duration = Duration::from_secs(10);
const END: Duration = Duration::from_secs(10);

/// Settings of a daemon.
#[derive(Clone, Debug)]
pub struct Options {
    /// `--node-name`
    pub node_name: String,
    /// `--server-addr`: usually the fault proxy's URL.
    pub server: String,
    /// The CA of that server, PEM: goes into the `--bootstrap-file`.
    pub ca_pem: String,
    pub netns: Option<Netns>,
    /// `--steer`; `none` leaves the machine's connects alone.
    pub steer: String,
    /// Mount a private bpffs and pass it as `--bpffs`.
    pub bpffs: bool,
    /// Another binary than [`binary_under_test`], e.g. an older one.
    pub binary: Option<PathBuf>,
    /// The cgroup's directory in which it starts; without one it is the test's.
    pub cgroup: Option<PathBuf>,
    pub flags: Vec<String>,
}

impl Options {
    /// For this server in this namespace, without steering.
    #[must_use]
    pub fn new(server: &str, ca_pem: &str, netns: Option<&Netns>) -> Options {
        Options {
            node_name: "edge-1".into(),
            server: server.into(),
            ca_pem: ca_pem.into(),
            netns: netns.cloned(),
            steer: "none".into(),
            bpffs: false,
            binary: None,
            cgroup: None,
            flags: Vec::new(),
        }
    }
}

/// A private bpffs; dropping it unmounts it.
#[derive(Debug)]
struct Bpffs(PathBuf);

impl Bpffs {
    fn mount(path: PathBuf) -> anyhow::Result<Bpffs> {
        fs::create_dir_all(&path)?;
        let none = None::<&str>;
        mount(Some("bpf"), &path, Some("bpf"), MsFlags::empty(), none)
            .context("mount a bpffs: this needs root")?;
        Ok(Bpffs(path))
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A daemon. Dropping it ends it (SIGTERM, then SIGKILL), and shows its log when the test has failed.
#[derive(Debug)]
pub struct Daemon {
    options: Options,
    child: Option<Child>,
    bpffs: Option<Bpffs>,
    folder: TempDir,
}

/// The binary under test: `HUBLET_BIN`, or `hublet` beside the test's own.
pub fn binary_under_test() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("HUBLET_BIN") {
        return Ok(path.into());
    }
    let own = std::env::current_exe()?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join("hublet"))
        .find(|path| path.is_file());
    beside.context("no hublet beside the tests: run `cargo build -p hublet` first (cargo xtask test does), or set HUBLET_BIN")
}

/// The binary, from within a cgroup; the shell that goes there becomes it.
fn command_in_cgroup(binary: &Path, cgroup: Option<&Path>) -> Command {
    let Some(cgroup) = cgroup else {
        return Command::new(binary);
    };
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            &format!("{} && exec \"$0\" \"$@\"", cgroup::join_command(cgroup)),
        ])
        .arg(binary);
    command
}

impl Daemon {
    /// Starts a daemon and waits until it is ready.
    pub fn start(options: Options) -> anyhow::Result<Daemon> {
        let mut daemon = Daemon::prepare(options)?;
        daemon.spawn()?;
        daemon.wait_ready()?;
        Ok(daemon)
    }

    /// Makes its folders, starts nothing.
    pub fn prepare(options: Options) -> anyhow::Result<Daemon> {
        let folder = tempfile::Builder::new().prefix("hublet-").tempdir()?;
        let config = render_kubeconfig(&options.server, &options.ca_pem, Credential::None);
        fs::write(folder.path().join("bootstrap.kubeconfig"), config)?;
        let bpffs = if options.bpffs {
            Some(Bpffs::mount(folder.path().join("bpf"))?)
        } else {
            None
        };
        Ok(Daemon {
            options,
            child: None,
            bpffs,
            folder,
        })
    }

    /// Starts the process; with [`Daemon::wait_ready`] what [`Daemon::start`] does.
    pub fn spawn(&mut self) -> anyhow::Result<()> {
        let binary = self
            .options
            .binary
            .clone()
            .map_or_else(binary_under_test, Ok)?;
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("log"))?;
        let mut command = self.command(&binary);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child = match &self.options.netns {
            // A child belongs to the namespace of the thread that starts it.
            Some(netns) => netns.run(|| command.spawn()),
            None => command.spawn(),
        };
        let child = child.with_context(|| format!("start {}", binary.display()))?;
        crate::keep::add_hint(format!(
            "hublet: pid {}, log {}",
            child.id(),
            self.folder.path().join("log").display()
        ));
        self.child = Some(child);
        Ok(())
    }

    /// The daemon's command line.
    fn command(&self, binary: &Path) -> Command {
        let Options {
            node_name,
            server,
            steer,
            flags,
            ..
        } = &self.options;
        let mut command = command_in_cgroup(binary, self.options.cgroup.as_deref());
        command
            .arg(format!("--node-name={node_name}"))
            .arg(format!("--server-addr={server}"))
            .arg("--bootstrap-mode=development")
            .arg(format!(
                "--bootstrap-file={}",
                self.folder.path().join("bootstrap.kubeconfig").display()
            ))
            .arg(format!("--root-dir={}", self.root_dir().display()))
            .arg(format!(
                "--disk-cache-path={}",
                self.root_dir().join("cache").display()
            ))
            .arg(format!("--steer={steer}"))
            .args(
                self.bpffs
                    .as_ref()
                    .map(|bpffs| format!("--bpffs={}", bpffs.0.display())),
            )
            .args(flags);
        command
    }

    /// Waits until `/v1/readyz` says `OK`; says how long that took.
    pub fn wait_ready(&mut self) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut admin = self.admin_options();
        admin.timeout = Duration::from_secs(1);
        let admin = Client::new(admin)?;
        let ready = eventually(READY, "hublet is ready", || {
            if let Ok(Some(status)) = self.child.as_mut()?.try_wait() {
                return Some(Err(status));
            }
            let answer = admin.get("/v1/readyz").ok()?;
            (answer.status == 200 && answer.body == "OK").then_some(Ok(()))
        });
        match ready {
            Ok(Ok(())) => Ok(start.elapsed()),
            Ok(Err(status)) => bail!(
                "hublet ended before it was ready ({status}); its log:\n{}",
                self.read_log()
            ),
            Err(cause) => bail!("{cause}; its log:\n{}", self.read_log()),
        }
    }

    /// `--root-dir`
    #[must_use]
    pub fn root_dir(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    /// The private bpffs, if it was asked for.
    #[must_use]
    pub fn bpffs(&self) -> Option<&Path> {
        self.bpffs.as_ref().map(|bpffs| bpffs.0.as_path())
    }

    /// All that it has logged, over all its starts.
    #[must_use]
    pub fn read_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// Its process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The CA that its clients trust, PEM.
    pub fn ca_pem(&self) -> anyhow::Result<String> {
        let path = self.root_dir().join("pki/dev-ca.crt");
        fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    }

    /// Settings of a client on the node.
    pub fn client_options(&self, token: Option<&str>) -> anyhow::Result<client::Options> {
        let options = client::Options::new(SECURE, &self.ca_pem()?, token);
        Ok(client::Options {
            netns: self.options.netns.clone(),
            ..options
        })
    }

    /// A client on the node, with a fresh connection for each request.
    pub fn client(&self, token: Option<&str>) -> anyhow::Result<Client> {
        Client::new(self.client_options(token)?)
    }

    fn admin_options(&self) -> client::Options {
        client::Options {
            netns: self.options.netns.clone(),
            ..client::Options::new(ADMIN, "", None)
        }
    }

    /// The text of `/metrics`.
    pub fn scrape_metrics(&self) -> anyhow::Result<String> {
        Ok(Client::new(self.admin_options())?.get("/metrics")?.text())
    }

    /// `/v1/status`, as `hublet status -o json` shows it.
    pub fn fetch_status(&self) -> anyhow::Result<serde_json::Value> {
        Ok(Client::new(self.admin_options())?.get("/v1/status")?.json())
    }

    /// `kill -9`; returns when it is gone.
    pub fn kill(&mut self) -> anyhow::Result<()> {
        let mut child = self.child.take().context("the daemon does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM, and its exit status.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let mut child = self.child.take().context("the daemon does not run")?;
        kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM)?;
        let ended = eventually(END, "hublet ends after SIGTERM", || {
            child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended.with_context(|| format!("its log:\n{}", self.read_log()))
    }

    /// Starts another one in its place (`--take-over`); returns when the new one is ready and the old one has ended,
    /// with the old one's exit status.
    pub fn hand_over(&mut self) -> anyhow::Result<ExitStatus> {
        let mut old = self.child.take().context("the daemon does not run")?;
        self.options.flags.push("--take-over".into());
        let spawned = self.spawn();
        self.options.flags.pop();
        spawned?;
        let ended = eventually(END, "the old hublet ends", || old.try_wait().ok().flatten());
        if ended.is_err() {
            old.kill()?;
            old.wait()?;
        }
        let ended = ended.with_context(|| format!("its log:\n{}", self.read_log()))?;
        self.wait_ready()?;
        Ok(ended)
    }

    /// Starts another one that is to take over from it (`--take-over`), and does not wait.
    pub fn start_successor(&mut self) -> anyhow::Result<Child> {
        let old = self.child.take();
        self.options.flags.push("--take-over".into());
        let spawned = self.spawn();
        self.options.flags.pop();
        let successor = std::mem::replace(&mut self.child, old);
        spawned?;
        successor.context("it was spawned")
    }

    /// Starts it with one more flag, this time only.
    pub fn start_with(&mut self, flag: &str) -> anyhow::Result<Duration> {
        self.options.flags.push(flag.into());
        let spawned = self.spawn();
        self.options.flags.pop();
        spawned?;
        self.wait_ready()
    }

    /// Starts it again over the same folders; says how long it took to be ready.
    pub fn restart(&mut self) -> anyhow::Result<Duration> {
        if self.child.is_some() {
            self.stop()?;
        }
        self.spawn()?;
        self.wait_ready()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.child.is_some() {
            let _ = self.stop();
        }
        if std::thread::panicking() {
            eprintln!("hublet's log:\n{}", self.read_log());
        }
    }
}
