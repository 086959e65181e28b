//! `cargo xtask test`: runs the test programs of the workspace one at a time and sums up, with the reason of each skip.

pub(crate) mod outcome;
pub(crate) mod suite;

use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use serde::Serialize;

use crate::interrupt::Interrupt;
use crate::project::{OutputFormat, Project, Usage, is_ci};
use crate::{build, step, toolchain};

use outcome::Outcome;
use suite::{Limit, Mode, Suite};

/// Tells the harness to wait where a test failed.
const KEEP: &str = "HUBLET_TEST_KEEP";

#[derive(Debug, Args)]
pub(crate) struct TestArguments {
    /// Suites or packages to run (as `--list` prints them); all without one.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Prints the suites and runs nothing.
    #[arg(long)]
    list: bool,
    /// A test that fails waits with its daemon, clouds and namespaces alive, and prints how to look at them; Ctrl-C
    /// ends it.
    #[arg(long)]
    keep: bool,
    /// Format of the outcome.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    /// Arguments of the test programs: `cargo xtask test offline -- served_from_the_store --nocapture`.
    #[arg(last = true, value_name = "FILTER AND FLAGS")]
    arguments: Vec<String>,
}

impl TestArguments {
    /// Every suite, as in CI.
    pub(crate) fn all() -> Self {
        Self {
            names: Vec::new(),
            list: false,
            keep: false,
            output: OutputFormat::Text,
            arguments: Vec::new(),
        }
    }

    fn mode(&self) -> Mode<'_> {
        Mode {
            arguments: &self.arguments,
            limit: if self.keep { Limit::None } else { Limit::Suite },
        }
    }
}

/// A suite that ran.
#[derive(Debug, Serialize)]
struct SuiteRun {
    name: String,
    seconds: f64,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Builds all that tests need, runs the suites, sums up.
pub(crate) fn run(project: &Project, arguments: &TestArguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    toolchain::for_tests(project)?;
    toolchain::for_node(project)?;
    let object = build::build_development(project)?;
    let suites = choose_suites(suite::build_suites(project, &object)?, &arguments.names)?;
    if arguments.list {
        return print_list(&suites, arguments.output);
    }
    let mut ran = Vec::new();
    for suite in &suites {
        step::announce(format_args!("suite {}", suite.name));
        let begin = Instant::now();
        let outcome = suite.run(
            project,
            arguments.mode(),
            &|command| {
                command.env("HUBLET_BIN", project.built_program("debug", "hublet"));
                command.env(build::OBJECT, &object);
                if arguments.keep {
                    command.env(KEEP, "1");
                }
            },
            &interrupt,
        )?;
        ran.push(SuiteRun {
            name: suite.name.clone(),
            seconds: begin.elapsed().as_secs_f64(),
            outcome,
        });
    }
    match arguments.output {
        OutputFormat::Text => print_table(&ran),
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&ran)?),
    }
    into_result(&ran)
}

fn print_list(suites: &[Suite], output: OutputFormat) -> Result<()> {
    let names: Vec<&str> = suites.iter().map(|suite| suite.name.as_str()).collect();
    match output {
        OutputFormat::Text => names.iter().for_each(|name| println!("{name}")),
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&names)?),
    }
    Ok(())
}

fn choose_suites(all: Vec<Suite>, names: &[String]) -> Result<Vec<Suite>> {
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
    let all = all.into_iter();
    let wanted =
        all.filter(|suite| names.is_empty() || names.iter().any(|name| suite.answers_to(name)));
    Ok(wanted.collect())
}

fn print_table(ran: &[SuiteRun]) {
    println!("\nsuite                                     passed failed skipped  seconds");
    for SuiteRun {
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
    for SuiteRun { name, outcome, .. } in ran {
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
    let [passed, failed, skipped] = totals(ran);
    println!("\n{passed} passed, {failed} failed, {skipped} skipped");
}

/// Passed, failed and skipped tests of all suites.
fn totals(ran: &[SuiteRun]) -> [usize; 3] {
    let outcomes = ran.iter().map(|ran| &ran.outcome);
    outcomes.fold([0; 3], |[passed, failed, skipped], outcome| {
        [
            passed + outcome.passed,
            failed + outcome.failed,
            skipped + outcome.skipped.len(),
        ]
    })
}

fn into_result(ran: &[SuiteRun]) -> Result<()> {
    let [_, failed, skipped] = totals(ran);
    if failed > 0 {
        bail!("{failed} tests failed (whole output: target/test-logs/)");
    }
    if skipped > 0 && is_ci() {
        bail!("{skipped} tests were skipped, and CI=true: nothing may be left out there");
    }
    Ok(())
}
