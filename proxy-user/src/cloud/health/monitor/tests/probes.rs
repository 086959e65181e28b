//! The times of probes.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_idle_link_costs_one_probe_an_interval() {
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

#[test]
fn jitter_is_a_fraction() {
    let samples: Vec<f64> = (0..1000).map(|_| jitter()).collect();
    assert!(samples.iter().all(|sample| (0.0..=1.0).contains(sample)));
    assert!(samples.iter().any(|sample| *sample < 0.3));
    assert!(samples.iter().any(|sample| *sample > 0.7));
}
