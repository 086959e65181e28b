//! Parses the lines that `init.sh` and the suites print, and compares the result with the kernel's expectations.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::Serialize;

use super::kernel::Expected;
use crate::test::outcome::Outcome;

/// Prefix of `init.sh`'s own lines.
const MARK: &str = "hublet-vm: ";

#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) kernel: String,
    /// From QEMU's start to process 1.
    pub(super) boot_seconds: Option<f64>,
    /// To the end.
    pub(super) seconds: f64,
    /// Features that the machine reported of its kernel.
    facts: BTreeMap<String, String>,
    suites: Vec<Ran>,
    /// Tests that the kernel can't run: `test: reason`.
    left_out: Vec<String>,
    /// Problems besides failing tests.
    pub(super) problems: Vec<String>,
    #[serde(skip)]
    done: bool,
    #[serde(skip)]
    begin: Instant,
    #[serde(skip)]
    current: Option<(String, Instant, Outcome)>,
}

#[derive(Debug, Serialize)]
struct Ran {
    name: String,
    seconds: f64,
    passed: usize,
    failed: usize,
    skipped: Vec<String>,
    ignored: Vec<String>,
    failures: Vec<Failure>,
}

impl Ran {
    fn counts_line(&self) -> String {
        let Self {
            name,
            seconds,
            passed,
            failed,
            skipped,
            ..
        } = self;
        format!(
            "{name:<40} {passed:>7} {failed:>6} {:>7} {seconds:>8.1}",
            skipped.len()
        )
    }

    /// The skipped tests, and the failed ones with what they printed.
    fn problem_lines(&self) -> Vec<String> {
        let name = &self.name;
        let skipped = self.skipped.iter();
        let mut lines: Vec<_> = skipped
            .map(|skip| format!("SKIPPED {name}: {skip}"))
            .collect();
        for Failure { test, printed } in &self.failures {
            lines.push(format!("FAILED {name}: {test}"));
            lines.extend(printed.lines().map(|line| format!("    {line}")));
        }
        lines
    }
}

#[derive(Debug, Serialize)]
struct Failure {
    test: String,
    printed: String,
}

/// Tests of suites, by their end.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct TestCounts {
    passed: usize,
    failed: usize,
    skipped: usize,
}

impl std::iter::Sum for TestCounts {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, count| Self {
            passed: sum.passed + count.passed,
            failed: sum.failed + count.failed,
            skipped: sum.skipped + count.skipped,
        })
    }
}

impl std::fmt::Display for TestCounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl Ran {
    fn test_counts(&self) -> TestCounts {
        TestCounts {
            passed: self.passed,
            failed: self.failed,
            skipped: self.skipped.len(),
        }
    }
}

impl Run {
    /// Of a machine that is started now.
    pub(super) fn new(kernel: &str, expected: &Expected) -> Self {
        Self {
            kernel: kernel.to_owned(),
            boot_seconds: None,
            seconds: 0.0,
            facts: BTreeMap::new(),
            suites: Vec::new(),
            left_out: expected
                .left_out
                .iter()
                .map(|(test, why)| format!("{test}: {why}"))
                .collect(),
            problems: Vec::new(),
            done: false,
            begin: Instant::now(),
            current: None,
        }
    }

    /// Takes one line in; true when it is worth the screen.
    pub(super) fn read_line(&mut self, line: &str) -> bool {
        if let Some(words) = line.strip_prefix(MARK) {
            self.read_init_line(words);
            return true;
        }
        let Some((_, _, outcome)) = &mut self.current else {
            return !line.is_empty();
        };
        outcome.read_line(line);
        outcome.is_worth_showing(line)
    }

    fn read_init_line(&mut self, words: &str) {
        let (verb, rest) = words.split_once(' ').unwrap_or((words, ""));
        match verb {
            "up" => self.boot_seconds = Some(self.begin.elapsed().as_secs_f64()),
            "fact" => {
                let (name, value) = rest.split_once(' ').unwrap_or((rest, ""));
                self.facts.insert(name.to_owned(), value.to_owned());
            }
            "begin" => self.current = Some((rest.to_owned(), Instant::now(), Outcome::default())),
            "end" => {
                let code = rest.rsplit(' ').next().unwrap_or_default();
                self.end_suite(&format!("ended with {code}"), code == "0");
            }
            "done" => self.done = true,
            _ => self
                .problems
                .push(format!("init.sh said something unknown: {words}")),
        }
    }

    fn end_suite(&mut self, how: &str, success: bool) {
        let Some((name, begin, mut outcome)) = self.current.take() else {
            return;
        };
        outcome.program_ended(how, success);
        let failures = outcome.failures.iter().map(|test| Failure {
            test: test.clone(),
            printed: outcome.printed_by(test),
        });
        self.suites.push(Ran {
            name,
            seconds: begin.elapsed().as_secs_f64(),
            passed: outcome.passed,
            failed: outcome.failed,
            failures: failures.collect(),
            skipped: outcome.skipped,
            ignored: outcome.ignored,
        });
    }

    /// The machine has ended; `why` when it did not switch itself off after the last suite.
    pub(super) fn machine_ended(&mut self, why: Option<String>, expected: &Expected) {
        self.seconds = self.begin.elapsed().as_secs_f64();
        if let Some((name, ..)) = &self.current {
            let name = name.clone();
            self.end_suite("was cut off: the machine ended first", false);
            self.problems.push(
                why.unwrap_or_else(|| "the machine ended without a word".to_owned())
                    + " in suite "
                    + &name,
            );
        } else if !self.done {
            self.problems
                .push(why.unwrap_or_else(|| "the machine ended before its last suite".to_owned()));
        }
        for (name, value) in &expected.facts {
            match self.facts.get(*name) {
                Some(found) if found == value => {}
                Some(found) => self
                    .problems
                    .push(format!("{name} is {found}, and {value} was expected")),
                None => self
                    .problems
                    .push(format!("{name} is unknown, and {value} was expected")),
            }
        }
    }

    /// Tests that passed, failed, were skipped.
    pub(super) fn test_counts(&self) -> TestCounts {
        let suites = self.suites.iter();
        suites.map(Ran::test_counts).sum()
    }

    /// `strict`, as in CI, takes no skipped test.
    pub(super) fn is_good(&self, strict: bool) -> bool {
        let counts = self.test_counts();
        self.problems.is_empty()
            && counts.failed == 0
            && counts.passed > 0
            && !(strict && counts.skipped > 0)
    }

    /// The report as text.
    pub(super) fn text(&self) -> String {
        let boot = self
            .boot_seconds
            .map_or("never came up".to_owned(), |boot| {
                format!("up after {boot:.1} s")
            });
        let mut lines = vec![format!(
            "\nkernel {}: {boot}, {:.0} s in all",
            self.kernel, self.seconds
        )];
        let facts: Vec<String> = self
            .facts
            .iter()
            .map(|(name, value)| format!("{name} {value}"))
            .collect();
        lines.push(format!("found: {}", facts.join(", ")));
        lines.push(
            "suite                                     passed failed skipped  seconds".to_owned(),
        );
        lines.extend(self.suites.iter().map(Ran::counts_line));
        lines.extend(self.suites.iter().flat_map(Ran::problem_lines));
        lines.extend(
            self.left_out
                .iter()
                .map(|left| format!("LEFT OUT on this kernel: {left}")),
        );
        lines.extend(
            self.problems
                .iter()
                .map(|problem| format!("PROBLEM: {problem}")),
        );
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected() -> Expected {
        Expected {
            facts: vec![("link", "dummy")],
            ..Expected::default()
        }
    }

    fn hear(text: &str) -> Run {
        let mut run = Run::new("test", &expected());
        for line in text.lines() {
            run.read_line(line);
        }
        run
    }

    const GOOD: &str = "hublet-vm: up\nhublet-vm: fact link dummy\nhublet-vm: begin tests::a\n\
        running 1 test\ntest b ... ok\n\
        test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n\
        hublet-vm: end tests::a 0\nhublet-vm: done";

    #[test]
    fn a_good_run_is_good() {
        let mut run = hear(GOOD);
        run.machine_ended(None, &expected());
        assert!(run.is_good(true), "{}", run.text());
        assert_eq!(
            run.test_counts().to_string(),
            "1 passed, 0 failed, 0 skipped"
        );
        assert!(run.boot_seconds.is_some());
    }

    #[test]
    fn a_failing_test_is_told_with_what_it_printed() {
        let mut run = hear(
            "hublet-vm: fact link dummy\nhublet-vm: begin tests::a\ntest b ... FAILED\n\nfailures:\n\n\
             ---- b stdout ----\nboom\n\nfailures:\n    b\n\n\
             test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured\nhublet-vm: end tests::a 101\nhublet-vm: done",
        );
        run.machine_ended(None, &expected());
        assert!(!run.is_good(false) && run.problems.is_empty());
        assert!(
            run.text().ends_with("FAILED tests::a: b\n    boom"),
            "{}",
            run.text()
        );
    }

    #[test]
    fn a_machine_that_dies_within_a_suite_fails_it() {
        let mut run = hear("hublet-vm: fact link dummy\nhublet-vm: begin tests::a\ntest b ... ok");
        run.machine_ended(Some("Kernel panic".into()), &expected());
        assert_eq!(
            run.test_counts().to_string(),
            "0 passed, 1 failed, 0 skipped"
        );
        assert_eq!(run.problems, ["Kernel panic in suite tests::a"]);
    }

    #[test]
    fn a_fallback_that_nobody_expected_is_a_problem() {
        let mut run = hear(&GOOD.replace("dummy", "bridge"));
        run.machine_ended(None, &expected());
        assert_eq!(run.problems, ["link is bridge, and dummy was expected"]);
        assert!(!run.is_good(false));
    }
}
