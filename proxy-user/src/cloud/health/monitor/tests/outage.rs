//! The end of a link, told from a slow answer and from one broken connection.

use std::pin::pin;

use super::*;
use crate::cloud::health::MAX_SIGNALS;

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
async fn one_refused_connection_is_ignored_while_the_server_answers() {
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
async fn a_shared_connection_that_ends_triggers_a_probe() {
    let site = Site::connected(80).await;
    site.set(Way::Refuses);
    site.way.ended.notify_waiters();
    assert!(site.until(CloudState::Disconnected, INTERVAL).await < MS * 10);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_only_the_cloud_can_answer_triggers_a_probe() {
    let site = Site::connected(1).await;
    site.set(Way::Silent);
    let silence = pin!(std::future::pending::<()>());
    let request = site.health.probe_while_silent(silence);
    tokio::select! {
        () = request => {}
        () = site.health.until_disconnected() => {}
    }
    assert!(site.states().contains(&CloudState::Silent));
}

#[tokio::test(start_paused = true)]
async fn a_lack_of_file_descriptors_is_never_taken_for_an_outage() {
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
async fn a_failed_probe_is_ignored_while_requests_are_answered() {
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
async fn a_kept_connection_that_died_alone_is_replaced_without_a_transition() {
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
async fn old_signals_do_not_count_against_a_cloud_that_answers() {
    let site = Site::start(Way::Answers, 80);
    for _ in 0..MAX_SIGNALS * 2 {
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
