//! Long round trips and slow answers: no outage.

use super::*;
use crate::cloud::health::MAX_LATENCY;

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
async fn a_long_link_never_flaps_and_recovers() {
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
async fn the_latency_is_smoothed_and_bounded() {
    let site = Site::start(Way::Silent, 10);
    assert_eq!(site.health.latency(), Duration::ZERO);
    site.health.record_latency(MS * 80);
    assert_eq!(site.health.latency(), MS * 80);
    site.health.record_latency(MS * 160);
    assert_eq!(site.health.latency(), MS * 90);
    let day = Duration::from_secs(86_400);
    site.health.record_latency(day);
    assert!(site.health.latency() <= MS * 90 + MAX_LATENCY / 8);
    let site = Site::start(Way::Silent, 10);
    site.health.record_latency(Duration::ZERO);
    assert_eq!(site.health.latency(), Duration::from_micros(1));
}
