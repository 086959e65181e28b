//! `cargo xtask test`: every test of the workspace, one test program at a time. In: names of suites, or none for
//! all. Out: what each suite said, what was skipped and why, and `N passed, N failed, N skipped` as the last line.

pub(crate) mod outcome;
pub(crate) mod suite;

use std::process::Command;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;

use crate::interrupt::Interrupt;
use crate::project::{Project, Usage, is_ci};
use crate::{build, step, toolchain};

use outcome::Outcome;
use suite::Suite;

/// Arguments of `test`.
#[derive(Debug, Default, Args)]
pub(crate) struct TestArguments {
    /// Suites or packages to run (as `--list` prints them); all without one.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Prints the suites and runs nothing.
    #[arg(long)]
    list: bool,
}

/// A suite and what came of it.
#[derive(Debug)]
struct Ran {
    name: String,
    seconds: f64,
    outcome: Outcome,
}

/// Builds all that tests need, runs the suites, sums up.
pub(crate) fn run(project: &Project, arguments: &TestArguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    toolchain::for_tests(project)?;
    toolchain::for_node(project)?;
    let object = build::development(project)?;
    let suites = chosen(suite::build(project, &object)?, &arguments.names)?;
    if arguments.list {
        suites.iter().for_each(|suite| println!("{}", suite.name));
        return Ok(());
    }
    let environment = |command: &mut Command| {
        command.env("HUBLET_BIN", project.binary("debug", "hublet"));
        command.env(build::OBJECT, &object);
    };
    let mut ran = Vec::new();
    for suite in &suites {
        step::say(format_args!("suite {}", suite.name));
        let begin = Instant::now();
        let outcome = suite.run(project, &environment, &interrupt)?;
        ran.push(Ran {
            name: suite.name.clone(),
            seconds: begin.elapsed().as_secs_f64(),
            outcome,
        });
    }
    sum_up(&ran)
}

fn chosen(all: Vec<Suite>, names: &[String]) -> Result<Vec<Suite>> {
    let unknown: Vec<&str> = names
        .iter()
        .map(String::as_str)
        .filter(|name| !all.iter().any(|suite| suite.answers_to(name)))
        .collect();
    if !unknown.is_empty() {
        let known: Vec<&str> = all.iter().map(|suite| suite.name.as_str()).collect();
        let text = format!(
            "no suite {}; there are: {}",
            unknown.join(", "),
            known.join(", ")
        );
        return Err(Usage(text).into());
    }
    let wanted =
        |suite: &Suite| names.is_empty() || names.iter().any(|name| suite.answers_to(name));
    Ok(all.into_iter().filter(wanted).collect())
}

fn sum_up(ran: &[Ran]) -> Result<()> {
    println!("\nsuite                                     passed failed skipped  seconds");
    for Ran {
        name,
        seconds,
        outcome,
    } in ran
    {
        let Outcome {
            passed,
            failed,
            skipped,
            ..
        } = outcome;
        println!(
            "{name:<40} {passed:>7} {failed:>6} {:>7} {seconds:>8.1}",
            skipped.len()
        );
    }
    for Ran { name, outcome, .. } in ran {
        outcome
            .ignored
            .iter()
            .for_each(|ignored| println!("ignored {name}: {ignored}"));
        outcome
            .skipped
            .iter()
            .for_each(|skip| println!("SKIPPED {name}: {skip}"));
        outcome
            .failures
            .iter()
            .for_each(|failure| println!("FAILED {name}: {failure}"));
    }
    let passed: usize = ran.iter().map(|ran| ran.outcome.passed).sum();
    let failed: usize = ran.iter().map(|ran| ran.outcome.failed).sum();
    let skipped: usize = ran.iter().map(|ran| ran.outcome.skipped.len()).sum();
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
    if failed > 0 {
        bail!("{failed} tests failed (whole output: target/test-logs/)");
    }
    if skipped > 0 && is_ci() {
        bail!("{skipped} tests were skipped, and CI=true: nothing may be left out there");
    }
    Ok(())
}
