//! Test programs: built by one cargo call, run one after the other. Their whole output goes to `target/test-logs/`, and
//! the tests' own lines to the screen.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::outcome::Outcome;
use crate::compile::{self, Message};
use crate::interrupt::Interrupt;
use crate::project::Project;
use crate::{build, step};

/// Generous: the first suite that needs the real kube-apiserver builds it for some minutes.
const LIMIT: Duration = Duration::from_secs(20 * 60);
/// The suite that is cargo's.
const DOCUMENTATION: &str = "documentation";
/// Lines that may wait between the program and us.
const QUEUE: usize = 1024;
/// Wait for the pipe's end when a process that the suite left behind keeps it open.
const LEFT_OVER: Duration = Duration::from_secs(2);

/// Time limit of a suite.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Suite,
    /// A test may wait to be looked at.
    None,
}

/// Mode of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode<'a> {
    /// For the test program: filters and libtest's flags.
    pub(crate) arguments: &'a [String],
    pub(crate) limit: Limit,
}

/// One test program, or the documentation's tests.
#[derive(Debug, Clone)]
pub(crate) struct Suite {
    /// `package` for unit tests, `package::file` for a file of `tests/`.
    pub(crate) name: String,
    /// The test program; cargo for the documentation's tests.
    pub(crate) program: PathBuf,
    arguments: Vec<String>,
    dir: PathBuf,
}

fn kill_group(process: &mut Child, group: Pid) -> Result<()> {
    // The group is gone when this fails.
    let _ = killpg(group, Signal::SIGKILL);
    process.wait()?;
    Ok(())
}

/// Builds every test program of the workspace.
pub(crate) fn build_suites(project: &Project, object: &Path) -> Result<Vec<Suite>> {
    let mut command = build::cargo_with_object(project, object, "test");
    command.args(["--workspace", "--no-run"]);
    let mut suites = build_programs(command)?;
    // Unit tests first: they are quick, and what breaks them breaks the rest.
    suites.sort_by_key(|suite: &Suite| (suite.name.contains("::"), suite.name.clone()));
    let mut doc = build::cargo_with_object(project, object, "test");
    doc.args(["--workspace", "--doc", "--", "--show-output"]);
    suites.push(Suite {
        name: DOCUMENTATION.to_owned(),
        program: doc.get_program().into(),
        arguments: doc
            .get_args()
            .map(|argument| argument.to_string_lossy().into_owned())
            .collect(),
        dir: project.root.clone(),
    });
    Ok(suites)
}

/// The test programs that a `cargo test --no-run` builds.
pub(crate) fn build_programs(mut command: Command) -> Result<Vec<Suite>> {
    let messages = compile::run("building the tests", &mut command)?;
    Ok(messages.into_iter().filter_map(from_message).collect())
}

fn from_message(message: Message) -> Option<Suite> {
    let (target, program) = (message.target?, message.executable?);
    if message.reason != "compiler-artifact" || !message.profile?.test {
        return None;
    }
    let dir = message.manifest_path?.parent()?.to_path_buf();
    let package = dir.file_name()?.to_string_lossy().into_owned();
    let kind = target.kind.first().map_or("", String::as_str);
    let name = match kind {
        "test" => format!("{package}::{}", target.name),
        "bin" => format!("{package} (bin {})", target.name),
        _ => package,
    };
    Some(Suite {
        name,
        program,
        arguments: vec!["--show-output".to_owned()],
        dir,
    })
}

impl Suite {
    /// `name` may be the whole name, the package, or the file.
    pub(crate) fn answers_to(&self, name: &str) -> bool {
        let package = self.name.split([':', ' ']).next();
        let file = self.name.rsplit("::").next();
        self.name == name || package == Some(name) || file == Some(name)
    }

    /// Is it a program by itself, which runs without cargo?
    pub(crate) fn is_program(&self) -> bool {
        self.name != DOCUMENTATION
    }

    /// Runs it to its end, or to the limit.
    pub(crate) fn run(
        &self,
        project: &Project,
        mode: Mode<'_>,
        environment: &dyn Fn(&mut Command),
        interrupt: &Interrupt,
    ) -> Result<Outcome> {
        let mut command = self.command(project, mode);
        environment(&mut command);
        let (mut process, reader) = self.spawn(command)?;
        let group = Pid::from_raw(i32::try_from(process.id()).context("a pid fits i32")?);
        let lines = read_lines(reader, self.create_log(project)?);
        let mut outcome = Outcome::default();
        let begin = Instant::now();
        let mut ended: Option<Instant> = None;
        loop {
            match lines.recv_timeout(Duration::from_millis(100)) {
                Ok(line) => take_line(&mut outcome, &line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if ended.is_none() && process.try_wait()?.is_some() {
                ended = Some(Instant::now());
            }
            if ended.is_some_and(|at| at.elapsed() > LEFT_OVER) {
                step::note("a process that the suite started is still there");
                break;
            }
            if interrupt.wait(Duration::ZERO) {
                kill_group(&mut process, group)?;
                bail!("interrupted");
            }
            if mode.limit == Limit::Suite && begin.elapsed() > LIMIT {
                kill_group(&mut process, group)?;
                let minutes = LIMIT.as_secs() / 60;
                let end = format!("did not end within {minutes} minutes: killed");
                outcome.program_ended(&end, false);
                return Ok(outcome);
            }
        }
        let status = process.wait()?;
        outcome.program_ended(&format!("ended with {status}"), status.success());
        Ok(outcome)
    }

    /// Starts it in a process group of its own; its output can be read from the pipe.
    fn spawn(&self, mut command: Command) -> Result<(Child, PipeReader)> {
        let (reader, writer) = pipe()?;
        command
            .stdout(writer.try_clone()?)
            .stderr(writer)
            .process_group(0);
        // With the command, our writing ends of the pipe are closed.
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))?;
        Ok((process, reader))
    }

    fn command(&self, project: &Project, mode: Mode<'_>) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .args(mode.arguments)
            .current_dir(&self.dir)
            .stdin(Stdio::null())
            .env("CARGO_MANIFEST_DIR", &self.dir)
            .env("CARGO_TARGET_DIR", &project.target);
        command
    }

    fn create_log(&self, project: &Project) -> Result<File> {
        let dir = project.root.join("target").join("test-logs");
        std::fs::create_dir_all(&dir)?;
        let name: String = self
            .name
            .chars()
            .map(|c| if c.is_alphanumeric() { c } else { '-' })
            .collect();
        Ok(File::create(dir.join(format!("{name}.log")))?)
    }
}

/// Sends every line to the log and the channel.
pub(crate) fn read_lines(reader: impl Read + Send + 'static, mut log: File) -> Receiver<String> {
    let (sender, receiver) = sync_channel(QUEUE);
    thread::spawn(move || {
        for line in BufReader::new(reader)
            .split(b'\n')
            .map_while(std::result::Result::ok)
        {
            let line = String::from_utf8_lossy(&line).into_owned();
            // The log is for reading later: the run goes on without it.
            let _ = writeln!(log, "{line}");
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Counts the line, and shows it unless it is what a passed test printed.
fn take_line(outcome: &mut Outcome, line: &str) {
    outcome.read_line(line);
    if outcome.is_worth_showing(line) {
        println!("    {line}");
    }
}
