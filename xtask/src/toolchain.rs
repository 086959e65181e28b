//! Installs the programs that the verbs need and a fresh machine lacks: by rustup and cargo, and by apt where root
//! and apt exist. Silent when everything is there.

use anyhow::{Context, Result, bail};

use crate::project::{Project, find_program, is_ci, is_root};
use crate::step;

/// Must fit rustc's LLVM (rust-toolchain.toml); change both together.
pub(crate) const BPF_LINKER: &str = "0.10.3";
const CARGO_DENY: &str = "0.20.2";
const CARGO_MUTANTS: &str = "27.1.0";

/// Installs rust-src and bpf-linker when they are missing.
pub(crate) fn for_bpf(project: &Project) -> Result<()> {
    install_rust_src(project)?;
    install_bpf_linker(project)
}

fn install_rust_src(project: &Project) -> Result<()> {
    let sysroot = step::read_output(project.command("rustc").args(["--print", "sysroot"]))?;
    let library = std::path::Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library");
    if library.join("core").is_dir() {
        return Ok(());
    }
    if find_program("rustup").is_none() {
        bail!(
            "the BPF programs need rust-src in {} and there is no rustup to fetch it",
            library.display()
        );
    }
    let mut add = project.command("rustup");
    add.args(["component", "add", "rust-src"]);
    step::run(
        "fetching rust-src, which the BPF programs' core is built from",
        &mut add,
    )
}

fn install_bpf_linker(project: &Project) -> Result<()> {
    if let Some(found) = find_program("bpf-linker") {
        let version =
            step::read_output(project.command(&found).arg("--version")).unwrap_or_default();
        if version.split_whitespace().any(|word| word == BPF_LINKER) {
            return Ok(());
        }
        step::note(format_args!(
            "{} is {}, not {BPF_LINKER}",
            found.display(),
            version.trim()
        ));
    }
    let package = format!("bpf-linker@{BPF_LINKER}");
    let mut install = project.cargo();
    // A debug build: LLVM, which does the work, is rustc's own library either way.
    install
        .env_remove("CARGO_TARGET_DIR")
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .args(["install", "--locked", "--force", "--debug", &package]);
    step::run(
        &format!("installing {package} (a minute, once)"),
        &mut install,
    )
    .context("without bpf-linker there are no BPF programs")
}

pub(crate) fn install_cargo_deny(project: &Project) -> Result<()> {
    install_cargo_subcommand(project, "cargo-deny", CARGO_DENY)
}

pub(crate) fn install_cargo_mutants(project: &Project) -> Result<()> {
    install_cargo_subcommand(project, "cargo-mutants", CARGO_MUTANTS)
}

/// Installs a program that only checks: any version that is there does, and a debug build is built sooner.
fn install_cargo_subcommand(project: &Project, name: &str, version: &str) -> Result<()> {
    if find_program(name).is_some() {
        return Ok(());
    }
    let package = format!("{name}@{version}");
    let mut install = project.cargo();
    install
        .env_remove("CARGO_TARGET_DIR")
        .args(["install", "--locked", "--debug", &package]);
    step::run(
        &format!("installing {package} (minutes, once)"),
        &mut install,
    )
}

/// The programs that tests call, from Debian's packages where we are root; elsewhere the tests say what they miss.
pub(crate) fn for_tests(project: &Project) -> Result<()> {
    install_packages(
        project,
        &[
            ("curl", "curl"),
            ("ip", "iproute2"),
            ("nsenter", "util-linux"),
        ],
    )
}

/// Programs of the real node, beside the kubelet, which Go builds. Debian's containerd is a service that starts
/// with the machine: installed by itself in CI only.
pub(crate) fn for_node(project: &Project) -> Result<()> {
    let plugins = ["/usr/lib/cni/ptp", "/opt/cni/bin/ptp"];
    let plugin = plugins
        .into_iter()
        .find(|path| std::path::Path::new(path).exists())
        .unwrap_or(plugins[0]);
    let wanted = [
        ("containerd", "containerd"),
        ("runc", "runc"),
        (plugin, "containernetworking-plugins"),
    ];
    if !is_ci()
        && wanted
            .iter()
            .any(|(program, _)| find_program(program).is_none())
    {
        let list = wanted.map(|(_, package)| package).join(" ");
        step::note(format_args!(
            "the real node (suite real_node) needs: sudo apt-get install {list}"
        ));
        return Ok(());
    }
    install_packages(project, &wanted)
}

/// The compiler of libFuzzer, which is C++.
pub(crate) fn for_fuzz(project: &Project) -> Result<()> {
    install_packages(project, &[("c++", "g++")])
}

/// The C compiler of what ships, a static daemon: aws-lc and jemalloc are C.
pub(crate) fn for_static(project: &Project) -> Result<()> {
    if musl_cc().is_some() {
        return Ok(());
    }
    install_packages(project, &[("musl-gcc", "musl-tools")])
}

/// Programs that `vm` needs: QEMU, the machine's programs, and a C compiler for the static daemon.
pub(crate) fn for_vm(project: &Project) -> Result<()> {
    let machine = [
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("depmod", "kmod"),
    ];
    let called = [
        ("bpftool", "bpftool"),
        ("openssl", "openssl"),
        ("musl-gcc", "musl-tools"),
    ];
    for_tests(project)?;
    install_packages(project, &[machine, called].concat())
}

/// The same for a machine with an aarch64 processor, whose programs come from its own packages.
pub(crate) fn for_aarch64(project: &Project) -> Result<()> {
    let machine = ("qemu-system-aarch64", "qemu-system-arm");
    install_packages(
        project,
        &[
            machine,
            ("depmod", "kmod"),
            ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        ],
    )
}

/// Installs the packages whose program is missing, where that is possible; one line says so where it is not.
pub(crate) fn install_packages(project: &Project, wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !is_root() || find_program("apt-get").is_none() {
        step::note(format_args!(
            "not here: {list}. Install them (Debian: sudo apt-get install {list})"
        ));
        return Ok(());
    }
    let mut update = project.command("apt-get");
    step::run(
        "refreshing apt's package lists",
        update.arg("update").arg("-qq"),
    )?;
    let mut install = project.command("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive").args([
        "install",
        "-y",
        "-qq",
        "--no-install-recommends",
    ]);
    step::run(&format!("installing {list}"), install.args(missing))
}

/// Is there a C compiler for static builds with musl?
pub(crate) fn musl_cc() -> Option<std::path::PathBuf> {
    ["x86_64-linux-musl-gcc", "musl-gcc"]
        .into_iter()
        .find_map(find_program)
}
