//! Requirements of tests: root, BPF, Go. A missing one prints a line `SKIP …` with the reason; with `CI=true` it fails the test
//! instead, so that nothing is skipped quietly.
//!
//! ```text
//! if !require::root() { return; }
//! ```
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

/// May this process make network namespaces and mounts?
#[must_use]
#[track_caller]
pub fn root() -> bool {
    skip_unless(
        nix::unistd::geteuid().is_root(),
        "it needs root, for network namespaces: run it with sudo -E",
    )
}

/// Can BPF programs be loaded and attached: root, kernel types, a cgroup v2 hierarchy?
#[must_use]
#[track_caller]
pub fn bpf() -> bool {
    let cgroup = std::fs::read_to_string("/proc/self/mounts")
        .unwrap_or_default()
        .contains(" cgroup2 ");
    root()
        && skip_unless(
            Path::new("/sys/kernel/btf/vmlinux").exists(),
            "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)",
        )
        && skip_unless(cgroup, "no cgroup v2 hierarchy is mounted")
}

/// Parts of hublet's setup that this kernel can't have, where `cargo xtask vm` says so; then others that are off are a
/// fallback without need, and one of these that is on is a false promise.
#[must_use]
pub fn expected_off() -> Option<Vec<String>> {
    let off = std::env::var("HUBLET_TEST_OFF").ok()?;
    Some(off.split_whitespace().map(str::to_owned).collect())
}

/// Can the real API server run: Go to build it, or `KUBEBUILDER_ASSETS` with it?
#[must_use]
#[track_caller]
pub fn go() -> bool {
    let built = std::env::var_os("KUBEBUILDER_ASSETS").is_some();
    skip_unless(
        built || is_go_installed(),
        "it needs the real API server: install Go, or set KUBEBUILDER_ASSETS to a folder with kube-apiserver and etcd",
    )
}

fn is_go_installed() -> bool {
    let version = Command::new("go")
        .arg("version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    version.is_ok_and(|status| status.success())
}

/// Says (past the test harness' capture) that the running test is skipped when `met` is false.
#[track_caller]
pub fn skip_unless(met: bool, reason: &str) -> bool {
    if met {
        return true;
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
    assert!(!ci, "{test} must run in CI, but {reason}");
    let _ = writeln!(std::io::stderr(), "SKIP {test}: {reason}");
    false
}
