//! The object in `proxy-ebpf/object/`, with the list of its inputs: as long as these are unchanged, neither bpf-linker nor
//! rust-src is needed. `cargo xtask ebpf` writes both files, and `cargo xtask ebpf --check` compares them with the sources.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::{FIXED_FLAGS, reproducible};
use crate::project::Project;
use crate::toolchain;

const REMEDY: &str = "build it with `cargo xtask ebpf` and commit proxy-ebpf/object/";
/// Sections of the workspace's manifest that change the object.
const MANIFEST_SECTIONS: [&str; 2] = ["[workspace.package]", "[profile.release]"];

/// The committed object, copied to where a build from source writes it (one path for the daemon's build script);
/// `None` when it is missing or one of its inputs has changed.
pub(crate) fn copy_current(project: &Project) -> Result<Option<PathBuf>> {
    if !is_current(project)? {
        return Ok(None);
    }
    let object = super::object_path(project);
    fs::create_dir_all(project.target.join("bpf"))?;
    super::write_if_changed(&object, &fs::read(committed_object(project))?)?;
    Ok(Some(object))
}

/// Writes the object that was built from source, and its inputs.
pub(crate) fn write(project: &Project, built: &Path) -> Result<()> {
    let object = committed_object(project);
    fs::create_dir_all(object.parent().context("the object has a folder")?)?;
    super::write_if_changed(&object, &fs::read(built)?)?;
    let inputs = read_inputs(project)?;
    super::write_if_changed(&inputs_file(project), inputs.as_bytes())
}

/// Fails unless the list of inputs is that of the sources.
pub(crate) fn check_inputs(project: &Project) -> Result<()> {
    let file = inputs_file(project);
    let recorded = fs::read_to_string(&file).unwrap_or_default();
    let changed = changed_lines(&recorded, &read_inputs(project)?);
    if !changed.is_empty() {
        bail!(
            "the committed BPF object is stale, {REMEDY}. Changed since (- then, + now):\n{}",
            changed.join("\n")
        );
    }
    Ok(())
}

/// Fails unless the committed object has the bytes of the one that was built from source.
pub(crate) fn check_bytes(project: &Project, built: &Path) -> Result<()> {
    let committed = committed_object(project);
    match reproducible::first_difference(&fs::read(&committed)?, &fs::read(built)?) {
        None => Ok(()),
        Some(at) => bail!(
            "{} differs from byte {at} on from what its sources give, {REMEDY}",
            project.relative_path(&committed)
        ),
    }
}

fn is_current(project: &Project) -> Result<bool> {
    let Ok(recorded) = fs::read_to_string(inputs_file(project)) else {
        return Ok(false);
    };
    Ok(recorded == read_inputs(project)?)
}

fn committed_object(project: &Project) -> PathBuf {
    project.root.join("proxy-ebpf/object/hublet.bpf.o")
}

fn inputs_file(project: &Project) -> PathBuf {
    project.root.join("proxy-ebpf/object/inputs")
}

/// All that the object's bytes depend on, one input a line: compiler, linker, flags, profile, crates, sources.
/// Also the object's own digest, so that half of a commit or of a merge is noticed.
fn read_inputs(project: &Project) -> Result<String> {
    let read = |path: &str| {
        fs::read_to_string(project.root.join(path)).with_context(|| format!("cannot read {path}"))
    };
    let mut text = String::from("# Inputs of hublet.bpf.o. `cargo xtask ebpf` writes this file.\n");
    writeln!(text, "bpf-linker {}", toolchain::BPF_LINKER)?;
    writeln!(text, "target {}", super::TARGET)?;
    for flag in FIXED_FLAGS {
        writeln!(text, "flag {flag}")?;
    }
    push_manifest(&read("Cargo.toml")?, &mut text);
    push_crates(&read("Cargo.lock")?, &mut text);
    let mut files = vec![project.root.join("rust-toolchain.toml")];
    files.push(project.root.join("proxy-ebpf/Cargo.toml"));
    add_files_below(&project.root.join("proxy-ebpf/src"), &mut files)?;
    files.push(committed_object(project));
    files.retain(|file| file.is_file());
    for (file, sum) in files.iter().zip(reproducible::sha256(project, &files)?) {
        writeln!(text, "{sum}  {}", project.relative_path(file))?;
    }
    Ok(text)
}

/// The settings of the manifest that change the object, without comments.
fn push_manifest(manifest: &str, text: &mut String) {
    let mut section = "";
    for line in manifest.lines() {
        let line = line.split(" #").next().unwrap_or(line).trim();
        if line.starts_with('[') {
            section = line;
        } else if MANIFEST_SECTIONS.contains(&section) && !line.is_empty() && !line.starts_with('#')
            || line.starts_with("aya-ebpf ")
        {
            text.push_str(&format!("{section} {line}\n"));
        }
    }
}

/// The locked versions of the crates that the programs link, with checksums. Those of macros and build scripts don't
/// reach the object.
fn push_crates(lock: &str, text: &mut String) {
    for package in lock.split("[[package]]") {
        let value = |key: &str| {
            let mut lines = package.lines();
            lines.find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))
        };
        let Some(name) = value("name").filter(|name| name.starts_with("\"aya-ebpf")) else {
            continue;
        };
        let (version, checksum) = (value("version"), value("checksum"));
        text.push_str(&format!(
            "crate {name} {} {}\n",
            version.unwrap_or_default(),
            checksum.unwrap_or_default()
        ));
    }
}

/// Sorted by path.
fn add_files_below(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries = fs::read_dir(dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    paths.sort();
    for path in paths {
        if path.is_dir() {
            add_files_below(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn changed_lines(recorded: &str, now: &str) -> Vec<String> {
    let lines = |from: &str, other: &str, sign: &str| -> Vec<String> {
        let gone = from
            .lines()
            .filter(|line| !other.lines().any(|it| it == *line));
        gone.map(|line| format!("{sign} {line}")).collect()
    };
    [lines(recorded, now, "-"), lines(now, recorded, "+")].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_settings_that_change_the_object_are_inputs() {
        let manifest = "[workspace.package]\nedition = \"2024\"\n\n[workspace.dependencies]\naya = \"1\"\n\
                        aya-ebpf = \"2\"\n\n[profile.release]\nopt-level = 2   # fast\n\n\
                        [profile.release.package]\naya.opt-level = \"s\"\n";
        let mut text = String::new();
        push_manifest(manifest, &mut text);
        assert_eq!(
            text,
            "[workspace.package] edition = \"2024\"\n[workspace.dependencies] aya-ebpf = \"2\"\n\
             [profile.release] opt-level = 2\n"
        );
    }

    #[test]
    fn the_locked_versions_of_what_the_programs_link_are_inputs() {
        let lock = "version = 4\n\n[[package]]\nname = \"aya\"\nversion = \"1\"\nchecksum = \"a\"\n\n\
                    [[package]]\nname = \"aya-ebpf\"\nversion = \"2\"\nchecksum = \"b\"\n";
        let mut text = String::new();
        push_crates(lock, &mut text);
        assert_eq!(text, "crate \"aya-ebpf\" \"2\" \"b\"\n");
    }

    #[test]
    fn a_stale_object_is_explained_by_the_inputs_that_changed() {
        let (recorded, now) = ("same\n1  a.rs\n", "same\n2  a.rs\n3  b.rs\n");
        assert_eq!(
            changed_lines(recorded, now),
            ["- 1  a.rs", "+ 2  a.rs", "+ 3  b.rs"]
        );
        assert!(changed_lines(now, now).is_empty());
    }
}
