//! Promise: the connections to the cloud are shared without anybody paying for a neighbour: what one client sends, or
//! fails to read, or is refused, changes nothing for the others; a write is sent once; and when the cloud is found away,
//! whatever still hangs in the dead link ends at once.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::{Duration, Instant};

use anyhow::Result;
use hublet_tests::cloud;
use hublet_tests::eventually::eventually;
use hublet_tests::fault::Fault;
use hublet_tests::site::Site;

const NODES: &str = "/api/v1/nodes";
const SOON: Duration = Duration::from_secs(10);

fn state(site: &Site) -> String {
    let status = site.daemon.status().unwrap();
    status["cloud"]["state"].as_str().unwrap_or_default().to_owned()
}

fn until_state(site: &Site, wanted: &str) -> Result<()> {
    eventually(SOON, wanted, || (state(site) == wanted).then_some(()))
}

/// Watches outlived the link: aborting a connection's task left hyper's own one behind, which went on until a ping
/// failed (23 s), or for minutes over HTTP/1.1, which has none.
#[test]
fn a_watch_ends_with_the_verdict_that_the_cloud_is_away() -> Result<()> {
    for alpn in [vec!["h2", "http/1.1"], vec!["http/1.1"]] {
        let cloud = cloud::Options { alpn: alpn.clone(), ..Default::default() };
        let Some(site) = Site::with_cloud("verdict", cloud, |_| {})? else { return Ok(()) };
        let admin = site.admin()?;
        let version = admin.get(NODES)?.json()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
        let mut watch = admin.watch(&format!("{NODES}?watch=true&resourceVersion={version}"))?;
        assert_eq!(watch.headers["x-hublet-source"], "cloud");
        site.fault.set(Fault::Blackhole(None))?;
        // Somebody asks, and so it is noticed.
        let _stored = admin.get(NODES)?;
        until_state(&site, "disconnected")?;
        let verdict = Instant::now();
        assert_eq!(watch.event(Duration::from_secs(5))?, None, "a clean end");
        let took = verdict.elapsed();
        assert!(took < Duration::from_secs(1), "{alpn:?}: the watch ended {took:?} after the verdict");
    }
    Ok(())
}
