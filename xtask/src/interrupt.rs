//! Ctrl-C and SIGTERM as something to wait for. Signals are caught by handlers: a signal mask would be inherited by the
//! programs that we start.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The signals that end a verb in order.
#[derive(Debug)]
pub(crate) struct Interrupt {
    /// A byte for each signal that came.
    came: UnixStream,
    /// One came before: every later wait ends at once.
    over: Cell<bool>,
}

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP over.
    pub(crate) fn listen() -> Result<Self> {
        let (came, tell) = UnixStream::pair()?;
        came.set_nonblocking(true)?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::low_level::pipe::register(signal, tell.try_clone()?)
                .context("cannot catch signals")?;
        }
        Ok(Self {
            came,
            over: Cell::new(false),
        })
    }

    /// Waits at most `time`; true when a signal has come, now or before.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        if self.over.get() {
            return true;
        }
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.came.as_fd(), PollFlags::POLLIN)];
        // An error is EINTR: the signal's byte is there.
        let _ = poll(&mut fds, timeout);
        let mut bytes = [0; 16];
        let read: io::Result<usize> = (&self.came).read(&mut bytes);
        self.over.set(read.is_ok_and(|count| count > 0));
        self.over.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_the_wait_and_children_can_be_ended() {
        let interrupt = Interrupt::listen().unwrap();
        assert!(!interrupt.wait(Duration::ZERO));
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .spawn()
            .unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        assert!(!child.wait().unwrap().success());
        signal_hook::low_level::raise(SIGHUP).unwrap();
        assert!(interrupt.wait(Duration::from_secs(5)));
        assert!(interrupt.wait(Duration::ZERO), "what is to end stays so");
    }
}
