//! Promise: operators can trust what they see and type. No caller's name controls the terminal, `hublet uninstall`
//! removes nothing that a running daemon uses, a fault is reported once and in the expected place, and a disabled
//! component is no warning (I8).
//!
//! Before, process names with escape sequences reached the terminal, SIGHUP killed the daemon without a drain, and
//! `uninstall` removed the certificates of a daemon that had no pins.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::Result;
use hublet_tests::client::Client;
use hublet_tests::daemon::{ADMIN, SECURE, binary_under_test};
use hublet_tests::eventually::eventually;
use hublet_tests::metrics::metric;
use hublet_tests::netns::Netns;
use hublet_tests::pki::Ca;
use hublet_tests::require;
use hublet_tests::site::Site;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const SOON: Duration = Duration::from_secs(5);

/// The commands, beside the site's daemon.
fn hublet(netns: &Netns, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(binary_under_test()?);
    command
        .args(arguments)
        .env_remove("NODE_NAME")
        .stdin(Stdio::null());
    Ok(netns.run(|| command.output())?)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Characters that a terminal would obey.
fn control_characters(text: &str) -> Vec<char> {
    let hidden = |c: &char| {
        (c.is_control() && *c != '\n')
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
    };
    text.chars().filter(hidden).collect()
}

/// A node whose calls of the API service are steered, where eBPF can be had.
fn steered() -> Result<Option<Site>> {
    if !require::bpf() {
        return Ok(None);
    }
    Site::start("operators", |options| {
        options.steer = "10.96.0.1:443".into();
        options.bpffs = true;
    })
}

/// A process chooses its name and that of its executable: here with escape sequences, and with line breaks followed
/// by an imitated row of the table. Before, they reached the terminal through `hublet status`, and the log.
#[test]
fn a_callers_name_is_escaped_on_the_terminal_and_in_the_log() -> Result<()> {
    let Some(site) = steered()? else {
        return Ok(());
    };
    let folder = tempfile::tempdir()?;
    let named = folder.path().join("\u{1b}[31m\u{9b}2J\u{202e}\nr");
    std::fs::copy("/bin/bash", &named)?;
    std::fs::set_permissions(&named, std::fs::Permissions::from_mode(0o755))?;
    // One HTTP request, and one TLS handshake that fails.
    let calls = "exec 3<>/dev/tcp/169.254.2.1/10261; printf 'GET /version HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3; \
        exec 4<>/dev/tcp/169.254.2.1/10268; printf '\\x16\\x03\\x01\\x00\\x01\\x00' >&4; cat <&4";
    let called = site
        .netns
        .run(|| Command::new(&named).args(["-c", calls]).output())?;
    assert!(called.status.success(), "{}", text(&called.stderr));

    let json = hublet(&site.netns, &["status", "-o", "json"])?;
    let status: serde_json::Value = serde_json::from_slice(&json.stdout)?;
    let callers = status["callers"].as_array().unwrap();
    let ours = callers
        .iter()
        .map(|caller| caller["process"]["executable"].as_str().unwrap_or_default());
    assert!(
        ours.into_iter()
            .any(|path| *path == *named.to_str().unwrap()),
        "JSON tells it exactly: {status:#}"
    );
    let table = text(&hublet(&site.netns, &["status"])?.stdout);
    assert!(
        table.contains("\\u{1b}[31m\\u{9b}2J\\u{202e}\\nr"),
        "{table}"
    );
    let raw = Client::new(hublet_tests::client::Options {
        netns: Some(site.netns.clone()),
        ..hublet_tests::client::Options::new(ADMIN, "", None)
    })?;
    eventually(SOON, "the failed handshake is in the log", || {
        site.daemon.read_log().contains("\\u{1b}[31m").then_some(())
    })?;
    for (place, text) in [
        ("hublet status", table),
        ("hublet status -o json", text(&json.stdout)),
        ("/v1/status", raw.get("/v1/status")?.text()),
        ("the log", site.daemon.read_log()),
    ] {
        assert_eq!(control_characters(&text), [], "{place}: {text}");
    }
    Ok(())
}

/// Before, a daemon without pins (no bpffs, no privileges) was not noticed: `uninstall` removed its CA, certificate
/// and store.
#[test]
fn uninstall_removes_nothing_of_a_running_daemon() -> Result<()> {
    let site = Site::start("operators", |options| {
        options.flags.push("--bpffs=/proc/none".into())
    })?;
    let Some(mut site) = site else { return Ok(()) };
    let elsewhere = Netns::new("elsewhere")?;
    let folder = tempfile::tempdir()?;
    let root = site.daemon.root_dir();
    let flags = [
        format!("--bpffs={}", folder.path().display()),
        format!("--root-dir={}", root.display()),
        format!("--disk-cache-path={}", root.join("cache").display()),
    ];
    let uninstall = || {
        let arguments: Vec<&str> = std::iter::once("uninstall")
            .chain(flags.iter().map(String::as_str))
            .collect();
        hublet(&elsewhere, &arguments)
    };
    let refused = uninstall()?;
    let message = text(&refused.stderr);
    assert_eq!(
        refused.status.code(),
        Some(1),
        "{message}{}",
        text(&refused.stdout)
    );
    let pid = format!("process {}", site.daemon.pid().unwrap());
    assert!(
        message.contains(&pid) && message.contains("SIGTERM"),
        "whom to stop, and how: {message}"
    );
    assert!(root.join("pki/dev-ca.crt").exists() && root.join("cache/hublet.redb").exists());

    assert!(site.daemon.stop()?.success());
    let done = uninstall()?;
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(
        !root.exists(),
        "nothing is left once it has stopped: {}",
        text(&done.stdout)
    );
    Ok(())
}

/// A closing terminal and logrotate send SIGHUP. Before, it ended the daemon without a drain, and pins and
/// interface were left behind.
#[test]
fn reload_signals_do_not_end_the_daemon() -> Result<()> {
    let Some(mut site) = Site::start("operators", |_| {})? else {
        return Ok(());
    };
    let pid = Pid::from_raw(site.daemon.pid().unwrap().cast_signed());
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(pid, signal)?;
        let is_logged = || {
            site.daemon
                .read_log()
                .contains(&format!("{signal} is ignored"))
                .then_some(())
        };
        eventually(SOON, "it is logged and ignored", is_logged)?;
    }
    assert_eq!(site.admin_client()?.get("/version")?.status, 200);
    assert!(site.daemon.stop()?.success(), "SIGTERM still drains");
    assert!(site.daemon.read_log().contains("stopped after"));
    Ok(())
}

/// Before, a second API server was accepted without a warning, and never used.
#[test]
fn an_unused_server_is_reported() -> Result<()> {
    const SECOND: &str = "192.0.2.7:6443";
    let second = format!("--server-addr=https://{SECOND}");
    let site = Site::start("operators", |options| options.flags.push(second.clone()))?;
    let Some(site) = site else { return Ok(()) };
    let warning = |text: &str| {
        text.lines()
            .any(|l| l.contains(SECOND) && l.contains("not used yet"))
    };
    assert!(
        warning(&site.daemon.read_log()),
        "{}",
        site.daemon.read_log()
    );
    let table = text(&hublet(&site.netns, &["status"])?.stdout);
    assert!(warning(&table), "{table}");
    let least = [
        "config",
        "--node-name=a",
        "--server-addr=https://a:1",
        "--bootstrap-file=/b",
        &second,
    ];
    let printed = hublet(&site.netns, &least)?;
    assert!(warning(&text(&printed.stderr)), "{}", text(&printed.stderr));
    Ok(())
}

/// Before, the plain HTTP probe of the secure port counted as two errors of clients each second.
#[test]
fn the_self_probe_is_not_counted_as_a_call() -> Result<()> {
    let Some(site) = Site::start("operators", |_| {})? else {
        return Ok(());
    };
    let uptime = || {
        site.daemon
            .fetch_status()
            .is_ok_and(|s| s["uptimeSeconds"].as_u64() >= Some(2))
    };
    eventually(SOON, "some probes have been made", || {
        uptime().then_some(())
    })?;
    let scrape = site.daemon.scrape_metrics()?;
    let closed = metric("hublet_connections_closed_total").label("cause", "plain_on_secure");
    let accepted = metric("hublet_connections_accepted_total").label("port", "secure");
    assert_eq!(
        (closed.sum(&scrape), accepted.sum(&scrape)),
        (0.0, 0.0),
        "{scrape}"
    );

    let mut plain = site.daemon.client_options(None)?;
    plain.url = SECURE.replace("https", "http");
    assert_eq!(Client::new(plain)?.get("/")?.status, 400);
    let scrape = site.daemon.scrape_metrics()?;
    assert_eq!(
        (closed.sum(&scrape), accepted.sum(&scrape)),
        (1.0, 1.0),
        "others' mistakes count: {scrape}"
    );
    Ok(())
}

/// Before, failed handshakes were logged at debug level only: at the default level nothing showed why a client
/// could not connect.
#[test]
fn a_flood_of_failed_handshakes_gives_one_warning() -> Result<()> {
    let Some(site) = Site::start("operators", |_| {})? else {
        return Ok(());
    };
    let mut stranger = site.daemon.client_options(None)?;
    stranger.ca_pem = Ca::new("another")?.pem().to_owned();
    let stranger = Client::new(stranger)?;
    for _ in 0..20 {
        assert!(stranger.get("/version").is_err());
    }
    let failed = || metric("hublet_connections_closed_total").label("cause", "tls_handshake");
    eventually(SOON, "all have failed", || {
        (failed().sum(&site.daemon.scrape_metrics().ok()?) >= 20.0).then_some(())
    })?;
    let log = site.daemon.read_log();
    let warnings: Vec<_> = log
        .lines()
        .filter(|line| line.contains("TLS handshake with"))
        .collect();
    assert_eq!(warnings.len(), 1, "{log}");
    assert!(
        warnings[0].contains("WARN") && warnings[0].contains("169.254.2.1:"),
        "{}",
        warnings[0]
    );
    assert!(
        warnings[0].contains("does the client trust our CA?"),
        "{}",
        warnings[0]
    );
    Ok(())
}

/// Before, `hublet status | head` ended with an error message.
#[test]
fn a_closed_pipe_ends_status_without_an_error() -> Result<()> {
    let Some(site) = Site::start("operators", |_| {})? else {
        return Ok(());
    };
    let least = [
        "config",
        "--node-name=a",
        "--server-addr=https://a:1",
        "--bootstrap-file=/b",
        "--bootstrap-mode=development",
    ];
    for arguments in [
        &["status"][..],
        &["status", "-o", "json"],
        &["version"],
        &least,
    ] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = Command::new(binary_under_test()?);
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped());
        let output = site.netns.run(|| command.spawn())?.wait_with_output()?;
        assert_eq!(
            (output.status.code(), text(&output.stderr).as_str()),
            (Some(141), ""),
            "{arguments:?}"
        );
    }
    Ok(())
}

/// Before, no flag disabled eBPF as a whole, and a component that a flag had disabled was reported as a warning.
#[test]
fn ebpf_can_be_disabled_without_a_warning() -> Result<()> {
    let Some(mut site) = steered()? else {
        return Ok(());
    };
    let pinned = site.daemon.bpffs().unwrap().join("hublet");
    site.daemon.kill()?;
    assert!(
        pinned.exists(),
        "the killed one's programs are still attached"
    );
    let before = site.daemon.read_log().len();
    site.daemon.start_with("--ebpf=false")?;
    assert!(!pinned.exists(), "and are taken off");
    let status = site.daemon.fetch_status()?;
    assert_eq!(
        status["ebpf"]["programs"],
        serde_json::json!([]),
        "{status:#}"
    );
    for part in ["steering", "identity", "guard"] {
        let part = status["components"]
            .as_array()
            .unwrap()
            .iter()
            .find(|p| p["name"] == part)
            .unwrap();
        assert_eq!(
            (&part["on"], &part["wanted"]),
            (&false.into(), &false.into()),
            "{part}"
        );
        assert!(
            part["detail"].as_str().unwrap().contains("--ebpf=false"),
            "{part}"
        );
    }
    assert_eq!(
        site.admin_client()?.get("/version")?.status,
        200,
        "who dials it itself is served"
    );
    let log = site.daemon.read_log();
    assert!(!log[before..].contains("WARN"), "{}", &log[before..]);
    Ok(())
}

/// At the highest log level, with an allowed, a refused and an unknown caller, neither the log, metrics nor status
/// contain a token, and only root can read the store's files.
#[test]
fn i8_no_token_is_shown_and_the_store_is_for_root_only() -> Result<()> {
    let Some(site) = Site::start("secrets", |options| options.flags.push("--v=5".into()))? else {
        return Ok(());
    };
    let forged = hublet_tests::pki::service_account_token("kube-system", "forged");
    let tokens = [
        site.cloud.admin_token.clone(),
        site.cloud.calico_token.clone(),
        forged,
    ];
    for cut in [false, true] {
        if cut {
            site.cut_link()?;
        }
        for token in &tokens {
            let client = site.daemon.client(Some(token))?;
            for path in ["/api/v1/nodes/edge-1", "/api/v1/secrets", "/version"] {
                let _any_answer = client.get(path)?;
            }
        }
    }
    let shown = [
        site.daemon.read_log(),
        site.daemon.scrape_metrics()?,
        site.daemon.fetch_status()?.to_string(),
    ];
    for token in &tokens {
        // A part of it would be as bad; the header of a JWT is everybody's.
        let secret = token.rsplit('.').next().unwrap_or(token);
        for text in &shown {
            assert!(!text.contains(secret), "a token in:\n{text}");
        }
    }
    let folder = site.daemon.root_dir().join("cache");
    let mode = |path: &std::path::Path| {
        Ok::<_, anyhow::Error>(path.metadata()?.permissions().mode() & 0o777)
    };
    assert_eq!(mode(&folder)?, 0o700);
    for entry in std::fs::read_dir(&folder)? {
        let path = entry?.path();
        assert_eq!(mode(&path)?, 0o600, "{}", path.display());
    }
    Ok(())
}
