//! Is the cloud there? One state, decided in one place. In: signals from requests, and probes of our own. Out: a
//! `watch` channel of [`CloudState`], and the patience that a read has with the cloud (I11).
//!
//! ```text
//! Connected ──a request failed or was slow──▶ Suspect ──probe answered──▶ Connected
//!     │                                          │ probe failed
//!     └──────────connection refused──────────▶ Disconnected ──probe answered──▶ Recovering ──again──▶ Connected
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};

use super::dial::DIAL_TIMEOUT;
use super::upstreams::{ProbeError, Upstreams};
use crate::account::Metrics;
use crate::config::CloudConfig;

/// Signals that wait to be looked at; more of the same tell nothing new.
const SIGNALS: usize = 16;
/// First and longest pause between probes while the cloud is away: the promise is to use it again within five seconds.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(2500));
/// Probes under way at once while the cloud is away.
const PROBES: usize = 4;
/// Shortest and longest patience with a read that the store can answer.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_millis(800));
/// Patience as a multiple of the usual latency.
const PATIENCE_FACTOR: u64 = 6;

/// What the cloud is to this node now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CloudState {
    /// It answers.
    Connected,
    /// A request failed or was slow (or hublet has just started): a probe is under way.
    Suspect,
    /// It does not answer.
    Disconnected,
    /// It has answered again, once.
    Recovering,
}

impl CloudState {
    /// For metrics and the log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Suspect => "suspect",
            Self::Disconnected => "disconnected",
            Self::Recovering => "recovering",
        }
    }
}

/// What a request tells of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// The connection was refused: nobody is there.
    Refused,
    /// It failed otherwise: unreachable, TLS, reset.
    Failed,
    /// No answer within a read's patience.
    Slow,
}

/// The state, and where signals go.
#[derive(Debug)]
pub struct Health {
    state: watch::Sender<CloudState>,
    signals: mpsc::Sender<Signal>,
    decided: watch::Sender<bool>,
    /// Usual time to an answer's head, in microseconds.
    latency: AtomicU64,
    /// An answer's head has come.
    heard: Notify,
}

impl Health {
    /// Starts the task that decides.
    pub fn start(config: &CloudConfig, upstreams: Arc<Upstreams>, metrics: Arc<Metrics>) -> Arc<Self> {
        let (signals, from) = mpsc::channel(SIGNALS);
        let health = Arc::new(Self {
            state: watch::Sender::new(CloudState::Suspect),
            signals,
            decided: watch::Sender::new(false),
            latency: AtomicU64::new(0),
            heard: Notify::new(),
        });
        let judge =
            Judge { config: config.clone(), upstreams, metrics, health: Arc::clone(&health), signals: from };
        tokio::spawn(judge.run());
        health
    }

    /// The state now.
    pub fn state(&self) -> CloudState {
        *self.state.borrow()
    }

    /// The state once it is no longer Suspect: after one probe at the latest.
    pub async fn judged(&self) -> CloudState {
        let mut state = self.state.subscribe();
        // The sender lives as long as we do.
        state.wait_for(|s| *s != CloudState::Suspect).await.map_or(CloudState::Disconnected, |s| *s)
    }

    /// To be told of changes.
    pub fn subscribe(&self) -> watch::Receiver<CloudState> {
        self.state.subscribe()
    }

    /// The first probe after the start has been judged.
    pub fn is_decided(&self) -> bool {
        *self.decided.borrow()
    }

    /// A request has met this.
    pub fn signal(&self, signal: Signal) {
        // A full queue already holds enough to look.
        let _ = self.signals.try_send(signal);
    }

    /// An answer's head came after this time.
    pub fn answered(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros()).unwrap_or(u64::MAX).min(60_000_000);
        let before = self.latency.load(Ordering::Relaxed);
        let usual = if before == 0 { micros } else { (before * 7 + micros) / 8 };
        self.latency.store(usual.max(1), Ordering::Relaxed);
        self.heard.notify_waiters();
    }

    /// How long a read that the store can answer waits for the cloud.
    pub fn patience(&self) -> Duration {
        let usual = self.latency.load(Ordering::Relaxed);
        Duration::from_micros(usual * PATIENCE_FACTOR).clamp(PATIENCE.0, PATIENCE.1)
    }

    /// The usual latency, for status.
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }
}

struct Judge {
    config: CloudConfig,
    upstreams: Arc<Upstreams>,
    metrics: Arc<Metrics>,
    health: Arc<Health>,
    signals: mpsc::Receiver<Signal>,
}

impl Judge {
    async fn run(mut self) {
        loop {
            let state = self.health.state();
            let (next, why) = match state {
                CloudState::Connected => self.connected().await,
                CloudState::Suspect => self.suspect().await,
                CloudState::Disconnected => self.disconnected().await,
                CloudState::Recovering => self.recovering().await,
            };
            self.enter(state, next, &why);
            let _ = self.health.decided.send_replace(true);
        }
    }

    fn enter(&mut self, from: CloudState, to: CloudState, why: &str) {
        if from == to {
            return;
        }
        match to {
            CloudState::Disconnected => {
                tracing::warn!(from = from.as_str(), why, "the cloud is away: answering from the store");
                self.upstreams.close_all();
            }
            CloudState::Connected if from != CloudState::Suspect || !self.health.is_decided() => {
                tracing::info!(from = from.as_str(), why, "the cloud answers");
            }
            _ => tracing::debug!(from = from.as_str(), to = to.as_str(), why, "cloud state"),
        }
        // What was said of the old state must not be held against the new one.
        while self.signals.try_recv().is_ok() {}
        self.metrics.cloud_state(from.as_str(), to.as_str());
        self.health.state.send_replace(to);
    }

    /// While connections are open, their pings watch the link, at no cost to it; without any, a probe does.
    async fn connected(&mut self) -> (CloudState, String) {
        let wait = self.config.probe_interval.mul_f64(0.9 + jitter() / 5.0);
        tokio::select! {
            signal = self.signals.recv() => match signal {
                Some(Signal::Refused) => (CloudState::Disconnected, "connection refused".into()),
                Some(signal) => (CloudState::Suspect, format!("a request met {signal:?}")),
                None => std::future::pending().await,
            },
            () = self.upstreams.lost() => (CloudState::Suspect, "a connection broke".into()),
            () = tokio::time::sleep(wait) => {
                if !self.upstreams.is_empty() {
                    return (CloudState::Connected, String::new());
                }
                match self.probe().await {
                    Ok(()) => (CloudState::Connected, String::new()),
                    Err(error) => (CloudState::Suspect, error.to_string()),
                }
            }
        }
    }

    /// A probe on a connection of its own is asked, and an answer to anybody's request counts as well.
    async fn suspect(&mut self) -> (CloudState, String) {
        let health = Arc::clone(&self.health);
        tokio::select! {
            probe = self.probe() => match probe {
                Ok(()) => {
                    // The connections in use have been silent meanwhile: new requests take new ones.
                    self.upstreams.retire_all();
                    (CloudState::Connected, "the probe was answered".into())
                }
                Err(error) => (CloudState::Disconnected, error.to_string()),
            },
            () = health.heard.notified() => (CloudState::Connected, "a request was answered".into()),
        }
    }

    /// Probes until one is answered. Nobody waits for these, so on a slow link each may take its time; but a new one
    /// begins at every pause, since an older one may hang in a link that was dead when it began.
    async fn disconnected(&self) -> (CloudState, String) {
        let mut probes = FuturesUnordered::new();
        let mut pause = BACKOFF.0;
        loop {
            let pausing = tokio::time::sleep(pause.mul_f64(0.75 + jitter() / 4.0));
            tokio::pin!(pausing);
            loop {
                tokio::select! {
                    () = &mut pausing => break,
                    Some::<Result<(), ProbeError>>(answered) = probes.next() => if answered.is_ok() {
                        return (CloudState::Recovering, "the probe was answered".into());
                    },
                }
            }
            if probes.len() < PROBES {
                probes.push(Box::pin(self.timed(self.upstreams.probe(), DIAL_TIMEOUT)));
            }
            pause = (pause * 2).min(BACKOFF.1);
        }
    }

    async fn recovering(&self) -> (CloudState, String) {
        for _ in 1..self.config.healthy_threshold {
            if let Err(error) = self.probe().await {
                return (CloudState::Disconnected, error.to_string());
            }
        }
        (CloudState::Connected, "the probes were answered".into())
    }

    async fn probe(&self) -> Result<(), ProbeError> {
        self.timed(self.upstreams.probe(), self.config.probe_timeout).await
    }

    async fn timed(
        &self,
        probe: impl Future<Output = Result<(), ProbeError>>,
        timeout: Duration,
    ) -> Result<(), ProbeError> {
        tokio::time::timeout(timeout, probe).await.unwrap_or(Err(ProbeError::Timeout(timeout)))
    }
}

/// A number in 0..1, so that a fleet of nodes does not knock in step.
fn jitter() -> f64 {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health() -> Health {
        Health {
            state: watch::Sender::new(CloudState::Connected),
            signals: mpsc::channel(1).0,
            decided: watch::Sender::new(true),
            latency: AtomicU64::new(0),
            heard: Notify::new(),
        }
    }

    #[test]
    fn i11_patience_follows_the_usual_latency_within_its_bounds() {
        let health = health();
        assert_eq!(health.patience(), PATIENCE.0);
        for _ in 0..64 {
            health.answered(Duration::from_millis(80));
        }
        let patience = health.patience();
        assert!(
            patience > Duration::from_millis(450) && patience < Duration::from_millis(500),
            "{patience:?}"
        );
        for _ in 0..64 {
            health.answered(Duration::from_secs(5));
        }
        assert_eq!(health.patience(), PATIENCE.1);
    }
}
