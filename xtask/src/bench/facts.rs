//! Machine and versions, without which a figure means nothing.

use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::project::Project;
use crate::step;

/// The machine and who was compared.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Facts {
    cpu: String,
    cores: usize,
    kernel: String,
    nginx: String,
    rustc: String,
    commit: String,
    /// `static (musl)` or `dynamic (glibc)`.
    daemon: &'static str,
    rounds: usize,
    /// Percent of all CPU time that the host kept for others, over the whole run.
    pub(super) steal_percent: f64,
    /// Cost of nginx's first test in the last round by the first: far from 1, the machine was not quiet.
    pub(super) drift: f64,
}

/// Of a command's output; empty if it fails.
fn first_line(command: &mut Command) -> String {
    let printed = step::read_output(command).unwrap_or_default();
    printed.lines().next().unwrap_or_default().trim().to_owned()
}

impl Facts {
    pub(super) fn gather(project: &Project, rounds: usize, daemon: &'static str) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpuinfo
            .lines()
            .find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let dirty = !first_line(project.command("git").args(["status", "--porcelain"])).is_empty();
        let commit = first_line(
            project
                .command("git")
                .args(["rev-parse", "--short", "HEAD"]),
        );
        Self {
            cpu: model.map_or_else(|| "unknown".to_owned(), |(_, name)| name.trim().to_owned()),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            // It prints its version to the standard error.
            nginx: first_line(project.command("sh").args(["-c", "nginx -v 2>&1"])),
            rustc: first_line(project.command("rustc").arg("--version")),
            commit: if dirty {
                format!("{commit} with changes")
            } else {
                commit
            },
            daemon,
            rounds,
            steal_percent: 0.0,
            drift: 1.0,
        }
    }

    pub(super) fn text_lines(&self) -> Vec<String> {
        let Self {
            cpu,
            cores,
            kernel,
            nginx,
            rustc,
            commit,
            daemon,
            rounds,
            steal_percent,
            drift,
        } = self;
        vec![
            format!(
                "{cpu}, {cores} cores, Linux {kernel}; {steal_percent:.1} % stolen; drift of nginx {drift:.2}"
            ),
            format!("hublet {commit}, {daemon}, {rustc}; {nginx}"),
            format!(
                "{rounds} rounds, servers interleaved; server on core 0, generator (and cloud) on core 1"
            ),
        ]
    }
}

/// Stolen and total time so far, in ticks.
pub(super) fn stolen_ticks() -> (u64, u64) {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let numbers: Vec<u64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|number| number.parse().ok())
        .collect();
    (
        numbers.get(7).copied().unwrap_or(0),
        numbers.iter().take(8).sum(),
    )
}
