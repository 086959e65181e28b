//! Paths of the checkout, cargo's target directory and `target/dev/`, and commands that start there.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use clap::ValueEnum;

/// The checkout that this xtask belongs to.
#[derive(Debug)]
pub(crate) struct Project {
    /// The folder of the workspace's Cargo.toml.
    pub(crate) root: PathBuf,
    /// Cargo's target directory (`target/`, unless CARGO_TARGET_DIR or a cargo configuration says otherwise).
    pub(crate) target: PathBuf,
}

/// Format of a verb's result (`-o`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputFormat {
    #[value(alias = "table")]
    Text,
    Json,
}

/// The command line asks for something that does not exist: exit code 2.
#[derive(Debug)]
pub(crate) struct Usage(pub(crate) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

impl Project {
    /// Finds the checkout by cargo's environment, and the target directory by where this program lies in it.
    pub(crate) fn find() -> Result<Self> {
        let manifest = env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
        let root = manifest
            .parent()
            .context("xtask's folder has no parent")?
            .to_path_buf();
        let exe = env::current_exe().context("where is xtask?")?;
        let target = exe
            .ancestors()
            .nth(2)
            .with_context(|| {
                format!(
                    "{} is not in a target directory: start it as `cargo xtask`",
                    exe.display()
                )
            })?
            .to_path_buf();
        Ok(Self { root, target })
    }

    /// Files that `cargo xtask run` keeps for its user; always in the checkout, since the path is typed by hand.
    pub(crate) fn dev_dir(&self) -> PathBuf {
        self.root.join("target").join("dev")
    }

    /// A program that cargo built.
    pub(crate) fn built_program(&self, profile: &str, name: &str) -> PathBuf {
        self.target.join(profile).join(name)
    }

    /// `cargo`, in the checkout, writing where this xtask was built.
    pub(crate) fn cargo(&self) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Any program, in the checkout.
    pub(crate) fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new(program.as_ref());
        command.current_dir(&self.root);
        command
    }

    /// A path as the user types it from the checkout.
    pub(crate) fn relative_path<'a>(&self, path: &'a Path) -> std::path::Display<'a> {
        path.strip_prefix(&self.root).unwrap_or(path).display()
    }
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// In CI nothing may be left out quietly.
pub(crate) fn is_ci() -> bool {
    env::var("CI").is_ok_and(|value| value == "true")
}

/// The program's path, if it is in PATH.
pub(crate) fn find_program(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
