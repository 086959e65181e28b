//! Decides on [`CloudState`], in one task, and closes connections that lead nowhere.
//!
//! ```text
//! Connected ──a request failed──▶ Suspect ──fallback timeout in silence──▶ Silent
//!   │  ▲ └──────fallback timeout in silence──────────────────────────────────▲ │
//!   │  └─────a response, to the probe or to any request──── Suspect, Silent ◀──┘
//!   └────the probe failed────▶ Disconnected ◀──the probe failed──┘
//!                                   └──a probe succeeded──▶ Recovering ──another──▶ Connected
//! ```

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::activity::LinkActivity;
use super::probe::ProbeError;
use super::{CloudState, Health, Signal};
use crate::cloud::dial::DIAL_TIMEOUT;
use crate::config::CloudConfig;
use crate::telemetry::Metrics;

/// First and longest pause between probes while disconnected. A cloud that is back must be used again
/// within five seconds.
const MIN_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_millis(2500);
/// Probes under way at once while disconnected.
const MAX_PROBES: usize = 4;
/// Silence that fails a probe, in round trips: TCP and TLS take one each, and one is to spare.
const PROBE_ROUND_TRIPS: u32 = 3;
/// Longest silence that a probe is allowed on a long link.
const MAX_PROBE_SILENCE: Duration = Duration::from_secs(10);
/// Longest time of a probe, however much is read meanwhile. On a congested link answers come late, but
/// bytes that lay in buffers are no sign of life for ever.
const MAX_PROBE_TIME: Duration = Duration::from_secs(30);
/// Probe intervals after which a probe is sent though others are heard from, so that the server doesn't
/// close the kept connection as idle.
const KEEP_ALIVE_INTERVALS: u32 = 3;
/// Pause before the next attempt when this node lacks something for a probe.
const LOCAL_RETRY_PAUSE: Duration = Duration::from_millis(250);

/// The link to the API server, as far as the state depends on it.
pub(crate) trait Link: Send + Sync + 'static {
    /// Probes on the kept connection; `None` if there is none, or it had been closed.
    fn probe_kept(&self) -> impl Future<Output = Option<Result<(), ProbeError>>> + Send;
    /// Probes on a new connection.
    fn probe_new(&self) -> impl Future<Output = Result<(), ProbeError>> + Send;
    /// Waits until a shared connection has ended, in whatever way.
    fn connection_ended(&self) -> impl Future<Output = ()> + Send;
    /// Keeps new requests off the connections of now; those that run go on.
    fn retire_all(&self);
    fn close_all(&self);
}

/// A new state, and the reason for the log.
struct Transition {
    to: CloudState,
    reason: String,
}

impl Transition {
    fn new(to: CloudState, reason: impl Into<String>) -> Self {
        Self {
            to,
            reason: reason.into(),
        }
    }
}

pub(super) struct HealthMonitor<L> {
    config: CloudConfig,
    link: Arc<L>,
    health: Arc<Health>,
    signals: mpsc::Receiver<Signal>,
    metrics: Arc<Metrics>,
    last_probe: Instant,
}

impl<L: Link> HealthMonitor<L> {
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
            last_probe: Instant::now(),
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let Transition { to, reason } = self.next_transition().await;
            self.enter(to, &reason);
            self.health.known.store(true, Ordering::Relaxed);
        }
    }

    async fn next_transition(&mut self) -> Transition {
        match self.health.state() {
            CloudState::Connected => self.watch_connected().await,
            CloudState::Suspect | CloudState::Silent => self.probe_once().await,
            CloudState::Disconnected => self.probe_until_success().await,
            CloudState::Recovering => self.confirm_recovery().await,
        }
    }

    fn enter(&self, to: CloudState, reason: &str) {
        let from = self.health.state();
        if from == to {
            return;
        }
        self.log(from, to, reason);
        self.metrics.cloud_state(from.as_str(), to.as_str());
        self.health.set_state(to);
        if to == CloudState::Disconnected {
            // After the state, so that a request that loses its stream by this turns to the store.
            self.link.close_all();
        }
    }

    fn log(&self, from: CloudState, to: CloudState, reason: &str) {
        let is_back = !from.awaits_probe() || !self.health.is_known();
        let from = from.as_str();
        match to {
            CloudState::Disconnected => {
                tracing::warn!(from, reason, "the cloud is away: answering from the store");
            }
            CloudState::Connected if is_back => {
                tracing::info!(from, reason, "connected to the cloud")
            }
            _ => tracing::debug!(from, to = to.as_str(), reason, "cloud state"),
        }
    }

    /// Waits for a reason to probe: a signal, a connection that ends, or an interval of silence.
    async fn watch_connected(&mut self) -> Transition {
        let interval = self.jittered_interval();
        tokio::select! {
            Some(signal) = self.signals.recv() => self.handle_signal(signal),
            () = self.link.connection_ended() => {}
            () = until_quiet(&self.health.activity, interval, self.last_probe) => {}
        }
        self.probe_once().await
    }

    /// Never longer than the interval, so that a dead link is noticed within it and one probe.
    fn jittered_interval(&self) -> Duration {
        self.config.probe_interval.mul_f64(0.8 + jitter() / 5.0)
    }

    fn handle_signal(&self, signal: Signal) {
        let connected = self.health.state() == CloudState::Connected;
        match signal {
            Signal::Refused | Signal::Failed if connected => {
                self.enter(CloudState::Suspect, "a request failed");
            }
            Signal::Silent if !self.was_read_since_signal() => {
                self.enter(CloudState::Silent, "a request met silence");
            }
            Signal::Waiting | Signal::Refused | Signal::Failed | Signal::Silent => {}
        }
    }

    /// Bytes that arrived after [`Signal::Silent`] was sent outweigh it.
    fn was_read_since_signal(&self) -> bool {
        let silence = self.health.activity.last_read().elapsed();
        silence < self.health.fallback_timeout() / 2
    }

    /// Probes once. Meanwhile a response to any request counts as much as the probe's.
    async fn probe_once(&mut self) -> Transition {
        self.last_probe = Instant::now();
        let (link, health) = (Arc::clone(&self.link), Arc::clone(&self.health));
        let responses = health.responses();
        let mut probe = pin!(probe(&*link, &health, self.config.probe_timeout));
        let result = loop {
            tokio::select! {
                biased;
                result = &mut probe => break result,
                () = health.response_seen.notified() => self.handle_response(),
                Some(signal) = self.signals.recv() => self.handle_signal(signal),
            }
        };
        match result {
            Ok(()) => self.probe_succeeded(),
            Err(error) if error.is_local() => retry_locally(health.state(), &error).await,
            Err(error) => Transition::new(self.state_after_failure(responses), error.to_string()),
        }
    }

    /// A failed probe is ignored if requests were answered meanwhile; `responses` is their number
    /// from before it.
    fn state_after_failure(&self, responses: u64) -> CloudState {
        if self.health.responses() == responses {
            CloudState::Disconnected
        } else {
            CloudState::Connected
        }
    }

    fn handle_response(&self) {
        if self.health.state().awaits_probe() {
            self.enter(CloudState::Connected, "a request was answered");
        }
    }

    fn probe_succeeded(&mut self) -> Transition {
        if self.health.state() == CloudState::Silent {
            // The connections in use have been silent meanwhile.
            self.link.retire_all();
        }
        self.discard_signals();
        Transition::new(CloudState::Connected, "the probe was answered")
    }

    /// Probes until one succeeds. Nobody waits for these, so on a slow link each may take its time. But
    /// each pause begins a new one: an older one may hang in a link that was dead when it began.
    async fn probe_until_success(&self) -> Transition {
        let mut probes = FuturesUnordered::new();
        let mut backoff = MIN_BACKOFF;
        loop {
            let mut pause = pin!(sleep(jittered_backoff(backoff)));
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    Some(result) = probes.next() => if let Ok(Ok(())) = result {
                        return Transition::new(CloudState::Recovering, "the probe was answered");
                    },
                }
            }
            if probes.len() < MAX_PROBES {
                probes.push(Box::pin(timeout(DIAL_TIMEOUT, self.link.probe_new())));
            }
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    /// Probes until `healthy_threshold` probes in a row have succeeded, the first one of which was seen
    /// while disconnected.
    async fn confirm_recovery(&mut self) -> Transition {
        for _ in 1..self.config.healthy_threshold {
            match probe(&*self.link, &self.health, self.config.probe_timeout).await {
                Ok(()) => {}
                Err(error) if error.is_local() => {
                    return retry_locally(CloudState::Recovering, &error).await;
                }
                Err(error) => return Transition::new(CloudState::Disconnected, error.to_string()),
            }
        }
        self.discard_signals();
        Transition::new(CloudState::Connected, "the probes were answered")
    }

    /// Signals from before a successful probe must not count against the cloud.
    fn discard_signals(&mut self) {
        while self.signals.try_recv().is_ok() {}
    }
}

/// Stays in a state after a probe that this node could not send, which is no failure of the cloud.
async fn retry_locally(state: CloudState, error: &ProbeError) -> Transition {
    tracing::warn!(%error, "no probe can be sent");
    sleep(LOCAL_RETRY_PAUSE).await;
    Transition::new(state, "")
}

/// Waits until nothing has been read for an interval since the last probe, or for as long as the kept
/// connection may be idle.
async fn until_quiet(activity: &LinkActivity, interval: Duration, last_probe: Instant) {
    loop {
        let quiet = activity.last_read().max(last_probe) + interval;
        let due = quiet.min(last_probe + interval * KEEP_ALIVE_INTERVALS);
        if Instant::now() >= due {
            return;
        }
        sleep_until(due).await;
    }
}

/// One probe. It fails once nothing has been read for as long as [`until_probe_fails`] allows.
async fn probe<L: Link>(link: &L, health: &Health, timeout: Duration) -> Result<(), ProbeError> {
    tokio::select! {
        biased;
        result = probe_kept_or_new(link, health.fallback_timeout()) => result,
        silence = until_probe_fails(&health.activity, timeout) => Err(ProbeError::Timeout(silence)),
    }
}

/// Waits until nothing has been read for `timeout`, or longer on a long link, and returns that time.
async fn until_probe_fails(activity: &LinkActivity, timeout: Duration) -> Duration {
    let began = Instant::now();
    loop {
        let needed = activity.round_trip() * PROBE_ROUND_TRIPS;
        let allowed = needed.clamp(timeout, MAX_PROBE_SILENCE.max(timeout));
        let due = (activity.last_read().max(began) + allowed).min(began + MAX_PROBE_TIME);
        if Instant::now() >= due {
            return allowed;
        }
        sleep_until(due).await;
    }
}

/// Probes on the kept connection, and on a new one besides if that stays silent for `hedge_after`: it
/// may be dead by itself (a NAT entry that has gone, a server behind a load balancer that is gone).
async fn probe_kept_or_new<L: Link>(link: &L, hedge_after: Duration) -> Result<(), ProbeError> {
    let mut kept = pin!(link.probe_kept());
    let is_pending = match timeout(hedge_after, &mut kept).await {
        Ok(Some(result)) => return result,
        Ok(None) => false,
        Err(_) => true,
    };
    tokio::select! {
        Some(result) = &mut kept, if is_pending => result,
        result = link.probe_new() => result,
    }
}

/// Between three quarters of it and all of it.
fn jittered_backoff(backoff: Duration) -> Duration {
    backoff.mul_f64(0.75 + jitter() / 4.0)
}

/// A random number in 0..=1, so that a fleet of nodes doesn't probe in step.
fn jitter() -> f64 {
    let mut byte = [0];
    let _ = aws_lc_rs::rand::fill(&mut byte);
    f64::from(byte[0]) / 255.0
}

#[cfg(test)]
mod tests;
