//! The real control plane for hands and for other processes: what `hublet-cloud kube` runs, with the same files,
//! control port and line as the scriptable cloud (see [`crate::dev`]).

use std::io::Write;

use anyhow::Result;

use super::{KubeCloud, Options};
use crate::dev::{Access, Frontend, Settings, wait_until_stopped};

/// Runs the control plane behind the fault proxy until SIGINT or SIGTERM.
///
/// # Errors
/// The control plane can't be built or started, or an address is taken.
pub fn run(place: &Settings) -> Result<()> {
    let _ = writeln!(
        std::io::stderr().lock(),
        "starting the real kube-apiserver …"
    );
    let cloud = KubeCloud::start(Options::default())?;
    let front = Frontend::start(place, cloud.address(), None)?;
    front.announce(
        place,
        &Access {
            server: front.server_address(),
            direct: cloud.address(),
            control: front.control_address(),
            ca_pem: cloud.ca_pem().to_owned(),
            calico_token: cloud.calico_token().to_owned(),
            admin_token: cloud.admin_token().to_owned(),
        },
    )?;
    wait_until_stopped(place)
}
