//! The BPF object that the daemon embeds: the committed one, or one built from source where its inputs changed. A build
//! gives the same bytes on every machine with the same toolchain, with BTF and source lines but without DWARF.
//!
//! `HUBLET_BPF_LOG=1` builds it with aya-log's debug lines, for a daemon with the feature `bpf-log`. The object that
//! ships has none: their ring is a legacy map, which libbpf and bpftool refuse to load.

mod committed;
mod reproducible;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::{step, toolchain};

pub(crate) use reproducible::{check_object, step as check_step};

/// Both of our architectures are little-endian; one object serves them.
const TARGET: &str = "bpfel-unknown-none";
/// Between flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// Flags that don't depend on the machine.
const FIXED_FLAGS: [&str; 6] = [
    // It chooses registers that none of our programs reads: fixed, so that all hosts build the same.
    "--cfg=bpf_target_arch=\"x86_64\"",
    // With the sources embedded, BTF gets their lines although the remapped paths lead nowhere.
    "-Cdebuginfo=2",
    "-Zdwarf-version=5",
    "-Zembed-source=yes",
    "-Clink-arg=--btf",
    "-Alinker_messages",
];

/// The object for the daemon; instant when nothing changed.
pub(crate) fn object(project: &Project) -> Result<PathBuf> {
    if has_debug_lines() {
        return build_object(project);
    }
    if let Some(object) = committed::copy_current(project)? {
        return Ok(object);
    }
    step::note(
        "proxy-ebpf/object/ is older than the programs' sources: `cargo xtask ebpf` renews it",
    );
    build_object(project)
}

/// The object for the daemon if that needs no build.
pub(crate) fn known_object(project: &Project) -> Result<Option<PathBuf>> {
    Ok(committed::copy_current(project)?.or_else(|| {
        let built = object_path(project);
        built.is_file().then_some(built)
    }))
}

/// Builds the object from source and writes it and its inputs to `proxy-ebpf/object/`. The one with debug lines stays
/// in the target directory.
pub(crate) fn update_committed(project: &Project) -> Result<PathBuf> {
    let object = build_object(project)?;
    if !has_debug_lines() {
        committed::write(project, &object)?;
    }
    Ok(object)
}

/// True if the environment asks for the variant with aya-log's debug lines.
pub(crate) fn has_debug_lines() -> bool {
    std::env::var_os("HUBLET_BPF_LOG").is_some_and(|value| value == "1")
}

/// The daemon's build script reads it there.
fn object_path(project: &Project) -> PathBuf {
    project.target.join("bpf").join("hublet.bpf.o")
}

/// Builds proxy-ebpf for the kernel and gives the object's path. Instant when nothing changed.
fn build_object(project: &Project) -> Result<PathBuf> {
    toolchain::for_bpf(project)?;
    let with_log = has_debug_lines();
    // A target directory of its own: other flags, and cargo would wait for its own lock.
    let dir = project.target.join("bpf");
    let sysroot = PathBuf::from(
        step::read_output(project.command("rustc").args(["--print", "sysroot"]))?.trim(),
    );
    let mut cargo = cargo_build(project, &dir, rustc_flags(project, &sysroot)?);
    if with_log {
        cargo.args(["--features", "log"]);
    }
    let what = if with_log {
        "building the BPF object with debug lines"
    } else {
        "building the BPF object"
    };
    step::run(
        &format!("{what} (half a minute the first time)"),
        &mut cargo,
    )?;

    let built = dir.join(TARGET).join("release").join("hublet-bpf");
    let object = if with_log {
        dir.join("hublet-log.bpf.o")
    } else {
        object_path(project)
    };
    strip_dwarf(project, &sysroot, &built, &object)?;
    Ok(object)
}

/// cargo's command that builds the programs for the kernel, in a target directory.
fn cargo_build(project: &Project, target_dir: &Path, rustc_flags: OsString) -> Command {
    let mut cargo = project.cargo();
    cargo.args(["build", "--quiet", "--release"]);
    cargo.args(["--package", "hublet-ebpf", "--bin", "hublet-bpf"]);
    cargo.args(["--target", TARGET, "-Z", "build-std=core"]);
    // RUSTC_BOOTSTRAP: `-Z` on the stable compiler that builds everything else too. An incremental build gives other,
    // slower instructions.
    cargo
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_INCREMENTAL", "0")
        .env("CARGO_TARGET_DIR", target_dir)
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", rustc_flags);
    cargo
}

/// Flags for rustc and bpf-linker. Paths of this machine become `hublet/…`, `cargo/…` and `rust/…`: they are in
/// the source lines that bpftool and the verifier show.
fn rustc_flags(project: &Project, sysroot: &Path) -> Result<OsString> {
    let home = match std::env::var_os("CARGO_HOME") {
        Some(home) => PathBuf::from(home),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("neither CARGO_HOME nor HOME is set")?)
                .join(".cargo")
        }
    };
    let library = sysroot.join("lib/rustlib/src/rust");
    let mut flags = OsString::from(FIXED_FLAGS.join(SEPARATOR));
    for (from, to) in [
        (project.root.as_path(), "hublet"),
        (home.as_path(), "cargo"),
        (library.as_path(), "rust"),
    ] {
        flags.push(SEPARATOR);
        flags.push("--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// Takes the DWARF out (four fifths of the object; BTF was made from it) with the objcopy that comes with rustc.
fn strip_dwarf(project: &Project, sysroot: &Path, built: &Path, object: &Path) -> Result<()> {
    let host = step::read_output(project.command("rustc").arg("-vV"))?;
    let host = host
        .lines()
        .find_map(|line| line.strip_prefix("host: "))
        .context("`rustc -vV` names no host")?;
    let objcopy = sysroot
        .join("lib/rustlib")
        .join(host)
        .join("bin/rust-objcopy");
    let stripped = object.with_extension("new");
    if objcopy.is_file() {
        let mut command = project.command(&objcopy);
        // It is linked with rustc's own LLVM.
        command
            .env("LD_LIBRARY_PATH", sysroot.join("lib"))
            .arg("--strip-debug")
            .arg(built)
            .arg(&stripped);
        step::read_output(&mut command)?;
    } else {
        step::note(format_args!(
            "no {}: the object keeps its DWARF",
            objcopy.display()
        ));
        fs::copy(built, &stripped).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    let new = fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))?;
    if !contains(&new, b"hub_connect4") || !contains(&new, b".BTF.ext") {
        bail!(
            "{} has no programs or no BTF: was it linked by bpf-linker?",
            built.display()
        );
    }
    fs::remove_file(&stripped)?;
    write_if_changed(object, &new)
}

/// A file that has these bytes keeps its time, so that nothing is built again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

fn contains(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}
