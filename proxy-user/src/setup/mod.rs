//! Stage 0: prepares the node (link, address, eBPF) and undoes it in reverse order at exit.

use std::os::fd::BorrowedFd;

use serde::Serialize;

use crate::client::Process;
use crate::config::SetupConfig;

/// What setup made, and what it could not make and why. Undone by [`Setup::undo`].
#[derive(Debug)]
pub struct Setup {}

/// A part of the setup and how it stands; the same in the log, `hublet status` and metrics.
#[derive(Debug, Clone, Serialize)]
pub struct Part {
    /// `interface`, `steering`, `identity` …
    pub name: &'static str,
    /// Working?
    pub on: bool,
    /// What is there (`hub-dummy0 (bridge) 169.254.2.1/32`), or why not and what to do.
    pub detail: String,
}

/// eBPF state for `hublet status` and metrics.
#[derive(Debug, Clone, Default, Serialize)]
pub struct EbpfStatus {
    /// Program name, id, attach point, link pin.
    pub programs: Vec<ProgramStatus>,
    /// Decision name → count.
    pub counters: Vec<(&'static str, u64)>,
}

/// One loaded program.
#[derive(Debug, Clone, Serialize)]
pub struct ProgramStatus {
    /// Name as bpftool shows it.
    pub name: String,
    /// Kernel id.
    pub id: u32,
    /// Where it is attached.
    pub attached: String,
}

impl Setup {
    /// Makes link and address, loads and attaches the programs (switched off until [`Setup::steer`]). Never fails
    /// for want of privileges or kernel features: what is missing is a [`Part`] that is off. Fails only when the
    /// address that the user asked for can't be had anywhere and no part of hublet could be reached by it.
    ///
    /// # Errors
    /// The address belongs to another interface, or netlink refuses for a reason other than privileges.
    pub async fn prepare(config: &SetupConfig) -> Result<Self, SetupError> {
        let _ = config;
        Ok(Self {})
    }
    /// Puts the serving listener into the liveness map and switches steering on. Call after the self-probe.
    ///
    /// # Errors
    /// The kernel refuses the listener.
    pub fn steer(&self, listener: BorrowedFd<'_>) -> Result<(), SetupError> {
        let _ = listener;
        Ok(())
    }
    /// Writes the heartbeat; called by the serving runtime each 500 ms after it has probed itself.
    pub fn heartbeat(&self) {}
    /// What the kernel attests of the accepted socket.
    pub fn identify(&self, accepted: BorrowedFd<'_>) -> Option<Process> {
        let _ = accepted;
        None
    }
    /// The parts, for log, status and metrics.
    pub fn parts(&self) -> Vec<Part> {
        Vec::new()
    }
    /// Programs and counters.
    pub fn ebpf(&self) -> EbpfStatus {
        EbpfStatus::default()
    }
    /// Steering off (first thing of a drain).
    pub fn stop_steering(&self) {}
    /// Removes pins, links, address and interface.
    pub async fn undo(self) {}
}

/// Why setup failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {}
