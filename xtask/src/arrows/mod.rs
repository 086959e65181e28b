//! `cargo xtask arrows`: a stage of the daemon uses only the stages that the table allows, no two files use each other,
//! and hublet-wire uses nothing of ours.

mod circles;
mod modules;
mod references;
mod table;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde::Serialize;

use crate::project::{OutputFormat, Project};
use crate::step;

use circles::Graph;
use modules::{Modules, Use};

#[derive(Debug, Args)]
pub(crate) struct ArrowsArguments {
    /// Format of the findings.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
    /// Prints findings and ends with success.
    #[arg(long)]
    report: bool,
}

/// Violations of the rules.
#[derive(Debug, Default, Serialize)]
struct Findings {
    modules: usize,
    /// Uses against the table.
    arrows: Vec<Arrow>,
    circles: Vec<Circle>,
    /// Dependencies that hublet-wire must not have.
    wire: Vec<String>,
    /// Rows of the tables that nothing needs any more.
    stale: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Arrow {
    from: String,
    to: String,
    file: PathBuf,
    line: usize,
    /// Of the row that does not allow it.
    row: &'static str,
}

#[derive(Debug, Serialize)]
struct Circle {
    modules: Vec<String>,
    uses: Vec<Arrow>,
}

pub(crate) fn run(project: &Project, arguments: &ArrowsArguments) -> Result<()> {
    let findings = Findings::check_project(project)?;
    match arguments.output {
        OutputFormat::Text => findings
            .text_lines()
            .iter()
            .for_each(|line| println!("{line}")),
        OutputFormat::Json => println!("{}", serde_json::to_string_pretty(&findings)?),
    }
    if arguments.report {
        return Ok(());
    }
    findings.check()
}

/// As a step of `check` and `ci`.
pub(crate) fn step(project: &Project) -> Result<()> {
    step::announce("arrows: which stage uses which");
    let findings = Findings::check_project(project)?;
    findings.text_lines().iter().for_each(step::note);
    findings.check()
}

impl Findings {
    fn check_project(project: &Project) -> Result<Self> {
        let modules = Modules::read_crate(&project.root.join("proxy-user/src"))?;
        let mut findings = Self::in_modules(&modules);
        let uses = modules.find_uses();
        findings.stale = [
            stale_arrows(&uses),
            stale_exceptions(&uses),
            stale_circles(&uses),
        ]
        .concat();
        for arrow in findings.arrows.iter_mut().chain(
            findings
                .circles
                .iter_mut()
                .flat_map(|circle| &mut circle.uses),
        ) {
            if let Ok(file) = arrow.file.strip_prefix(&project.root) {
                arrow.file = file.to_path_buf();
            }
        }
        let manifest = project.root.join("proxy-user/wire/Cargo.toml");
        if manifest.is_file() {
            let text = fs::read_to_string(&manifest).context("cannot read wire's Cargo.toml")?;
            findings.wire = forbidden_dependencies(&text);
        }
        Ok(findings)
    }

    fn in_modules(modules: &Modules) -> Self {
        let uses = modules.find_uses();
        let against_table = uses.iter().filter(|found| !is_allowed(found));
        Self {
            modules: modules.len(),
            arrows: against_table.map(Arrow::new).collect(),
            circles: unexplained_circles(&uses),
            wire: Vec::new(),
            stale: Vec::new(),
        }
    }

    fn count(&self) -> usize {
        self.arrows.len() + self.circles.len() + self.wire.len() + self.stale.len()
    }

    fn text_lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.arrows.iter().map(Arrow::describe).collect();
        for circle in &self.circles {
            lines.push(format!("circle: {}", circle.modules.join(", ")));
            lines.extend(
                circle
                    .uses
                    .iter()
                    .map(|arrow| format!("  {}", arrow.describe_place())),
            );
        }
        let wire = self.wire.iter();
        lines.extend(wire.map(|name| {
            format!("proxy-user/wire/Cargo.toml: hublet-wire must not depend on {name}")
        }));
        lines.extend(self.stale.iter().cloned());
        lines.push(format!(
            "{} modules, {} findings",
            self.modules,
            self.count()
        ));
        lines
    }

    fn check(&self) -> Result<()> {
        if self.count() > 0 {
            bail!(
                "{} arrows or circles against xtask/src/arrows/table.rs: move the item to a lower stage, or give the table a row and its reason",
                self.count()
            );
        }
        Ok(())
    }
}

impl Arrow {
    fn new(found: &Use) -> Self {
        Self {
            from: found.from.clone(),
            to: found.to.clone(),
            file: found.file.clone(),
            line: found.line,
            row: table::reason_of(&found.from),
        }
    }

    fn describe_place(&self) -> String {
        format!(
            "{}:{}: {} uses {}",
            self.file.display(),
            self.line,
            self.from,
            self.to
        )
    }

    fn describe(&self) -> String {
        let stage = table::stage_of(&self.from);
        format!("{} (row {stage}: {})", self.describe_place(), self.row)
    }
}

/// A module may pass on items of its stage: `cache::feed` is all that steer needs to know.
fn is_allowed(found: &Use) -> bool {
    let mut named = found.via.iter().chain([&found.to]);
    named.any(|to| table::allows(&found.from, to))
        || table::EXCEPTIONS
            .iter()
            .any(|row| table::is_exception(row, &found.from, &found.to))
}

/// Arrows of the table that no file uses.
fn stale_arrows(uses: &[Use]) -> Vec<String> {
    let rows = table::STAGES
        .iter()
        .flat_map(|row| row.may_use.iter().map(|target| (row.name, *target)));
    rows.filter(|(stage, target)| !is_used(uses, stage, target))
        .map(|(stage, target)| format!("table.rs: {stage} may use {target}, which nothing does"))
        .collect()
}

fn is_used(uses: &[Use], stage: &str, target: &str) -> bool {
    uses.iter()
        .filter(|found| table::stage_of(&found.from) == stage)
        .flat_map(|found| found.via.iter().chain([&found.to]))
        .any(|to| table::is_within(to, target))
}

/// Exceptions that no file needs.
fn stale_exceptions(uses: &[Use]) -> Vec<String> {
    let stale = table::EXCEPTIONS.iter().filter(|row| {
        let mut uses = uses.iter();
        !uses.any(|found| table::is_exception(row, &found.from, &found.to))
    });
    stale
        .map(|row| {
            format!(
                "table.rs: {} does not use {} any more ({})",
                row.from, row.to, row.reason
            )
        })
        .collect()
}

/// Circles of the table that are none.
fn stale_circles(uses: &[Use]) -> Vec<String> {
    let found = circles_of(uses);
    let gone = table::CIRCLES.iter().filter(|row| {
        let mut found = found.iter();
        !found.any(|circle| circle.iter().all(|module| row.modules.contains(module)))
    });
    gone.map(|row| {
        format!(
            "table.rs: {} ({}) is no circle",
            row.modules.join(", "),
            row.reason
        )
    })
    .collect()
}

/// Circles among files. A module and those within it are one thing to this rule: Rust lets children see their
/// parent's private items for that reason.
fn circles_of(uses: &[Use]) -> Vec<Vec<&str>> {
    let mut graph = Graph::new();
    for found in uses.iter().filter(|found| !is_family(found)) {
        graph.entry(&found.from).or_default().push(&found.to);
    }
    circles::find_circles(&graph)
}

fn unexplained_circles(uses: &[Use]) -> Vec<Circle> {
    let circles = circles_of(uses);
    let unexplained = circles.into_iter().filter(|circle| {
        !table::CIRCLES
            .iter()
            .any(|allowed| circle.iter().all(|module| allowed.modules.contains(module)))
    });
    unexplained
        .map(|modules| Circle::new(&modules, uses))
        .collect()
}

impl Circle {
    fn new(modules: &[&str], uses: &[Use]) -> Self {
        let within = uses.iter().filter(|found| {
            !is_family(found)
                && modules.contains(&found.from.as_str())
                && modules.contains(&found.to.as_str())
        });
        Self {
            uses: within.map(Arrow::new).collect(),
            modules: modules.iter().map(|&module| module.to_owned()).collect(),
        }
    }
}

/// Is one of the two the other's ancestor?
fn is_family(found: &Use) -> bool {
    is_below(&found.from, &found.to) || is_below(&found.to, &found.from)
}

fn is_below(inner: &str, outer: &str) -> bool {
    outer.is_empty() || inner.starts_with(&format!("{outer}::"))
}

/// hublet-wire is bytes in, bytes out: no crate of ours, no runtime.
fn forbidden_dependencies(manifest: &str) -> Vec<String> {
    let mut in_dependencies = false;
    let mut found = Vec::new();
    for line in manifest.lines().map(str::trim) {
        if line.starts_with('[') {
            in_dependencies = line == "[dependencies]";
            continue;
        }
        let name = line.split(['=', '.', ' ']).next().unwrap_or_default();
        if in_dependencies && (name.starts_with("hublet") || name == "tokio" || name == "hyper") {
            found.push(name.to_owned());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::modules::tests::crate_of;
    use super::*;

    fn findings(files: &[(&str, &str)]) -> Vec<String> {
        Findings::in_modules(&crate_of(files)).text_lines()
    }

    #[test]
    fn an_arrow_that_runs_up_is_reported_with_its_place() {
        let lines = findings(&[
            ("cache::store", "\nuse crate::local::Plan;"),
            ("cache", ""),
            ("local", ""),
        ]);
        assert!(
            lines[0].starts_with("cache/store:2: cache::store uses local (row cache: "),
            "{lines:?}"
        );
        assert_eq!(lines[1], "3 modules, 1 findings");
    }

    #[test]
    fn a_module_may_pass_on_items_of_its_stage() {
        let lines = findings(&[
            ("cache", "mod feed; mod store;"),
            ("cache::feed", "pub(crate) use crate::cache::store::Store;"),
            ("cache::store", ""),
            (
                "steer",
                "use crate::cache::feed::Store; fn f() { Store::open(); }",
            ),
        ]);
        assert_eq!(lines, ["4 modules, 0 findings"]);
    }

    #[test]
    fn siblings_that_use_each_other_are_a_circle_and_a_parent_is_none() {
        let lines = findings(&[
            ("cache", "mod a; mod b; fn f() { a::f(); }"),
            ("cache::a", "use super::b::B; use super::C;"),
            ("cache::b", "use super::a::A;"),
        ]);
        assert_eq!(lines[0], "circle: cache::a, cache::b");
        assert_eq!(lines.len(), 4, "{lines:?}");
    }

    #[test]
    fn wire_depends_on_no_crate_of_ours() {
        let manifest = "[package]\nname = \"hublet-wire\"\n[dependencies]\nhublet-ebpf = { path = \"x\" }\nmemchr.workspace = true\ntokio = \"1\"\n[dev-dependencies]\nhublet = \"1\"";
        assert_eq!(forbidden_dependencies(manifest), ["hublet-ebpf", "tokio"]);
    }
}
