//! The programs' debug log (aya-log), passed on to this process's log at debug level with target `hublet_bpf`. Only in
//! builds with the feature `bpf-log`; release builds have no ring buffer.

use std::time::Duration;

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::task::JoinHandle;

/// The ring holds 128 KiB, a line has about 100 bytes.
const INTERVAL: Duration = Duration::from_millis(100);

/// Reads the ring until it is dropped.
#[derive(Debug)]
pub(crate) struct LogReader(JoinHandle<()>);

impl LogReader {
    /// Call after the maps are made and before the programs are loaded.
    pub(crate) fn start(object: &mut Ebpf) -> Option<Self> {
        let mut logger = match EbpfLogger::init_with_logger(object, ToTracing) {
            Ok(logger) => logger,
            Err(error) => {
                tracing::warn!(%error, "the eBPF programs can't log: was the BPF object built with the feature `log`?");
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

impl Drop for LogReader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// aya-log uses the crate `log`, hublet `tracing`.
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
