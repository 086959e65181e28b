//! Promise: the fault proxy applies the configured fault to old and new connections, and nothing else. Suites about
//! outages rely on it: a link that is cut only for new connections, or resets where it should be silent, would make
//! them pass without testing anything.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hublet_tests::client::{Client, Options};
use hublet_tests::cloud::{self, Cloud};
use hublet_tests::eventually::eventually;
use hublet_tests::fault::{Direction, Fault, FaultProxy};
use hublet_tests::netns::Netns;
use hublet_tests::require;

const SHORT: Duration = Duration::from_millis(200);
const SOON: Duration = Duration::from_secs(5);

/// A server that sends every byte back; its thread ends with the process.
fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream)
            });
        }
    });
    address
}

fn proxy() -> FaultProxy {
    FaultProxy::start("127.0.0.1:0".parse().unwrap(), echo(), None).unwrap()
}

fn dial(proxy: &FaultProxy) -> TcpStream {
    let stream = TcpStream::connect(proxy.address()).unwrap();
    stream.set_read_timeout(Some(SHORT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

fn ask(stream: &mut TcpStream, text: &[u8]) -> std::io::Result<Vec<u8>> {
    stream.write_all(text)?;
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back)?;
    Ok(back)
}

fn silent(stream: &mut TcpStream, text: &[u8]) {
    let kind = ask(stream, text).map_err(|cause| cause.kind());
    assert_eq!(kind, Err(ErrorKind::WouldBlock), "neither bytes nor an end");
}

#[test]
fn without_a_fault_bytes_pass_and_are_counted() {
    let proxy = proxy();
    let mut stream = dial(&proxy);
    assert_eq!(ask(&mut stream, b"hello").unwrap(), b"hello");
    // What passes is counted when it has been written, which its reader may notice first.
    let stats = || proxy.stats();
    eventually(SOON, "the answer is counted", || {
        (stats().bytes_down == 5).then_some(())
    })
    .unwrap();
    assert_eq!(
        (
            stats().bytes_up,
            stats().bytes_down,
            stats().connections,
            stats().open
        ),
        (5, 5, 1, 1)
    );
    drop(stream);
    eventually(SOON, "the connection is gone", || {
        (proxy.stats().open == 0).then_some(())
    })
    .unwrap();
}

#[test]
fn a_black_hole_is_silent_on_old_and_new_connections_and_closes_nothing() {
    let proxy = proxy();
    let mut old = dial(&proxy);
    ask(&mut old, b"before").unwrap();
    proxy.set(Fault::Blackhole(None)).unwrap();
    silent(&mut old, b"lost?");
    let mut new = dial(&proxy);
    silent(&mut new, b"anyone?");
    assert_eq!((proxy.stats().bytes_up, proxy.stats().bytes_down), (6, 6));
    proxy.set(Fault::None).unwrap();
    let mut late = [0; 5];
    old.read_exact(&mut late).unwrap();
    assert_eq!(&late, b"lost?", "as after a retransmission");
    assert_eq!(ask(&mut dial(&proxy), b"again").unwrap(), b"again");
}

#[test]
fn a_black_hole_can_be_one_way() {
    let proxy = proxy();
    let mut stream = dial(&proxy);
    ask(&mut stream, b"1").unwrap();
    proxy.set(Fault::Blackhole(Some(Direction::Down))).unwrap();
    silent(&mut stream, b"23");
    assert_eq!((proxy.stats().bytes_up, proxy.stats().bytes_down), (3, 1));
    proxy.set(Fault::Blackhole(Some(Direction::Up))).unwrap();
    let mut back = [0; 2];
    stream.read_exact(&mut back).unwrap();
    silent(&mut stream, b"4");
    assert_eq!((proxy.stats().bytes_up, proxy.stats().bytes_down), (3, 3));
}

#[test]
fn refusing_closes_the_port_and_resets_connections() {
    let proxy = proxy();
    let mut old = dial(&proxy);
    ask(&mut old, b"before").unwrap();
    proxy.set(Fault::Refuse).unwrap();
    assert_eq!(
        TcpStream::connect(proxy.address()).unwrap_err().kind(),
        ErrorKind::ConnectionRefused
    );
    assert_eq!(
        old.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    proxy.set(Fault::None).unwrap();
    assert_eq!(ask(&mut dial(&proxy), b"again").unwrap(), b"again");
}

#[test]
fn a_reset_hits_what_is_open_once() {
    let proxy = proxy();
    let mut old = dial(&proxy);
    ask(&mut old, b"before").unwrap();
    proxy.set(Fault::Reset).unwrap();
    assert_eq!(
        old.read(&mut [0; 1]).unwrap_err().kind(),
        ErrorKind::ConnectionReset
    );
    assert_eq!(proxy.fault(), Fault::None);
    assert_eq!(ask(&mut dial(&proxy), b"again").unwrap(), b"again");
}

#[test]
fn a_cut_comes_after_exactly_so_many_bytes() {
    let proxy = proxy();
    let mut stream = dial(&proxy);
    ask(&mut stream, b"before").unwrap();
    proxy.set(Fault::CutAfter(7)).unwrap();
    stream.write_all(b"0123456789").unwrap();
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    assert_eq!(back, b"0123456");
}

#[test]
fn a_delay_is_both_ways_and_does_not_add_up_in_a_stream() {
    let proxy = proxy();
    proxy.set(Fault::Delay(Duration::from_millis(100))).unwrap();
    let mut stream = dial(&proxy);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let start = Instant::now();
    for _ in 0..10 {
        stream.write_all(b"x").unwrap();
        std::thread::park_timeout(Duration::from_millis(5));
    }
    stream.read_exact(&mut [0; 10]).unwrap();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(200) && took < Duration::from_millis(800),
        "{took:?}"
    );
}

#[test]
fn a_rate_is_kept() {
    let proxy = proxy();
    proxy.set(Fault::Rate(20_000)).unwrap();
    let mut stream = dial(&proxy);
    stream.set_read_timeout(Some(SOON)).unwrap();
    let start = Instant::now();
    ask(&mut stream, &[0; 10_000]).unwrap();
    let took = start.elapsed();
    assert!(
        took >= Duration::from_millis(400) && took < Duration::from_secs(2),
        "{took:?}"
    );
}

#[test]
fn words_and_faults_are_the_same() {
    for word in [
        "none",
        "refuse",
        "blackhole",
        "blackhole=up",
        "blackhole=down",
        "reset",
        "cut-after=9",
        "delay=1",
        "rate=2",
    ] {
        assert_eq!(word.parse::<Fault>().unwrap().to_string(), word);
    }
    for word in [
        "",
        "cut",
        "blackhole=left",
        "rate=0",
        "delay=x",
        "cut-after",
        "refuse=1",
    ] {
        assert!(word.parse::<Fault>().is_err(), "{word}");
    }
}

#[test]
fn a_node_reaches_its_cloud_over_a_cable_that_can_be_pulled() {
    if !require::root() {
        return;
    }
    let (node, far) = (Netns::new("node").unwrap(), Netns::new("cloud").unwrap());
    let (near, there) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
    let cable = node.link_to(near.into(), &far, there.into()).unwrap();
    let options = cloud::Options {
        listen: (there, 6443).into(),
        netns: Some(far),
        ..Default::default()
    };
    let cloud = Cloud::start(options).unwrap();
    let timeout = Duration::from_secs(1);
    let options = Options::new(&cloud.url(), cloud.ca.pem(), None);
    let client = Client::new(Options {
        netns: Some(node.clone()),
        timeout,
        ..options
    })
    .unwrap();
    eventually(SOON, "the link is up", || {
        client
            .get("/readyz")
            .ok()
            .filter(|answer| answer.status == 200)
    })
    .unwrap();
    cable.set_up(false).unwrap();
    assert!(client.get("/readyz").is_err());
    cable.set_up(true).unwrap();
    eventually(SOON, "the link is up again", || client.get("/readyz").ok()).unwrap();
    let outside = Client::new(Options {
        timeout,
        ..Options::new(&cloud.url(), cloud.ca.pem(), None)
    })
    .unwrap();
    assert!(
        outside.get("/readyz").is_err(),
        "the namespaces are apart from the machine"
    );
    let listing = node
        .run(|| Command::new("ip").args(["-o", "link"]).output())
        .unwrap();
    assert!(
        String::from_utf8_lossy(&listing.stdout).contains(cable.name()),
        "a child process runs in the namespace"
    );
}

#[test]
fn hublet_cloud_writes_its_folder_says_so_and_ends_with_its_starter() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("dev");
    let mut child = Command::new(env!("CARGO_BIN_EXE_hublet-cloud"))
        .args(["scripted", "--until-stdin-closes", "--dir"])
        .arg(&dir)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    let ready: serde_json::Value = serde_json::from_str(&line).unwrap();
    let file = |name: &str| std::fs::read_to_string(dir.join(name)).unwrap();
    assert_eq!(ready["control"], file("control").as_str());
    assert!(file("bootstrap.kubeconfig").contains(ready["server"].as_str().unwrap()));
    assert!(file("cloud.kubeconfig").contains(ready["direct"].as_str().unwrap()));
    assert!(file("cloud.kubeconfig").contains(&file("admin.token")));
    let get = |server: &str| {
        let options = Options::new(
            ready[server].as_str().unwrap(),
            &file("cloud-ca.crt"),
            Some(&file("token")),
        );
        let client = Client::new(Options {
            timeout: Duration::from_secs(1),
            ..options
        })
        .unwrap();
        client
            .get("/apis/crd.projectcalico.org/v1/clusterinformations/default")
            .map(|answer| answer.status)
    };
    assert_eq!(get("server").unwrap(), 200);
    let control = Client::new(Options::new(
        &format!("http://{}", file("control")),
        "",
        None,
    ))
    .unwrap();
    let set = |word: &str| {
        control
            .send(http::Request::put("/fault").body(word.into()).unwrap())
            .unwrap()
            .status
    };
    assert_eq!(set("blackhole"), 200);
    assert!(get("server").is_err());
    assert_eq!(get("direct").unwrap(), 200);
    assert_eq!((set("nonsense"), set("none")), (400, 200));
    assert_eq!(get("server").unwrap(), 200);
    drop(child.stdin.take());
    let ended = eventually(SOON, "it ends with its starter", || {
        child.try_wait().unwrap()
    })
    .unwrap();
    assert!(ended.success());
}
