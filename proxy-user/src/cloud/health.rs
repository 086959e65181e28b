//! The reachability of the API server: one state, decided in one task ([`monitor`]) from the signals of
//! requests and the results of probes.
//!
//! A slow request is no sign that the cloud is away; only silence is, and only in spite of a probe. So a
//! waiting request triggers a probe early enough for its answer to arrive before the fallback timeout
//! (I11). Any byte read from the server meanwhile, on any connection, counts as a sign of life.

pub(crate) mod activity;
pub(crate) mod monitor;
pub(crate) mod probe;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use self::activity::{ConnectionActivity, LinkActivity};
use self::monitor::{HealthMonitor, Link};
use crate::config::CloudConfig;
use crate::telemetry::Metrics;

/// Capacity of the signal queue. Overflow is dropped: one signal is enough to trigger a probe.
const MAX_SIGNALS: usize = 16;
/// Bounds of the fallback timeout.
const MIN_FALLBACK_TIMEOUT: Duration = Duration::from_millis(250);
const MAX_FALLBACK_TIMEOUT: Duration = Duration::from_secs(1);
/// The fallback timeout in round trips, within its bounds.
const FALLBACK_ROUND_TRIPS: u32 = 6;
/// The least fallback timeout in round trips, which raises the upper bound on a long link.
const MIN_FALLBACK_ROUND_TRIPS: u32 = 2;
/// Silence of one connection, while others are heard from, before new requests are kept off it.
const CONNECTION_SILENCE: Duration = Duration::from_secs(2);
/// Least time between two probes that gateway errors trigger.
const GATEWAY_PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Time for this process to read what has already arrived.
const READ_GRACE: Duration = Duration::from_millis(10);
/// Latencies that are longer count as this long.
const MAX_LATENCY: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CloudState {
    Connected,
    /// A request failed, or hublet has just started: a probe is under way.
    Suspect,
    /// A request's fallback timeout has passed in silence: a probe is under way.
    Silent,
    Disconnected,
    /// It has answered one probe since it was disconnected.
    Recovering,
}

impl CloudState {
    /// The value of the metric's label and of log fields.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Suspect => "suspect",
            Self::Silent => "silent",
            Self::Disconnected => "disconnected",
            Self::Recovering => "recovering",
        }
    }

    /// The probe under way decides on the next state.
    pub(crate) fn awaits_probe(self) -> bool {
        matches!(self, Self::Suspect | Self::Silent)
    }
}

/// An event of a request that bears on the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The connection was refused.
    Refused,
    /// It failed otherwise: unreachable, TLS, reset.
    Failed,
    /// It waits in silence: a probe is due.
    Waiting,
    /// Its fallback timeout has passed in silence.
    Silent,
}

/// The state, shared by all requests.
#[derive(Debug)]
pub(crate) struct Health {
    state: watch::Sender<CloudState>,
    connected: watch::Sender<bool>,
    signals: mpsc::Sender<Signal>,
    known: AtomicBool,
    /// The state is the last one.
    has_ended: AtomicBool,
    /// Smoothed time to the head of a response, in microseconds.
    latency: AtomicU64,
    /// Responses of the server since the start.
    responses: AtomicU64,
    response_seen: Notify,
    last_gateway_probe: Mutex<Option<Instant>>,
    activity: Arc<LinkActivity>,
}

impl Health {
    /// Starts the monitor's task.
    pub(crate) fn start<L: Link>(
        config: &CloudConfig,
        link: Arc<L>,
        activity: &Arc<LinkActivity>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (sender, signals) = mpsc::channel(MAX_SIGNALS);
        let health = Arc::new(Self::new(sender, Arc::clone(activity)));
        let monitor = HealthMonitor::new(config, link, Arc::clone(&health), signals, metrics);
        tokio::spawn(monitor.run());
        health
    }

    fn new(signals: mpsc::Sender<Signal>, activity: Arc<LinkActivity>) -> Self {
        Self {
            state: watch::Sender::new(CloudState::Suspect),
            connected: watch::Sender::new(false),
            signals,
            known: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            latency: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            response_seen: Notify::new(),
            last_gateway_probe: Mutex::default(),
            activity,
        }
    }

    /// A state that no monitor decides on, for tests of requests.
    #[cfg(test)]
    pub(crate) fn in_state(state: CloudState) -> Arc<Self> {
        let (signals, _) = mpsc::channel(MAX_SIGNALS);
        let health = Self::new(signals, Arc::default());
        health.set_state(state);
        Arc::new(health)
    }

    #[cfg(test)]
    pub(crate) fn enter(&self, state: CloudState) {
        self.set_state(state);
    }

    pub(crate) fn state(&self) -> CloudState {
        *self.state.borrow()
    }

    /// The state once no probe is to decide on it any more.
    pub(crate) async fn settled(&self) -> CloudState {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| !state.awaits_probe()).await;
        // The channel is open: its sender is `self`.
        settled.map_or(CloudState::Disconnected, |state| *state)
    }

    /// Waits until the cloud is disconnected; done at once if it is.
    pub(crate) async fn until_disconnected(&self) {
        let mut state = self.state.subscribe();
        // The channel is open: its sender is `self`.
        let _ = state.wait_for(|s| *s == CloudState::Disconnected).await;
    }

    fn set_state(&self, state: CloudState) {
        let is_set = self.state.send_if_modified(|current| {
            // Within the channel's lock, so that none follows the last state.
            let may_change = !self.has_ended.load(Ordering::Relaxed);
            if may_change {
                *current = state;
            }
            may_change
        });
        if is_set {
            self.connected.send_replace(state == CloudState::Connected);
        }
    }

    /// Disconnects for good: requests that wait for the cloud are answered without it.
    pub(crate) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
        self.state.send_replace(CloudState::Disconnected);
    }

    /// True while the state is [`CloudState::Connected`].
    pub(crate) fn subscribe_connected(&self) -> watch::Receiver<bool> {
        self.connected.subscribe()
    }

    #[cfg(test)]
    pub(crate) fn subscribe(&self) -> watch::Receiver<CloudState> {
        self.state.subscribe()
    }

    /// The first probe since the start has ended.
    pub(crate) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // A full queue triggers a probe as well.
        let _ = self.signals.try_send(signal);
    }

    /// Records the head of a response. A 502, 503 or 504 may come from a gateway in front of a dead
    /// server: it is no sign of life, and triggers a probe.
    pub(crate) fn record_response(&self, status: StatusCode, latency: Duration) {
        match status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => self.probe_behind_gateway(),
            _ => self.record_latency(latency),
        }
    }

    fn probe_behind_gateway(&self) {
        let mut last = self.last_gateway_probe.lock();
        if last.is_none_or(|at| at.elapsed() >= GATEWAY_PROBE_INTERVAL) {
            *last = Some(Instant::now());
            self.signal(Signal::Waiting);
        }
    }

    /// Records a response of the server itself.
    fn record_latency(&self, latency: Duration) {
        let sample = latency.min(MAX_LATENCY).as_micros() as u64;
        let smoothed = match self.latency.load(Ordering::Relaxed) {
            0 => sample,
            before => (before * 7 + sample) / 8,
        };
        self.latency.store(smoothed.max(1), Ordering::Relaxed);
        self.activity.record_latency(latency);
        self.responses.fetch_add(1, Ordering::Relaxed);
        self.response_seen.notify_waiters();
    }

    fn responses(&self) -> u64 {
        self.responses.load(Ordering::Relaxed)
    }

    /// Smoothed time to the head of a response.
    pub(crate) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }

    /// Silence after which a read is answered from the store.
    pub(crate) fn fallback_timeout(&self) -> Duration {
        let round_trip = self.activity.round_trip();
        let max = MAX_FALLBACK_TIMEOUT.max(round_trip * MIN_FALLBACK_ROUND_TRIPS);
        (round_trip * FALLBACK_ROUND_TRIPS).clamp(MIN_FALLBACK_TIMEOUT, max)
    }

    /// The fallback timeout of a request that has been waiting with signs of life. They allow for a
    /// longer one, so that a long wait needs few probes.
    fn fallback_timeout_after(&self, waited: Duration) -> Duration {
        self.fallback_timeout()
            .max(waited.min(MAX_FALLBACK_TIMEOUT))
    }

    /// Time before the fallback timeout at which to trigger a probe, for its answer to arrive in time.
    fn probe_lead(&self, timeout: Duration) -> Duration {
        let answer_time = self.activity.round_trip() * 3 / 2;
        answer_time.max(timeout / 2).min(timeout)
    }

    /// Waits until nothing has been read for a fallback timeout, from now on, in spite of a probe.
    async fn until_silent(&self) {
        let began = Instant::now();
        let mut probe_requested: Option<Instant> = None;
        loop {
            let last_read = self.activity.last_read().max(began);
            let timeout = self.fallback_timeout_after(last_read - began);
            let lead = self.probe_lead(timeout);
            let probe_due = last_read + (timeout - lead);
            match probe_requested {
                Some(requested) if requested >= last_read => {
                    sleep_until(requested + lead - READ_GRACE).await;
                    // This process may have been stopped: let it read what has arrived meanwhile.
                    sleep(READ_GRACE).await;
                    if self.activity.last_read() <= requested {
                        return;
                    }
                }
                _ if Instant::now() >= probe_due => {
                    self.signal(Signal::Waiting);
                    probe_requested = Some(Instant::now());
                }
                _ => sleep_until(probe_due).await,
            }
        }
    }

    /// The result of a request, or `None` once the fallback timeout has passed in silence.
    pub(crate) async fn unless_silent<T>(&self, request: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            result = request => Some(result),
            () = self.until_silent() => {
                self.signal(Signal::Silent);
                None
            }
        }
    }

    /// The result of a request that only the cloud can answer. While it waits in silence, the cloud is
    /// probed, so that the state tells when waiting is in vain. The request is pinned by its caller: moved
    /// in here, a future of kilobytes would be held twice.
    pub(crate) async fn probe_while_silent<T>(
        &self,
        mut request: Pin<&mut impl Future<Output = T>>,
    ) -> T {
        loop {
            if let Some(result) = self.unless_silent(request.as_mut()).await {
                return result;
            }
        }
    }

    /// Waits until one connection has been silent for some time, from now on, while others were not.
    pub(crate) async fn until_silent_alone(&self, connection: &ConnectionActivity) {
        let began = Instant::now();
        loop {
            let silence = CONNECTION_SILENCE.max(self.activity.round_trip() * 3);
            let last_read = connection.last_read().max(began);
            if Instant::now() < last_read + silence {
                sleep_until(last_read + silence).await;
            } else if self.activity.last_read() > last_read {
                return;
            } else {
                sleep(silence).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn health() -> (Health, mpsc::Receiver<Signal>) {
        let (signals, received) = mpsc::channel(MAX_SIGNALS);
        (Health::new(signals, Arc::default()), received)
    }

    #[test]
    fn i11_the_fallback_timeout_follows_the_round_trip_within_its_bounds() {
        for (round_trip, timeout) in [
            (0, 250),
            (10, 250),
            (80, 480),
            (300, 1000),
            (700, 1400),
            (9000, 4000),
        ] {
            let (health, _) = health();
            health.activity.record_round_trip(MS * round_trip);
            assert_eq!(health.fallback_timeout(), MS * timeout, "{round_trip} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i11_a_request_falls_back_after_silence_in_spite_of_a_probe() {
        let (health, mut signals) = health();
        let began = Instant::now();
        let answer = health.unless_silent(std::future::pending::<()>()).await;
        assert_eq!((answer, began.elapsed()), (None, MIN_FALLBACK_TIMEOUT));
        assert_eq!(signals.try_recv(), Ok(Signal::Waiting));
        assert_eq!(signals.try_recv(), Ok(Signal::Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn i11_a_slow_response_is_waited_for_while_anything_is_read() {
        for round_trip in [1, 80, 700] {
            let (health, mut signals) = health();
            health.activity.record_round_trip(MS * round_trip);
            let slow = sleep(Duration::from_secs(30));
            let probe = async {
                let mut probes = 0;
                while let Some(Signal::Waiting) = signals.recv().await {
                    probes += 1;
                    sleep(MS * round_trip).await;
                    health.activity.record_read();
                    assert!(probes < 70, "few probes");
                }
            };
            tokio::select! {
                answer = health.unless_silent(slow) => assert_eq!(answer, Some(()), "{round_trip} ms"),
                () = probe => panic!("silence, though every probe was answered after {round_trip} ms"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_state_follows_the_end() {
        let (health, _) = health();
        health.set_state(CloudState::Connected);
        let waiting = health.until_disconnected();
        let (_, ()) = tokio::join!(waiting, async { health.end() });
        health.set_state(CloudState::Connected);
        assert_eq!(health.state(), CloudState::Disconnected);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_avoided_only_while_others_are_heard_from() {
        let (health, _) = health();
        let long = Duration::from_secs(60);
        let connection = ConnectionActivity::default();
        let left = |connection| tokio::time::timeout(long, health.until_silent_alone(connection));
        assert!(
            left(&connection).await.is_err(),
            "none is heard from: that is the link"
        );
        let others = async {
            loop {
                sleep(MS * 500).await;
                health.activity.record_read();
            }
        };
        let began = Instant::now();
        tokio::select! {
            left = left(&connection) => assert!(left.is_ok() && began.elapsed() == CONNECTION_SILENCE, "{:?}", began.elapsed()),
            () = others => {}
        }
    }
}

#[cfg(test)]
#[path = "health/model_tests.rs"]
mod model_tests;
