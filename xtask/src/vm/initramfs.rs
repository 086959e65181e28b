//! Writes the initial file system of a virtual machine: an uncompressed cpio archive in the kernel's format (newc), with
//! all parent folders, owned by root.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use cpio::newc::{Builder, ModeFileType, trailer};

use crate::step;

/// An entry of the archive.
#[derive(Debug)]
enum Entry {
    Folder,
    Link(String),
    Text(String, u32),
    File(PathBuf),
    /// Character device: major, minor.
    Device(u32, u32),
}

/// The archive in the making: absolute paths, each once.
#[derive(Debug, Default)]
pub(super) struct Tree(BTreeMap<PathBuf, Entry>);

impl Tree {
    /// A tree with a console, which the kernel gives to process 1.
    pub(super) fn new() -> Self {
        let mut tree = Self::default();
        tree.add_entry("/dev/console", Entry::Device(5, 1));
        tree
    }

    /// A file with this text.
    pub(super) fn add_text(&mut self, path: &str, text: impl Into<String>) {
        self.add_entry(path, Entry::Text(text.into(), 0o644));
    }

    pub(super) fn add_script(&mut self, path: &str, text: impl Into<String>) {
        self.add_entry(path, Entry::Text(text.into(), 0o755));
    }

    /// A symbolic link to `to`.
    pub(super) fn add_link(&mut self, path: &str, to: &str) {
        self.add_entry(path, Entry::Link(to.to_owned()));
    }

    /// A file of this machine, executable for all.
    pub(super) fn add_file(&mut self, path: impl AsRef<Path>, from: &Path) {
        self.add_entry(path, Entry::File(from.to_path_buf()));
    }

    /// A program of this machine, and the libraries that it is linked with at the paths that it looks for.
    pub(super) fn add_program(&mut self, path: impl AsRef<Path>, from: &Path) -> Result<()> {
        for library in shared_libraries(from)? {
            self.add_file(&library, &library);
        }
        self.add_file(path, from);
        Ok(())
    }

    fn add_entry(&mut self, path: impl AsRef<Path>, entry: Entry) {
        let path = path.as_ref();
        let parents = path
            .ancestors()
            .skip(1)
            .filter(|parent| parent.parent().is_some());
        for parent in parents {
            self.0.entry(parent.to_path_buf()).or_insert(Entry::Folder);
        }
        self.0.insert(path.to_path_buf(), entry);
    }

    /// Writes the archive. Folders come before what is in them: the map's order.
    pub(super) fn write(&self, to: &Path) -> Result<()> {
        let context = || format!("cannot write {}", to.display());
        let mut archive = BufWriter::new(File::create(to).with_context(context)?);
        for (number, (path, entry)) in (1..).zip(&self.0) {
            let name = path
                .strip_prefix("/")
                .unwrap_or(path)
                .to_string_lossy()
                .into_owned();
            let head = Builder::new(&name).ino(number);
            entry
                .write(head, &mut archive)
                .with_context(|| format!("{} for the machine", path.display()))?;
        }
        trailer(archive)
            .and_then(|mut archive| archive.flush())
            .with_context(context)
    }
}

impl Entry {
    fn write(&self, head: Builder, archive: &mut impl Write) -> Result<()> {
        let (head, kind) = match self {
            Self::Folder => (head.mode(0o755).nlink(2), ModeFileType::Directory),
            Self::Link(_) => (head.mode(0o777), ModeFileType::Symlink),
            Self::Text(_, mode) => (head.mode(*mode), ModeFileType::Regular),
            Self::File(_) => (head.mode(0o755), ModeFileType::Regular),
            Self::Device(major, minor) => (
                head.mode(0o600).rdev_major(*major).rdev_minor(*minor),
                ModeFileType::Char,
            ),
        };
        let head = head.set_mode_file_type(kind);
        match self {
            Self::Folder | Self::Device(..) => write_bytes(head, archive, &[]),
            Self::Link(text) | Self::Text(text, _) => write_bytes(head, archive, text.as_bytes()),
            Self::File(from) => write_file(head, archive, from),
        }
    }
}

fn write_bytes(head: Builder, archive: &mut impl Write, bytes: &[u8]) -> Result<()> {
    let mut body = head.write(archive, u32::try_from(bytes.len())?);
    body.write_all(bytes)?;
    body.finish()?;
    Ok(())
}

fn write_file(head: Builder, archive: &mut impl Write, from: &Path) -> Result<()> {
    let context = || format!("cannot read {}", from.display());
    let file = File::open(from).with_context(context)?;
    let size = file.metadata().with_context(context)?.len();
    let mut body = head.write(
        archive,
        u32::try_from(size).context("a file of 4 GiB or more")?,
    );
    let copied = io::copy(&mut file.take(size), &mut body)?;
    if copied != size {
        bail!("{} became shorter while it was read", from.display());
    }
    body.finish()?;
    Ok(())
}

/// The shared libraries and the loader of a program, as the machine's own loader finds them; none for a static one.
fn shared_libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = std::process::Command::new("ldd").arg(program).output();
    let output = output.context("cannot start `ldd` (Debian: package libc-bin)")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let refused = String::from_utf8_lossy(&output.stderr);
    if refused.contains("not a dynamic executable") || printed.contains("statically linked") {
        return Ok(Vec::new());
    }
    if !output.status.success() {
        bail!(
            "`ldd {}` ended with {}: {}",
            program.display(),
            output.status,
            refused.trim()
        );
    }
    if let Some(missing) = printed.lines().find(|line| line.contains("=> not found")) {
        bail!("{} lacks a library: {}", program.display(), missing.trim());
    }
    // `libc.so.6 => /lib/…/libc.so.6 (0x…)`, or the loader's path alone.
    let paths = printed.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        words.find(|word| word.starts_with('/')).map(PathBuf::from)
    });
    Ok(paths.collect())
}

/// Says how large a file became.
pub(super) fn print_size(path: &Path) -> Result<()> {
    let size = fs::metadata(path)?.len();
    step::note(format_args!("{:.0} MB", size as f64 / 1e6));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_come_first_and_everything_is_there_once() {
        let mut tree = Tree::new();
        tree.add_text("/a/b/text", "hello");
        tree.add_script("/init", "#!/bin/sh\n");
        tree.add_link("/a/link", "b/text");
        let to = std::env::temp_dir().join(format!("hublet-cpio-{}", std::process::id()));
        tree.write(&to).unwrap();
        let mut archive = File::open(&to).unwrap();
        fs::remove_file(&to).unwrap();
        let mut names = Vec::new();
        loop {
            let reader = cpio::newc::Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            names.push((reader.entry().name().to_owned(), reader.entry().mode()));
            archive = reader.finish().unwrap();
        }
        let expected = [
            ("a", 0o040_755),
            ("a/b", 0o040_755),
            ("a/b/text", 0o100_644),
            ("a/link", 0o120_777),
            ("dev", 0o040_755),
            ("dev/console", 0o020_600),
            ("init", 0o100_755),
        ];
        assert_eq!(names, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }

    #[test]
    fn a_program_brings_its_loader() {
        let found = shared_libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            found
                .iter()
                .any(|path| path.to_string_lossy().contains("ld-linux")),
            "{found:?}"
        );
        assert!(found.iter().all(|path| path.is_file()), "{found:?}");
    }
}
