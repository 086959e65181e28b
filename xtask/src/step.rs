//! Runs other programs and shows what happens: one line before each, its output, its time. All of it goes to the standard
//! error; the standard output is for a verb's result.

use std::fmt::Display;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Prints a line that says what begins.
pub(crate) fn announce(what: impl Display) {
    eprintln!("==> {what}");
}

/// Prints indented lines below it.
pub(crate) fn note(what: impl Display) {
    for line in what.to_string().lines() {
        eprintln!("    {line}");
    }
}

/// Says `what`, runs the command with its output shown, and says how long it took when that was noticeable.
pub(crate) fn run(what: &str, command: &mut Command) -> Result<()> {
    announce(what);
    let begin = Instant::now();
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| cannot_start(command))?;
    let took = begin.elapsed();
    if !status.success() {
        bail!(
            "{what}: `{}` ended with {status}; what it printed is above",
            command_line(command)
        );
    }
    if took > Duration::from_secs(2) {
        note(format_args!("{:.0} s", took.as_secs_f64()));
    }
    Ok(())
}

/// Runs the command silently and gives what it printed.
pub(crate) fn read_output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| cannot_start(command))?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            command_line(command),
            output.status,
            printed.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as it could be typed.
pub(crate) fn command_line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

/// The command again, to be changed or run another time.
pub(crate) fn same_command(command: &Command) -> Command {
    copy_command(command, Command::new(command.get_program()))
}

/// Arguments, environment and folder of `from`, added to `to`.
pub(crate) fn copy_command(from: &Command, mut to: Command) -> Command {
    to.args(from.get_args());
    for (key, value) in from.get_envs() {
        match value {
            Some(value) => to.env(key, value),
            None => to.env_remove(key),
        };
    }
    if let Some(dir) = from.get_current_dir() {
        to.current_dir(dir);
    }
    to
}

fn cannot_start(command: &Command) -> String {
    format!(
        "cannot start `{}`: is it installed and in PATH?",
        command_line(command)
    )
}
