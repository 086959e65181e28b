//! Promise: YurtHub's addresses answer as its clients expect: plain HTTP and TLS on 10261, TLS with HTTP/2 and HTTP/1.1
//! on 10268, the certificate's subject and names, and `OK` on 10267; and no client can occupy them. Each test has a
//! node of its own.
//!
//! Before, one client could take every connection, and a client that didn't read kept its response in memory for ever.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use hublet_tests::client::{Client, Options as ClientOptions};
use hublet_tests::cloud::{ServerFault, ServerFaultRule};
use hublet_tests::daemon::{ADMIN, Daemon, Options, SECURE};
use hublet_tests::eventually::eventually;
use hublet_tests::metrics::metric;
use hublet_tests::netns::Netns;
use hublet_tests::pki::Ca;
use hublet_tests::require;
use hublet_tests::site::Site;

/// Nobody listens there: what listeners do, they do without the cloud.
const NO_CLOUD: &str = "https://127.0.0.1:6443";

/// A daemon on a node of its own, with these flags.
fn node(flags: &[&str]) -> Option<(Netns, Daemon)> {
    if !require::root() {
        return None;
    }
    let netns = Netns::new("node").expect("a namespace");
    let ca = Ca::new("cloud").expect("a CA");
    let mut options = Options::new(NO_CLOUD, ca.pem(), Some(&netns));
    options.flags = flags.iter().map(ToString::to_string).collect();
    if let Some(steer) = flags.iter().find_map(|flag| flag.strip_prefix("--steer=")) {
        options.steer = steer.into();
        options.flags.retain(|flag| !flag.starts_with("--steer="));
    }
    // Pins of its own: other daemons of these tests run beside it.
    options.bpffs = true;
    let daemon = Daemon::start(options).expect("ready");
    Some((netns, daemon))
}

fn client(netns: &Netns, url: &str, ca_pem: &str, alpn: &[&'static str]) -> Client {
    let options = ClientOptions::new(url, ca_pem, None);
    Client::new(ClientOptions {
        netns: Some(netns.clone()),
        alpn: alpn.to_vec(),
        ..options
    })
    .expect("a client")
}

/// Sends bytes on a new TCP connection, and returns everything that comes back until it is closed.
fn exchange(netns: &Netns, address: &str, bytes: &[u8]) -> Vec<u8> {
    netns.run(|| {
        let mut stream = TcpStream::connect(address).expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        stream.write_all(bytes).expect("written");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("closed by hublet");
        answer
    })
}

#[test]
fn every_address_answers_in_every_form() {
    let Some((netns, daemon)) = node(&[]) else {
        return;
    };
    let ca = daemon.ca_pem().expect("the CA");
    let forms = [
        ("http://127.0.0.1:10261", &["http/1.1"][..], "HTTP/1.1"),
        ("http://169.254.2.1:10261", &["http/1.1"], "HTTP/1.1"),
        ("https://127.0.0.1:10261", &["h2", "http/1.1"], "HTTP/2.0"),
        ("https://169.254.2.1:10261", &["http/1.1"], "HTTP/1.1"),
        (SECURE, &["h2", "http/1.1"], "HTTP/2.0"),
        (SECURE, &["http/1.1"], "HTTP/1.1"),
        (SECURE, &[], "HTTP/1.1"),
    ];
    for (url, alpn, protocol) in forms {
        let answer = client(&netns, url, &ca, alpn)
            .get("/api/v1/namespaces/default/pods/a")
            .expect(url);
        assert_eq!(format!("{:?}", answer.protocol), protocol, "{url} {alpn:?}");
        assert_eq!(
            answer.json()["kind"],
            "Status",
            "{url}: the handler answers: {}",
            answer.text()
        );
        let subject = if url.starts_with("https") {
            "O=system:nodes; CN=system:node:edge-1"
        } else {
            ""
        };
        assert_eq!(answer.subject, subject, "{url}");
    }
}

#[test]
fn plain_http2_is_known_by_its_preface() {
    let Some((netns, _daemon)) = node(&[]) else {
        return;
    };
    // A client's preface and empty SETTINGS; the server's first frame is SETTINGS (type 4).
    let hello = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let frame = netns.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:10261").expect("connected");
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        // In two pieces that alone could still become PUT or POST.
        stream.set_nodelay(true).expect("set");
        stream.write_all(&hello[..1]).expect("written");
        stream.write_all(&hello[1..]).expect("written");
        let mut frame = [0; 9];
        stream.read_exact(&mut frame).expect("a frame");
        frame
    });
    assert_eq!(frame[3], 4, "{frame:?}");
}

#[test]
fn plain_http_on_the_secure_port_gets_gos_words() {
    let Some((netns, _daemon)) = node(&[]) else {
        return;
    };
    let answer = exchange(
        &netns,
        "169.254.2.1:10268",
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    let expected =
        "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
    assert_eq!(String::from_utf8_lossy(&answer), expected);
}

#[test]
fn the_certificate_is_the_one_that_curl_and_openssl_expect() {
    let Some((netns, daemon)) = node(&[
        "--steer=10.96.0.1:443,10.97.0.1:443",
        "--node-ip=192.168.1.7",
    ]) else {
        return;
    };
    let shell = |command: &str| {
        let output = netns
            .run(|| Command::new("sh").args(["-c", command]).output())
            .expect("sh");
        String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr)
    };
    let verbose = shell(&format!("curl -sk -v {SECURE}/apis 2>&1 | grep subject:"));
    assert_eq!(
        verbose.trim(),
        "*  subject: O=system:nodes; CN=system:node:edge-1"
    );
    let x509 = shell(
        "openssl s_client -connect 169.254.2.1:10268 </dev/null 2>/dev/null | \
         openssl x509 -noout -subject -ext subjectAltName,keyUsage,extendedKeyUsage",
    );
    let names = [
        "DNS:kubernetes",
        "DNS:kubernetes.default",
        "DNS:kubernetes.default.svc",
        "DNS:kubernetes.default.svc.cluster.local",
        "IP Address:10.96.0.1",
        "IP Address:10.97.0.1",
        "IP Address:169.254.2.1",
        "IP Address:127.0.0.1",
        "IP Address:192.168.1.7",
    ];
    let line = x509
        .lines()
        .find(|line| line.contains("DNS:"))
        .expect("names")
        .trim();
    let mut shown: Vec<_> = line.split(", ").collect();
    let mut expected = names.to_vec();
    shown.sort_unstable();
    expected.sort_unstable();
    assert_eq!(shown, expected);
    for part in [
        "Digital Signature, Key Encipherment",
        "TLS Web Server Authentication",
        "system:node:edge-1",
    ] {
        assert!(x509.contains(part), "{part} in {x509}");
    }
    let ca = daemon.root_dir().join("pki/dev-ca.crt");
    let trusted = shell(&format!(
        "curl -s --cacert {} -o /dev/null -w '%{{http_code}}' {SECURE}/apis",
        ca.display()
    ));
    assert_eq!(trusted, "503", "a client that trusts the CA is served");
}

#[test]
fn the_certificate_survives_a_restart() {
    let Some((netns, mut daemon)) = node(&[]) else {
        return;
    };
    let ca = daemon.ca_pem().expect("the CA");
    let pem = || {
        std::fs::read(daemon.root_dir().join("pki/yurthub-server-current.pem"))
            .expect("the certificate")
    };
    let before = pem();
    daemon.restart().expect("ready again");
    let pem = std::fs::read(daemon.root_dir().join("pki/yurthub-server-current.pem"))
        .expect("the certificate");
    assert_eq!(pem, before);
    client(&netns, SECURE, &ca, &["h2"])
        .get("/version")
        .expect("served under the same CA");
}

#[test]
fn health_readiness_metrics_and_status_are_on_10267() {
    let Some((netns, daemon)) = node(&[]) else {
        return;
    };
    let admin = client(&netns, ADMIN, "", &["http/1.1"]);
    for path in ["/v1/healthz", "/v1/readyz"] {
        let answer = admin.get(path).expect(path);
        assert_eq!(
            (answer.status, answer.text().as_str()),
            (200, "OK"),
            "{path}"
        );
    }
    client(&netns, SECURE, &daemon.ca_pem().expect("the CA"), &["h2"])
        .get("/version")
        .expect("an answer");
    let scrape = daemon.scrape_metrics().expect("metrics");
    metric("hublet_ready").value(1.0).assert_in(&scrape);
    metric("hublet_connections_limit")
        .value(4096.0)
        .assert_in(&scrape);
    metric("hublet_self_probe_failures_total")
        .value(0.0)
        .assert_in(&scrape);
    metric("hublet_component_on")
        .label("component", "interface")
        .value(1.0)
        .assert_in(&scrape);
    metric("hublet_connections_accepted_total")
        .label("port", "secure")
        .value(1.0)
        .assert_in(&scrape);
    assert!(
        scrape.ends_with("# EOF\n") && scrape.matches("# EOF").count() == 1,
        "one OpenMetrics text"
    );
    let status = admin.get("/v1/status").expect("status").json();
    assert_eq!(status["apiVersion"], "hublet/v1");
    assert_eq!(status["node"], "edge-1");
    assert!(
        status["listeners"].as_array().is_some_and(|listeners| {
            listeners.len() == 4 && listeners.iter().all(|one| one["state"] == "accepting")
        }),
        "{status}"
    );
    assert_eq!(
        status["callers"][0]["port"], "secure",
        "the self-probe is no caller: {status}"
    );
    for (path, code) in [("/v1/token", 501), ("/pods", 501), ("/", 404)] {
        assert_eq!(admin.get(path).expect(path).status, code, "{path}");
    }
}

#[test]
fn status_shows_the_callers_as_a_table_and_as_json() {
    let Some((netns, daemon)) = node(&[]) else {
        return;
    };
    client(&netns, SECURE, &daemon.ca_pem().expect("the CA"), &["h2"])
        .get("/version")
        .expect("an answer");
    let status = |words: &[&str]| {
        let binary = hublet_tests::daemon::binary_under_test().expect("the binary");
        let output = netns
            .run(|| Command::new(binary).arg("status").args(words).output())
            .expect("ran");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let table = status(&[]);
    for part in [
        "COMPONENTS",
        "interface",
        "CALLERS",
        "ADDRESS",
        "CLOUD",
        "STORE",
        "LISTENERS",
        "169.254.2.1:10268  HTTPS                    accepting",
    ] {
        assert!(
            table.contains(part),
            "{part} in
{table}"
        );
    }
    let json: serde_json::Value = serde_json::from_str(&status(&["-o", "json"])).expect("JSON");
    assert_eq!(json["node"], "edge-1");
}

/// Before, one client could occupy every connection for as long as it liked: others were closed at accept, the
/// self-probe among them.
#[test]
fn at_the_limit_the_client_with_most_connections_loses_an_idle_one() {
    let Some((netns, daemon)) = node(&["--max-connections=64"]) else {
        return;
    };
    let admin = client(&netns, ADMIN, "", &["http/1.1"]);
    netns.run(|| {
        let dial = || TcpStream::connect("127.0.0.1:10261").expect("connected");
        let mut held: Vec<_> = (0..200).map(|_| dial()).collect();
        // The probe comes twice a second, and gets in.
        for _ in 0..30 {
            held.push(dial());
            std::thread::park_timeout(Duration::from_millis(50));
            assert_eq!(admin.get("/v1/readyz").expect("an answer").text(), "OK");
        }
        let newcomer = client(&netns, "http://127.0.0.1:10261", "", &["http/1.1"]);
        newcomer.get("/version").expect("a newcomer is served");
        let mut first = held.swap_remove(0);
        first
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("set");
        let ended = first.read(&mut [0; 1]);
        assert!(!matches!(ended, Ok(1..)), "an idle one went: {ended:?}");
    });
    let scrape = daemon.scrape_metrics().expect("metrics");
    metric("hublet_self_probe_failures_total")
        .value(0.0)
        .assert_in(&scrape);
    assert!(
        metric("hublet_connections_closed_total")
            .label("cause", "limit")
            .sum(&scrape)
            >= 100.0
    );
    assert!(
        metric("hublet_connections_open").sum(&scrape) <= 64.0 + 8.0,
        "{scrape}"
    );
}

/// Before, idle connections were charged like requests: a client with sixteen of them got 429.
#[test]
fn idle_connections_of_one_client_leave_memory_to_others() {
    let Some((netns, _daemon)) = node(&["--ebpf=false", "--max-bytes-under-way=4Mi"]) else {
        return;
    };
    let idle = netns.run(|| {
        let dial = |_| {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 2], 0)).into())?;
            socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], 10261)).into())?;
            std::io::Result::Ok(socket)
        };
        (0..400)
            .map(dial)
            .collect::<std::io::Result<Vec<_>>>()
            .expect("connected")
    });
    let mut others = Vec::new();
    for number in 0..40 {
        let mut stream = netns
            .run(|| TcpStream::connect("127.0.0.1:10261"))
            .expect("connected");
        stream
            .write_all(b"GET /version HTTP/1.1\r\nHost: a\r\n\r\n")
            .expect("written");
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_ne!(
            &answer,
            b"HTTP/1.1 429",
            "{number}, beside {} idle ones",
            idle.len()
        );
        others.push(stream);
    }
}

/// Before, a connection that had sent only `P`, which may become HTTP/2's preface, was polled every 5 ms.
#[test]
fn a_connection_with_an_undecided_protocol_costs_no_cpu() {
    let Some((netns, daemon)) = node(&[]) else {
        return;
    };
    let stat = format!("/proc/{}/stat", daemon.pid().expect("it runs"));
    let ticks = || {
        let stat = std::fs::read_to_string(&stat).expect("its figures");
        let fields: Vec<_> = stat
            .rsplit_once(')')
            .expect("a name")
            .1
            .split_whitespace()
            .collect();
        fields[11..13]
            .iter()
            .map(|ticks| ticks.parse::<u64>().expect("a number"))
            .sum::<u64>()
    };
    let held = netns.run(|| {
        let mut held = Vec::new();
        for _ in 0..800 {
            let mut stream = TcpStream::connect("127.0.0.1:10261").expect("connected");
            stream.write_all(b"P").expect("written");
            held.push(stream);
        }
        held
    });
    std::thread::park_timeout(Duration::from_millis(500));
    let (begin, before) = (Instant::now(), ticks());
    std::thread::park_timeout(Duration::from_secs(2));
    let busy = (ticks() - before) as f64 / 100.0 / begin.elapsed().as_secs_f64();
    assert!(
        busy < 0.1,
        "{busy:.2} of a processor for {} of them",
        held.len()
    );
    // They can still become what they like.
    let mut one = &held[0];
    one.write_all(
        b"OST /version HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    )
    .expect("written");
    let mut answer = String::new();
    one.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 50"), "{answer}");
}

/// Before, any `Connection: Upgrade` made a request an upgrade: it was not counted, never stored, never answered
/// from the store, and each took a connection to the cloud.
#[test]
fn an_upgrade_that_the_api_server_ignores_is_an_ordinary_request() {
    let Some(site) = Site::start("node", |options| options.bpffs = true).expect("a node") else {
        return;
    };
    let head = format!(
        "GET /api/v1/nodes/edge-1 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {}\r\nConnection: Upgrade, close\r\n\
         Upgrade: x\r\n\r\n",
        site.cloud.admin_token
    );
    let ask = || {
        String::from_utf8(exchange(&site.netns, "127.0.0.1:10261", head.as_bytes())).expect("text")
    };
    let online = ask();
    assert!(
        online.starts_with("HTTP/1.1 200") && online.contains("x-hublet-source: cloud"),
        "{online}"
    );
    site.cut_link().expect("cut");
    let offline = ask();
    assert!(
        offline.starts_with("HTTP/1.1 200") && offline.contains("x-hublet-source: store"),
        "{offline}"
    );
}

/// Before, the response of a client that didn't read stayed in hublet's memory for ever.
#[test]
fn a_stalled_reader_is_disconnected_and_a_slow_one_is_not() {
    let with = |options: &mut Options| {
        options.bpffs = true;
        options.flags.push("--reader-timeout=2s".into());
    };
    let Some(site) = Site::start("node", with).expect("a node") else {
        return;
    };
    site.cloud.server_faults().add_rule(ServerFaultRule::new(
        "GET",
        "/version",
        ServerFault::Long(16 << 20),
    ));
    let ask = || {
        site.netns.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:10261").expect("connected");
            let token = &site.cloud.admin_token;
            let head = format!(
                "GET /version HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n"
            );
            stream.write_all(head.as_bytes()).expect("written");
            stream
        })
    };
    let (stuck, mut slow) = (ask(), ask());
    let under_way =
        || metric("hublet_bytes_under_way").sum(&site.daemon.scrape_metrics().expect("metrics"));
    let begin = Instant::now();
    let mut buffer = vec![0; 256 << 10];
    let mut most: f64 = 0.0;
    while begin.elapsed() < Duration::from_secs(6) {
        assert!(slow.read(&mut buffer).expect("a slow reader goes on") > 0);
        most = most.max(under_way());
        std::thread::park_timeout(Duration::from_millis(300));
    }
    assert!(most > 10_000.0, "{most} bytes were under way at the most");
    let scrape = site.daemon.scrape_metrics().expect("metrics");
    metric("hublet_connections_closed_total")
        .label("cause", "stalled")
        .value(1.0)
        .assert_in(&scrape);
    drop((stuck, slow));
    eventually(Duration::from_secs(5), "all is given back", || {
        (under_way() == 0.0).then_some(())
    })
    .expect("nothing under way");
}

#[test]
fn a_drain_is_quick_when_nobody_waits_and_leaves_nothing() {
    let Some((netns, mut daemon)) = node(&[]) else {
        return;
    };
    let kept = netns.run(|| TcpStream::connect("127.0.0.1:10261").expect("an idle connection"));
    let begin = Instant::now();
    let status = daemon.stop().expect("ended");
    assert!(status.success(), "{status}: {}", daemon.read_log());
    assert!(
        begin.elapsed() < Duration::from_secs(3),
        "an idle connection holds nothing up: {:?}",
        begin.elapsed()
    );
    drop(kept);
    let links = netns
        .run(|| Command::new("ip").args(["-br", "addr"]).output())
        .expect("ip");
    let links = String::from_utf8_lossy(&links.stdout).into_owned();
    assert!(!links.contains("169.254.2.1"), "{links}");
    daemon.restart().expect("starts again");
}

#[test]
fn a_second_daemon_fails_without_touching_the_first_one() {
    let Some((netns, daemon)) = node(&[]) else {
        return;
    };
    let other = Ca::new("cloud").expect("a CA");
    let mut second =
        Daemon::prepare(Options::new(NO_CLOUD, other.pem(), Some(&netns))).expect("folders");
    second.spawn().expect("started");
    // Its readiness can't be asked: the first one answers there.
    eventually(Duration::from_secs(10), "the second one gives up", || {
        second
            .read_log()
            .contains("another process listens there")
            .then_some(())
    })
    .unwrap_or_else(|error| panic!("{error}; its log:\n{}", second.read_log()));
    second.stop().expect("it has ended");
    client(&netns, SECURE, &daemon.ca_pem().expect("the CA"), &["h2"])
        .get("/version")
        .expect("the first one serves");
}
