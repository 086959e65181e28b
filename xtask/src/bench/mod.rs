//! `cargo xtask bench`: hublet beside nginx on the same objects in the same run, as medians with ranges, ratios per round
//! and bars met or missed.

mod connect;
mod daemon;
mod facts;
mod nginx;
mod objects;
mod phases;
mod place;
mod plan;
mod process;
mod report;
mod server;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use crate::interrupt::Interrupt;
use crate::project::{OutputFormat, Project, Usage, is_root};
use crate::{build, step, toolchain};

use facts::{Facts, stolen_ticks};
use phases::Bench;
use place::Sandbox;
use report::Report;

#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    /// Tests to run, by name or by how their names begin (`kept16`); all without one.
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// Format of the figures.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    /// Rounds of each test; eleven or more where a bar is nearer than 10 %.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u8).range(1..))]
    rounds: u8,
    /// Two rounds of a quarter of the requests: shows that all works, no figures to keep.
    #[arg(long)]
    quick: bool,
    /// Measures this daemon and builds none (to compare two builds); the generator is then a dev build.
    #[arg(long, value_name = "FILE")]
    daemon: Option<PathBuf>,
    /// Prints the tests' names and runs nothing.
    #[arg(long)]
    list: bool,
}

/// Which tests, how often.
#[derive(Debug)]
struct Extent {
    names: Vec<String>,
    rounds: usize,
    quick: bool,
}

impl Extent {
    fn of(arguments: &BenchArguments) -> Self {
        let rounds = if arguments.quick { 2 } else { arguments.rounds };
        Self {
            names: arguments.names.clone(),
            rounds: usize::from(rounds),
            quick: arguments.quick,
        }
    }

    fn includes(&self, test: &str) -> bool {
        self.names.is_empty()
            || self
                .names
                .iter()
                .any(|name| test.starts_with(name.as_str()))
    }
}

fn check_names(names: &[String]) -> Result<(), Usage> {
    let tests = plan::test_names();
    let unknown = names
        .iter()
        .find(|name| !tests.iter().any(|test| test.starts_with(name.as_str())));
    match unknown {
        Some(unknown) => Err(Usage(format!(
            "no test begins with {unknown}; see `cargo xtask bench --list`"
        ))),
        None => Ok(()),
    }
}

/// Builds, installs nginx, measures, prints.
pub(crate) fn run(project: &Project, arguments: &BenchArguments) -> Result<()> {
    if arguments.list {
        plan::test_names()
            .iter()
            .for_each(|name| println!("{name}"));
        return Ok(());
    }
    check_names(&arguments.names)?;
    if !is_root() {
        bail!(
            "the bench needs root: a network namespace for hublet's address, and eBPF (sudo -E cargo xtask bench)"
        );
    }
    let extent = Extent::of(arguments);
    let interrupt = Interrupt::listen()?;
    toolchain::install_packages(
        project,
        &[
            ("nginx", "nginx-light"),
            ("taskset", "util-linux"),
            ("ip", "iproute2"),
        ],
    )?;
    let built = build::build_bench(project, arguments.daemon.as_deref())?;
    let facts = Facts::gather(project, extent.rounds, built.kind);
    let mut report = Report::new(facts);
    let before = stolen_ticks();
    let place = Sandbox::enter(project)?;
    let measured = Bench::new(project, &built, &place, &extent, &interrupt)?.run(&mut report);
    drop(place);
    measured?;
    let after = stolen_ticks();
    report.facts.steal_percent =
        100.0 * (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64;
    report.summarize(plan::BARS);
    match arguments.output {
        OutputFormat::Text => println!("{}", report.text()),
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    step::announce("done");
    Ok(())
}
