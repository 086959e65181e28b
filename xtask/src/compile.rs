//! Cargo builds with progress: cargo's messages are counted against its plan of units.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::step;

/// Between two lines where the output is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);
/// Between two updates of the line on a terminal.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(500);
/// Units compiled before a rest is estimated: the first ones are small.
const MIN_COMPILED: usize = 20;
/// A build shorter than this says nothing of its time.
const NOTICEABLE: Duration = Duration::from_secs(2);

/// A message of cargo's (`--message-format=json`); fields that no verb reads are left out.
#[derive(Debug, Deserialize)]
pub(crate) struct Message {
    pub(crate) reason: String,
    pub(crate) manifest_path: Option<PathBuf>,
    pub(crate) target: Option<Target>,
    pub(crate) profile: Option<Profile>,
    pub(crate) executable: Option<PathBuf>,
    /// Built before, and still good.
    #[serde(default)]
    fresh: bool,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Target {
    pub(crate) name: String,
    pub(crate) kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Profile {
    pub(crate) test: bool,
}

/// The output of `cargo build --unit-graph`.
#[derive(Debug, Deserialize)]
struct UnitGraph {
    units: Vec<serde::de::IgnoredAny>,
}

/// Runs `cargo build` or `cargo test --no-run`, says how far it is, and gives cargo's messages.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<Vec<Message>> {
    step::announce(what);
    let mut progress = Progress::new(unit_count(command));
    command.args(["--quiet", "--message-format=json-render-diagnostics"]);
    let mut cargo = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", step::command_line(command)))?;
    let lines = read_lines(
        cargo
            .stdout
            .take()
            .context("cargo has no standard output")?,
    );
    let messages = collect_messages(&lines, &mut progress);
    let status = cargo.wait()?;
    progress.end();
    if !status.success() {
        bail!(
            "{what}: `{}` ended with {status}; what it printed is above",
            step::command_line(command)
        );
    }
    messages
}

/// Number of messages that cargo will send; `None` where this cargo does not tell.
fn unit_count(command: &Command) -> Option<usize> {
    let mut plan = step::same_command(command);
    // `--unit-graph` is unstable. It prints the plan and builds nothing. Its standard error is shown: this is when
    // crates are downloaded.
    plan.args(["--unit-graph", "-Zunstable-options"])
        .env("RUSTC_BOOTSTRAP", "1");
    let output = plan.stderr(Stdio::inherit()).output().ok()?;
    let graph: UnitGraph = serde_json::from_slice(&output.stdout).ok()?;
    Some(graph.units.len())
}

fn read_lines(stdout: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

fn collect_messages(lines: &Receiver<String>, progress: &mut Progress) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    loop {
        match lines.recv_timeout(TERMINAL_INTERVAL) {
            Ok(line) if line.starts_with('{') => {
                let message: Message =
                    serde_json::from_str(&line).context("cargo's message is not as expected")?;
                progress.count_message(&message);
                messages.push(message);
            }
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Ok(messages),
        }
        progress.show_progress();
    }
}

/// Progress of a build.
#[derive(Debug)]
struct Progress {
    total: Option<usize>,
    done: usize,
    compiled: usize,
    begin: Instant,
    shown: Instant,
    is_terminal: bool,
}

impl Progress {
    fn new(total: Option<usize>) -> Self {
        let now = Instant::now();
        Self {
            total,
            done: 0,
            compiled: 0,
            begin: now,
            shown: now,
            is_terminal: std::io::stderr().is_terminal(),
        }
    }

    fn count_message(&mut self, message: &Message) {
        if matches!(
            message.reason.as_str(),
            "compiler-artifact" | "build-script-executed"
        ) {
            self.done += 1;
            // cargo sends no `fresh` for a build script's run; it comes with the compilation behind it.
            self.compiled += usize::from(message.reason == "compiler-artifact" && !message.fresh);
        }
    }

    fn show_progress(&mut self) {
        let interval = if self.is_terminal {
            TERMINAL_INTERVAL
        } else {
            LINE_INTERVAL
        };
        if self.compiled == 0 || self.shown.elapsed() < interval {
            return;
        }
        self.shown = Instant::now();
        let text = self.progress_text(self.begin.elapsed());
        if self.is_terminal {
            // A lost line of progress is no loss.
            let _ = write!(std::io::stderr(), "\r\x1b[K    {text}");
        } else {
            step::note(text);
        }
    }

    fn progress_text(&self, elapsed: Duration) -> String {
        let total = self.total.filter(|total| *total >= self.done);
        let of = total
            .map(|total| format!(" of {total}"))
            .unwrap_or_default();
        let rest = total.and_then(|total| self.estimate_remaining(total, elapsed));
        let rest = rest
            .map(|rest| format!("; about {} to go", format_duration(rest)))
            .unwrap_or_default();
        format!(
            "{}{of} crates, {}{rest}",
            self.done,
            format_duration(elapsed)
        )
    }

    fn estimate_remaining(&self, total: usize, elapsed: Duration) -> Option<Duration> {
        if self.compiled < MIN_COMPILED {
            return None;
        }
        let left = f64::from(u32::try_from(total - self.done).ok()?);
        let compiled = f64::from(u32::try_from(self.compiled).ok()?);
        Some(elapsed.mul_f64(left / compiled))
    }

    fn end(&self) {
        if self.is_terminal && self.compiled > 0 {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        let took = self.begin.elapsed();
        if took > NOTICEABLE {
            step::note(format_args!(
                "{} crates compiled, {}",
                self.compiled,
                format_duration(took)
            ));
        }
    }
}

/// `1 min 20 s`.
pub(crate) fn format_duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds} s"),
        (minutes, 0) => format!("{minutes} min"),
        (minutes, seconds) => format!("{minutes} min {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(text: &str) -> Message {
        serde_json::from_str(text).unwrap()
    }

    fn progress(total: Option<usize>, fresh: usize, compiled: usize) -> Progress {
        let mut progress = Progress::new(total);
        for _ in 0..fresh {
            progress.count_message(&message(r#"{"reason":"compiler-artifact","fresh":true}"#));
        }
        for _ in 0..compiled {
            progress.count_message(&message(r#"{"reason":"compiler-artifact","fresh":false}"#));
        }
        progress
    }

    #[test]
    fn the_rest_is_estimated_from_what_was_compiled() {
        let half = progress(Some(340), 40, 100);
        assert_eq!(
            half.progress_text(Duration::from_secs(80)),
            "140 of 340 crates, 1 min 20 s; about 2 min 40 s to go"
        );
    }

    #[test]
    fn without_a_plan_or_at_the_beginning_there_is_no_estimate() {
        let begun = progress(Some(340), 0, 3);
        assert_eq!(
            begun.progress_text(Duration::from_secs(9)),
            "3 of 340 crates, 9 s"
        );
        let unknown = progress(None, 0, 30);
        assert_eq!(
            unknown.progress_text(Duration::from_secs(60)),
            "30 crates, 1 min"
        );
    }

    #[test]
    fn build_scripts_count_as_done_and_the_end_does_not() {
        let mut progress = progress(None, 0, 0);
        progress.count_message(&message(r#"{"reason":"build-script-executed"}"#));
        progress.count_message(&message(r#"{"reason":"build-finished","success":true}"#));
        assert_eq!((progress.done, progress.compiled), (1, 0));
    }
}
