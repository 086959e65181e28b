//! Promise (I12): a client that knows nothing of hublet dials the API service's address and is served by hublet. When
//! hublet dies or hangs, the next connect reaches the real address; when hublet is back, it serves again.
//!
//! Each way in which a daemon can stop serving without dying (no CPU, a deadlock, no descriptors) has a test, since a
//! program that still steers to it would cut the node off.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]
#![allow(
    clippy::print_stdout,
    reason = "the two accounts stand in the suite's log"
)]

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hublet_tests::client::{self, Client};
use hublet_tests::cloud::{self, Cloud};
use hublet_tests::eventually::eventually;
use hublet_tests::metrics::metric;
use hublet_tests::require;
use hublet_tests::site::Site;
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::Value;

const SERVICE: &str = "https://10.96.0.1:443";

/// A steered node, and the two servers that a client may find at the service's address: hublet, or the real one.
struct Steered {
    site: Site,
    _there: Cloud,
    hublet: Client,
    real: Client,
}

impl Steered {
    /// At that address there really is another server, with another authority.
    fn start() -> Result<Option<Self>> {
        let with = |options: &mut hublet_tests::daemon::Options| {
            options.steer = "10.96.0.1:443".into();
            options.bpffs = true;
        };
        if !require::bpf() {
            return Ok(None);
        }
        let Some(site) = Site::start("steering", with)? else {
            return Ok(None);
        };
        site.netns.run_ip("address add 10.96.0.1/32 dev lo")?;
        let there = Cloud::start(cloud::Options {
            listen: ([10, 96, 0, 1], 443).into(),
            netns: Some(site.netns.clone()),
            ..Default::default()
        })?;
        let by = |ca: &str, token: &str| -> Result<Client> {
            let options = client::Options::new(SERVICE, ca, Some(token));
            // A hung daemon's backlog takes connections that nobody answers.
            let timeout = Duration::from_secs(1);
            Client::new(client::Options {
                netns: Some(site.netns.clone()),
                timeout,
                ..options
            })
        };
        let hublet = by(&site.daemon.ca_pem()?, &site.cloud.admin_token)?;
        let real = by(there.ca.pem(), &there.admin_token)?;
        let steered = Self {
            _there: there,
            hublet,
            real,
            site,
        };
        eventually(Duration::from_secs(5), "steered to hublet", || {
            steered.is_served().then_some(())
        })?;
        Ok(Some(steered))
    }

    fn is_served(&self) -> bool {
        self.hublet
            .get("/version")
            .is_ok_and(|answer| answer.status == 200)
    }

    fn passes(&self) -> bool {
        self.real
            .get("/version")
            .is_ok_and(|answer| answer.status == 200)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let pid = self.site.daemon.pid().unwrap().to_string();
        let status = std::process::Command::new(program)
            .args(arguments)
            .arg(&pid)
            .status()?;
        anyhow::ensure!(status.success(), "{program}: {status}");
        Ok(())
    }
}

/// The heartbeat holds for three seconds; the rest is the test's own way.
const STALE: Duration = Duration::from_secs(6);

#[test]
fn i12_a_hanging_daemon_is_bypassed_until_it_recovers() -> Result<()> {
    let Some(node) = Steered::start()? else {
        return Ok(());
    };
    node.run("kill", &["-STOP"])?;
    let passed = eventually(STALE, "connects pass through", || {
        node.passes().then_some(())
    });
    node.run("kill", &["-CONT"])?;
    passed?;
    eventually(Duration::from_secs(5), "steered again", || {
        node.is_served().then_some(())
    })
}

/// Threads of a process that stand still, as threads do that wait for each other; the rest goes on.
struct Standing(Vec<Pid>);

impl Standing {
    fn of(process: u32, name: &str) -> Result<Self> {
        let mut standing = Self(Vec::new());
        for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
            let thread = thread?.path();
            if std::fs::read_to_string(thread.join("comm"))?.trim() == name {
                let id = thread
                    .file_name()
                    .and_then(|id| id.to_str())
                    .context("a thread's id")?;
                let id = Pid::from_raw(id.parse()?);
                ptrace::seize(id, ptrace::Options::empty())?;
                standing.0.push(id);
                ptrace::interrupt(id)?;
                waitpid(id, Some(WaitPidFlag::__WALL))?;
            }
        }
        anyhow::ensure!(!standing.0.is_empty(), "no thread is called {name}");
        Ok(standing)
    }
}

impl Drop for Standing {
    fn drop(&mut self) {
        for id in &self.0 {
            let _gone = ptrace::detach(*id, None);
        }
    }
}

#[test]
fn i12_a_deadlocked_daemon_is_bypassed_until_it_recovers() -> Result<()> {
    let Some(node) = Steered::start()? else {
        return Ok(());
    };
    let standing = Standing::of(node.site.daemon.pid().unwrap(), "hublet-traffic")?;
    assert!(
        node.site.daemon.fetch_status().is_ok(),
        "the admin's thread goes on"
    );
    eventually(STALE, "connects pass through", || {
        node.passes().then_some(())
    })?;
    drop(standing);
    eventually(Duration::from_secs(5), "steered again", || {
        node.is_served().then_some(())
    })
}

#[test]
fn i12_a_daemon_out_of_descriptors_is_bypassed_until_it_recovers() -> Result<()> {
    let Some(node) = Steered::start()? else {
        return Ok(());
    };
    node.run("prlimit", &["--nofile=8:", "--pid"])?;
    let passed = eventually(STALE * 2, "connects pass through", || {
        node.passes().then_some(())
    });
    node.run("prlimit", &["--nofile=1024:", "--pid"])?;
    passed?;
    eventually(Duration::from_secs(5), "steered again", || {
        node.is_served().then_some(())
    })
}

#[test]
fn i12_a_dead_daemon_is_bypassed_until_the_next_one_starts() -> Result<()> {
    let Some(mut node) = Steered::start()? else {
        return Ok(());
    };
    assert!(
        !node.passes(),
        "the address itself is not reached: its certificate is another's"
    );
    let answer = node.hublet.get("/version")?;
    assert_eq!(
        (answer.status, answer.header("x-hublet-source")),
        (200, "cloud")
    );

    node.site.daemon.kill()?;
    assert_eq!(
        node.real.get("/version")?.status,
        200,
        "the next connect passes through"
    );

    node.site.daemon.restart()?;
    eventually(Duration::from_secs(5), "steered again", || {
        node.is_served().then_some(())
    })?;
    let status = node.site.daemon.fetch_status()?;
    let callers = status["callers"].as_array().unwrap();
    let me = i64::from(std::process::id());
    let mine = callers
        .iter()
        .find(|c| c["process"]["pid"] == me && c["process"]["steered"] == true);
    let mine = mine.unwrap_or_else(|| panic!("hublet status names the caller: {status:#}"));
    assert_eq!(mine["process"]["original"], "10.96.0.1:443");

    assert!(node.site.daemon.stop()?.success());
    assert_eq!(
        node.real.get("/version")?.status,
        200,
        "and so after a clean end"
    );
    Ok(())
}

#[test]
fn log_status_and_metrics_name_each_component_that_is_off() -> Result<()> {
    let Some(node) = Steered::start()? else {
        return Ok(());
    };
    let (status, metrics) = (
        node.site.daemon.fetch_status()?,
        node.site.daemon.scrape_metrics()?,
    );
    let log = node.site.daemon.read_log();
    let mut off = Vec::new();
    for part in status["components"].as_array().unwrap() {
        let [name, detail] = ["name", "detail"].map(|field| part[field].as_str().unwrap());
        let on = part["on"] == true;
        let gauge = format!(
            "hublet_component_on{{component=\"{name}\"}} {}\n",
            u8::from(on)
        );
        assert!(metrics.contains(&gauge), "{gauge}{metrics}");
        if !on {
            assert!(
                log.contains(&format!("off  {name}: {detail}")),
                "{part}\n{log}"
            );
            off.push(name);
        }
        if !on && name == "guard" {
            assert!(
                detail.contains("Linux 5.17") && detail.contains("--xdp-uplink"),
                "{detail}"
            );
        }
    }
    if let Some(expected) = require::expected_off() {
        assert_eq!(off, expected, "{status:#}");
    }
    Ok(())
}

#[test]
fn the_api_services_address_is_found_in_the_store_and_the_certificate_is_good_for_it() -> Result<()>
{
    if !require::bpf() {
        return Ok(());
    }
    let with = |options: &mut hublet_tests::daemon::Options| {
        options.steer = "kubernetes".into();
        options.bpffs = true;
    };
    let Some(mut site) = Site::start("found", with)? else {
        return Ok(());
    };
    let options = client::Options::new(
        SERVICE,
        &site.daemon.ca_pem()?,
        Some(&site.cloud.admin_token),
    );
    let by_service = Client::new(client::Options {
        netns: Some(site.netns.clone()),
        ..options
    })?;
    assert!(
        by_service.get("/version").is_err(),
        "nobody has told the address yet"
    );

    assert_eq!(
        site.admin_client()?
            .get("/api/v1/namespaces/default/services/kubernetes")?
            .status,
        200
    );
    let served = || {
        by_service
            .get("/version")
            .is_ok_and(|answer| answer.status == 200)
    };
    eventually(
        Duration::from_secs(10),
        "what the Service says is steered",
        || served().then_some(()),
    )?;

    site.cut_link()?;
    site.daemon.restart()?;
    assert!(served(), "known from the start, with the cloud away");
    Ok(())
}

/// A TLS connection to the service, as HTTP/1.1; it ends in order, with nothing left unread at either end.
struct Plainly {
    tls: rustls::StreamOwned<rustls::ClientConnection, TcpStream>,
}

impl Plainly {
    fn dial(site: &Site) -> Result<Self> {
        Self::by(site, || TcpStream::connect("10.96.0.1:443"))
    }

    fn by(site: &Site, dial: impl FnOnce() -> std::io::Result<TcpStream> + Send) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(
            site.daemon.ca_pem()?.as_bytes(),
        )?)?;
        let config = rustls::ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = rustls::ClientConnection::new(Arc::new(config), "10.96.0.1".try_into()?)?;
        let tcp = site.netns.run(dial)?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(Self {
            tls: rustls::StreamOwned::new(tls, tcp),
        })
    }

    fn say(&mut self, token: &str, request: &str, body: &[u8]) -> Result<()> {
        let length = body.len();
        let head = format!(
            "{request} HTTP/1.1\r\nHost: 10.96.0.1\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        self.tls.write_all(&[head.as_bytes(), body].concat())?;
        Ok(self.tls.flush()?)
    }

    /// Closes our half, and reads what is still to come, down to the other half's end.
    fn end(mut self) -> Result<()> {
        self.tls.sock.shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        // hublet ends such a connection without TLS' own farewell, or with it.
        let _ended = self.tls.read_to_end(&mut rest);
        self.tls
            .sock
            .read_to_end(&mut rest)
            .context("the end of TCP")?;
        Ok(())
    }

    fn status(&mut self) -> Result<u16> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.tls.read_exact(&mut byte)?;
            head.extend(byte);
        }
        let status = std::str::from_utf8(&head)?
            .split(' ')
            .nth(1)
            .context("no status line")?;
        Ok(status.parse()?)
    }
}

/// A client that asks for Multipath TCP (RFC 8684) where the kernel has it is steered like any other.
#[test]
fn a_client_that_dials_by_multipath_tcp_is_served() -> Result<()> {
    const IPPROTO_MPTCP: i32 = 262;
    if !std::path::Path::new("/proc/sys/net/mptcp/enabled").exists() {
        println!("skipped: this kernel has no Multipath TCP");
        return Ok(());
    }
    let Some(node) = Steered::start()? else {
        return Ok(());
    };
    let dial = || {
        let protocol = Some(socket2::Protocol::from(IPPROTO_MPTCP));
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, protocol)?;
        socket.connect(&std::net::SocketAddr::from(([10, 96, 0, 1], 443)).into())?;
        Ok(socket.into())
    };
    let mut connection = Plainly::by(&node.site, dial)?;
    connection.say(&node.site.cloud.admin_token, "GET /version", b"")?;
    assert_eq!(connection.status()?, 200);
    Ok(())
}

#[test]
fn the_daemon_and_the_kernel_count_the_same_bytes() -> Result<()> {
    const CONNECTIONS: u64 = 12;
    if !require::bpf() {
        return Ok(());
    }
    let with = |options: &mut hublet_tests::daemon::Options| {
        options.steer = "10.96.0.1:443".into();
        options.bpffs = true;
    };
    let Some(site) = Site::start("account", with)? else {
        return Ok(());
    };
    let token = site.cloud.admin_token.clone();
    let large = serde_json::json!({"metadata": {"generateName": "large-"}, "data": {"text": "x".repeat(200_000)}});
    let calls = [
        ("GET /version", String::new(), 200),
        ("GET /api/v1/nodes", String::new(), 200),
        (
            "POST /api/v1/namespaces/default/configmaps",
            large.to_string(),
            201,
        ),
        (
            "GET /api/v1/namespaces/default/configmaps",
            String::new(),
            200,
        ),
    ];
    for number in 0..CONNECTIONS {
        let mut connection = Plainly::dial(&site)?;
        let (request, body, expected) = &calls[usize::try_from(number)? % calls.len()];
        connection.say(&token, request, body.as_bytes())?;
        assert_eq!(connection.status()?, *expected, "{request}");
        connection.end()?;
    }

    let row = |status: &Value| {
        let rows = status["ebpf"]["flows"].as_array()?;
        rows.iter()
            .find(|row| row["service"] == "10.96.0.1:443")
            .cloned()
    };
    let status = eventually(
        Duration::from_secs(10),
        "the kernel has seen every end",
        || {
            site.daemon
                .fetch_status()
                .ok()
                .filter(|status| row(status).is_some_and(|row| row["closed"] == CONNECTIONS))
        },
    )?;
    let kernel = row(&status).context("a row for the service")?;
    let me = i64::from(std::process::id());
    let callers = status["callers"].as_array().context("callers")?;
    let daemon = callers
        .iter()
        .find(|caller| caller["process"]["pid"] == me)
        .context("the caller")?;
    for direction in ["bytesUp", "bytesDown"] {
        let [kernel, daemon] =
            [&kernel, daemon].map(|account| account[direction].as_u64().unwrap());
        println!("{direction}: the kernel {kernel}, hublet {daemon}, {CONNECTIONS} ends");
        // TCP numbers the FIN like a byte; the kernel's account has it, once for each end.
        assert_eq!(kernel, daemon + CONNECTIONS, "{direction}");
        assert!(daemon > 100_000, "{direction} {daemon}");
    }
    let scrape = site.daemon.scrape_metrics()?;
    for (direction, field) in [("up", "bytesUp"), ("down", "bytesDown")] {
        let all = daemon[field].as_f64().unwrap();
        metric("hublet_client_bytes_total")
            .label("direction", direction)
            .value(all)
            .assert_in(&scrape);
    }
    Ok(())
}
