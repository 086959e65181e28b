//! The start, and the return of the cloud.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_start_with_the_cloud_there_is_connected_after_one_probe() {
    let site = Site::start(Way::Answers, 80);
    assert_eq!(site.health.state(), CloudState::Suspect);
    assert!(!site.health.is_known());
    assert_eq!(site.until(CloudState::Connected, TIMEOUT).await, MS * 240);
}

#[tokio::test(start_paused = true)]
async fn one_probe_settles_a_suspect_cloud_for_all_that_wait() {
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
async fn a_failed_recovery_starts_over() {
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
