//! Subject, renewal and replacement of the serving certificate, and unusable files.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use time::Duration;

use super::*;
use crate::certs::inspect::parse_certified_key;

struct Node {
    directory: tempfile::TempDir,
    mode: BootstrapMode,
    ips: Vec<IpAddr>,
}

impl Node {
    fn new(mode: BootstrapMode) -> Self {
        let ips = ["10.96.0.1", "169.254.2.1", "127.0.0.1"]
            .map(|ip| ip.parse().expect("IP"))
            .to_vec();
        Self {
            directory: tempfile::tempdir().expect("directory"),
            mode,
            ips,
        }
    }
    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join("root/pki").join(name)
    }
    fn open(&self, now: OffsetDateTime) -> Certificates {
        let config = CertsConfig {
            mode: self.mode,
            bootstrap_file: None,
            root_dir: self.directory.path().join("root"),
            organizations: vec!["openyurt:tenant:x".into()],
            ip_sans: self.ips.clone(),
            dns_sans: vec![],
            node_ip: None,
        };
        Certificates::open(&config, "edge-1", now).expect("certificates")
    }
    fn count_set_aside(&self) -> usize {
        let names = fs::read_dir(self.directory.path().join("root/pki")).expect("pki");
        names
            .filter(|name| {
                name.as_ref()
                    .is_ok_and(|n| n.file_name().to_string_lossy().contains(".unusable-"))
            })
            .count()
    }
}

fn now() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(1_790_000_000).expect("a day of 2026")
}

fn leaf(certificates: &Certificates) -> CertificateInfo {
    CertificateInfo::from_chain(&certificates.resolver.current.load().cert).expect("certificate")
}

#[test]
fn the_certificate_is_made_out_as_yurthubs() {
    let node = Node::new(BootstrapMode::Development);
    let info = leaf(&node.open(now()));
    assert_eq!(info.common_name, "system:node:edge-1");
    assert_eq!(
        info.organizations,
        ["system:nodes"],
        "extra organizations are the client certificate's"
    );
    assert_eq!(info.dns.len(), 4);
    assert!(info.dns.contains("kubernetes.default.svc.cluster.local"));
    assert_eq!(info.ips, node.ips.iter().copied().collect());
    assert!(info.is_valid(now()));
    for key in ["dev-ca.key", "yurthub-server-current.pem"] {
        assert_eq!(
            fs::metadata(node.file(key))
                .expect(key)
                .permissions()
                .mode()
                & 0o777,
            0o600,
            "{key}"
        );
    }
    assert_eq!(
        fs::metadata(node.file(""))
            .expect("pki")
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
}

#[test]
fn it_is_kept_while_it_fits_and_renewed_when_it_does_not() {
    let mut node = Node::new(BootstrapMode::Development);
    let first = leaf(&node.open(now())).public_key;
    assert_eq!(
        leaf(&node.open(now() + Duration::days(200))).public_key,
        first,
        "kept"
    );
    let later = now() + Duration::days(300);
    let second = leaf(&node.open(later));
    assert_ne!(second.public_key, first, "renewed before its time is up");
    assert!(second.not_after > later + Duration::days(300));
    node.ips.push("192.168.1.7".parse().expect("IP"));
    let third = leaf(&node.open(later));
    assert!(
        third.ips.contains(&node.ips[3]) && third.public_key != second.public_key,
        "a new address"
    );
    assert_eq!(node.count_set_aside(), 0, "renewing sets nothing aside");
}

#[test]
fn a_running_daemon_renews_and_swaps() {
    let node = Node::new(BootstrapMode::Development);
    let certificates = node.open(now());
    let first = leaf(&certificates).public_key;
    certificates.refresh(now()).expect("refresh");
    assert_eq!(leaf(&certificates).public_key, first);
    certificates
        .refresh(now() + Duration::days(400))
        .expect("refresh");
    assert_ne!(leaf(&certificates).public_key, first);
    assert!(certificates.describe().contains("dev-ca.crt"));
}

#[test]
fn a_clock_of_1970_gets_a_certificate_that_is_valid_then_and_keeps_the_ca() {
    let node = Node::new(BootstrapMode::Development);
    let early = OffsetDateTime::from_unix_timestamp(100_000).expect("1970");
    let certificates = node.open(early);
    assert!(leaf(&certificates).is_valid(early));
    let ca = fs::read(node.file("dev-ca.crt")).expect("CA");
    certificates
        .refresh(now())
        .expect("the clock is right at last");
    assert!(leaf(&certificates).is_valid(now()));
    assert_eq!(
        fs::read(node.file("dev-ca.crt")).expect("CA"),
        ca,
        "clients need not be told"
    );
}

#[test]
fn unusable_files_are_set_aside_and_replaced() {
    for damage in [
        "",
        "garbage",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let node = Node::new(BootstrapMode::Development);
        node.open(now());
        fs::write(node.file("yurthub-server-current.pem"), damage).expect("damaged");
        assert!(leaf(&node.open(now())).is_valid(now()));
        assert_eq!(node.count_set_aside(), 1, "{damage:?}");
    }
}

#[test]
fn a_key_of_another_certificate_is_found_out() {
    let (node, other) = (
        Node::new(BootstrapMode::Development),
        Node::new(BootstrapMode::Development),
    );
    node.open(now());
    other.open(now());
    let split = |node: &Node| {
        let pem = fs::read_to_string(node.file("yurthub-server-current.pem")).expect("PEM");
        let at = pem.find("-----BEGIN PRIVATE").expect("key");
        (pem[..at].to_owned(), pem[at..].to_owned())
    };
    let mixed = split(&node).0 + &split(&other).1;
    let reason = parse_certified_key(&mixed).expect_err("mismatch");
    assert!(reason.contains("doesn't belong"), "{reason}");
    fs::write(node.file("yurthub-server-current.pem"), mixed).expect("written");
    assert!(leaf(&node.open(now())).is_valid(now()));
    assert_eq!(node.count_set_aside(), 1);
}

#[test]
fn a_damaged_ca_is_replaced_and_the_certificate_with_it() {
    let node = Node::new(BootstrapMode::Development);
    let first = leaf(&node.open(now())).public_key;
    fs::remove_file(node.file("dev-ca.key")).expect("removed");
    assert_ne!(leaf(&node.open(now())).public_key, first);
    assert_eq!(node.count_set_aside(), 1, "the certificate without key");
    let other = Node::new(BootstrapMode::Development);
    other.open(now());
    fs::copy(other.file("dev-ca.key"), node.file("dev-ca.key")).expect("mixed up");
    node.open(now());
    assert_eq!(
        node.count_set_aside(),
        3,
        "both files of the CA that don't belong together"
    );
}

#[test]
fn a_certificate_from_the_cluster_is_used_and_never_touched() {
    let (cluster, node) = (
        Node::new(BootstrapMode::Development),
        Node::new(BootstrapMode::Token),
    );
    cluster.open(now());
    let certificates = node.open(now());
    assert!(
        node.file("dev-server.pem").exists() && !node.file("yurthub-server-current.pem").exists()
    );
    assert!(certificates.describe().contains("dev-ca.crt"));
    fs::copy(
        cluster.file("yurthub-server-current.pem"),
        node.file("yurthub-server-current.pem"),
    )
    .expect("from YurtHub");
    certificates.refresh(now()).expect("refresh");
    assert!(
        certificates.describe().contains("from the cluster"),
        "{}",
        certificates.describe()
    );
    assert_eq!(
        leaf(&certificates).public_key,
        leaf(&cluster.open(now())).public_key
    );
    certificates
        .refresh(now() + Duration::days(500))
        .expect("refresh");
    assert!(
        certificates.describe().contains("dev-server.pem"),
        "expired: {}",
        certificates.describe()
    );
    assert!(node.file("yurthub-server-current.pem").exists());
    assert_eq!(node.count_set_aside(), 0);
}
