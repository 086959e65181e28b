//! Decides on the cloud's state, in one task. In: signals, and the answers to probes. Out: [`CloudState`] in
//! [`Health`], and the end of connections that lead nowhere.
//!
//! ```text
//! Connected ──a request failed──▶ Suspect ──patience ended in silence──▶ Silent
//!   │  ▲ └──────patience ended in silence──────────────────────────────────▲ │
//!   │  └─────an answer, to the probe or to anybody────── Suspect, Silent ◀───┘
//!   └────the probe failed────▶ Disconnected ◀──the probe failed──┘
//!                                   └──a probe was answered──▶ Recovering ──another──▶ Connected
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::activity::Heard;
use super::probe::ProbeError;
use super::{CloudState, Health, Signal};
use crate::cloud::dial::DIAL_TIMEOUT;
use crate::config::CloudConfig;
use crate::telemetry::Metrics;

/// First and longest pause between probes while the cloud is away: the promise is to use it again within five seconds.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(2500));
/// Probes under way at once while the cloud is away.
const PROBES: usize = 4;
/// Silence that ends a probe, in round trips: a connection's TCP and TLS take one each, and one is to spare.
const ALLOWANCE: u32 = 3;
/// Longest silence that is allowed, and longest time for one question however much is heard meanwhile: on a line that is
/// full, answers come late, but bytes that lay in our own buffers are no news for ever.
const LONGEST: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(30));
/// Probes at this many intervals though others are heard, so that the server doesn't close the probe's connection.
const KEEP_WARM: u32 = 3;
/// Pause before the next try when this node lacks what a probe needs.
const LACKING: Duration = Duration::from_millis(250);

/// The way to the cloud, as far as its state depends on it.
pub(crate) trait Link: Send + Sync + 'static {
    /// Asks on a connection that is open already; `None` when there is none, or it had been closed.
    fn ask_kept(&self) -> impl Future<Output = Option<Result<(), ProbeError>>> + Send;
    /// Asks on a new connection.
    fn ask_anew(&self) -> impl Future<Output = Result<(), ProbeError>> + Send;
    /// Waits until a connection that requests share has ended, in whatever way.
    fn lost(&self) -> impl Future<Output = ()> + Send;
    /// New requests take new connections.
    fn retire_all(&self);
    fn close_all(&self);
}

pub(super) struct Judge<L> {
    config: CloudConfig,
    link: Arc<L>,
    health: Arc<Health>,
    signals: mpsc::Receiver<Signal>,
    metrics: Arc<Metrics>,
    probed: Instant,
}

impl<L: Link> Judge<L> {
    pub(super) fn new(
        config: &CloudConfig,
        link: Arc<L>,
        health: Arc<Health>,
        signals: mpsc::Receiver<Signal>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            config: config.clone(),
            link,
            health,
            signals,
            metrics,
            probed: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let (next, why) = match self.health.state() {
                CloudState::Connected => self.connected().await,
                CloudState::Suspect | CloudState::Silent => self.question().await,
                CloudState::Disconnected => self.disconnected().await,
                CloudState::Recovering => self.recovering().await,
            };
            self.enter(next, &why);
            let _ = self.health.decided.send_replace(true);
        }
    }

    fn enter(&self, to: CloudState, why: &str) {
        let from = self.health.state();
        if from == to {
            return;
        }
        match to {
            CloudState::Disconnected => {
                tracing::warn!(
                    from = from.as_str(),
                    why,
                    "the cloud is away: answering from the store"
                );
            }
            CloudState::Connected if !from.is_open() || !self.health.is_decided() => {
                tracing::info!(from = from.as_str(), why, "the cloud answers");
            }
            _ => tracing::debug!(from = from.as_str(), to = to.as_str(), why, "cloud state"),
        }
        self.metrics.cloud_state(from.as_str(), to.as_str());
        self.health.state.send_replace(to);
        if to == CloudState::Disconnected {
            // Behind the news, so that whoever loses a stream by this turns to the store.
            self.link.close_all();
        }
    }

    /// Waits for a reason to ask: somebody who waits, a failure, or silence for an interval.
    async fn connected(&mut self) -> (CloudState, String) {
        // Never longer than the interval: the state follows within that and one probe.
        let interval = self.config.probe_interval.mul_f64(0.8 + jitter() / 5.0);
        tokio::select! {
            Some(signal) = self.signals.recv() => self.doubt(signal),
            () = self.link.lost() => {}
            () = quiet(&self.health.heard, interval, self.probed) => {}
        }
        self.question().await
    }

    fn doubt(&self, signal: Signal) {
        let state = self.health.state();
        match signal {
            Signal::Waiting => {}
            Signal::Refused | Signal::Failed if state == CloudState::Connected => {
                self.enter(CloudState::Suspect, "a request failed");
            }
            Signal::Refused | Signal::Failed => {}
            // Bytes heard since then count for more.
            Signal::Silent if self.health.heard.last().elapsed() < self.health.patience() / 2 => {}
            Signal::Silent => self.enter(CloudState::Silent, "a request met silence"),
        }
    }

    /// Asks, and listens to requests meanwhile: an answer to anybody counts as much.
    async fn question(&mut self) -> (CloudState, String) {
        self.probed = Instant::now();
        let (link, health) = (Arc::clone(&self.link), Arc::clone(&self.health));
        let heads = health.heads();
        let mut probe = pin!(ask(&*link, &health, self.config.probe_timeout));
        let answer = loop {
            tokio::select! {
                biased;
                answer = &mut probe => break answer,
                () = health.answered.notified() => {
                    if health.state().is_open() {
                        self.enter(CloudState::Connected, "a request was answered");
                    }
                }
                Some(signal) = self.signals.recv() => self.doubt(signal),
            }
        };
        match answer {
            Ok(()) => {
                if health.state() == CloudState::Silent {
                    // The connections in use have been silent meanwhile.
                    link.retire_all();
                }
                self.forget();
                (CloudState::Connected, "the probe was answered".into())
            }
            Err(error) if error.is_ours() => Self::lacking(health.state(), &error).await,
            Err(error) if health.heads() != heads => (CloudState::Connected, error.to_string()),
            Err(error) => (CloudState::Disconnected, error.to_string()),
        }
    }

    async fn lacking(state: CloudState, error: &ProbeError) -> (CloudState, String) {
        tracing::warn!(%error, "no probe can be sent");
        sleep(LACKING).await;
        (state, String::new())
    }

    /// Probes until one is answered. Nobody waits for these, so on a slow link each may take its time; but a new one
    /// begins at every pause, since an older one may hang in a link that was dead when it began.
    async fn disconnected(&self) -> (CloudState, String) {
        let mut probes = FuturesUnordered::new();
        let mut pause = BACKOFF.0;
        loop {
            let mut pausing = pin!(sleep(pause.mul_f64(0.75 + jitter() / 4.0)));
            loop {
                tokio::select! {
                    () = &mut pausing => break,
                    Some(answered) = probes.next() => if let Ok(Ok(())) = answered {
                        return (CloudState::Recovering, "the probe was answered".into());
                    },
                }
            }
            if probes.len() < PROBES {
                probes.push(Box::pin(timeout(DIAL_TIMEOUT, self.link.ask_anew())));
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn recovering(&mut self) -> (CloudState, String) {
        for _ in 1..self.config.healthy_threshold {
            match ask(&*self.link, &self.health, self.config.probe_timeout).await {
                Ok(()) => {}
                Err(error) if error.is_ours() => {
                    return Self::lacking(CloudState::Recovering, &error).await;
                }
                Err(error) => return (CloudState::Disconnected, error.to_string()),
            }
        }
        self.forget();
        (CloudState::Connected, "the probes were answered".into())
    }

    /// Drops earlier signals, which must not be held against the cloud now.
    fn forget(&mut self) {
        while self.signals.try_recv().is_ok() {}
    }
}

/// Waits until nothing has been heard nor asked for an interval, and as long as the kept connection may lie idle at most.
async fn quiet(heard: &Heard, interval: Duration, probed: Instant) {
    loop {
        let due = (heard.last().max(probed) + interval).min(probed + interval * KEEP_WARM);
        if Instant::now() >= due {
            return;
        }
        sleep_until(due).await;
    }
}

/// One question. Fails once nothing has been heard for the allowance, which is `timeout` or follows the round trip.
async fn ask<L: Link>(link: &L, health: &Health, timeout: Duration) -> Result<(), ProbeError> {
    let asked = Instant::now();
    let silence = async {
        loop {
            let allowance =
                (health.heard.round_trip() * ALLOWANCE).clamp(timeout, LONGEST.0.max(timeout));
            let due = (health.heard.last().max(asked) + allowance).min(asked + LONGEST.1);
            if Instant::now() >= due {
                return allowance;
            }
            sleep_until(due).await;
        }
    };
    tokio::select! {
        biased;
        answer = either(link, health.patience()) => answer,
        allowance = silence => Err(ProbeError::Timeout(allowance)),
    }
}

/// Asks on the kept connection, and on a new one as well when that stays silent: it may be dead by itself (an address
/// translation that was forgotten, a server behind a load balancer that is gone).
async fn either<L: Link>(link: &L, patience: Duration) -> Result<(), ProbeError> {
    let mut kept = pin!(link.ask_kept());
    let waits = match timeout(patience, &mut kept).await {
        Ok(Some(answer)) => return answer,
        Ok(None) => false,
        Err(_) => true,
    };
    tokio::select! {
        Some(answer) = &mut kept, if waits => answer,
        answer = link.ask_anew() => answer,
    }
}

/// A number in 0..1, so that a fleet of nodes does not knock in step.
fn jitter() -> f64 {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
