//! The Go program of tests/kube: the real kube-apiserver, etcd, controller manager. In: its sources and Go, or
//! `KUBEBUILDER_ASSETS`. Out: the built program's path, or none and a line that says what will not run.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::project::{Project, is_ci, which};
use crate::step;

/// Names the built program for the tests.
pub(super) const KUBE: &str = "HUBLET_KUBE_BIN";

/// Builds it (minutes the first time, seconds later).
pub(super) fn kube(project: &Project) -> Result<Option<PathBuf>> {
    let source = project.root.join("tests").join("kube");
    if !source.join("go.mod").is_file() || std::env::var_os("KUBEBUILDER_ASSETS").is_some() {
        return Ok(None);
    }
    if which("go").is_none() {
        let why = "the suites over the real kube-apiserver need Go 1.24 or later, or KUBEBUILDER_ASSETS";
        if is_ci() {
            bail!("{why}");
        }
        step::note(format_args!("{why}: they will say SKIP"));
        return Ok(None);
    }
    let program = project.target.join("hublet-kube");
    let mut build = project.command("go");
    build.current_dir(source).args(["build", "-o"]).arg(&program).arg(".");
    step::run(
        "building the real kube-apiserver from Go modules (about five minutes the first time)",
        &mut build,
    )?;
    Ok(Some(program))
}
