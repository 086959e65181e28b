//! `cargo xtask ebpf --check`: builds the BPF object twice, the second time from a copy of the sources in another folder with
//! an empty target directory, and compares the bytes with each other and with the committed object's.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{build_object, committed};
use crate::project::Project;
use crate::step;

/// Folders of a checkout that are no sources.
const NOT_SOURCES: [&str; 2] = ["target", ".git"];

/// Builds the object twice; gives the line that `sha256sum` prints, with the path from the checkout.
pub(crate) fn check_object(project: &Project) -> Result<String> {
    committed::check_inputs(project)?;
    let object = build_object(project)?;
    let again = SecondBuild::prepare(project)?;
    let second = build_object(&again.0)?;
    let sums = sha256(project, &[object.clone(), second.clone()])?;
    let line = format!("{}  {}", sums[0], project.relative_path(&object));
    if let Some(at) = first_difference(&fs::read(&object)?, &fs::read(&second)?) {
        bail!(
            "the BPF object differs from byte {at} on when it is built in another folder:\n{line}\n{}  {}",
            sums[1],
            project.relative_path(&second)
        );
    }
    again.remove()?;
    committed::check_bytes(project, &object)?;
    Ok(line)
}

/// As a step of `ci`.
pub(crate) fn step(project: &Project) -> Result<()> {
    step::note(check_object(project)?);
    Ok(())
}

/// A copy of the sources with a target directory of its own. Stays when the check fails, to be looked at.
struct SecondBuild(Project);

impl SecondBuild {
    fn prepare(project: &Project) -> Result<Self> {
        let dir = project.target.join("bpf-again");
        let copy = Project {
            root: dir.join("sources"),
            target: dir.join("target"),
        };
        let again = Self(copy);
        again.remove()?;
        copy_sources(&project.root, &again.0.root)
            .with_context(|| format!("copying the sources to {}", again.0.root.display()))?;
        Ok(again)
    }

    fn remove(&self) -> Result<()> {
        let dir = self
            .0
            .root
            .parent()
            .context("the copy has a folder of its own")?;
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        Ok(())
    }
}

fn copy_sources(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            if !NOT_SOURCES.iter().any(|name| entry.file_name() == *name) {
                copy_sources(&entry.path(), &to)?;
            }
        } else if entry.file_type()?.is_file() {
            fs::copy(entry.path(), &to)?;
        }
    }
    Ok(())
}

/// One digest a file, in order.
pub(super) fn sha256(project: &Project, files: &[PathBuf]) -> Result<Vec<String>> {
    let printed = step::read_output(project.command("sha256sum").args(files))?;
    let sums = printed.lines().filter_map(|line| line.split(' ').next());
    let sums: Vec<String> = sums.map(str::to_owned).collect();
    if sums.len() != files.len() {
        bail!(
            "sha256sum printed {} sums of {} files",
            sums.len(),
            files.len()
        );
    }
    Ok(sums)
}

/// Offset of the first byte that differs.
pub(super) fn first_difference(one: &[u8], other: &[u8]) -> Option<usize> {
    let shorter = one.len().min(other.len());
    let at = one.iter().zip(other).position(|(one, other)| one != other);
    at.or_else(|| (one.len() != other.len()).then_some(shorter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_found_where_it_begins() {
        assert_eq!(first_difference(b"same", b"same"), None);
        assert_eq!(first_difference(b"same", b"sane"), Some(2));
        assert_eq!(first_difference(b"same", b"same, and more"), Some(4));
        assert_eq!(first_difference(b"", b"x"), Some(0));
    }

    #[test]
    fn a_copy_has_the_sources_and_nothing_that_was_built() {
        let dir = std::env::temp_dir().join(format!("xtask-copy-{}", std::process::id()));
        let (from, to) = (dir.join("from"), dir.join("to"));
        for file in [
            "Cargo.toml",
            "a/src/lib.rs",
            ".cargo/config.toml",
            "target/debug/a",
            ".git/HEAD",
        ] {
            fs::create_dir_all(from.join(file).parent().unwrap()).unwrap();
            fs::write(from.join(file), file).unwrap();
        }
        copy_sources(&from, &to).unwrap();
        let there = |file: &str| fs::read_to_string(to.join(file)).is_ok_and(|text| text == file);
        let sources = ["Cargo.toml", "a/src/lib.rs", ".cargo/config.toml"].map(there);
        let built = ["target", ".git"].map(|name| to.join(name).exists());
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!((sources, built), ([true; 3], [false; 2]));
    }
}
