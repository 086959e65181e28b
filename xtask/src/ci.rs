//! `cargo xtask ci`: the steps that must hold for a change to land, the cheapest first. `cargo xtask check`: those of
//! them that take seconds and need no root.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde::Serialize;

use crate::project::{OutputFormat, Project, Usage};
use crate::test::TestArguments;
use crate::{arrows, build, ebpf, fuzz, step, test, toolchain, vm};

/// One step of `ci`.
#[derive(Debug, Clone, Copy, Serialize)]
struct Step {
    /// As `--only` and `--from` take it.
    name: &'static str,
    about: &'static str,
    #[serde(skip)]
    run: fn(&Project) -> Result<()>,
}

const FORMAT: Step = Step {
    name: "format",
    about: "cargo fmt --check",
    run: check_format,
};
const LINTS: Step = Step {
    name: "lints",
    about: "cargo clippy with warnings denied",
    run: check_lints,
};
const ARROWS: Step = Step {
    name: "arrows",
    about: "which stage of the daemon uses which",
    run: arrows::step,
};
const UNIT: Step = Step {
    name: "unit",
    about: "unit tests of every crate",
    run: unit_tests,
};
const LICENCES: Step = Step {
    name: "licences",
    about: "licences, bans and sources of dependencies (cargo deny)",
    run: check_licences,
};
const DOCUMENTATION: Step = Step {
    name: "documentation",
    about: "cargo doc with warnings denied",
    run: check_documentation,
};
const OBJECT: Step = Step {
    name: "object",
    about: "the BPF object, built twice in different folders, is the committed one",
    run: ebpf::check_step,
};
const TESTS: Step = Step {
    name: "tests",
    about: "every suite; root for the namespaces",
    run: |project| test::run(project, &TestArguments::all()),
};
const FUZZ: Step = Step {
    name: "fuzz",
    about: "each parser of hublet-wire for a minute, from the kept corpus",
    run: fuzz::step,
};
const KERNELS: Step = Step {
    name: "kernels",
    about: "the kernel's suites on Debian's kernel under QEMU",
    run: vm::step,
};

const CHECK: [Step; 4] = [FORMAT, ARROWS, LINTS, UNIT];
/// Steps of `ci`; the unit tests are among `tests`.
const CI: [Step; 9] = [
    FORMAT,
    ARROWS,
    LINTS,
    LICENCES,
    DOCUMENTATION,
    OBJECT,
    TESTS,
    FUZZ,
    KERNELS,
];

#[derive(Debug, Args)]
pub(crate) struct CiArguments {
    /// Runs this step alone; several by repeating it.
    #[arg(long, value_name = "STEP", conflicts_with = "from")]
    only: Vec<String>,
    /// Begins at this step.
    #[arg(long, value_name = "STEP")]
    from: Option<String>,
    /// Prints the steps and runs nothing.
    #[arg(long)]
    list: bool,
    /// Format of `--list`, and of the steps' times at the end.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArguments {
    /// Format of the steps' times at the end.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

pub(crate) fn run(project: &Project, arguments: &CiArguments) -> Result<()> {
    let steps = arguments.steps()?;
    if arguments.list {
        return print_list(&steps, arguments.output);
    }
    run_steps(project, "ci", &steps, arguments.output)
}

pub(crate) fn check(project: &Project, arguments: &CheckArguments) -> Result<()> {
    run_steps(project, "check", &CHECK, arguments.output)
}

impl CiArguments {
    fn steps(&self) -> Result<Vec<Step>> {
        let from = self.from.as_deref().map(index_of).transpose()?.unwrap_or(0);
        let only: Vec<usize> = self
            .only
            .iter()
            .map(|name| index_of(name))
            .collect::<Result<_>>()?;
        let steps = CI.iter().enumerate().skip(from);
        let wanted = steps.filter(|(at, _)| only.is_empty() || only.contains(at));
        Ok(wanted.map(|(_, step)| *step).collect())
    }
}

fn index_of(name: &str) -> Result<usize> {
    let found = CI.iter().position(|step| step.name == name);
    found.ok_or_else(|| {
        let names = CI.map(|step| step.name).join(", ");
        Usage(format!("ci has no step {name}; there are: {names}")).into()
    })
}

fn print_list(steps: &[Step], output: OutputFormat) -> Result<()> {
    match output {
        OutputFormat::Text => steps
            .iter()
            .for_each(|step| println!("{:<14} {}", step.name, step.about)),
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(steps)?),
    }
    Ok(())
}

/// One step's time, as it is printed at the end.
#[derive(Debug, Serialize)]
struct Timing {
    step: &'static str,
    seconds: f64,
    passed: bool,
}

/// Runs the steps in order, up to the first that fails, and prints the time of each.
fn run_steps(project: &Project, verb: &str, steps: &[Step], output: OutputFormat) -> Result<()> {
    let begin = Instant::now();
    let mut timings = Vec::new();
    let outcome = steps.iter().try_for_each(|step| {
        let begin = Instant::now();
        let outcome = (step.run)(project);
        timings.push(Timing {
            step: step.name,
            seconds: begin.elapsed().as_secs_f64(),
            passed: outcome.is_ok(),
        });
        outcome.with_context(|| format!("step {}", step.name))
    });
    print_timings(verb, &timings, begin.elapsed(), output)?;
    outcome
}

fn print_timings(
    verb: &str,
    timings: &[Timing],
    total: Duration,
    output: OutputFormat,
) -> Result<()> {
    if output == OutputFormat::Json {
        println!("{}", serde_json::to_string_pretty(timings)?);
        return Ok(());
    }
    eprintln!();
    for Timing {
        step,
        seconds,
        passed,
    } in timings
    {
        let verdict = if *passed { "" } else { "  FAILED" };
        step::note(format_args!("{step:<14} {seconds:>6.1} s{verdict}"));
    }
    step::announce(format_args!("{verb} took {:.0} s", total.as_secs_f64()));
    Ok(())
}

fn check_format(project: &Project) -> Result<()> {
    step::run(
        "format: cargo fmt --check",
        project.cargo().args(["fmt", "--all", "--check"]),
    )?;
    step::run(
        "format of the fuzz targets",
        project
            .cargo()
            .args(["fmt", "--check", "--manifest-path"])
            .arg(fuzz::manifest(project)),
    )
}

fn check_lints(project: &Project) -> Result<()> {
    let mut clippy = cargo_with_known_object(project, "clippy")?;
    clippy.args([
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]);
    step::run("lints: cargo clippy", &mut clippy)?;
    let mut clippy = project.cargo();
    clippy
        .args(["clippy", "--locked", "--no-default-features"])
        .arg("--manifest-path")
        .arg(fuzz::manifest(project))
        .args(["--", "-D", "warnings"]);
    step::run("lints of the fuzz targets", &mut clippy)
}

fn unit_tests(project: &Project) -> Result<()> {
    let mut test = cargo_with_known_object(project, "test")?;
    test.args(["--workspace", "--lib", "--bins", "--locked", "--quiet"]);
    step::run("unit tests: cargo test --lib --bins", &mut test)
}

/// cargo with the committed BPF object or that of the last build, if there is one: without it the daemon would be
/// compiled anew for an empty object, and again by the next `run` or `test`.
fn cargo_with_known_object(project: &Project, subcommand: &str) -> Result<Command> {
    if let Some(object) = ebpf::known_object(project)? {
        return Ok(build::cargo_with_object(project, &object, subcommand));
    }
    let mut cargo = project.cargo();
    cargo.arg(subcommand);
    Ok(cargo)
}

/// The checks that need no advisory database, which is outside of the registries.
fn check_licences(project: &Project) -> Result<()> {
    toolchain::install_cargo_deny(project)?;
    // It reads the manifests of every crate in the lock file, other systems' too.
    step::read_output(project.cargo().args(["fetch", "--locked", "--quiet"]))?;
    let mut deny = project.cargo();
    deny.args([
        "deny",
        "--offline",
        "--locked",
        "check",
        "licenses",
        "bans",
        "sources",
    ]);
    step::run("licences, bans, sources: cargo deny", &mut deny)
}

fn check_documentation(project: &Project) -> Result<()> {
    let mut doc = cargo_with_known_object(project, "doc")?;
    doc.args(["--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings");
    step::run("documentation: cargo doc", &mut doc)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(only: &[&str], from: Option<&str>) -> Result<Vec<&'static str>> {
        let arguments = CiArguments {
            only: only.iter().map(|name| (*name).to_owned()).collect(),
            from: from.map(str::to_owned),
            list: false,
            output: OutputFormat::Text,
        };
        Ok(arguments.steps()?.iter().map(|step| step.name).collect())
    }

    #[test]
    fn only_and_from_choose_steps_in_their_order() {
        assert_eq!(
            names(&["lints", "format"], None).unwrap(),
            ["format", "lints"]
        );
        assert_eq!(
            names(&[], Some("tests")).unwrap(),
            ["tests", "fuzz", "kernels"]
        );
        assert_eq!(names(&[], None).unwrap().len(), CI.len());
    }

    #[test]
    fn an_unknown_step_is_a_usage_error_that_names_the_known_ones() {
        let error = names(&["lint"], None).unwrap_err();
        assert!(error.is::<Usage>());
        assert!(
            error.to_string().contains("format, arrows, lints"),
            "{error}"
        );
    }
}
