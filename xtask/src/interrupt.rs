//! Ctrl-C and SIGTERM as something to wait for. In: the two signals, blocked for this thread (children start
//! with a clean mask). Out: whether one came within a time; also the only way to let time pass.

use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// The signals that end a verb in order.
#[derive(Debug)]
pub(crate) struct Interrupt {
    signals: SignalFd,
}

impl Interrupt {
    /// Takes SIGINT, SIGTERM and SIGHUP over. Call before any thread is started.
    pub(crate) fn listen() -> Result<Self> {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            set.add(signal);
        }
        set.thread_block().context("cannot block SIGINT and SIGTERM")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).context("cannot make a signalfd")?;
        Ok(Self { signals })
    }

    /// Waits at most `time`; true when a signal came (it is taken).
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        // An error here is EINTR: as if the time were over.
        let ready = poll(&mut fds, timeout).unwrap_or(0) > 0;
        ready && matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}
