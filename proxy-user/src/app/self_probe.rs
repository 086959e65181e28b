//! The self-probe: steering is on while the secure listener answers it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};

use crate::admin::State;
use crate::drain::{DrainWatcher, Shared};
use crate::listen::{self, Counters, PROBE_INTERVAL};
use crate::steer::Setup;

/// Probes the listener and reports the result as heartbeat and readiness.
#[derive(Clone)]
pub(super) struct SelfProbe {
    pub(super) address: SocketAddr,
    pub(super) setup: Shared<Setup>,
    pub(super) state: Arc<State>,
    pub(super) counters: Arc<Counters>,
}

impl SelfProbe {
    /// The probe that decides whether steering begins.
    pub(super) async fn run_once(&self) -> bool {
        let probed = listen::probe(self.address, &self.counters).await;
        if let Err(error) = &probed {
            warn!(
                "{} does not answer its own probe ({error}): steering stays off",
                self.address
            );
            return false;
        }
        self.state.record_probe();
        true
    }

    /// Probes until the drain starts; a probe under way is finished. Each answer is a heartbeat; without
    /// one the eBPF programs stop steering by themselves.
    pub(super) async fn run(self, mut drain: DrainWatcher) {
        let mut ticks = interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut was_healthy = true;
        loop {
            tokio::select! {
                biased;
                () = drain.started() => return,
                _ = ticks.tick() => {}
            }
            let probed = listen::probe(self.address, &self.counters).await;
            if probed.is_ok() != was_healthy {
                self.log_change(probed.as_ref().err());
            }
            was_healthy = probed.is_ok();
            self.record(&probed);
        }
    }

    fn record(&self, probed: &io::Result<()>) {
        if probed.is_ok() {
            self.setup.write_heartbeat();
            self.state.record_probe();
        } else {
            self.counters.count_probe_failure();
        }
    }

    fn log_change(&self, error: Option<&io::Error>) {
        match error {
            None => info!("{} answers its own probe again", self.address),
            Some(error) => warn!(
                "{} does not answer its own probe: {error}; new connections of host processes go to the \
                 API server directly",
                self.address
            ),
        }
    }
}
