//! A Markdown document of the repository, and the names in it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

pub(crate) struct Document {
    root: PathBuf,
    path: PathBuf,
    text: String,
}

/// A piece of a document's line.
pub(crate) struct Span<'a> {
    /// `FILE:LINE`, for messages.
    pub(crate) place: String,
    /// The text between the previous span of the line and this one.
    pub(crate) lead: &'a str,
    pub(crate) text: &'a str,
}

impl Document {
    pub(crate) fn read(root: &Path, path: PathBuf) -> Result<Self> {
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        Ok(Self {
            root: root.to_path_buf(),
            path,
            text,
        })
    }

    /// Documents that describe the present; the changelog describes the past.
    pub(crate) fn all(root: &Path) -> Result<Vec<Self>> {
        let mut documents = Vec::new();
        for folder in ["", "docs", "tests"] {
            for entry in fs::read_dir(root.join(folder))? {
                let path = entry?.path();
                let is_document = path.extension().is_some_and(|kind| kind == "md");
                if is_document && !path.ends_with("CHANGELOG.md") {
                    documents.push(Self::read(root, path)?);
                }
            }
        }
        Ok(documents)
    }

    /// Text between backquotes, outside code blocks.
    pub(crate) fn spans(&self) -> Vec<Span<'_>> {
        let mut spans = Vec::new();
        for (number, line) in self.prose() {
            let pieces: Vec<&str> = line.split('`').collect();
            let (pairs, _) = pieces.as_chunks();
            spans.extend(pairs.iter().map(|[lead, text]| Span {
                place: self.place(number),
                lead,
                text,
            }));
        }
        spans
    }

    /// Targets of links to other documents and to headings.
    pub(crate) fn links(&self) -> Vec<Span<'_>> {
        let mut links = Vec::new();
        for (number, line) in self.prose() {
            let targets = line.split("](").skip(1);
            let targets = targets.filter_map(|rest| rest.split(')').next());
            links.extend(
                targets
                    .filter(|target| !target.contains("://"))
                    .map(|target| Span {
                        place: self.place(number),
                        lead: "",
                        text: target,
                    }),
            );
        }
        links
    }

    /// Identifiers that begin so, code blocks included; a trailing `*` belongs to them.
    pub(crate) fn words_with_prefix(&self, prefix: &str) -> Vec<Span<'_>> {
        let mut words = Vec::new();
        for (index, line) in self.text.lines().enumerate() {
            let found = line
                .split(|c: char| !c.is_ascii_alphanumeric() && !"_*".contains(c))
                .filter(|word| word.starts_with(prefix) && word.len() > prefix.len());
            words.extend(found.map(|word| Span {
                place: self.place(index + 1),
                lead: "",
                text: word,
            }));
        }
        words
    }

    /// The file or folder that `text` means: from the root, from the daemon's sources, or from this document.
    pub(crate) fn resolve(&self, text: &str) -> Option<PathBuf> {
        let text = text.trim_end_matches('/');
        let bases = [
            self.root.clone(),
            self.root.join("proxy-user/src"),
            self.root.join("proxy-user"),
            self.folder().to_path_buf(),
        ];
        bases
            .iter()
            .flat_map(|base| [base.join(text), base.join(format!("{text}.rs"))])
            .find(|path| path.exists())
    }

    /// Whether `text` means a file or folder of the repository: its first folder is there, or it is a source. Capitals are
    /// placeholders (`target/vm/KERNEL/`).
    pub(crate) fn means_a_path(&self, text: &str) -> bool {
        let is_plain = text
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "/._-".contains(c));
        let is_source = text.ends_with(".rs");
        let Some((first, _)) = text.split_once('/') else {
            return is_plain && is_source;
        };
        let is_ours = !first.is_empty() && first != "target" && self.resolve(first).is_some();
        is_plain && (is_source || is_ours)
    }

    /// The file of a link, or this document where the link has none.
    pub(crate) fn linked_path(&self, file: &str) -> PathBuf {
        match file {
            "" => self.path.clone(),
            file => self.folder().join(file),
        }
    }

    /// Anchors of the headings, as GitHub makes them.
    pub(crate) fn anchors(&self) -> BTreeSet<String> {
        self.prose()
            .into_iter()
            .filter_map(|(_, line)| line.strip_prefix('#'))
            .map(|heading| anchor_of(heading.trim_start_matches('#').trim()))
            .collect()
    }

    /// Lines outside code blocks, with their numbers.
    fn prose(&self) -> Vec<(usize, &str)> {
        let mut in_block = false;
        let mut lines = Vec::new();
        for (index, line) in self.text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                in_block = !in_block;
            } else if !in_block {
                lines.push((index + 1, line));
            }
        }
        lines
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.root)
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.display())
    }
}

impl Span<'_> {
    /// `Type::name` and the like.
    pub(crate) fn is_qualified_name(&self) -> bool {
        self.text.contains("::")
            && self
                .text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "_:".contains(c))
    }

    /// Flags of hublet and xtask: in their commands, or where the span begins with one. What follows a lone `--` is another
    /// program's.
    pub(crate) fn flags(&self) -> Vec<&str> {
        let starts = ["--", "hublet ", "cargo xtask ", "scripts/xtask "];
        if !starts.iter().any(|start| self.text.starts_with(start)) {
            return Vec::new();
        }
        self.text
            .split_whitespace()
            .take_while(|word| *word != "--")
            .filter_map(|word| word.strip_prefix("--"))
            .map(|flag| flag.split(['=', ',']).next().unwrap_or_default())
            .collect()
    }
}

fn anchor_of(heading: &str) -> String {
    heading
        .to_lowercase()
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}
