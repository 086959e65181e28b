//! The state machine over a scripted way to the cloud, in virtual time.

mod latency;
mod outage;
mod probes;
mod recovery;
mod responses;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::watch;

use super::*;
use crate::cloud::dial::DialError;
use crate::config::LbMode;

const MS: Duration = Duration::from_millis(1);
const INTERVAL: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Answers,
    Silent,
    Refuses,
    /// This node has no file descriptor left.
    Lacks,
}

/// A way to a cloud. A new connection takes three round trips, a kept one takes one.
struct Scripted {
    way: watch::Sender<Way>,
    round_trip: AtomicU64,
    kept: AtomicBool,
    activity: Arc<LinkActivity>,
    ended: Notify,
    probes: AtomicUsize,
    closed: AtomicUsize,
    retired: AtomicUsize,
}

impl Scripted {
    /// One way there and back; the rest of a round trip that has begun when the link is cut never comes.
    async fn trip(&self) -> Result<(), ProbeError> {
        let refused = |kind: i32| DialError::Connect {
            address: ([192, 0, 2, 1], 443).into(),
            source: std::io::Error::from_raw_os_error(kind),
        };
        match *self.way.borrow() {
            Way::Refuses => {
                return Err(refused(rustix::io::Errno::CONNREFUSED.raw_os_error()).into());
            }
            Way::Lacks => return Err(refused(rustix::io::Errno::MFILE.raw_os_error()).into()),
            Way::Answers | Way::Silent => {}
        }
        sleep(MS * u32::try_from(self.round_trip.load(Ordering::Relaxed)).unwrap()).await;
        let mut way = self.way.subscribe();
        // Bytes lost in the dead link don't arrive when it is mended.
        if *way.borrow_and_update() != Way::Answers {
            std::future::pending::<()>().await;
        }
        Ok(())
    }
}

impl Link for Scripted {
    async fn probe_kept(&self) -> Option<Result<(), ProbeError>> {
        if !self.kept.swap(false, Ordering::Relaxed) || *self.way.borrow() == Way::Refuses {
            return None;
        }
        self.probes.fetch_add(1, Ordering::Relaxed);
        let asked = Instant::now();
        let answer = self.trip().await;
        self.activity.record_read();
        self.activity.record_round_trip(asked.elapsed());
        self.kept.store(true, Ordering::Relaxed);
        Some(answer)
    }

    async fn probe_new(&self) -> Result<(), ProbeError> {
        self.probes.fetch_add(1, Ordering::Relaxed);
        self.trip().await?;
        self.trip().await?;
        self.activity.record_read();
        let asked = Instant::now();
        self.trip().await?;
        self.activity.record_read();
        self.activity.record_round_trip(asked.elapsed());
        self.kept.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn connection_ended(&self) {
        self.ended.notified().await;
    }

    fn retire_all(&self) {
        self.retired.fetch_add(1, Ordering::Relaxed);
    }

    fn close_all(&self) {
        self.kept.store(false, Ordering::Relaxed);
        self.closed.fetch_add(1, Ordering::Relaxed);
    }
}

struct Site {
    way: Arc<Scripted>,
    health: Arc<Health>,
    began: Instant,
    transitions: Arc<parking_lot::Mutex<Vec<(Duration, CloudState)>>>,
}

impl Site {
    fn start(way: Way, round_trip: u64) -> Self {
        Self::start_with(way, round_trip, 2)
    }

    fn start_with(way: Way, round_trip: u64, healthy_threshold: u32) -> Self {
        let way = Arc::new(Scripted {
            way: watch::Sender::new(way),
            round_trip: AtomicU64::new(round_trip),
            kept: AtomicBool::new(false),
            activity: Arc::default(),
            ended: Notify::new(),
            probes: AtomicUsize::new(0),
            closed: AtomicUsize::new(0),
            retired: AtomicUsize::new(0),
        });
        let config = CloudConfig {
            probe_interval: INTERVAL,
            probe_timeout: TIMEOUT,
            healthy_threshold,
            servers: Vec::new(),
            lb_mode: LbMode::Priority,
            mark: 0,
        };
        let health = Health::start(&config, Arc::clone(&way), &way.activity, Arc::default());
        let (began, transitions) = (Instant::now(), Arc::<parking_lot::Mutex<Vec<_>>>::default());
        let (mut state, seen) = (health.subscribe(), Arc::clone(&transitions));
        tokio::spawn(async move {
            while state.changed().await.is_ok() {
                seen.lock()
                    .push((began.elapsed(), *state.borrow_and_update()));
            }
        });
        Self {
            way,
            health,
            began,
            transitions,
        }
    }

    async fn connected(round_trip: u64) -> Self {
        let site = Self::start(Way::Answers, round_trip);
        site.until(CloudState::Connected, MS * 10_000).await;
        site
    }

    fn set(&self, way: Way) {
        self.way.way.send_replace(way);
    }

    /// Waits for a state, and says how long that took.
    async fn until(&self, wanted: CloudState, within: Duration) -> Duration {
        let began = Instant::now();
        let mut state = self.health.subscribe();
        let reached = timeout(within, state.wait_for(|s| *s == wanted)).await;
        assert!(
            reached.is_ok(),
            "no {wanted:?} within {within:?}: {:?}",
            self.transitions.lock()
        );
        began.elapsed()
    }

    /// A read that the store can answer, and the cloud answers after this time while the way is open.
    async fn read(&self, work: Duration) -> Option<()> {
        let answer = async {
            if self.way.trip().await.is_err() {
                std::future::pending::<()>().await;
            }
            sleep(work).await;
            if *self.way.way.borrow() != Way::Answers {
                std::future::pending::<()>().await;
            }
            self.way.activity.record_read();
            self.health.record_latency(
                work + MS * u32::try_from(self.way.round_trip.load(Ordering::Relaxed)).unwrap(),
            );
        };
        self.health.unless_silent(answer).await
    }

    fn probes(&self) -> usize {
        self.way.probes.load(Ordering::Relaxed)
    }

    fn states(&self) -> Vec<CloudState> {
        self.transitions
            .lock()
            .iter()
            .map(|(_, state)| *state)
            .collect()
    }
}
