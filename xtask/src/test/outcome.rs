//! Parses libtest's output (`--show-output`): counts, failures, and the tests that printed SKIP because the machine
//! lacks something, which libtest counts as passed.

use serde::Serialize;

const IGNORED: &str = "ignored without a reason";

/// Results of a test program, as far as its output was read.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    /// Tests that ran and passed.
    pub(crate) passed: usize,
    /// Tests that failed, or 1 when the program itself died.
    pub(crate) failed: usize,
    /// `test name: reason` of those that said SKIP, and those ignored without a reason.
    pub(crate) skipped: Vec<String>,
    /// `test name: reason` of those ignored on purpose.
    pub(crate) ignored: Vec<String>,
    /// Names of the failed ones.
    pub(crate) failures: Vec<String>,
    /// Output of failed tests: name and text.
    pub(crate) printed: Vec<(String, String)>,
    /// The test whose captured output is being read.
    #[serde(skip)]
    section: Option<String>,
    /// Between `successes:` and `failures:` or the conclusion.
    #[serde(skip)]
    quiet: bool,
    #[serde(skip)]
    concluded: bool,
}

impl Outcome {
    /// Takes one line in.
    pub(crate) fn read_line(&mut self, line: &str) {
        if let Some(name) = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            self.section = Some(name.to_owned());
            if !self.quiet {
                self.printed.push((name.to_owned(), String::new()));
            }
        } else if let Some(rest) = line.strip_prefix("test result: ") {
            self.read_conclusion(rest);
        } else if let Some(rest) = line.strip_prefix("test ") {
            self.read_verdict(rest);
        } else if let Some(reason) = line.strip_prefix("SKIP") {
            self.add_skip(reason);
        } else if line == "successes:" {
            self.quiet = true;
        } else if line == "failures:" {
            self.quiet = false;
            self.section = None;
        } else if let (Some(_), false, Some((_, text))) =
            (&self.section, self.quiet, self.printed.last_mut())
        {
            text.push_str(line);
            text.push('\n');
        }
    }

    /// False for the output of passed tests, which is in the log alone.
    pub(crate) fn is_worth_showing(&self, line: &str) -> bool {
        !self.quiet && !line.is_empty()
    }

    fn read_verdict(&mut self, rest: &str) {
        if let Some((name, verdict)) = rest.split_once(" ... ") {
            if verdict.ends_with("FAILED") {
                self.failures.push(name.to_owned());
            } else if let Some(reason) = verdict.strip_prefix("ignored") {
                match reason.strip_prefix(", ") {
                    // On purpose, and the reason says so (a role that another test starts).
                    Some(reason) => self.ignored.push(format!("{name}: {reason}")),
                    None => self.skipped.push(format!("{name}: {IGNORED}")),
                }
            }
        }
    }

    fn add_skip(&mut self, reason: &str) {
        let reason = reason
            .trim_start_matches([':', ' ', '(', 'P', 'E', 'D'])
            .trim_end_matches(')');
        let name = self.section.as_deref().unwrap_or("?");
        // Some tests name themselves.
        let reason = reason
            .strip_prefix(name)
            .map_or(reason, |rest| rest.trim_start_matches([':', ' ']));
        let skip = format!("{name}: {reason}");
        let again = self.section.is_some()
            && self
                .skipped
                .iter()
                .any(|old| old.starts_with(&format!("{name}: ")));
        if !again && !self.skipped.contains(&skip) {
            self.skipped.push(skip);
        }
    }

    fn read_conclusion(&mut self, rest: &str) {
        let said_skip = self
            .skipped
            .iter()
            .filter(|skip| !skip.ends_with(IGNORED))
            .count();
        self.passed += count_of("passed", rest).saturating_sub(said_skip);
        self.failed += count_of("failed", rest);
        self.section = None;
        self.quiet = false;
        self.concluded = true;
    }

    /// The text that a failed test has printed.
    pub(crate) fn printed_by(&self, test: &str) -> String {
        let found = self.printed.iter().find(|(name, _)| name == test);
        found
            .map(|(_, text)| text.trim().to_owned())
            .unwrap_or_default()
    }

    /// The program has ended; without libtest's conclusion, or with a bad status, that is a failure by itself.
    pub(crate) fn program_ended(&mut self, how: &str, success: bool) {
        if !self.concluded || (!success && self.failed == 0) {
            self.failed += 1;
            self.failures.push(format!("the test program {how}"));
        }
    }
}

/// The number before a word in libtest's conclusion: `ok. 3 passed; 0 failed; …`.
fn count_of(word: &str, conclusion: &str) -> usize {
    let parts = conclusion.split("; ").filter_map(|part| {
        let part = part.trim_start_matches("ok. ");
        part.trim_start_matches("FAILED. ").strip_suffix(word)
    });
    let mut numbers = parts.filter_map(|number| number.trim().parse().ok());
    numbers.next().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Outcome {
        let mut outcome = Outcome::default();
        text.lines().for_each(|line| outcome.read_line(line));
        outcome
    }

    #[test]
    fn counts_come_from_the_conclusion_and_skips_are_no_passes() {
        let outcome = read(
            "running 4 tests\ntest a ... ok\ntest b ... FAILED\ntest c ... ok\ntest e::f ... ok\ntest d ... ignored, started by c\ntest g ... ignored\n\n\
             successes:\n\n---- c stdout ----\nSKIP: needs root\n\nSKIP c: needs root\n\n---- e::f stdout ----\nSKIP e::f: no Go\n\nfailures:\n\n\
             ---- b stdout ----\nboom\n\n\
             test result: FAILED. 3 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        assert_eq!((outcome.passed, outcome.failed), (1, 1));
        assert_eq!(
            outcome.skipped,
            [
                "g: ignored without a reason",
                "c: needs root",
                "e::f: no Go"
            ]
        );
        assert_eq!(outcome.ignored, ["d: started by c"]);
        assert_eq!(outcome.failures, ["b"]);
    }

    #[test]
    fn a_program_that_dies_before_its_conclusion_is_a_failure() {
        let mut died = read("running 2 tests\ntest a ... ok");
        died.program_ended("was killed by signal 11", false);
        assert_eq!(died.failed, 1);
        assert_eq!(died.failures, ["the test program was killed by signal 11"]);
    }

    #[test]
    fn a_bad_status_after_a_good_conclusion_is_a_failure() {
        let mut odd =
            read("test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        odd.program_ended("ended with 101", false);
        assert_eq!((odd.passed, odd.failed), (1, 1));
    }

    #[test]
    fn a_good_end_adds_nothing() {
        let mut good =
            read("test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        good.program_ended("ended with 0", true);
        assert_eq!((good.passed, good.failed), (7, 0));
    }
}
