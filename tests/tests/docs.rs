//! Promise: the documents keep up with the code. Every path, item, flag, metric, program and map that they name exists,
//! every link leads somewhere, `tests/README.md` lists every suite, and `docs/invariants.md` names tests that exist and
//! misses none that carries an invariant's number.
//!
//! Before, a checklist named a flag that hublet has never had, and the guide to debugging promised a log line that is
//! never written: renames in the code left the documents behind, and only readers noticed.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

#[path = "docs/document.rs"]
mod document;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args as _;

use document::Document;

/// The workspace, when the sources are there: the suites also run in virtual machines without them.
fn workspace() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    root.join("docs/invariants.md")
        .is_file()
        .then(|| root.to_path_buf())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("read {}", path.display()))
}

/// The text between backquotes in a line.
fn quoted(line: &str) -> Vec<&str> {
    line.split('`').skip(1).step_by(2).collect()
}

/// Names of the functions behind `#[test]` in a source.
fn test_names(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_test = true;
        } else if let Some(rest) = line
            .strip_prefix("fn ")
            .or_else(|| line.strip_prefix("async fn "))
            && is_test
        {
            names.insert(rest.split('(').next().unwrap_or_default().to_owned());
            is_test = false;
        }
    }
    names
}

/// Every Rust source of the workspace, build output left out.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
    Ok(())
}

/// `i7_…` and `…_i7` name an invariant.
fn carries_a_number(name: &str) -> bool {
    let is_number = |part: &str| {
        part.strip_prefix('i')
            .is_some_and(|digits| digits.parse::<u8>().is_ok_and(|n| (1..=17).contains(&n)))
    };
    let mut parts = name.split('_');
    parts.next().is_some_and(is_number) || parts.next_back().is_some_and(is_number)
}

#[test]
fn the_table_of_suites_lists_every_suite_and_no_other() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let listed: BTreeSet<String> = read(&root.join("tests/README.md"))?
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|rest| rest.split_once('`'))
        .map(|(name, _)| name.to_owned())
        .collect();
    let existing: BTreeSet<String> = fs::read_dir(root.join("tests/tests"))?
        .filter_map(|entry| entry.ok()?.path().file_name()?.to_str().map(str::to_owned))
        .filter_map(|name| name.strip_suffix(".rs").map(str::to_owned))
        .collect();
    assert_eq!(listed, existing, "tests/README.md and tests/tests differ");
    Ok(())
}

#[test]
fn the_tests_that_prove_an_invariant_exist() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let text = read(&root.join("docs/invariants.md"))?;
    let mut listed = BTreeSet::new();
    for line in text.lines().filter(|line| line.starts_with("- `")) {
        let names = quoted(line);
        let path = root.join(names[0]);
        let known = test_names(&read(&path)?);
        for name in &names[1..] {
            assert!(known.contains(*name), "{} has no test {name}", names[0]);
            listed.insert((path.clone(), (*name).to_owned()));
        }
    }
    for number in 1..=17 {
        assert!(
            text.contains(&format!("**I{number}.**")),
            "I{number} is missing"
        );
    }
    let mut paths = Vec::new();
    for folder in ["proxy-user", "proxy-ebpf", "tests"] {
        sources(&root.join(folder), &mut paths)?;
    }
    for path in paths {
        for name in test_names(&read(&path)?) {
            let is_listed = listed.contains(&(path.clone(), name.clone()));
            assert!(
                is_listed || !carries_a_number(&name),
                "docs/invariants.md lacks {name} of {}",
                path.display()
            );
        }
    }
    Ok(())
}

/// Every source in these folders, one after the other.
fn all_sources(root: &Path, folders: &[&str]) -> Result<String> {
    let mut paths = Vec::new();
    for folder in folders {
        sources(&root.join(folder), &mut paths)?;
    }
    paths.iter().map(|path| read(path)).collect()
}

/// Whether an identifier occurs in a source by itself, not as a part of another one.
fn has_word(source: &str, word: &str) -> bool {
    source
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .any(|found| found == word)
}

/// Paths that ARCHITECTURE.md announces and that do not exist yet.
const PLANNED_PATHS: [&str; 3] = ["cloud/share", "cache/overlay", "wire/transcode"];

/// Flags that the documents announce.
const PLANNED_FLAGS: [&str; 1] = ["no-store-secrets"];

#[test]
fn every_path_in_the_documents_exists() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    for document in Document::all(&root)? {
        for span in document.spans() {
            let (path, item) = span.text.split_once("::").unwrap_or((span.text, ""));
            if !document.means_a_path(path) {
                continue;
            }
            let place = &span.place;
            let found = document.resolve(path);
            assert_eq!(
                found.is_none(),
                PLANNED_PATHS.contains(&path),
                "{place}: {path} doesn't exist, or is no longer a plan"
            );
            if let Some(found) = found.filter(|_| !item.is_empty()) {
                let source = read(&found)?;
                assert!(has_word(&source, item), "{place}: no {item} in {path}");
            }
        }
    }
    Ok(())
}

#[test]
fn every_link_between_the_documents_leads_somewhere() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    for document in Document::all(&root)? {
        for link in document.links() {
            let place = &link.place;
            let (file, fragment) = link.text.split_once('#').unwrap_or((link.text, ""));
            let path = document.linked_path(file);
            assert!(path.exists(), "{place}: {file} doesn't exist");
            if !fragment.is_empty() {
                let anchors = Document::read(&root, path)?.anchors();
                assert!(
                    anchors.contains(fragment),
                    "{place}: no heading {fragment} in {file}"
                );
            }
        }
    }
    Ok(())
}

/// `path.rs`: `Type::name` says where an item is.
#[test]
fn every_item_that_the_documents_place_in_a_file_is_there() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    for document in Document::all(&root)? {
        let spans = document.spans();
        for pair in spans.windows(2).filter(|pair| pair[1].lead == ": ") {
            let path = document.resolve(pair[0].text);
            let Some(path) = path.filter(|path| path.is_file()) else {
                continue;
            };
            let source = read(&path)?;
            for name in pair[1].text.split("::") {
                let (place, path) = (&pair[1].place, path.display());
                assert!(has_word(&source, name), "{place}: no {name} in {path}");
            }
        }
    }
    Ok(())
}

#[test]
fn every_qualified_name_in_the_documents_is_in_the_sources() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let sources = all_sources(&root, &["proxy-user", "proxy-ebpf", "tests", "xtask"])?;
    for document in Document::all(&root)? {
        for span in document.spans() {
            if !span.is_qualified_name() {
                continue;
            }
            for name in span.text.split("::") {
                let (place, text) = (&span.place, span.text);
                assert!(has_word(&sources, name), "{place}: {text} is in no source");
            }
        }
    }
    Ok(())
}

/// The daemon's flags, and those that the sources of the other commands have as fields.
fn is_flag(daemon: &clap::Command, commands: &str, flag: &str) -> bool {
    daemon
        .get_arguments()
        .any(|argument| argument.get_long() == Some(flag))
        || has_word(commands, &flag.replace('-', "_"))
        || ["help", "version"].contains(&flag)
}

#[test]
fn every_flag_in_the_documents_exists() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let daemon = hublet::config::flags::Flags::augment_args(clap::Command::new("hublet"));
    let commands = all_sources(&root, &["proxy-user/src/cli", "xtask/src"])?;
    for document in Document::all(&root)? {
        for span in document.spans() {
            for flag in span.flags() {
                assert_ne!(
                    is_flag(&daemon, &commands, flag),
                    PLANNED_FLAGS.contains(&flag),
                    "{}: --{flag} doesn't exist, or is no longer a plan",
                    span.place
                );
            }
        }
    }
    Ok(())
}

/// docs/metrics.md lists the metrics; the suite `offline` compares it with the daemon's.
#[test]
fn every_metric_in_the_documents_is_listed() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let page = read(&root.join("docs/metrics.md"))?;
    let listed: BTreeSet<&str> = page
        .lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split(['`', '{']).next())
        .collect();
    let crates_and_log_targets = ["hublet_tests", "hublet_bpf"];
    for document in Document::all(&root)? {
        for word in document.words_with_prefix("hublet_") {
            let is_listed = match word.text.strip_suffix('*') {
                Some(prefix) => listed.iter().any(|name| name.starts_with(prefix)),
                None => listed.contains(word.text) || crates_and_log_targets.contains(&word.text),
            };
            assert!(is_listed, "{}: {}", word.place, word.text);
        }
    }
    Ok(())
}

#[test]
fn every_program_and_map_in_the_documents_is_in_the_kernels_part() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let kernel = all_sources(&root, &["proxy-ebpf/src"])?;
    for document in Document::all(&root)? {
        let names = [
            document.words_with_prefix("HUB_"),
            document.words_with_prefix("hub_"),
        ];
        for name in names.iter().flatten() {
            assert!(
                has_word(&kernel, name.text),
                "{}: no {} in proxy-ebpf",
                name.place,
                name.text
            );
        }
    }
    Ok(())
}

#[test]
fn debugging_explains_every_reason_for_not_storing_a_response() -> Result<()> {
    let Some(root) = workspace() else {
        return Ok(());
    };
    let source = read(&root.join("proxy-user/src/cache/not_stored.rs"))?;
    let existing: BTreeSet<&str> = source
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => \""))
        .filter_map(|(_, label)| label.split('"').next())
        .collect();
    assert!(existing.len() > 10, "the labels of NotStored have moved");
    let page = read(&root.join("docs/debugging.md"))?;
    let section = page.split("### A response that is not stored").nth(1);
    let explained: BTreeSet<&str> = section
        .context("no section about responses that are not stored")?
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .collect();
    assert_eq!(explained, existing);
    Ok(())
}
