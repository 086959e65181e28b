//! One component of the control plane as a child process: started in a network namespace, logging to a file,
//! ended by its pid when dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Netns;

#[derive(Debug)]
pub struct Component {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Component {
    /// Starts `command` in the network namespace at `netns` (`None`: the caller's); output goes to `DIR/NAME.log`.
    ///
    /// # Errors
    /// The program can't be run, or the namespace can't be entered.
    pub fn spawn(
        name: &'static str,
        mut command: Command,
        dir: &Path,
        netns: Option<&Netns>,
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        // The pipe that `kube` watches: it breaks when we die, however we die.
        command
            .stdin(Stdio::piped())
            .env("KUBE_EXIT_WITH_STDIN", "1");
        command.stdout(output.try_clone()?).stderr(output);
        let child = super::run_in_netns(netns, || command.spawn()).with_context(|| {
            format!(
                "running {} ({name})",
                command.get_program().to_string_lossy()
            )
        })?;
        Ok(Self { name, child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it stands: its ports stay open and nothing answers, a true black hole.
    ///
    /// # Errors
    /// It has ended.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It has ended.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.child.id().cast_signed());
        kill(pid, signal).with_context(|| format!("{signal} to {} ({pid})", self.name))
    }

    /// Fails, with the end of its log, when it has ended.
    ///
    /// # Errors
    /// It has ended.
    pub fn ensure_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended ({status}); the end of its log:\n{}",
                self.name,
                self.log_tail()
            ),
        }
    }

    /// The last 25 lines of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..]
            .iter()
            .map(|line| format!("  {line}\n"))
            .collect()
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        // SIGKILL also ends a stopped process, and its data is thrown away anyhow.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
