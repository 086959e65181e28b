//! Is the cloud there? One state, decided in one place ([`monitor`]). In: signals from requests. Out: a `watch`
//! channel of [`CloudState`], and how long a request may be left in silence (I11).
//!
//! A request that takes long says nothing of the cloud: only silence does, and only after a question. So who waits asks
//! for a sign of life (a probe, on a connection that is kept open for it) in time for the answer to come before patience
//! ends. Whatever is heard from the cloud meanwhile, by anybody, is such a sign.

pub(crate) mod activity;
pub(crate) mod monitor;
pub(crate) mod probe;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::CloudConfig;
use crate::telemetry::Metrics;
use activity::{Heard, Line};
use monitor::{Judge, Link};

/// Signals that wait to be looked at; more of the same tell nothing new.
const SIGNALS: usize = 16;
/// Shortest and longest patience with silence.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(1));
/// Patience in round trips; the second holds where a way is so long that the longest patience is less.
const ROUND_TRIPS: (u32, u32) = (6, 2);
/// Silence of one connection on which a request waits, while others are heard, before new requests are kept off it.
const ALONE: Duration = Duration::from_secs(2);
/// Pause between the questions to which answers in the server's stead lead.
const IN_ITS_STEAD: Duration = Duration::from_secs(1);
/// Time in which this process reads what has come already.
const TURN: Duration = Duration::from_millis(10);

/// What the cloud is to this node now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CloudState {
    Connected,
    /// A request failed (or hublet has just started): a probe is under way.
    Suspect,
    /// Somebody's patience has ended without a sign of life: a probe is under way.
    Silent,
    /// It does not answer.
    Disconnected,
    /// It has answered again, once.
    Recovering,
}

impl CloudState {
    /// For metrics and the log.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::Suspect => "suspect",
            Self::Silent => "silent",
            Self::Disconnected => "disconnected",
            Self::Recovering => "recovering",
        }
    }

    /// A probe that is under way decides what comes next.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Suspect | Self::Silent)
    }
}

/// What a request tells of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signal {
    /// The connection was refused: nobody is there.
    Refused,
    /// It failed otherwise: unreachable, TLS, reset.
    Failed,
    /// It waits, and would like a sign of life.
    Waiting,
    /// There was none within its patience.
    Silent,
}

/// The state, and where signals go.
#[derive(Debug)]
pub(crate) struct Health {
    pub(super) state: watch::Sender<CloudState>,
    signals: mpsc::Sender<Signal>,
    pub(super) decided: watch::Sender<bool>,
    /// Usual time to an answer's head, in microseconds.
    latency: AtomicU64,
    /// Heads of answers, since the start.
    heads: AtomicU64,
    /// An answer's head has come.
    pub(super) answered: Notify,
    /// When one that may have come from somebody else led to a question.
    in_its_stead: Mutex<Option<Instant>>,
    pub(super) heard: Arc<Heard>,
}

impl Health {
    /// Starts the task that decides.
    pub(crate) fn start<L: Link>(
        config: &CloudConfig,
        link: Arc<L>,
        heard: &Arc<Heard>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let (signals, received) = mpsc::channel(SIGNALS);
        let health = Arc::new(Self::new(signals, Arc::clone(heard)));
        tokio::spawn(Judge::new(config, link, Arc::clone(&health), received, metrics).run());
        health
    }

    fn new(signals: mpsc::Sender<Signal>, heard: Arc<Heard>) -> Self {
        Self {
            state: watch::Sender::new(CloudState::Suspect),
            signals,
            decided: watch::Sender::new(false),
            latency: AtomicU64::new(0),
            heads: AtomicU64::new(0),
            answered: Notify::new(),
            in_its_stead: Mutex::default(),
            heard,
        }
    }

    pub(crate) fn state(&self) -> CloudState {
        *self.state.borrow()
    }

    /// The state once no probe is to decide any more.
    pub(crate) async fn judged(&self) -> CloudState {
        let mut state = self.state.subscribe();
        // The sender lives as long as we do.
        state
            .wait_for(|s| !s.is_open())
            .await
            .map_or(CloudState::Disconnected, |s| *s)
    }

    /// Waits until the cloud is found to be away, from now on.
    pub(crate) async fn away(&self) {
        // The sender lives as long as we do.
        let _ = self
            .state
            .subscribe()
            .wait_for(|s| *s == CloudState::Disconnected)
            .await;
    }

    /// To be told of changes.
    pub(crate) fn subscribe(&self) -> watch::Receiver<CloudState> {
        self.state.subscribe()
    }

    /// The first probe after the start has been judged.
    pub(crate) fn is_decided(&self) -> bool {
        *self.decided.borrow()
    }

    /// A request has met this.
    pub(crate) fn signal(&self, signal: Signal) {
        // A full queue already holds enough to look.
        let _ = self.signals.try_send(signal);
    }

    /// An answer's head came, of this status, after this time. A 502, 503 or 504 may be of what stands before a dead server:
    /// it is no sign of the server, which is asked for one.
    pub(crate) fn head(&self, status: StatusCode, after: Duration) {
        match status {
            StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT => {
                let mut asked = self.in_its_stead.lock();
                if asked.is_none_or(|at| at.elapsed() >= IN_ITS_STEAD) {
                    *asked = Some(Instant::now());
                    self.signal(Signal::Waiting);
                }
            }
            _ => self.answered(after),
        }
    }

    /// The server's answer began after this time.
    pub(super) fn answered(&self, after: Duration) {
        let micros = u64::try_from(after.as_micros())
            .unwrap_or(u64::MAX)
            .min(60_000_000);
        let before = self.latency.load(Ordering::Relaxed);
        let usual = if before == 0 {
            micros
        } else {
            (before * 7 + micros) / 8
        };
        self.latency.store(usual.max(1), Ordering::Relaxed);
        self.heard.took_at_most(after);
        self.heads.fetch_add(1, Ordering::Relaxed);
        self.answered.notify_waiters();
    }

    /// Heads of answers that have come since the start.
    pub(super) fn heads(&self) -> u64 {
        self.heads.load(Ordering::Relaxed)
    }

    /// How long a request may be left in silence.
    pub(crate) fn patience(&self) -> Duration {
        let round_trip = self.heard.round_trip();
        (round_trip * ROUND_TRIPS.0).clamp(PATIENCE.0, PATIENCE.1.max(round_trip * ROUND_TRIPS.1))
    }

    /// Patience of one that has been kept waiting so long already: the signs of life until then allow for more, and
    /// questions become fewer.
    fn patience_after(&self, waited: Duration) -> Duration {
        self.patience().max(waited.min(PATIENCE.1))
    }

    /// How long before the end of patience a question must be asked for its answer to come in time.
    fn lead(&self, patience: Duration) -> Duration {
        (patience / 2)
            .max(self.heard.round_trip() * 3 / 2)
            .min(patience)
    }

    /// Waits until nothing has been heard for as long as patience lasts, from now on, in spite of a question.
    async fn silence(&self) {
        let began = Instant::now();
        let mut asked = None;
        loop {
            let heard = self.heard.last().max(began);
            let patience = self.patience_after(heard - began);
            let lead = self.lead(patience);
            match asked {
                Some(at) if at >= heard => {
                    sleep_until(at + lead - TURN).await;
                    // This process may have stood still: what has come meanwhile is read first.
                    sleep(TURN).await;
                    if self.heard.last() <= at {
                        return;
                    }
                }
                _ if Instant::now() >= heard + (patience - lead) => {
                    self.signal(Signal::Waiting);
                    asked = Some(Instant::now());
                }
                _ => sleep_until(heard + (patience - lead)).await,
            }
        }
    }

    /// The result of a request, or `None` once silence has outlasted patience.
    pub(crate) async fn while_heard<T>(&self, answer: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            answer = answer => Some(answer),
            () = self.silence() => {
                self.signal(Signal::Silent);
                None
            }
        }
    }

    /// The result of a request that only the cloud can answer. While it waits in silence, the cloud is asked for a sign
    /// of life, so that the state tells when waiting is in vain.
    pub(crate) async fn attended<T>(&self, answer: impl Future<Output = T>) -> T {
        let mut answer = std::pin::pin!(answer);
        loop {
            if let Some(answer) = self.while_heard(&mut answer).await {
                return answer;
            }
        }
    }

    /// Waits until nothing has come on one connection for some time, from now on, while the cloud was heard on others.
    pub(crate) async fn alone(&self, line: &Line) {
        let began = Instant::now();
        loop {
            let silence = ALONE.max(self.heard.round_trip() * 3);
            let (heard, due) = (line.last(), line.last().max(began) + silence);
            if Instant::now() < due {
                sleep_until(due).await;
            } else if self.heard.last() > heard.max(began) {
                return;
            } else {
                sleep(silence).await;
            }
        }
    }

    /// The usual latency, for status.
    pub(crate) fn latency(&self) -> Duration {
        Duration::from_micros(self.latency.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn health() -> (Health, mpsc::Receiver<Signal>) {
        let (signals, received) = mpsc::channel(SIGNALS);
        (Health::new(signals, Arc::default()), received)
    }

    #[test]
    fn i11_patience_follows_the_round_trip_within_its_bounds() {
        for (round_trip, patience) in [
            (0, 250),
            (10, 250),
            (80, 480),
            (300, 1000),
            (700, 1400),
            (9000, 4000),
        ] {
            let (health, _) = health();
            health.heard.took(MS * round_trip);
            assert_eq!(health.patience(), MS * patience, "{round_trip} ms");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn i11_silence_ends_patience_after_a_question() {
        let (health, mut signals) = health();
        let began = Instant::now();
        let answer = health.while_heard(std::future::pending::<()>()).await;
        assert_eq!((answer, began.elapsed()), (None, PATIENCE.0));
        assert_eq!(signals.try_recv(), Ok(Signal::Waiting));
        assert_eq!(signals.try_recv(), Ok(Signal::Silent));
    }

    #[tokio::test(start_paused = true)]
    async fn i11_a_slow_answer_is_waited_for_while_anything_is_heard() {
        for round_trip in [1, 80, 700] {
            let (health, mut signals) = health();
            health.heard.took(MS * round_trip);
            let slow = sleep(Duration::from_secs(30));
            let probe = async {
                let mut questions = 0;
                while let Some(Signal::Waiting) = signals.recv().await {
                    questions += 1;
                    sleep(MS * round_trip).await;
                    health.heard.note();
                    assert!(questions < 70, "few questions");
                }
            };
            tokio::select! {
                answer = health.while_heard(slow) => assert_eq!(answer, Some(()), "{round_trip} ms"),
                () = probe => panic!("silence, though every question was answered after {round_trip} ms"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_connection_is_left_only_while_others_are_heard() {
        let (health, _) = health();
        let long = Duration::from_secs(60);
        let line = Line::default();
        let left = |line| tokio::time::timeout(long, health.alone(line));
        assert!(
            left(&line).await.is_err(),
            "nobody is heard: that is the link"
        );
        let others = async {
            loop {
                sleep(MS * 500).await;
                health.heard.note();
            }
        };
        let began = Instant::now();
        tokio::select! {
            left = left(&line) => assert!(left.is_ok() && began.elapsed() == ALONE, "{:?}", began.elapsed()),
            () = others => {}
        }
    }
}
