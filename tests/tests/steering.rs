//! Promise: a client that knows nothing of hublet dials the API service address and is served by it; when hublet dies,
//! the next connect goes to the real address; when it is back, it serves again.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::time::Duration;

use anyhow::Result;
use hublet_tests::client::{self, Client};
use hublet_tests::cloud::{self, Cloud};
use hublet_tests::eventually::eventually;
use hublet_tests::require;
use hublet_tests::site::Site;

const SERVICE: &str = "https://10.96.0.1:443";

/// A steered node, and the two servers that a client may find at the service's address: hublet, or the real one.
struct Steered {
    site: Site,
    _there: Cloud,
    hublet: Client,
    real: Client,
}

impl Steered {
    /// What really is at that address is another server, with another authority.
    fn start() -> Result<Option<Self>> {
        let with = |options: &mut hublet_tests::daemon::Options| {
            options.steer = "10.96.0.1:443".into();
            options.bpffs = true;
        };
        if !require::bpf() {
            return Ok(None);
        }
        let Some(site) = Site::start("steering", with)? else { return Ok(None) };
        site.netns.ip("address add 10.96.0.1/32 dev lo")?;
        let there = Cloud::start(cloud::Options {
            listen: ([10, 96, 0, 1], 443).into(),
            netns: Some(site.netns.clone()),
            ..Default::default()
        })?;
        let by = |ca: &str, token: &str| -> Result<Client> {
            let options = client::Options::new(SERVICE, ca, Some(token));
            // A hung daemon's backlog takes connections that nobody answers.
            let patience = Duration::from_secs(1);
            Client::new(client::Options { netns: Some(site.netns.clone()), patience, ..options })
        };
        let hublet = by(&site.daemon.ca_pem()?, &site.cloud.admin_token)?;
        let real = by(there.ca.pem(), &there.admin_token)?;
        let steered = Self { _there: there, hublet, real, site };
        eventually(Duration::from_secs(5), "steered to hublet", || steered.is_served().then_some(()))?;
        Ok(Some(steered))
    }

    fn is_served(&self) -> bool {
        self.hublet.get("/version").is_ok_and(|answer| answer.status == 200)
    }

    fn passes(&self) -> bool {
        self.real.get("/version").is_ok_and(|answer| answer.status == 200)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let pid = self.site.daemon.pid().unwrap().to_string();
        let status = std::process::Command::new(program).args(arguments).arg(&pid).status()?;
        anyhow::ensure!(status.success(), "{program}: {status}");
        Ok(())
    }
}

/// The heartbeat holds for three seconds; the rest is the test's own way.
const STALE: Duration = Duration::from_secs(6);

#[test]
fn i12_a_daemon_that_hangs_is_passed_by_and_found_again() -> Result<()> {
    let Some(node) = Steered::start()? else { return Ok(()) };
    node.run("kill", &["-STOP"])?;
    let passed = eventually(STALE, "connects pass through", || node.passes().then_some(()));
    node.run("kill", &["-CONT"])?;
    passed?;
    eventually(Duration::from_secs(5), "steered again", || node.is_served().then_some(()))
}

#[test]
fn i12_a_daemon_out_of_descriptors_is_passed_by_and_found_again() -> Result<()> {
    let Some(node) = Steered::start()? else { return Ok(()) };
    node.run("prlimit", &["--nofile=8:", "--pid"])?;
    let passed = eventually(STALE * 2, "connects pass through", || node.passes().then_some(()));
    node.run("prlimit", &["--nofile=1024:", "--pid"])?;
    passed?;
    eventually(Duration::from_secs(5), "steered again", || node.is_served().then_some(()))
}

#[test]
fn i12_steered_while_alive_past_it_when_dead_and_steered_again() -> Result<()> {
    let Some(mut node) = Steered::start()? else { return Ok(()) };
    assert!(!node.passes(), "the address itself is not reached: its certificate is another's");
    let answer = node.hublet.get("/version")?;
    assert_eq!((answer.status, answer.header("x-hublet-source")), (200, "cloud"));

    node.site.daemon.kill()?;
    assert_eq!(node.real.get("/version")?.status, 200, "the next connect passes through");

    node.site.daemon.restart()?;
    eventually(Duration::from_secs(5), "steered again", || node.is_served().then_some(()))?;
    let status = node.site.daemon.status()?;
    let callers = status["callers"].as_array().unwrap();
    let me = i64::from(std::process::id());
    let mine = callers.iter().find(|c| c["process"]["pid"] == me && c["process"]["steered"] == true);
    let mine = mine.unwrap_or_else(|| panic!("hublet status names the caller: {status:#}"));
    assert_eq!(mine["process"]["original"], "10.96.0.1:443");

    assert!(node.site.daemon.stop()?.success());
    assert_eq!(node.real.get("/version")?.status, 200, "and so after a clean end");
    Ok(())
}

#[test]
fn what_is_off_is_told_with_its_reason_in_log_status_and_metrics() -> Result<()> {
    let Some(node) = Steered::start()? else { return Ok(()) };
    let (status, metrics) = (node.site.daemon.status()?, node.site.daemon.scrape()?);
    let log = node.site.daemon.log();
    let mut off = Vec::new();
    for part in status["parts"].as_array().unwrap() {
        let [name, detail] = ["name", "detail"].map(|field| part[field].as_str().unwrap());
        let on = part["on"] == true;
        let gauge = format!("hublet_part_on{{part=\"{name}\"}} {}\n", u8::from(on));
        assert!(metrics.contains(&gauge), "{gauge}{metrics}");
        if !on {
            assert!(log.contains(&format!("off  {name}: {detail}")), "{part}\n{log}");
            off.push(name);
        }
        if !on && name == "guard" {
            assert!(detail.contains("Linux 5.17") && detail.contains("--xdp-uplink"), "{detail}");
        }
    }
    if let Some(expected) = require::off() {
        assert_eq!(off, expected, "{status:#}");
    }
    Ok(())
}

#[test]
fn the_api_services_address_is_found_in_the_store_and_the_certificate_is_good_for_it() -> Result<()> {
    if !require::bpf() {
        return Ok(());
    }
    let with = |options: &mut hublet_tests::daemon::Options| {
        options.steer = "kubernetes".into();
        options.bpffs = true;
    };
    let Some(mut site) = Site::start("found", with)? else { return Ok(()) };
    let options = client::Options::new(SERVICE, &site.daemon.ca_pem()?, Some(&site.cloud.admin_token));
    let by_service = Client::new(client::Options { netns: Some(site.netns.clone()), ..options })?;
    assert!(by_service.get("/version").is_err(), "nobody has told the address yet");

    assert_eq!(site.admin()?.get("/api/v1/namespaces/default/services/kubernetes")?.status, 200);
    let served = || by_service.get("/version").is_ok_and(|answer| answer.status == 200);
    eventually(Duration::from_secs(10), "what the Service says is steered", || served().then_some(()))?;

    site.cut()?;
    site.daemon.restart()?;
    assert!(served(), "known from the start, with the cloud away");
    Ok(())
}
