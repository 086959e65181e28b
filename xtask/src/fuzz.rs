//! `cargo xtask fuzz`: libFuzzer over the parsers of hublet-wire. Each target begins with the corpus that is kept in
//! the repository; inputs that it finds go to `target/fuzz/corpus/`, crashes to `target/fuzz/artifacts/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::compile::{self, Message};
use crate::interrupt::Interrupt;
use crate::project::{Project, Usage, is_ci};
use crate::{step, toolchain};

/// Of proxy-user/wire.
const CRATE: &str = "proxy-user/wire/fuzz";
/// In CI: two targets at a time, on its two cores.
const CI_SECONDS: u32 = 60;
const AT_ONCE: usize = 2;
/// SanitizerCoverage as libFuzzer reads it, which are code generation options of the stable compiler. The parsers have
/// no unsafe code, so there is no address sanitizer, which would need nightly.
const INSTRUMENTATION: [&str; 7] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
];

/// Arguments of `fuzz`.
#[derive(Debug, Args)]
pub(crate) struct FuzzArguments {
    /// Targets to run; all of them without one.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
    /// Duration of each target.
    #[arg(long, default_value_t = CI_SECONDS, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Prints the targets and runs nothing.
    #[arg(long)]
    list: bool,
}

/// The manifest of the targets, which are no members of the workspace.
pub(crate) fn manifest(project: &Project) -> PathBuf {
    project.root.join(CRATE).join("Cargo.toml")
}

/// As a step of `ci`.
pub(crate) fn step(project: &Project) -> Result<()> {
    let all = FuzzArguments {
        targets: Vec::new(),
        seconds: CI_SECONDS,
        list: false,
    };
    run(project, &all)
}

pub(crate) fn run(project: &Project, arguments: &FuzzArguments) -> Result<()> {
    let known = list_targets(project)?;
    if arguments.list {
        known.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let chosen = choose_targets(&known, &arguments.targets)?;
    let interrupt = Interrupt::listen()?;
    let programs = build_targets(project)?;
    let fuzzers: Vec<Fuzzer> = chosen
        .iter()
        .map(|name| Fuzzer::new(project, name, &programs))
        .collect::<Result<_>>()?;
    for pair in fuzzers.chunks(AT_ONCE) {
        run_together(pair, arguments.seconds, &interrupt)?;
    }
    Ok(())
}

/// One target a file of `fuzz_targets/`.
fn list_targets(project: &Project) -> Result<Vec<String>> {
    let folder = project.root.join(CRATE).join("fuzz_targets");
    let entries =
        fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if let (Some(name), Some("rs")) =
            (path.file_stem(), path.extension().and_then(|e| e.to_str()))
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

fn choose_targets(known: &[String], wanted: &[String]) -> Result<Vec<String>> {
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        let text = format!("no fuzz target {unknown}; there are: {}", known.join(", "));
        return Err(Usage(text).into());
    }
    Ok(if wanted.is_empty() { known } else { wanted }.to_vec())
}

/// Builds all targets; gives their programs.
fn build_targets(project: &Project) -> Result<Vec<PathBuf>> {
    toolchain::for_fuzz(project)?;
    let mut cargo = project.cargo();
    cargo
        .args(["build", "--release", "--locked", "--bins"])
        .arg("--manifest-path")
        .arg(manifest(project))
        // With a target the flags are not for build scripts and macros.
        .args(["--target", &host_triple(project)?])
        .env("CARGO_TARGET_DIR", project.target.join("fuzz"))
        .env_remove("RUSTFLAGS")
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\x1f"));
    let messages = compile::run("building the fuzz targets", &mut cargo)?;
    let executable = |message: Message| message.executable;
    Ok(messages.into_iter().filter_map(executable).collect())
}

fn host_triple(project: &Project) -> Result<String> {
    let printed = step::read_output(project.command("rustc").arg("-vV"))?;
    let host = printed.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

/// A target, ready to run.
#[derive(Debug)]
struct Fuzzer {
    name: String,
    program: PathBuf,
    /// Kept in the repository: read, not written.
    seeds: PathBuf,
    /// Inputs that earlier runs found on this machine.
    corpus: PathBuf,
    artifacts: PathBuf,
    log: PathBuf,
}

impl Fuzzer {
    fn new(project: &Project, name: &str, programs: &[PathBuf]) -> Result<Self> {
        let is_named = |path: &&PathBuf| path.file_name().is_some_and(|file| file == name);
        let program = programs.iter().find(is_named);
        let dir = project.target.join("fuzz");
        let fuzzer = Self {
            name: name.to_owned(),
            program: program
                .with_context(|| format!("no program of the target {name}"))?
                .clone(),
            seeds: project.root.join(CRATE).join("corpus").join(name),
            corpus: dir.join("corpus").join(name),
            artifacts: dir.join("artifacts").join(name),
            log: dir.join(format!("{name}.log")),
        };
        fs::create_dir_all(&fuzzer.corpus)?;
        fs::create_dir_all(&fuzzer.artifacts)?;
        Ok(fuzzer)
    }

    fn command(&self, seconds: u32) -> Result<Command> {
        let log = fs::File::create(&self.log)?;
        let mut command = Command::new(&self.program);
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-artifact_prefix={}/", self.artifacts.display()))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"])
            .arg(&self.corpus);
        if is_ci() {
            // The same inputs for each change: a red step is of the change then, and runs by hand explore.
            command.arg("-seed=1");
        }
        if self.seeds.is_dir() {
            command.arg(&self.seeds);
        }
        command.stdout(log.try_clone()?).stderr(log);
        Ok(command)
    }

    /// The last words of libFuzzer: what failed and where the input is.
    fn describe_failure(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let end = lines[lines.len().saturating_sub(30)..].join("\n");
        format!(
            "fuzz target {} failed; again: {} FILE (the input is in {})\n{end}",
            self.name,
            self.program.display(),
            self.artifacts.display()
        )
    }
}

/// Runs some targets at the same time, up to the end of their time.
fn run_together(fuzzers: &[Fuzzer], seconds: u32, interrupt: &Interrupt) -> Result<()> {
    let names: Vec<&str> = fuzzers.iter().map(|fuzzer| fuzzer.name.as_str()).collect();
    step::announce(format_args!(
        "fuzzing {} for {seconds} s",
        names.join(" and ")
    ));
    let mut children = Vec::new();
    for fuzzer in fuzzers {
        children.push(
            fuzzer
                .command(seconds)?
                .spawn()
                .with_context(|| format!("cannot start {}", fuzzer.name))?,
        );
    }
    for (fuzzer, child) in fuzzers.iter().zip(&mut children) {
        while child.try_wait()?.is_none() {
            if interrupt.wait(std::time::Duration::from_millis(200)) {
                bail!("interrupted");
            }
        }
        if !child.wait()?.success() {
            bail!(fuzzer.describe_failure());
        }
        step::note(format_args!(
            "{}: {}",
            fuzzer.name,
            count_inputs(&fuzzer.log)
        ));
    }
    Ok(())
}

/// Of libFuzzer's final statistics.
fn count_inputs(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    count.map_or_else(
        || "no statistics".to_owned(),
        |count| format!("{} inputs", count.trim()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_names_all_targets_are_chosen_and_unknown_ones_are_named() {
        let known = ["list".to_owned(), "request".to_owned()];
        assert_eq!(choose_targets(&known, &[]).unwrap(), known);
        assert_eq!(choose_targets(&known, &known[1..]).unwrap(), ["request"]);
        let error = choose_targets(&known, &["lists".to_owned()]).unwrap_err();
        assert!(error.is::<Usage>());
        assert!(error.to_string().contains("list, request"), "{error}");
    }
}
