//! Promise: README's two commands work on a machine where rustup installs nothing by itself and has an older toolchain
//! only. cargo is rustup's proxy there, which ended with "toolchain … is not installed" before xtask was built. A first
//! build of xtask itself is announced: `cargo xtask` does it without a word.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A machine whose `rustup` and `cargo` write down how they were called.
struct Machine(tempfile::TempDir);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Toolchain {
    Installed,
    Missing,
}

impl Machine {
    fn new(toolchain: Toolchain) -> Self {
        let machine = Self(tempfile::tempdir().expect("a folder"));
        if toolchain == Toolchain::Installed {
            fs::write(machine.file("installed"), "").expect("written");
        }
        machine.program(
            "rustup",
            "case \"$1\" in show) test -e \"$HERE/installed\";; *) touch \"$HERE/installed\";; esac",
        );
        machine.program("cargo", "test -e \"$HERE/installed\"");
        machine
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn program(&self, name: &str, does: &str) {
        let script = format!("#!/bin/sh\necho {name} \"$@\" >> \"$HERE/calls\"\n{does}\n");
        fs::write(self.file(name), script).expect("written");
        fs::set_permissions(self.file(name), fs::Permissions::from_mode(0o755))
            .expect("executable");
    }

    /// The command that `scripts/xtask test guard` runs.
    fn calls(&self) -> Vec<String> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("the checkout");
        let path = format!("{}:/usr/bin:/bin", self.0.path().display());
        let mut script = Command::new(root.join("scripts/xtask"));
        script
            .args(["test", "guard"])
            .env("PATH", path)
            .env("HERE", self.0.path())
            .env("CARGO_TARGET_DIR", self.file("target"))
            .current_dir("/");
        assert!(
            script.status().expect("it runs").success(),
            "the command works"
        );
        let calls = fs::read_to_string(self.file("calls")).expect("calls");
        calls.lines().map(str::to_owned).collect()
    }
}

#[test]
fn the_pinned_toolchain_is_fetched_first_where_it_is_missing() {
    let calls = Machine::new(Toolchain::Missing).calls();
    assert_eq!(
        calls,
        [
            "rustup show active-toolchain",
            "rustup toolchain install",
            "cargo build --package xtask",
            "cargo xtask test guard"
        ]
    );
}

#[test]
fn nothing_is_fetched_or_built_first_where_it_is_there() {
    let machine = Machine::new(Toolchain::Installed);
    fs::create_dir_all(machine.file("target/debug")).expect("a folder");
    machine.program("target/debug/xtask", "");
    assert_eq!(
        machine.calls(),
        ["rustup show active-toolchain", "cargo xtask test guard"]
    );
}
