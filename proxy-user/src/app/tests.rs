//! Start and end of a whole daemon, without privileges: no interface, no eBPF, no cloud.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::*;
use crate::config::Checked;

const MINUTE: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(10);

/// A directory with a kubeconfig, and ports that are free.
struct Node {
    dir: tempfile::TempDir,
    plain: SocketAddr,
    secure: SocketAddr,
    admin: SocketAddr,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let ca = rcgen::generate_simple_self_signed(["ca".to_owned()]).expect("a CA");
        std::fs::write(dir.path().join("ca.crt"), ca.cert.pem()).expect("written");
        let kubeconfig = "clusters: [{name: c, cluster: {certificate-authority: ca.crt}}]";
        std::fs::write(dir.path().join("kubeconfig"), kubeconfig).expect("written");
        let [plain, secure, admin] = free_addresses();
        Self {
            dir,
            plain,
            secure,
            admin,
        }
    }

    fn checked(&self) -> Checked {
        let dir = self.dir.path();
        let line = [
            "hublet".to_owned(),
            "--node-name=edge-1".to_owned(),
            "--server-addr=https://127.0.0.1:1".to_owned(),
            "--bootstrap-mode=development".to_owned(),
            format!("--bootstrap-file={}", dir.join("kubeconfig").display()),
            format!("--root-dir={}", dir.join("root").display()),
            format!("--disk-cache-path={}", self.store().display()),
            format!("--proxy-port={}", self.plain.port()),
            format!("--proxy-secure-port={}", self.secure.port()),
            format!("--serve-port={}", self.admin.port()),
            "--enable-dummy-if=false".to_owned(),
            "--ebpf=false".to_owned(),
        ];
        let line = line.into_iter().map(OsString::from);
        let crate::cli::Command::Run(flags) = crate::cli::parse(line).expect("flags") else {
            panic!("not a run");
        };
        crate::config::check(flags, &|_| None).expect("a configuration")
    }

    fn store(&self) -> std::path::PathBuf {
        self.dir.path().join("store")
    }
}

fn free_addresses() -> [SocketAddr; 3] {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    // All are bound before the first one is released, so that they differ.
    let sockets = [(); 3].map(|()| TcpListener::bind((loopback, 0)).expect("a socket"));
    sockets.map(|socket| socket.local_addr().expect("its address"))
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut response = Vec::new();
    stream.read_to_end(&mut response).await.expect("received");
    String::from_utf8_lossy(&response).into_owned()
}

fn is_free(address: SocketAddr) -> bool {
    TcpListener::bind(address).is_ok()
}

#[tokio::test]
async fn a_daemon_serves_until_it_is_told_to_stop_and_leaves_nothing_open() {
    let node = Node::new();
    let bound = Bound::build(node.checked()).await.expect("built");
    let (stop, shutdown) = Shutdown::on_messages();
    let running = tokio::spawn(bound.run(shutdown));
    let readiness = async {
        while !get(node.admin, "/v1/readyz").await.contains(" 200 ") {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(MINUTE, readiness).await.expect("it becomes ready");
    let answer = get(node.plain, "/api/v1/pods").await;
    assert!(answer.contains(r#""kind":"Status""#), "{answer}");

    stop.send(()).await.expect("it runs");
    timeout(MINUTE, running)
        .await
        .expect("in time")
        .expect("no panic");
    for address in [node.plain, node.secure] {
        assert!(is_free(address), "{address} is still bound");
    }
    let again = Bound::build(node.checked()).await;
    assert!(again.is_ok(), "the store is closed: {:?}", again.err());
}

#[tokio::test]
async fn a_second_daemon_fails_on_the_port_in_use_and_leaves_the_first_alone() {
    let node = Node::new();
    let first = Bound::build(node.checked()).await.expect("built");
    let second = failed_start(&node).await;
    assert!(matches!(second, AppError::Listen(_)), "{second}");
    assert!(
        second.to_string().contains(&node.admin.to_string()),
        "{second}"
    );
    drop(first);
}

#[tokio::test]
async fn a_failed_start_names_the_file_and_releases_its_sockets() {
    let node = Node::new();
    let root = node.dir.path().join("root");
    std::fs::write(&root, "a file, not a directory").expect("written");
    let error = failed_start(&node).await;
    let text = error.to_string();
    assert!(text.contains(root.to_str().expect("UTF-8")), "{text}");
    assert!(is_free_soon(node.admin).await, "the admin socket is open");
}

async fn failed_start(node: &Node) -> AppError {
    match Bound::build(node.checked()).await {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

async fn is_free_soon(address: SocketAddr) -> bool {
    let free = async {
        while !is_free(address) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    timeout(MINUTE, free).await.is_ok()
}
