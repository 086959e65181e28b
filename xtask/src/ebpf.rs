//! Builds the BPF object. In: proxy-ebpf. Out: the path of the object that the daemon embeds.

use std::path::PathBuf;

use anyhow::Result;

use crate::project::Project;
use crate::step;

const TARGET: &str = "bpfel-unknown-none";

/// Builds proxy-ebpf for the kernel and gives the object's path.
pub(crate) fn build(project: &Project) -> Result<PathBuf> {
    let dir = project.target.join("bpf");
    let mut cargo = project.cargo();
    cargo.args(["build", "--release", "--package", "hublet-ebpf", "--bin", "hublet-bpf", "--target", TARGET]);
    cargo.args(["-Z", "build-std=core"]).env("RUSTC_BOOTSTRAP", "1").env("CARGO_TARGET_DIR", &dir);
    cargo.env("RUSTFLAGS", "-C linker=bpf-linker -C panic=abort -C debuginfo=2 -C link-arg=--btf");
    step::run("building the BPF object", &mut cargo)?;
    Ok(dir.join(TARGET).join("release").join("hublet-bpf"))
}
