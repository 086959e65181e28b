//! aarch64 on another machine: Debian's arm64 programs with their libraries, and the daemon and suites cross-compiled with
//! musl. Only gcc's cross compiler and QEMU are installed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use super::apt::Apt;
use crate::project::Project;
use crate::test::suite::{self, Suite};
use crate::{build, ebpf, step};

/// Debian's name of the architecture.
pub(super) const DEBIAN: &str = "arm64";
/// Rust's name of what is built.
const TRIPLE: &str = "aarch64-unknown-linux-musl";
/// Debian's compiler for it.
pub(super) const GCC: &str = "aarch64-linux-gnu-gcc";
/// Packages of the programs that init.sh and the suites call.
const PACKAGES: [&str; 4] = ["busybox-static", "iproute2", "bpftool", "util-linux"];

/// The tree of programs and libraries of that architecture.
pub(super) fn programs_tree(apt: &Apt<'_>) -> Result<PathBuf> {
    // Named after what is in it: an older checkout's tree lacks some.
    apt.packages_tree(&PACKAGES.join("+"), &PACKAGES)
}

/// The daemon, and the suites of these names.
pub(super) fn build_for(
    project: &Project,
    apt: &Apt<'_>,
    names: &[String],
) -> Result<(PathBuf, Vec<Suite>)> {
    let object = ebpf::object(project)?;
    install_standard_library(project)?;
    let compiler = find_compiler(project, apt)?;
    let cargo = |subcommand: &str| {
        let mut command = build::cargo_with_object(project, &object, subcommand);
        command.args(["--target", TRIPLE]);
        compiler.configure(&mut command);
        command
    };
    let mut daemon = cargo("build");
    daemon.args(["--release", "--package", "hublet"]);
    step::run(
        "building the release daemon for aarch64 (ten minutes the first time on two cores)",
        &mut daemon,
    )?;
    let mut tests = cargo("test");
    tests.args(["--package", "hublet-tests", "--no-run"]);
    for name in names {
        tests.args(["--test", name.trim_start_matches("tests::")]);
    }
    step::announce("building the suites for aarch64 (ten minutes the first time on two cores)");
    let suites = suite::build_programs(tests)?;
    Ok((project.target.join(TRIPLE).join("release/hublet"), suites))
}

fn install_standard_library(project: &Project) -> Result<()> {
    let mut list = project.command("rustup");
    let installed = step::read_output(list.args(["target", "list", "--installed"]))?;
    if installed.lines().any(|line| line == TRIPLE) {
        return Ok(());
    }
    let mut add = project.command("rustup");
    step::run(
        &format!("fetching the standard library for {TRIPLE}"),
        add.args(["target", "add", TRIPLE]),
    )
}

/// A C compiler for musl on aarch64: Debian's cross gcc with musl's headers, as `musl-gcc` is for this machine.
#[derive(Debug)]
struct Compiler(PathBuf);

fn find_compiler(project: &Project, apt: &Apt<'_>) -> Result<Compiler> {
    let musl = apt.package_tree("musl-dev")?;
    let specs = musl.join("usr/lib/aarch64-linux-musl/musl-gcc.specs");
    let text = fs::read_to_string(&specs).with_context(|| format!("no {}", specs.display()))?;
    let dir = project.target.join("vm").join("aarch64-cc");
    fs::create_dir_all(&dir)?;
    let ours = dir.join("musl.specs");
    fs::write(
        &ours,
        text.replace("/usr/", &format!("{}/usr/", musl.display())),
    )?;
    let path = dir.join("aarch64-linux-musl-gcc");
    fs::write(
        &path,
        format!("#!/bin/sh\nexec {GCC} -specs '{}' \"$@\"\n", ours.display()),
    )?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(Compiler(path))
}

impl Compiler {
    /// Names it to cargo and to the build scripts. Rust brings musl itself for linking, which any gcc can do.
    fn configure(&self, cargo: &mut Command) {
        cargo.env("CC_aarch64_unknown_linux_musl", &self.0);
        cargo.env("AR_aarch64_unknown_linux_musl", "aarch64-linux-gnu-ar");
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", GCC);
    }
}
