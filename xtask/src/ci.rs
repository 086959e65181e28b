//! `cargo xtask ci`: what must hold for a change to land. In: the checkout. Out: each step's time; stops at the
//! first step that fails.

use std::time::Instant;

use anyhow::Result;

use crate::project::Project;
use crate::test::TestArguments;
use crate::{reproducible, step, test, toolchain, vm};

type Step = fn(&Project) -> Result<()>;

/// Runs the steps in order, cheapest first.
pub(crate) fn run(project: &Project) -> Result<()> {
    let begin = Instant::now();
    let mut times = Vec::new();
    let steps: [(&str, Step); 7] = [
        ("format", format),
        ("lints", lints),
        ("licences and sources", deny),
        ("documentation", documentation),
        ("the BPF object, twice the same", reproducible::in_ci),
        ("tests", |project| {
            test::run(project, &TestArguments::default())
        }),
        ("the kernel's suites on Debian's kernel", vm::in_ci),
    ];
    let outcome = steps.iter().try_for_each(|(name, step)| {
        let begin = Instant::now();
        let outcome = step(project);
        times.push((name, begin.elapsed()));
        outcome
    });
    eprintln!();
    for (name, time) in times {
        step::say(format_args!("{name}: {:.0} s", time.as_secs_f64()));
    }
    step::say(format_args!(
        "ci took {:.0} s",
        begin.elapsed().as_secs_f64()
    ));
    outcome
}

fn format(project: &Project) -> Result<()> {
    step::run(
        "format: cargo fmt --check",
        project.cargo().args(["fmt", "--all", "--check"]),
    )
}

fn lints(project: &Project) -> Result<()> {
    let mut clippy = project.cargo();
    clippy.args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]);
    step::run("lints: cargo clippy", &mut clippy)
}

/// The parts that need no advisory database, which is outside of the registries.
fn deny(project: &Project) -> Result<()> {
    toolchain::cargo_deny(project)?;
    // It reads the manifests of every crate in the lock file, other systems' too.
    step::output(project.cargo().args(["fetch", "--locked", "--quiet"]))?;
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

fn documentation(project: &Project) -> Result<()> {
    let mut doc = project.cargo();
    doc.args(["doc", "--workspace", "--no-deps", "--locked"])
        .env("RUSTDOCFLAGS", "-D warnings");
    step::run("documentation: cargo doc", &mut doc)
}
