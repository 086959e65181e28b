//! `cargo xtask run`: builds everything, starts a cloud and hublet, and ends both in order on Ctrl-C.

mod cloud;
mod files;
mod flags;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::child::Child;
use crate::interrupt::Interrupt;
use crate::project::{Project, is_root};
use crate::{build, plain_http, step};

pub(crate) use cloud::Cloud;
use flags::Flags;

/// Timeout of hublet's start.
const READY: Duration = Duration::from_secs(30);
/// Timeout of hublet's end: it drains and undoes its setup.
const DRAIN: Duration = Duration::from_secs(45);

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The cloud to start: a small scriptable one, or the real kube-apiserver (needs Go or KUBEBUILDER_ASSETS).
    #[arg(long, value_enum, default_value_t = CloudKind::Scripted)]
    cloud: CloudKind,
    /// Flags for hublet, after `--`. With `--server-addr` among them no cloud is started.
    #[arg(last = true, value_name = "HUBLET FLAGS")]
    hublet: Vec<String>,
}

/// The clouds of tests/.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum CloudKind {
    /// The scriptable cloud.
    Scripted,
    /// The real kube-apiserver with etcd and the controller manager.
    Kube,
}

/// Builds, starts, tells, waits for Ctrl-C, ends.
pub(crate) fn run(project: &Project, arguments: &RunArguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let mut flags = Flags::from_user(&arguments.hublet);
    let own_cluster = flags.value("--server-addr").is_some();
    build::build_development(project)?;
    let dev = project.dev_dir();
    std::fs::create_dir_all(&dev)?;
    let admin = flags.admin_address()?;
    port_is_free(admin)?;

    let mut cloud = if own_cluster {
        None
    } else {
        Some(Cloud::start_in(project, arguments.cloud, &dev, &interrupt)?)
    };
    set_cloud_flags(&mut flags, cloud.as_ref(), &dev);
    set_node_flags(&mut flags, &dev);
    let store = prepare_store(&dev, cloud.as_ref())?;
    flags.set_default("--disk-cache-path", &store.display().to_string());
    let restricted = !is_root();
    if restricted {
        flags.set_default("--enable-dummy-if", "false");
        flags.set_default("--steer", "none");
    }
    let mut hublet = start_hublet(project, &flags)?;
    wait_ready(admin, &mut hublet, cloud.as_mut(), &interrupt)?;
    files::write_client_files(project, &flags, cloud.is_some())?;
    files::print_introduction(project, &flags, cloud.as_ref(), restricted);
    until_interrupted(&mut hublet, cloud.as_mut(), &interrupt)?;
    step::announce("ending: hublet drains, gives steering back and removes its interface and pins");
    let status = hublet.stop()?;
    drop(cloud);
    if !status.success() {
        bail!(
            "hublet ended with {status}: see {}",
            project.relative_path(&dev.join("hublet.log"))
        );
    }
    Ok(())
}

fn set_cloud_flags(flags: &mut Flags, cloud: Option<&Cloud>, dev: &Path) {
    let Some(cloud) = cloud else { return };
    let kubeconfig = dev.join("bootstrap.kubeconfig");
    flags.set_default("--server-addr", &cloud.server);
    flags.set_default("--bootstrap-file", &kubeconfig.display().to_string());
}

fn set_node_flags(flags: &mut Flags, dev: &Path) {
    flags.set_default("--node-name", "dev-node");
    flags.set_default("--bootstrap-mode", "development");
    flags.set_default("--root-dir", &dev.join("hublet").display().to_string());
}

/// The directory of the store: that of the user's cluster is kept, that of a cloud of ours is emptied, since each start
/// of it is a new cluster.
fn prepare_store(dev: &Path, cloud: Option<&Cloud>) -> Result<PathBuf> {
    let hublet = dev.join("hublet");
    if cloud.is_none() {
        return Ok(hublet.join("cache-of-your-cluster"));
    }
    let store = hublet.join("cache");
    if store.exists() {
        std::fs::remove_dir_all(&store)?;
    }
    Ok(store)
}

fn start_hublet(project: &Project, flags: &Flags) -> Result<Child> {
    let binary = project.built_program("debug", "hublet");
    let mut command = project.command(&binary);
    command.args(flags.as_slice());
    step::announce(format_args!(
        "starting hublet {}",
        flags.as_slice().join(" ")
    ));
    Child::start(
        "hublet",
        &command,
        &project.dev_dir().join("hublet.log"),
        DRAIN,
    )
}

/// A hublet that someone else started would answer our readiness check and hide that ours failed.
fn port_is_free(admin: SocketAddr) -> Result<()> {
    if plain_http::get(admin, "/v1/healthz").is_ok() {
        bail!(
            "a hublet (or YurtHub) already answers on {admin}: end it first, or add `-- --serve-port=PORT`"
        );
    }
    Ok(())
}

fn wait_ready(
    admin: SocketAddr,
    hublet: &mut Child,
    mut cloud: Option<&mut Cloud>,
    interrupt: &Interrupt,
) -> Result<()> {
    let deadline = Instant::now() + READY;
    let mut last = String::from("no answer yet");
    while Instant::now() < deadline {
        match plain_http::get(admin, "/v1/readyz") {
            Ok((200, body)) if body == "OK" => return Ok(()),
            Ok((status, body)) => last = format!("{status} {}", body.trim()),
            Err(error) => last = format!("{error:#}"),
        }
        hublet.check_running()?;
        if let Some(cloud) = cloud.as_deref_mut() {
            cloud.child.check_running()?;
        }
        if interrupt.wait(Duration::from_millis(50)) {
            bail!("interrupted while hublet was starting");
        }
    }
    bail!(
        "hublet is not ready after {} s: http://{admin}/v1/readyz says: {last}",
        READY.as_secs()
    )
}

fn until_interrupted(
    hublet: &mut Child,
    mut cloud: Option<&mut Cloud>,
    interrupt: &Interrupt,
) -> Result<()> {
    while !interrupt.wait(Duration::from_millis(500)) {
        hublet.check_running()?;
        if let Some(cloud) = cloud.as_deref_mut() {
            cloud.child.check_running()?;
        }
    }
    Ok(())
}

pub(crate) const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
