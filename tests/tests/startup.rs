//! Promise: hublet starts with the command lines that nodes have already. A wrong setting is reported at once, with the
//! remedy, and with exit code 2 for wrong usage or 1 for anything else.
//!
//! A supervisor restarts a daemon that fails: an error that appears late, or without a remedy, repeats in the log for
//! ever.
use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use hublet_tests::daemon::binary_under_test;
use hublet_tests::eventually::eventually;
use hublet_tests::pki::{Ca, Credential, render_kubeconfig};
use serde_json::Value;
use tempfile::TempDir;

/// The command line of the product's first users, as their manifests have it.
fn seed() -> Vec<&'static str> {
    include_str!("../data/yurthub/command-line")
        .lines()
        .collect()
}

fn hublet(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary_under_test().expect("the binary"));
    command
        .args(arguments)
        .env_remove("NODE_NAME")
        .stdin(Stdio::null());
    command
}

fn output_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Folders of a daemon that gets as far as a wrong thing lets it.
struct Place {
    folder: TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self {
            folder: tempfile::tempdir().expect("a folder"),
        };
        let ca = Ca::new("cloud").expect("a CA");
        place.write(
            "bootstrap.conf",
            &render_kubeconfig("https://127.0.0.1:6443", ca.pem(), Credential::None),
        );
        place
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    /// Flags for a start without interface and eBPF, on ports that the kernel has just reported as free.
    fn flags(&self) -> Vec<String> {
        let free: Vec<_> = (0..3)
            .map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"))
            .collect();
        let port = |n: usize| free[n].local_addr().expect("address").port();
        vec![
            "--node-name=edge-1".into(),
            "--server-addr=https://127.0.0.1:6443".into(),
            "--bootstrap-mode=development".into(),
            format!("--bootstrap-file={}", self.path("bootstrap.conf")),
            format!("--root-dir={}", self.path("root")),
            format!("--disk-cache-path={}", self.path("cache")),
            "--enable-dummy-if=false".into(),
            "--steer=none".into(),
            format!("--serve-port={}", port(0)),
            format!("--proxy-port={}", port(1)),
            format!("--proxy-secure-port={}", port(2)),
        ]
    }

    /// Starts with these flags in addition, where a failure is expected.
    fn fails(&self, extra: &[String]) -> (Option<i32>, String) {
        let mut command = hublet(&[]);
        command
            .args(self.flags())
            .args(extra)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let ended = eventually(Duration::from_secs(10), "hublet gives up", || {
            child.try_wait().ok().flatten()
        });
        if ended.is_err() {
            child.kill().expect("killed");
        }
        let mut text = String::new();
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut text)
            .expect("read");
        child.wait().expect("waited");
        let status = ended.unwrap_or_else(|error| panic!("{error}; it said:\n{text}"));
        (status.code(), text)
    }
}

fn config(command: &mut Command) -> Value {
    let output = command.output().expect("ran");
    assert!(output.status.success(), "{}", output_text(&output));
    serde_json::from_slice(&output.stdout).expect("JSON on standard output, and nothing else")
}

#[test]
fn the_seed_command_line_is_accepted_as_it_stands() {
    let folder = tempfile::tempdir().expect("a folder");
    let yurthub = folder.path().join("yurthub");
    symlink(binary_under_test().expect("the binary"), &yurthub).expect("a link");
    let as_yurthub = |arguments: &[&str]| {
        let mut command = Command::new(&yurthub);
        command.args(arguments);
        command
    };
    let seed = seed();
    let commands = [
        hublet(&[&seed[..], &["--print-config"]].concat()),
        hublet(&[&["run"], &seed[..], &["--print-config=true"]].concat()),
        hublet(&[&["config"], &seed[..]].concat()),
        as_yurthub(&[&seed[..], &["--print-config"]].concat()),
        as_yurthub(&[&["run"], &seed[..], &["--print-config"]].concat()),
    ];
    for mut command in commands {
        let config = config(command.env("NODE_NAME", "edge-7"));
        assert_eq!(config["node_name"], "edge-7");
        assert_eq!(config["admin"], "127.0.0.1:10267");
        assert_eq!(
            config["listen"]["plain"],
            serde_json::json!(["127.0.0.1:10261", "169.254.2.1:10261"])
        );
        assert_eq!(config["listen"]["secure"], "169.254.2.1:10268");
        assert_eq!(config["cloud"]["servers"][0]["host"], "192.168.1.102");
    }
}

#[test]
fn an_unexpanded_node_name_is_refused() {
    let output = hublet(&seed()).output().expect("ran");
    assert_eq!(output.status.code(), Some(2));
    assert!(
        output_text(&output).contains("spec.nodeName"),
        "{}",
        output_text(&output)
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_names_the_remedy() {
    let good = [
        "--node-name=a",
        "--server-addr=https://a:1",
        "--bootstrap-file=/b",
    ];
    for (wrong, says) in [
        ("--bind-adress=127.0.0.1", "--bind-address"),
        (
            "--server-addr=192.168.1.102:6443",
            "https://192.168.1.102:6443",
        ),
        (
            "--server-addr=http://192.168.1.102:6443",
            "https://192.168.1.102:6443",
        ),
        ("--server-addr=https://a:1:2", "https://HOST:PORT"),
        ("--dummy-if-ip=10.0.0.1", "169.254.2.1"),
        ("--dummy-if-ip=169.254.1.1", "169.254.2.1"),
        ("--dummy-if-ip=169.254.31.5", "169.254.2.1"),
        ("--dummy-if-name=a-name-that-is-too-long", "15 characters"),
        ("--working-mode=local", "edge"),
        ("--bootstrap-mode=magic", "development"),
        ("--lb-mode=round-robin", "rr"),
        ("--proxy-port=10268", "different ports"),
        ("--min-request-timeout=0s", "greater than zero"),
        ("--steer=kubernetes:443", "10.96.0.1:443"),
        ("--steer-only=kubelet", "command:NAME"),
        ("--steer-except=uid:root", "number"),
        ("--steer-pods=all", "annotated"),
        ("--uplink=a/b", "interface name"),
        ("--enable-dummy-if=perhaps", "true or false"),
        ("surprise", "surprise"),
    ] {
        let output = hublet(&[&good[..], &[wrong]].concat())
            .output()
            .expect("ran");
        assert_eq!(
            output.status.code(),
            Some(2),
            "{wrong}: {}",
            output_text(&output)
        );
        assert!(
            output_text(&output).contains(says),
            "{wrong}: {}",
            output_text(&output)
        );
        assert!(
            output.stdout.is_empty(),
            "{wrong}: errors belong on standard error"
        );
    }
    let unknown = hublet(&["status", "--verbose"]).output().expect("ran");
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn help_and_version_are_answers() {
    let help = hublet(&["--help"]).output().expect("ran");
    assert!(help.status.success());
    let text = String::from_utf8_lossy(&help.stdout);
    for part in [
        "Node and cloud",
        "Certificates and files",
        "Listeners",
        "hublet's own",
        "Accepted without effect",
        "--server-addr",
        "--steer",
        "status",
        "Exit codes",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    for arguments in [&["version"][..], &["--version"]] {
        let version = hublet(arguments).output().expect("ran");
        assert!(
            version.status.success() && version.stdout.starts_with(b"hublet "),
            "{version:?}"
        );
    }
}

#[test]
fn status_without_a_daemon_is_exit_code_1() {
    let free = TcpListener::bind("127.0.0.1:0")
        .expect("a free port")
        .local_addr()
        .expect("address");
    let output = hublet(&["status", &format!("--admin={free}")])
        .output()
        .expect("ran");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output_text(&output).contains(&free.to_string())
            && output_text(&output).contains("--admin"),
        "{}",
        output_text(&output)
    );
}

#[test]
fn an_unusable_bootstrap_file_is_named() {
    let place = Place::new();
    place.write("no.yaml", "{]");
    place.write(
        "no-ca.conf",
        "clusters:\n- name: a\n  cluster:\n    server: https://a:1\n",
    );
    place.write(
        "bad-ca.conf",
        "clusters:\n- name: a\n  cluster:\n    certificate-authority-data: bm9uZQ==\n",
    );
    for (file, says) in [
        ("missing.conf", "No such file"),
        ("no.yaml", "not a kubeconfig"),
        ("no-ca.conf", "certificate-authority-data"),
        ("bad-ca.conf", "holds no certificate"),
        ("", "can't read"),
    ] {
        let path = place.path(file);
        let (code, text) = place.fails(&[format!("--bootstrap-file={path}")]);
        assert_eq!(code, Some(1), "{text}");
        assert!(
            text.contains(path.trim_end_matches('/')) && text.contains(says),
            "{file}: {text}"
        );
    }
    assert!(
        !Path::new(&place.path("root")).exists(),
        "nothing is made before the cloud can be trusted"
    );
}

#[test]
fn a_port_in_use_is_named_with_the_flag_that_moves_it() {
    let place = Place::new();
    for flag in ["--serve-port", "--proxy-port", "--proxy-secure-port"] {
        let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = taken.local_addr().expect("address");
        let (code, text) = place.fails(&[format!("{flag}={}", address.port())]);
        assert_eq!(code, Some(1), "{text}");
        for part in [&address.to_string(), flag, "another process listens there"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn an_address_that_the_node_does_not_have_is_named() {
    let (code, text) = Place::new().fails(&["--bind-proxy-address=192.0.2.7".into()]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains("192.0.2.7") && text.contains("--bind-proxy-address"),
        "{text}"
    );
}

#[test]
fn a_root_dir_that_can_not_be_made_is_named() {
    let place = Place::new();
    place.write("file", "no directory");
    let root = place.path("file/root");
    let (code, text) = place.fails(&[format!("--root-dir={root}")]);
    assert_eq!(code, Some(1), "{text}");
    assert!(
        text.contains(&root) && text.contains("--root-dir"),
        "{text}"
    );
    assert_eq!(
        text.matches("os error").count(),
        1,
        "the cause is told once: {text}"
    );
}

#[test]
fn certificates_that_do_not_fit_are_set_aside_and_serving_goes_on() {
    let place = Place::new();
    fs::create_dir_all(place.path("root/pki")).expect("made");
    place.write("root/pki/yurthub-server-current.pem", "garbage");
    place.write("root/pki/dev-ca.crt", "garbage");
    place.write("root/pki/dev-ca.key", "garbage");
    fs::set_permissions(
        place.path("root/pki/dev-ca.key"),
        fs::Permissions::from_mode(0o644),
    )
    .expect("open");
    // A taken port ends the start after the certificates were looked at.
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("address").port();
    let (code, text) = place.fails(&[format!("--proxy-port={port}")]);
    assert_eq!(code, Some(1), "{text}");
    let aside = fs::read_dir(place.path("root/pki"))
        .expect("pki")
        .filter_map(Result::ok);
    let aside = aside
        .filter(|entry| entry.file_name().to_string_lossy().contains(".unusable-"))
        .count();
    assert_eq!(aside, 3, "{text}");
    assert_eq!(text.matches("set aside as").count(), 3, "{text}");
    let key = fs::metadata(place.path("root/pki/dev-ca.key")).expect("a new key");
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
}

#[test]
fn each_flag_without_effect_is_one_warning() {
    let good = [
        "config",
        "--node-name=a",
        "--server-addr=https://a:1",
        "--bootstrap-file=/b",
        "--bootstrap-mode=development",
    ];
    let dead = [
        "--max-requests-in-flight=250",
        "--enable-iptables",
        "--nodepool-name=pool",
        "--log_dir=/var/log",
    ];
    let output = hublet(&[&good[..], &dead].concat()).output().expect("ran");
    assert!(output.status.success(), "{}", output_text(&output));
    assert_eq!(
        output_text(&output).lines().count(),
        4,
        "{}",
        output_text(&output)
    );
    for flag in [
        "--max-requests-in-flight=250",
        "--enable-iptables=true",
        "--nodepool-name=pool",
        "--log-dir=",
    ] {
        assert_eq!(
            output_text(&output).matches(flag).count(),
            1,
            "{flag}: {}",
            output_text(&output)
        );
    }
}
