//! A program that runs beside us: its log, its first line of output, SIGTERM and a wait at the end.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::interrupt::Interrupt;
use crate::project::find_program;
use crate::step;

/// Lines of a log that are shown when its program dies.
const TAIL: usize = 25;

/// Interval at which a slow start shows its last line.
const PROGRESS: Duration = Duration::from_secs(5);

/// A running program, ended when dropped.
#[derive(Debug)]
pub(crate) struct Child {
    name: &'static str,
    log: PathBuf,
    process: Process,
    grace: Duration,
}

impl Child {
    /// Starts the command in a process group of its own (so that Ctrl-C reaches us alone and the order of the
    /// end is ours); both outputs go to `log`. The kernel ends it should we be killed.
    pub(crate) fn start(
        name: &'static str,
        command: &Command,
        log: &Path,
        grace: Duration,
    ) -> Result<Self> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = die_with_parent(command);
        command.stdout(file.try_clone()?).stderr(file);
        Self::spawn(name, command, log, grace)
    }

    /// As [`Child::start`], but the standard output is ours to read; give it to `Child::read_first_line`.
    pub(crate) fn start_piped(
        name: &'static str,
        command: &Command,
        log: &Path,
        grace: Duration,
    ) -> Result<(Self, ChildStdout)> {
        let file = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
        let mut command = die_with_parent(command);
        command.stdout(Stdio::piped()).stderr(file);
        let mut child = Self::spawn(name, command, log, grace)?;
        let stdout = child
            .process
            .stdout
            .take()
            .context("the child has no standard output")?;
        Ok((child, stdout))
    }

    fn spawn(
        name: &'static str,
        mut command: Command,
        log: &Path,
        grace: Duration,
    ) -> Result<Self> {
        command.stdin(Stdio::null()).process_group(0);
        let process = command
            .spawn()
            .with_context(|| format!("cannot start {}", step::command_line(&command)))?;
        Ok(Self {
            name,
            log: log.to_path_buf(),
            process,
            grace,
        })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Waits for the first line on `stdout`; what follows goes to the log.
    pub(crate) fn read_first_line(
        &mut self,
        stdout: ChildStdout,
        patience: Duration,
        interrupt: &Interrupt,
    ) -> Result<String> {
        let log = File::options().append(true).open(&self.log)?;
        let receiver = split_output(stdout, log);
        let deadline = Instant::now() + patience;
        let mut noted = Instant::now();
        loop {
            if noted.elapsed() > PROGRESS {
                noted = Instant::now();
                step::note(self.last_line());
            }
            if let Ok(line) = receiver.try_recv() {
                return Ok(line);
            }
            self.check_running()?;
            if interrupt.wait(Duration::from_millis(20)) {
                bail!("interrupted while {} was starting", self.name);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not get ready within {} s\n{}",
                    self.name,
                    patience.as_secs(),
                    self.log_tail()
                );
            }
        }
    }

    /// Fails with the end of the log when the program has ended.
    pub(crate) fn check_running(&mut self) -> Result<()> {
        match self.process.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("{} ended with {status}\n{}", self.name, self.log_tail()),
        }
    }

    /// SIGTERM, a wait, and SIGKILL when the time of grace is over.
    pub(crate) fn stop(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.process.try_wait()? {
            return Ok(status);
        }
        let pid = Pid::from_raw(i32::try_from(self.process.id()).context("a pid fits i32")?);
        kill(pid, Signal::SIGTERM).with_context(|| format!("cannot end {}", self.name))?;
        let deadline = Instant::now() + self.grace;
        let pause = Pause::new();
        while Instant::now() < deadline {
            if let Some(status) = self.process.try_wait()? {
                return Ok(status);
            }
            pause.wait(Duration::from_millis(20));
        }
        step::note(format_args!(
            "{} did not end within {:?}: killed",
            self.name, self.grace
        ));
        self.process.kill()?;
        Ok(self.process.wait()?)
    }

    fn log_text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The log's last line.
    fn last_line(&self) -> String {
        let text = self.log_text();
        text.lines()
            .last()
            .map_or_else(|| format!("{} is starting", self.name), str::to_owned)
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines.len().saturating_sub(TAIL);
        format!(
            "--- end of {} ---\n{}",
            self.log.display(),
            lines[last..].join("\n")
        )
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{}: {error:#}", self.name);
        }
    }
}

/// Lets time pass where no [`Interrupt`] is at hand.
#[derive(Debug)]
pub(crate) struct Pause {
    _sender: mpsc::Sender<()>,
    receiver: mpsc::Receiver<()>,
}

impl Pause {
    /// A pause that nothing cuts short.
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel();
        Self {
            _sender: sender,
            receiver,
        }
    }

    /// Waits `time`, for the next look at what is waited for.
    pub(crate) fn wait(&self, time: Duration) {
        let _ = self.receiver.recv_timeout(time);
    }
}

/// The same command under util-linux's `setpriv`, which has the kernel end it when we die without a chance to.
fn die_with_parent(command: &Command) -> Command {
    let Some(setpriv) = find_program("setpriv") else {
        return step::copy_command(command, Command::new(command.get_program()));
    };
    let mut tied = Command::new(setpriv);
    tied.args(["--pdeathsig", "TERM", "--"])
        .arg(command.get_program());
    step::copy_command(command, tied)
}

/// Sends the first line to the receiver and writes the others to the log, on a thread.
fn split_output(stdout: ChildStdout, mut log: File) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut lines = BufReader::new(stdout)
            .lines()
            .map_while(std::result::Result::ok);
        if let Some(first) = lines.next() {
            let _ = sender.send(first);
        }
        // Nobody reads the log while it is written: a failed write loses only log lines.
        lines.for_each(|line| drop(writeln!(log, "{line}")));
    });
    receiver
}
