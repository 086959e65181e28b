//! `cargo xtask mutants`: cargo-mutants over the modules that hold no I/O, where a unit test should notice any change.

use anyhow::{Result, bail};
use clap::Args;

use crate::project::Project;
use crate::{step, toolchain};

/// Modules of decisions and bytes; a change in one of them must fail a unit test of its crate.
const PURE: [&str; 8] = [
    "proxy-user/wire/src/**/*.rs",
    "proxy-user/src/proxy/route.rs",
    "proxy-user/src/config/*.rs",
    "proxy-user/src/cache/keys.rs",
    "proxy-user/src/cloud/health/*.rs",
    "proxy-user/src/authz/*.rs",
    "proxy-user/src/text.rs",
    "xtask/src/arrows/*.rs",
];

/// Arguments of `mutants`.
#[derive(Debug, Args)]
pub(crate) struct MutantsArguments {
    /// Files to change; the pure modules without one.
    #[arg(value_name = "FILE")]
    files: Vec<String>,
    /// Prints the changes and tries none.
    #[arg(long)]
    list: bool,
    /// Prints cargo-mutants' JSON; with `--list` alone.
    #[arg(long, requires = "list")]
    json: bool,
}

pub(crate) fn run(project: &Project, arguments: &MutantsArguments) -> Result<()> {
    toolchain::install_cargo_mutants(project)?;
    let mut mutants = project.cargo();
    mutants
        .args(["mutants", "--workspace", "--output"])
        .arg(&project.target);
    for file in files_to_change(&arguments.files) {
        mutants.args(["--file", file]);
    }
    if arguments.list {
        mutants.arg("--list");
        if arguments.json {
            mutants.arg("--json");
        }
        print!("{}", step::read_output(&mut mutants)?);
        return Ok(());
    }
    // Unit tests alone: suites need root and minutes. A target directory of its own, so that dependencies are compiled
    // once for all changes and runs.
    mutants
        .env("CARGO_TARGET_DIR", project.target.join("mutants"))
        .args(["--", "--lib", "--bins"]);
    step::announce("mutants: each change is built and tested; missed ones are listed below");
    let status = mutants.status()?;
    match status.code() {
        Some(0) => Ok(()),
        // cargo-mutants' own code for missed mutants and for timeouts.
        Some(2 | 3) => bail!(
            "no test notices the changes listed above (also in {}/mutants.out)",
            project.relative_path(&project.target)
        ),
        _ => bail!("cargo mutants ended with {status}"),
    }
}

fn files_to_change(named: &[String]) -> Vec<&str> {
    if named.is_empty() {
        PURE.to_vec()
    } else {
        named.iter().map(String::as_str).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_files_replace_the_table() {
        assert_eq!(files_to_change(&["a.rs".to_owned()]), ["a.rs"]);
        assert_eq!(files_to_change(&[]).len(), PURE.len());
    }
}
