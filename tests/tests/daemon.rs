//! Promise: the daemon becomes ready, serves, survives `kill -9` with its store, and ends on SIGTERM with code 0; if it
//! can't start, its log has the reason. This is the smallest test of a whole node; other suites test what it serves.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::Duration;

use hublet_tests::client::{Client, Options};
use hublet_tests::daemon::{self, Daemon};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::netns::Netns;
use hublet_tests::pki::Ca;
use hublet_tests::require;
use hublet_tests::site::Site;

const SOON: Duration = Duration::from_secs(5);
const CLUSTER: &str = "/apis/crd.projectcalico.org/v1/clusterinformations/default";

#[test]
fn it_serves_the_cloud_then_its_store_and_survives_kill_9() {
    let Some(Site {
        mut daemon,
        fault,
        cloud,
        netns: _netns,
    }) = Site::start("edge-1", |_| {}).unwrap()
    else {
        return;
    };
    let client = daemon.client(Some(&cloud.calico_token)).unwrap();
    let online = client.get(CLUSTER).unwrap();
    assert_eq!(online.status, 200, "{}", online.text());
    assert_eq!(online.subject, "O=system:nodes; CN=system:node:edge-1");
    cloud
        .record()
        .wait_for(SOON, |request| request.path == CLUSTER)
        .unwrap();
    fault.set(Fault::Refuse).unwrap();
    let offline = client.get(CLUSTER).unwrap();
    assert_eq!(
        (offline.status, &offline.body),
        (200, &online.body),
        "{}",
        daemon.read_log()
    );
    daemon.kill().unwrap();
    assert!(client.get(CLUSTER).is_err(), "nobody listens after kill -9");
    daemon.restart().unwrap();
    let stored = eventually(SOON, "the store answers after a restart", || {
        client.get(CLUSTER).ok()
    })
    .unwrap();
    assert_eq!(
        (stored.status, &stored.body),
        (200, &online.body),
        "{}",
        daemon.read_log()
    );
    assert!(daemon.scrape_metrics().unwrap().contains("# TYPE hublet_"));
    assert!(
        daemon.stop().unwrap().success(),
        "SIGTERM ends it with exit code 0: {}",
        daemon.read_log()
    );
}

#[test]
fn a_daemon_that_cannot_start_logs_the_reason() {
    if !require::root() {
        return;
    }
    let netns = Netns::new("edge-2").unwrap();
    let ca = Ca::new("cloud").unwrap();
    let mut options = daemon::Options::new("https://127.0.0.1:6443", ca.pem(), Some(&netns));
    options.flags.push("--no-such-flag".into());
    let failure = Daemon::start(options).unwrap_err().to_string();
    assert!(
        failure.contains("ended before it was ready") && failure.contains("--no-such-flag"),
        "{failure}"
    );
    let admin = Options {
        netns: Some(netns),
        ..Options::new(daemon::ADMIN, "", None)
    };
    assert!(Client::new(admin).unwrap().get("/v1/readyz").is_err());
}
