//! The programs' debug lines (aya-log). In: the ring that they write. Out: lines of this process's log at debug
//! level, target `hublet_bpf`. Only in builds with the feature `bpf-log`; what ships has neither ring nor lines.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::task::JoinHandle;

/// The ring holds 128 KiB; a line is some 100 bytes.
const INTERVAL: Duration = Duration::from_millis(100);

/// Reads the ring until it is dropped.
#[derive(Debug)]
pub(crate) struct Drain(JoinHandle<()>);

impl Drain {
    /// Starts reading. Call after the maps are made and before the programs are loaded.
    pub(crate) fn start(object: &mut Ebpf) -> Option<Self> {
        let mut logger = match EbpfLogger::init_with_logger(object, ToTracing) {
            Ok(logger) => logger,
            Err(error) => {
                tracing::warn!(%error, "no debug lines: was the BPF object built with the feature `log`?");
                return None;
            }
        };
        Some(Self(tokio::spawn(async move {
            let mut tick = tokio::time::interval(INTERVAL);
            loop {
                tick.tick().await;
                logger.flush();
            }
        })))
    }
}

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// aya-log speaks `log`, we speak `tracing`.
struct ToTracing;

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        tracing::debug!(target: "hublet_bpf", "{}", record.args());
    }

    fn flush(&self) {}
}
