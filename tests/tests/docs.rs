//! Promise: the documents for contributors keep up with the code. `tests/README.md` lists every suite, and
//! `docs/invariants.md` names tests that exist and misses none that carries an invariant's number.
#![allow(clippy::unwrap_used, reason = "a test that can't go on says where")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

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
