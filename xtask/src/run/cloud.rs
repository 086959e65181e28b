//! The cloud that `run` starts, behind its fault proxy. It writes its credentials to `target/dev/` before it reports
//! that it is ready.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::CloudKind;
use crate::child::Child;
use crate::interrupt::Interrupt;
use crate::project::Project;
use crate::step;

/// A first start of the real one builds it from Go modules.
const PATIENCE: Duration = Duration::from_secs(900);
const GRACE: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(crate) struct Cloud {
    pub(crate) child: Child,
    /// Through the fault proxy: what hublet is told.
    pub(crate) server: String,
    /// Past the fault proxy.
    pub(crate) direct: String,
}

/// The line that `hublet-cloud` prints when it is ready.
#[derive(Debug, Deserialize)]
struct Ready {
    server: String,
    direct: String,
}

impl Cloud {
    /// Starts it, its files in `dir`, and waits until it is ready.
    pub(crate) fn start_in(
        project: &Project,
        kind: CloudKind,
        dir: &Path,
        interrupt: &Interrupt,
    ) -> Result<Self> {
        let kind = match kind {
            CloudKind::Scripted => "scripted",
            CloudKind::Kube => "kube",
        };
        let mut command = project.command(project.built_program("debug", "hublet-cloud"));
        command.arg(kind).arg("--dir").arg(dir);
        step::announce(format_args!("starting the {kind} cloud"));
        let (mut child, stdout) =
            Child::start_piped("the cloud", &command, &dir.join("cloud.log"), GRACE)?;
        let line = child.read_first_line(stdout, PATIENCE, interrupt)?;
        let ready: Ready = serde_json::from_str(&line).with_context(|| {
            format!("hublet-cloud's first line should be its addresses, but is: {line}")
        })?;
        Ok(Self {
            child,
            server: ready.server,
            direct: ready.direct,
        })
    }
}
