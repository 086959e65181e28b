//! Responses as signs of life, or of a gateway in front of a dead server.

use super::*;

#[tokio::test(start_paused = true)]
async fn gateway_errors_trigger_a_probe_once_a_second() {
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
async fn a_gateway_in_front_of_a_dead_server_does_not_hide_the_outage() {
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
