//! The daemon's life on a node of its own: ready, serving, killed, started again over the same disk, ended. What it
//! serves in detail is other suites' affair.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::net::Ipv4Addr;
use std::time::Duration;

use hublet_tests::client::{Client, Options};
use hublet_tests::cloud::{self, Cloud};
use hublet_tests::daemon::{self, Daemon};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::{Fault, FaultProxy};
use hublet_tests::netns::Netns;
use hublet_tests::require;

const SOON: Duration = Duration::from_secs(5);
const CLUSTER: &str = "/apis/crd.projectcalico.org/v1/clusterinformations/default";

/// A node whose cloud is behind the fault proxy on its own loopback.
fn node(name: &str) -> (Netns, Cloud, FaultProxy) {
    let netns = Netns::new(name).unwrap();
    let cloud = Cloud::start(cloud::Options { netns: Some(netns.clone()), ..Default::default() }).unwrap();
    let fault = FaultProxy::start((Ipv4Addr::LOCALHOST, 0).into(), cloud.address, Some(&netns)).unwrap();
    (netns, cloud, fault)
}

#[test]
fn it_serves_the_cloud_then_its_store_and_survives_kill_9() {
    if !require::root()
        || !require::met(daemon::binary().is_ok(), "there is no hublet binary: build it, or set HUBLET_BIN")
    {
        return;
    }
    let (netns, cloud, fault) = node("edge-1");
    let mut daemon = Daemon::start(daemon::Options::new(&fault.url(), cloud.ca.pem(), Some(&netns))).unwrap();
    let client = daemon.client(Some(&cloud.calico_token)).unwrap();
    let online = client.get(CLUSTER).unwrap();
    assert_eq!(online.status, 200, "{}", online.text());
    assert_eq!(online.subject, "O=system:nodes; CN=system:node:edge-1");
    cloud.record().wait_for(SOON, |request| request.path == CLUSTER).unwrap();
    fault.set(Fault::Refuse).unwrap();
    let offline = client.get(CLUSTER).unwrap();
    assert_eq!((offline.status, &offline.body), (200, &online.body), "{}", daemon.log());
    daemon.kill().unwrap();
    assert!(client.get(CLUSTER).is_err(), "nobody listens after kill -9");
    daemon.restart().unwrap();
    let stored = eventually(SOON, "the store answers after a restart", || client.get(CLUSTER).ok()).unwrap();
    assert_eq!((stored.status, &stored.body), (200, &online.body), "{}", daemon.log());
    assert!(daemon.scrape().unwrap().contains("# TYPE hublet_"));
    assert!(daemon.stop().unwrap().success(), "SIGTERM ends it with exit code 0: {}", daemon.log());
}

#[test]
fn one_that_cannot_start_says_why_in_its_log() {
    if !require::root()
        || !require::met(daemon::binary().is_ok(), "there is no hublet binary: build it, or set HUBLET_BIN")
    {
        return;
    }
    let (netns, cloud, _fault) = node("edge-2");
    let mut options = daemon::Options::new(&cloud.url(), cloud.ca.pem(), Some(&netns));
    options.flags.push("--no-such-flag".into());
    let failure = Daemon::start(options).unwrap_err().to_string();
    assert!(failure.contains("ended before it was ready") && failure.contains("--no-such-flag"), "{failure}");
    let admin = Options { netns: Some(netns), ..Options::new(daemon::ADMIN, "", None) };
    assert!(Client::new(admin).unwrap().get("/v1/readyz").is_err());
}
