//! The state machine over a scripted way to the cloud, in virtual time.

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

#[tokio::test(start_paused = true)]
async fn a_start_with_the_cloud_there_is_connected_after_one_probe() {
    let site = Site::start(Way::Answers, 80);
    assert_eq!(site.health.state(), CloudState::Suspect);
    assert!(!site.health.is_known());
    assert_eq!(site.until(CloudState::Connected, TIMEOUT).await, MS * 240);
}

#[tokio::test(start_paused = true)]
async fn a_refused_connection_is_known_at_once() {
    let site = Site::connected(1).await;
    site.set(Way::Refuses);
    site.health.signal(Signal::Refused);
    assert!(site.until(CloudState::Disconnected, TIMEOUT).await < MS * 10);
    assert_eq!(
        site.way.closed.load(Ordering::Relaxed),
        1,
        "every stream ends"
    );
}

#[tokio::test(start_paused = true)]
async fn one_refused_connection_is_no_verdict_while_the_server_answers() {
    let site = Site::connected(1).await;
    site.health.signal(Signal::Refused);
    site.until(CloudState::Suspect, MS * 100).await;
    site.until(CloudState::Connected, MS * 100).await;
    sleep(MS * 1000).await;
    assert_eq!(
        site.states(),
        [
            CloudState::Connected,
            CloudState::Suspect,
            CloudState::Connected
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn i11_a_black_hole_costs_one_caller_a_quarter_second_and_two_seconds_later_all_ends() {
    let site = Site::connected(1).await;
    site.set(Way::Silent);
    let cut = Instant::now();
    assert_eq!(site.read(Duration::ZERO).await, None);
    assert!(cut.elapsed() <= MS * 251, "{:?}", cut.elapsed());
    site.until(CloudState::Silent, MS * 1).await;
    site.until(CloudState::Disconnected, TIMEOUT).await;
    assert!(cut.elapsed() <= TIMEOUT + MS * 251, "{:?}", cut.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_state_follows_a_black_hole_though_nobody_asks() {
    for _ in 0..20 {
        let site = Site::connected(80).await;
        sleep(INTERVAL * 3).await;
        site.set(Way::Silent);
        site.until(CloudState::Disconnected, INTERVAL + TIMEOUT)
            .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_shared_connection_that_ends_is_a_reason_to_ask() {
    let site = Site::connected(80).await;
    site.set(Way::Refuses);
    site.way.ended.notify_waiters();
    assert!(site.until(CloudState::Disconnected, INTERVAL).await < MS * 10);
}

#[tokio::test(start_paused = true)]
async fn i11_slow_answers_change_nothing_while_the_cloud_is_heard() {
    for round_trip in [1, 80, 300, 700, 1300] {
        let site = Site::connected(round_trip).await;
        let before = site.states().len();
        for work in [0, 300, 900, 3_000, 30_000] {
            assert_eq!(
                site.read(MS * work).await,
                Some(()),
                "{round_trip} ms away, {work} ms of work"
            );
        }
        assert_eq!(
            site.states().len(),
            before,
            "{round_trip} ms away: {:?}",
            site.transitions.lock()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_long_way_never_flaps_and_is_found_again() {
    for round_trip in [600, 700, 1300] {
        let site = Site::start(Way::Silent, round_trip);
        site.until(CloudState::Disconnected, TIMEOUT * 2).await;
        site.set(Way::Answers);
        let back = site.until(CloudState::Connected, MS * 60_000).await;
        assert!(
            back < MS * 2500 + MS * u32::try_from(round_trip).unwrap() * 4,
            "{round_trip} ms away: {back:?}"
        );
        let before = site.states().len();
        for _ in 0..60 {
            assert_eq!(site.read(MS * 20).await, Some(()), "{round_trip} ms away");
            sleep(MS * 1000).await;
        }
        sleep(MS * 120_000).await;
        assert_eq!(
            site.states().len(),
            before,
            "{round_trip} ms away: {:?}",
            site.transitions.lock()
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_cloud_is_used_again_within_five_seconds_of_its_return() {
    for away in [300, 1_000, 2_700, 60_000, 601_000] {
        let site = Site::connected(80).await;
        site.set(Way::Silent);
        site.health.signal(Signal::Failed);
        site.until(CloudState::Disconnected, MS * 5000).await;
        sleep(MS * away).await;
        site.set(Way::Answers);
        site.until(CloudState::Connected, MS * 5000).await;
        let after = &site.states()[2..];
        assert_eq!(
            after,
            [
                CloudState::Disconnected,
                CloudState::Recovering,
                CloudState::Connected
            ]
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_want_of_file_descriptors_is_never_taken_for_the_clouds_absence() {
    let site = Site::connected(1).await;
    site.way.kept.store(false, Ordering::Relaxed);
    site.set(Way::Lacks);
    site.health.signal(Signal::Waiting);
    sleep(MS * 60_000).await;
    assert_eq!(site.states(), [CloudState::Connected]);
    site.health.signal(Signal::Failed);
    sleep(MS * 60_000).await;
    assert_eq!(
        site.health.state(),
        CloudState::Suspect,
        "not known, and asked again"
    );
    site.set(Way::Answers);
    site.until(CloudState::Connected, MS * 1000).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_fails_is_no_verdict_while_requests_are_answered() {
    let site = Site::connected(80).await;
    let reads = async {
        loop {
            sleep(MS * 100).await;
            site.health.record_latency(MS * 90);
        }
    };
    let probes = async {
        site.way.kept.store(false, Ordering::Relaxed);
        site.set(Way::Silent);
        site.health.signal(Signal::Failed);
        sleep(MS * 60_000).await;
    };
    tokio::select! { () = reads => {}, () = probes => {} }
    assert!(
        !site.states().contains(&CloudState::Disconnected),
        "{:?}",
        site.transitions.lock()
    );
}

#[tokio::test(start_paused = true)]
async fn a_kept_connection_that_died_alone_is_replaced_without_a_verdict() {
    let site = Site::connected(80).await;
    // The address translation forgot it: its answers never come, those on new connections do.
    let way = Arc::clone(&site.way);
    site.set(Way::Silent);
    site.health.signal(Signal::Waiting);
    sleep(MS * 100).await;
    way.way.send_replace(Way::Answers);
    sleep(MS * 5000).await;
    assert_eq!(site.states(), [CloudState::Connected]);
}

#[tokio::test(start_paused = true)]
async fn idle_costs_one_probe_an_interval() {
    let site = Site::connected(80).await;
    let before = site.way.probes.load(Ordering::Relaxed);
    sleep(INTERVAL * 100).await;
    let probes = site.way.probes.load(Ordering::Relaxed) - before;
    assert!((95..130).contains(&probes), "{probes}");
    assert!(site.began.elapsed() > INTERVAL * 100);
}

#[tokio::test(start_paused = true)]
async fn no_probe_is_sent_before_an_interval_of_silence() {
    let site = Site::connected(80).await;
    let before = site.probes();
    let probed_after = async {
        while site.probes() == before {
            sleep(MS * 10).await;
        }
        site.began.elapsed()
    };
    let after = probed_after.await;
    // The interval is shortened by up to a fifth, so that nodes don't probe in step.
    assert!(after >= INTERVAL.mul_f64(0.8), "{after:?}");
    assert!(after <= INTERVAL + MS * 260, "{after:?}");
}

#[tokio::test(start_paused = true)]
async fn reads_put_off_the_probe_until_its_connection_would_be_idle_for_too_long() {
    let site = Site::connected(80).await;
    let before = site.probes();
    let reads = async {
        loop {
            sleep(MS * 500).await;
            site.way.activity.record_read();
        }
    };
    let interval = INTERVAL * KEEP_ALIVE_INTERVALS;
    tokio::select! {
        () = reads => {}
        () = sleep(interval.mul_f64(0.8) - MS * 500) => {}
    }
    assert_eq!(site.probes(), before);
    sleep(INTERVAL).await;
    assert!(site.probes() > before);
}

#[tokio::test(start_paused = true)]
async fn gateway_errors_ask_for_a_probe_once_a_second() {
    let site = Site::connected(1).await;
    let before = site.probes();
    let responses = site.health.responses();
    for _ in 0..100 {
        for status in [502, 503, 504] {
            let status = http::StatusCode::from_u16(status).unwrap();
            site.health.record_response(status, MS);
        }
        sleep(MS * 50).await;
    }
    let probes = site.probes() - before;
    assert!((5..=6).contains(&probes), "{probes} in 5 s");
    assert_eq!(site.health.responses(), responses, "none of the server's");
    assert_eq!(site.states(), [CloudState::Connected]);
}

#[tokio::test(start_paused = true)]
async fn a_gateway_in_front_of_a_dead_server_does_not_hide_its_absence() {
    let site = Site::connected(1).await;
    site.way.kept.store(false, Ordering::Relaxed);
    site.set(Way::Refuses);
    site.health
        .record_response(http::StatusCode::BAD_GATEWAY, MS);
    assert!(site.until(CloudState::Disconnected, TIMEOUT).await < MS * 10);
}

#[tokio::test(start_paused = true)]
async fn other_errors_of_the_server_are_signs_of_life() {
    let site = Site::connected(1).await;
    for status in [200, 401, 404, 409, 429, 500, 501] {
        let before = site.health.responses();
        let status = http::StatusCode::from_u16(status).unwrap();
        site.health.record_response(status, MS);
        assert_eq!(site.health.responses(), before + 1, "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn recovery_takes_as_many_probes_as_the_threshold_says() {
    for threshold in [1, 2, 5] {
        let site = Site::start_with(Way::Silent, 10, threshold);
        site.until(CloudState::Disconnected, TIMEOUT * 2).await;
        let before = site.probes();
        site.set(Way::Answers);
        site.until(CloudState::Connected, MS * 5000).await;
        let probes = site.probes() - before;
        assert_eq!(probes as u32, threshold.max(1), "threshold {threshold}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_recovery_that_fails_begins_anew() {
    let site = Site::start_with(Way::Silent, 10, 3);
    site.until(CloudState::Disconnected, TIMEOUT * 2).await;
    let closed = site.way.closed.load(Ordering::Relaxed);
    site.set(Way::Answers);
    site.until(CloudState::Recovering, MS * 5000).await;
    site.way.kept.store(false, Ordering::Relaxed);
    site.set(Way::Refuses);
    site.until(CloudState::Disconnected, MS * 1000).await;
    assert_eq!(site.way.closed.load(Ordering::Relaxed), closed + 1);
    assert!(!site.states().contains(&CloudState::Connected));
}

/// The longest first pause ends with its second, in which the test looked: one run of 256 was too early.
#[tokio::test(start_paused = true)]
async fn probes_of_a_disconnected_cloud_back_off_and_never_pile_up() {
    let site = Site::start(Way::Silent, 10);
    site.until(CloudState::Disconnected, TIMEOUT * 2).await;
    let before = site.probes();
    sleep(MIN_BACKOFF + MS).await;
    assert_eq!(site.probes() - before, 1, "the first within a second");
    sleep(MS * 120_000).await;
    let probes = site.probes() - before;
    // Four at once are the most. Each hangs for 10 s, and the next one in its place begins up to 2.5 s later.
    assert!((40..=52).contains(&probes), "{probes} in two minutes");
}

#[tokio::test(start_paused = true)]
async fn old_signals_do_not_count_against_a_cloud_that_answers() {
    let site = Site::start(Way::Answers, 80);
    for _ in 0..super::super::MAX_SIGNALS * 2 {
        site.health.signal(Signal::Failed);
    }
    site.until(CloudState::Connected, TIMEOUT).await;
    sleep(MS * 1000).await;
    assert_eq!(site.states(), [CloudState::Connected]);
}

#[tokio::test(start_paused = true)]
async fn connections_that_were_silent_are_retired_when_the_probe_is_answered() {
    let site = Site::connected(80).await;
    site.way.kept.store(false, Ordering::Relaxed);
    sleep(MS * 1000).await;
    site.health.signal(Signal::Silent);
    site.until(CloudState::Silent, MS * 10).await;
    site.until(CloudState::Connected, TIMEOUT).await;
    assert_eq!(site.way.retired.load(Ordering::Relaxed), 1);
    assert_eq!(site.way.closed.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_silence_that_has_ended_since_is_ignored() {
    let site = Site::connected(80).await;
    sleep(MS * 1000).await;
    site.way.activity.record_read();
    site.health.signal(Signal::Silent);
    sleep(MS * 1000).await;
    assert_eq!(site.states(), [CloudState::Connected]);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_cloud_settles_for_all_that_wait() {
    let site = Site::start(Way::Answers, 80);
    let health = &site.health;
    let settled = tokio::join!(health.settled(), health.settled(), health.settled());
    assert_eq!(settled.0, CloudState::Connected);
    assert_eq!((settled.1, settled.2), (settled.0, settled.0));
    assert!(health.is_known());
    let site = Site::start(Way::Refuses, 80);
    assert_eq!(site.health.settled().await, CloudState::Disconnected);
    site.health.until_disconnected().await;
}

#[tokio::test(start_paused = true)]
async fn a_request_that_only_the_cloud_can_answer_makes_it_probe() {
    let site = Site::connected(1).await;
    site.set(Way::Silent);
    let request = site.health.probe_while_silent(std::future::pending::<()>());
    tokio::select! {
        () = request => {}
        () = site.health.until_disconnected() => {}
    }
    assert!(site.states().contains(&CloudState::Silent));
}

#[tokio::test(start_paused = true)]
async fn the_latency_is_smoothed_and_bounded() {
    let site = Site::start(Way::Silent, 10);
    assert_eq!(site.health.latency(), Duration::ZERO);
    site.health.record_latency(MS * 80);
    assert_eq!(site.health.latency(), MS * 80);
    site.health.record_latency(MS * 160);
    assert_eq!(site.health.latency(), MS * 90);
    let day = Duration::from_secs(86_400);
    site.health.record_latency(day);
    assert!(site.health.latency() <= MS * 90 + super::super::MAX_LATENCY / 8);
    let site = Site::start(Way::Silent, 10);
    site.health.record_latency(Duration::ZERO);
    assert_eq!(site.health.latency(), Duration::from_micros(1));
}

#[test]
fn jitter_is_a_fraction() {
    let samples: Vec<f64> = (0..1000).map(|_| jitter()).collect();
    assert!(samples.iter().all(|sample| (0.0..=1.0).contains(sample)));
    assert!(samples.iter().any(|sample| *sample < 0.3));
    assert!(samples.iter().any(|sample| *sample > 0.7));
}
