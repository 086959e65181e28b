//! `cargo xtask build`, and the builds that the other verbs need: the BPF object, the daemon in the dev profile, the
//! release daemon (static where musl can be had), the test clouds.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::project::Project;
use crate::{compile, ebpf, step, toolchain};

/// The daemon's build script embeds the object that this variable names.
pub(crate) const OBJECT: &str = "HUBLET_BPF_OBJECT";

/// `cargo SUBCOMMAND` with the object named for the daemon's build script.
pub(crate) fn cargo_with_object(project: &Project, object: &Path, subcommand: &str) -> Command {
    let mut command = project.cargo();
    command.arg(subcommand).env(OBJECT, object);
    if ebpf::has_debug_lines() {
        // The object has debug lines then; the daemon must read them.
        command.args(["--features", "hublet/bpf-log"]);
    }
    command
}

/// The object, the daemon and the tests' cloud in the dev profile: quick to build, optimised where it counts.
/// Gives the object's path.
pub(crate) fn build_development(project: &Project) -> Result<PathBuf> {
    let object = ebpf::object(project)?;
    let mut command = cargo_with_object(project, &object, "build");
    command.args(["--package", "hublet", "--package", "hublet-tests", "--bins"]);
    compile::run(
        "building hublet and its test clouds (minutes the first time, seconds later)",
        &mut command,
    )?;
    Ok(object)
}

/// The release daemon at `target/release/hublet`; static when there is a C compiler for musl.
pub(crate) fn build_release(project: &Project) -> Result<PathBuf> {
    let path = release_daemon(project)?;
    let size = std::fs::metadata(&path)?.len();
    println!(
        "{} {:.1} MB",
        project.relative_path(&path),
        size as f64 / 1e6
    );
    Ok(path)
}

/// The release daemon, for another verb.
pub(crate) fn release_daemon(project: &Project) -> Result<PathBuf> {
    Ok(build_released(project, &["hublet"])?.remove(0))
}

/// Builds programs (each in the package of its name) and puts them into `target/release/`.
fn build_released(project: &Project, programs: &[&str]) -> Result<Vec<PathBuf>> {
    let object = ebpf::object(project)?;
    let mut command = cargo_with_object(project, &object, "build");
    command.arg("--release");
    for program in programs {
        command.args(["--package", program]);
    }
    let paths: Vec<PathBuf> = programs
        .iter()
        .map(|program| project.built_program("release", program))
        .collect();
    let Some(triple) = musl_target(project) else {
        compile::run(
            "building the release daemon (minutes: link-time optimisation of everything)",
            &mut command,
        )?;
        step::note("this daemon is dynamic and needs this machine's glibc; what ships is static");
        return Ok(paths);
    };
    command.args(["--target", &triple]);
    compile::run(
        "building the release daemon, static (minutes: link-time optimisation of everything)",
        &mut command,
    )?;
    std::fs::create_dir_all(project.target.join("release"))?;
    for (program, path) in programs.iter().zip(&paths) {
        let built = project.target.join(&triple).join("release").join(program);
        std::fs::copy(&built, path).with_context(|| format!("cannot copy {}", built.display()))?;
    }
    Ok(paths)
}

/// Programs of the bench.
#[derive(Debug)]
pub(crate) struct BenchPrograms {
    /// The release daemon.
    pub(crate) daemon: PathBuf,
    /// `static (musl)`, `dynamic (glibc)` or `a given daemon`.
    pub(crate) kind: &'static str,
    /// The load generator.
    pub(crate) load: PathBuf,
}

/// The release daemon as it is shipped, the load generator, and the scriptable cloud.
pub(crate) fn build_bench(project: &Project, given: Option<&Path>) -> Result<BenchPrograms> {
    bench_cloud(project)?;
    if let Some(daemon) = given {
        let mut command = project.cargo();
        command.args(["build", "--package", "hublet-load"]);
        compile::run("building the load generator", &mut command)?;
        let daemon = daemon
            .canonicalize()
            .with_context(|| format!("no {}", daemon.display()))?;
        return Ok(BenchPrograms {
            daemon,
            kind: "a given daemon",
            load: project.built_program("debug", "hublet-load"),
        });
    }
    let mut paths = build_released(project, &["hublet", "hublet-load"])?.into_iter();
    let (Some(daemon), Some(load)) = (paths.next(), paths.next()) else {
        bail!("two programs give two paths")
    };
    let kind = if musl_target(project).is_some() {
        "static (musl)"
    } else {
        "dynamic (glibc)"
    };
    Ok(BenchPrograms { daemon, kind, load })
}

/// The scriptable cloud, optimised: unoptimised it takes longer for the long list than hublet has patience.
fn bench_cloud(project: &Project) -> Result<()> {
    let object = ebpf::object(project)?;
    let mut command = cargo_with_object(project, &object, "build");
    command.args(["--package", "hublet", "--package", "hublet-tests", "--bins"]);
    command.args(["--config", "profile.dev.package.hublet-tests.opt-level=2"]);
    compile::run("building the scriptable cloud", &mut command).map(drop)
}

/// The musl target: its C compiler from apt and its standard library from rustup, fetched where they are missing. `None`
/// where that is not possible, which is said in a line.
fn musl_target(project: &Project) -> Option<String> {
    if let Err(error) = toolchain::for_static(project) {
        step::note(format_args!("no static build: {error:#}"));
    }
    toolchain::musl_cc()?;
    let triple = format!("{}-unknown-linux-musl", std::env::consts::ARCH);
    let installed =
        step::read_output(
            project
                .command("rustup")
                .args(["target", "list", "--installed"]),
        )
        .ok()?;
    if installed.lines().any(|line| line == triple) {
        return Some(triple);
    }
    let mut add = project.command("rustup");
    add.args(["target", "add", &triple]);
    match step::run(
        &format!("fetching the standard library for {triple}"),
        &mut add,
    ) {
        Ok(()) => Some(triple),
        Err(error) => {
            step::note(format_args!("no static build: {error:#}"));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// Crates with the features that cargo chooses for these packages, one a line.
    fn features_of(packages: &[&str]) -> HashSet<String> {
        let project = Project::find().unwrap();
        let mut tree = project.cargo();
        tree.args(["tree", "--locked", "--edges", "normal", "--prefix", "none"]);
        tree.args(["--no-dedupe", "--format", "{p} [{f}]"])
            .args(packages);
        let lines = step::read_output(&mut tree).unwrap();
        lines.lines().map(str::to_owned).collect()
    }

    /// A crate that a verb builds with other features is compiled a second time: half a minute of the first `run`.
    #[test]
    fn xtask_the_daemon_and_the_workspace_share_their_crates() {
        let all = features_of(&["--workspace"]);
        for packages in [
            ["-p", "xtask"].as_slice(),
            &["-p", "hublet", "-p", "hublet-tests"],
        ] {
            let others: Vec<_> = features_of(packages).difference(&all).cloned().collect();
            assert!(others.is_empty(), "{packages:?} compile anew: {others:#?}");
        }
    }
}
