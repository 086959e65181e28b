//! A cloud to work with by hand, or from another process: the program `hublet-cloud`. It runs behind the fault proxy, with
//! a control port, and prints one JSON line when it is ready.
//!
//! Files: `cloud-ca.crt`, `token` (Calico's CNI plugin), `admin.token`, `bootstrap.kubeconfig` (server and CA: for
//! hublet's `--bootstrap-file`), `cloud.kubeconfig` (admin, past hublet and past the fault proxy), `control`.
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::cloud::{Cloud, Options};
use crate::control::{Control, Controls};
use crate::fault::FaultProxy;
use crate::pki::{Credential, render_kubeconfig};
use crate::worker::Worker;

/// Addresses and credentials of a cloud, as its folder holds them.
#[derive(Clone, Debug)]
pub struct Access {
    /// Through the fault proxy: what hublet dials.
    pub server: SocketAddr,
    /// Past the fault proxy.
    pub direct: SocketAddr,
    pub control: SocketAddr,
    /// The authority of the cloud's certificate, PEM.
    pub ca_pem: String,
    /// The token of Calico's CNI plugin.
    pub calico_token: String,
    pub admin_token: String,
}

impl Access {
    /// Writes the folder's files; secrets are for the owner only. `control` comes last: who sees it sees all.
    pub fn write_files(&self, folder: &Path) -> anyhow::Result<()> {
        fs::create_dir_all(folder)
            .with_context(|| format!("make the folder {}", folder.display()))?;
        let Access {
            ca_pem,
            calico_token,
            admin_token,
            ..
        } = self;
        let (server, direct) = (
            format!("https://{}", self.server),
            format!("https://{}", self.direct),
        );
        write_file(folder, "cloud-ca.crt", ca_pem, 0o644)?;
        write_file(folder, "token", calico_token, 0o600)?;
        write_file(folder, "admin.token", admin_token, 0o600)?;
        write_file(
            folder,
            "bootstrap.kubeconfig",
            &render_kubeconfig(&server, ca_pem, Credential::None),
            0o600,
        )?;
        write_file(
            folder,
            "cloud.kubeconfig",
            &render_kubeconfig(&direct, ca_pem, Credential::Token(admin_token)),
            0o600,
        )?;
        write_file(folder, "control", &self.control.to_string(), 0o644)
    }

    /// The line that says that the cloud is ready.
    #[must_use]
    pub fn ready_line(&self) -> String {
        let (server, direct) = (
            format!("https://{}", self.server),
            format!("https://{}", self.direct),
        );
        json!({"server": server, "control": self.control.to_string(), "direct": direct}).to_string()
    }
}

fn write_file(folder: &Path, name: &str, text: &str, mode: u32) -> anyhow::Result<()> {
    let (path, fresh) = (folder.join(name), folder.join(format!(".{name}.new")));
    let _ = fs::remove_file(&fresh);
    let written = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&fresh);
    written
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&fresh, &path))
        .with_context(|| format!("write {}", path.display()))
}

/// Settings of `hublet-cloud`.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder of its files.
    pub folder: PathBuf,
    /// The fault proxy's address: what hublet dials.
    pub listen: SocketAddr,
    /// The control port's address.
    pub control: SocketAddr,
    /// End when standard input closes, so as not to outlive the starter.
    pub until_stdin_closes: bool,
}

/// Runs the scriptable cloud there until SIGINT or SIGTERM.
pub fn run_scripted(place: &Settings) -> anyhow::Result<()> {
    let cloud = Cloud::start(Options::default())?;
    let front = Frontend::start(place, cloud.address, Some(cloud.handle()))?;
    front.announce(
        place,
        &Access {
            server: front.server_address(),
            direct: cloud.address,
            control: front.control.address(),
            ca_pem: cloud.ca.pem().to_owned(),
            calico_token: cloud.calico_token.clone(),
            admin_token: cloud.admin_token.clone(),
        },
    )?;
    wait_until_stopped(place)
}

/// The fault proxy and the control port before any cloud.
#[derive(Debug)]
pub struct Frontend {
    fault: FaultProxy,
    control: Control,
}

impl Frontend {
    /// Puts both before the cloud at `direct`; the scriptable one is controlled by the port, too.
    pub fn start(
        place: &Settings,
        direct: SocketAddr,
        cloud: Option<crate::cloud::Handle>,
    ) -> anyhow::Result<Frontend> {
        let fault = FaultProxy::start(place.listen, direct, None)?;
        let control = Control::start(
            place.control,
            Controls {
                fault: fault.handle(),
                cloud,
            },
        )?;
        Ok(Frontend { fault, control })
    }

    /// The fault proxy's address.
    #[must_use]
    pub fn server_address(&self) -> SocketAddr {
        self.fault.address()
    }

    /// The control port's address.
    #[must_use]
    pub fn control_address(&self) -> SocketAddr {
        self.control.address()
    }

    /// Writes the files and prints the line that says so.
    #[expect(
        clippy::print_stdout,
        reason = "the line on standard output is the interface"
    )]
    pub fn announce(&self, place: &Settings, access: &Access) -> anyhow::Result<()> {
        access.write_files(&place.folder)?;
        println!("{}", access.ready_line());
        std::io::stdout()
            .flush()
            .context("tell on standard output that the cloud is ready")
    }
}

/// Blocks until SIGINT, SIGTERM or, when asked for, the end of standard input.
pub fn wait_until_stopped(place: &Settings) -> anyhow::Result<()> {
    let (ended, end) = std::sync::mpsc::channel();
    if place.until_stdin_closes {
        let ended = ended.clone();
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            let _ = ended.send(());
        });
    }
    let worker = Worker::start("signals", None)?;
    worker.spawner().block_on(async { anyhow::Ok(()) })?;
    worker.spawner().spawn(async move {
        let mut interrupt = signal(SignalKind::interrupt()).expect("SIGINT can be caught");
        let mut terminate = signal(SignalKind::terminate()).expect("SIGTERM can be caught");
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        let _ = ended.send(());
    });
    end.recv().context("wait for a signal")?;
    Ok(())
}
