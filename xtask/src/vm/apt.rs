//! Debian's packages, unpacked below `target/vm/` without being installed. For another architecture or release apt gets
//! a state directory of its own there, so that this machine's stays as it is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::MissingPrograms;
use crate::project::{Project, find_program};
use crate::step;

/// Debian's signing keys, of old and new releases.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// apt, for one architecture and release.
#[derive(Debug)]
pub(super) struct Apt<'a> {
    project: &'a Project,
    /// Packages and their trees go here.
    dir: PathBuf,
    options: Vec<String>,
}

impl<'a> Apt<'a> {
    /// For this machine's own architecture.
    pub(super) fn for_host(project: &'a Project) -> Result<Self> {
        // As root it would otherwise warn that the user _apt can't write to our folder.
        Self::with_options(
            project,
            "packages",
            vec!["APT::Sandbox::User=root".to_owned()],
        )
    }

    /// For another architecture, by Debian's name, from the same sources.
    pub(super) fn for_architecture(project: &'a Project, architecture: &str) -> Result<Self> {
        let (_, options) = own_state(project, architecture)?;
        Self::with_options(
            project,
            &format!("packages-{architecture}"),
            of_architecture(options, architecture),
        )
    }

    /// For a release of Debian's, by its name; with an architecture, if it isn't this machine's.
    pub(super) fn for_release(
        project: &'a Project,
        suite: &str,
        architecture: Option<&str>,
    ) -> Result<Self> {
        if !Path::new(KEYRING).exists() {
            let text = format!(
                "no {KEYRING} to check {suite}'s packages with (Debian: debian-archive-keyring)"
            );
            return Err(MissingPrograms(text).into());
        }
        let name = architecture.map_or_else(|| suite.to_owned(), |arch| format!("{suite}-{arch}"));
        let (state, mut options) = own_state(project, &name)?;
        let known = project
            .command("apt-get")
            .args(["indextargets", "--format", "$(REPO_URI)"])
            .output();
        let known = known
            .map(|known| String::from_utf8_lossy(&known.stdout).into_owned())
            .unwrap_or_default();
        let sources = state.join("sources.list");
        fs::write(
            &sources,
            format!(
                "deb [signed-by={KEYRING}] {} {suite} main\n",
                debian_mirror(&known)
            ),
        )?;
        options.push(format!("Dir::Etc::sourcelist={}", sources.display()));
        options.push("Dir::Etc::sourceparts=-".to_owned());
        if let Some(architecture) = architecture {
            options = of_architecture(options, architecture);
        }
        Self::with_options(project, &format!("packages-{name}"), options)
    }

    fn with_options(project: &'a Project, dir: &str, options: Vec<String>) -> Result<Self> {
        if find_program("apt-get").is_none() || find_program("dpkg-deb").is_none() {
            let text =
                "no apt to fetch packages with: name a kernel's unpacked package, --kernel=DIR";
            return Err(MissingPrograms(text.to_owned()).into());
        }
        let dir = project.target.join("vm").join(dir);
        fs::create_dir_all(&dir)?;
        Ok(Self {
            project,
            dir,
            options,
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = self.project.command(program);
        command.args(
            self.options
                .iter()
                .flat_map(|option| ["-o", option.as_str()]),
        );
        command
    }

    fn update_lists(&self) -> Result<()> {
        let mut update = self.command("apt-get");
        step::run(
            "refreshing apt's package lists",
            update.args(["update", "-qq"]),
        )
        .map_err(|error| MissingPrograms(format!("{error:#}")).into())
    }

    fn read_dependencies(&self, package: &str) -> Result<String> {
        step::read_output(self.command("apt-cache").args(["depends", package]))
    }

    /// The package itself, or the kernel that it depends on when it stands for the newest one (`linux-image-amd64`).
    pub(super) fn resolve_kernel(&self, wanted: &str) -> Result<String> {
        let printed = match self.read_dependencies(wanted) {
            Ok(printed) => printed,
            Err(_) => {
                self.update_lists()?;
                let hint =
                    format!("apt knows no package {wanted} (or give a path: --kernel=./{wanted})");
                self.read_dependencies(wanted)
                    .map_err(|error| MissingPrograms(format!("{hint}: {error:#}")))?
            }
        };
        let depends = printed
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "));
        Ok(depends
            .into_iter()
            .find(|name| name.starts_with("linux-image-"))
            .unwrap_or(wanted)
            .to_owned())
    }

    /// The unpacked tree of one package, named after it and its version; fetched when it is not here yet.
    pub(super) fn package_tree(&self, package: &str) -> Result<PathBuf> {
        let archive = self.download_archive(package)?;
        let tree = archive.with_extension("");
        if !tree.is_dir() {
            self.unpack_archives(&[archive], &tree)?;
        }
        Ok(tree)
    }

    /// One tree of several packages and all that they depend on.
    pub(super) fn packages_tree(&self, name: &str, packages: &[&str]) -> Result<PathBuf> {
        let tree = self.dir.join(name);
        if tree.is_dir() {
            return Ok(tree);
        }
        let mut install = self.command("apt-get");
        install
            .args([
                "install",
                "-y",
                "-qq",
                "--no-install-recommends",
                "--download-only",
            ])
            .args(packages);
        let what = format!("fetching {} and what they depend on", packages.join(", "));
        if step::run(&what, &mut install).is_err() {
            self.update_lists()?;
            step::run(&what, &mut install)
                .map_err(|error| MissingPrograms(format!("{error:#}")))?;
        }
        let cache = self
            .command("apt-config")
            .args(["shell", "DIR", "Dir::Cache::archives/d"])
            .output()?;
        let cache = String::from_utf8_lossy(&cache.stdout).into_owned();
        let cache = cache
            .split('\'')
            .nth(1)
            .context("apt-config names no Dir::Cache::archives")?;
        let mut archives = Vec::new();
        for entry in fs::read_dir(cache).with_context(|| format!("cannot read {cache}"))? {
            archives.push(entry?.path());
        }
        archives.retain(|path| path.extension().is_some_and(|extension| extension == "deb"));
        self.unpack_archives(&archives, &tree)?;
        Ok(tree)
    }

    fn archive_name(&self, package: &str) -> Result<String> {
        // Run elsewhere, because apt prints nothing where the file is already.
        let arguments = ["download", "--print-uris", package];
        let printed = step::read_output(self.command("apt-get").args(arguments))?;
        printed
            .split_whitespace()
            .nth(1)
            .map(str::to_owned)
            .context("apt has no file for it")
    }

    /// The package's file; apt checks its sum against the signed lists.
    fn download_archive(&self, package: &str) -> Result<PathBuf> {
        let mut apt = self.command("apt-get");
        apt.args(["-q", "download", package]).current_dir(&self.dir);
        let what = format!("fetching {package}");
        let name = self.archive_name(package).with_context(|| what.clone())?;
        let archive = self.dir.join(name);
        if archive.is_file() {
            return Ok(archive);
        }
        if step::run(&what, &mut apt).is_err() {
            // The lists name a file that has been replaced since.
            self.update_lists()?;
            step::run(&what, &mut apt).map_err(|error| MissingPrograms(format!("{error:#}")))?;
        }
        Ok(self.dir.join(self.archive_name(package)?))
    }

    /// All of them into one new tree, which is there whole or not at all.
    fn unpack_archives(&self, archives: &[PathBuf], tree: &Path) -> Result<()> {
        let fresh = self.dir.join("unpacking");
        if fresh.exists() {
            fs::remove_dir_all(&fresh)?;
        }
        step::announce(format_args!(
            "unpacking {}",
            tree.file_name().unwrap_or_default().to_string_lossy()
        ));
        for archive in archives {
            step::read_output(
                self.project
                    .command("dpkg-deb")
                    .arg("-x")
                    .arg(archive)
                    .arg(&fresh),
            )?;
        }
        fs::rename(&fresh, tree).with_context(|| format!("cannot make {}", tree.display()))
    }
}

/// apt's options for a state of its own, and the folder that has it.
fn own_state(project: &Project, name: &str) -> Result<(PathBuf, Vec<String>)> {
    let state = project.target.join("vm").join(format!("apt-{name}"));
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(state.join(folder))?;
    }
    fs::write(state.join("state/status"), "")?;
    let mut options = vec!["APT::Sandbox::User=root".to_owned()];
    for (option, path) in [
        ("Dir::State", "state"),
        ("Dir::State::status", "state/status"),
        ("Dir::Cache", "cache"),
    ] {
        options.push(format!("{option}={}", state.join(path).display()));
    }
    Ok((state, options))
}

fn of_architecture(mut options: Vec<String>, architecture: &str) -> Vec<String> {
    options.push(format!("APT::Architecture={architecture}"));
    options.push(format!("APT::Architectures::={architecture}"));
    options
}

/// Debian's archive among the addresses that this machine's apt knows; its public name where there is none.
fn debian_mirror(known: &str) -> &str {
    known
        .lines()
        .map(str::trim)
        .find(|address| address.trim_end_matches('/').ends_with("/debian"))
        .unwrap_or("http://deb.debian.org/debian/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_come_from_the_mirror_that_the_machine_uses() {
        let known = "https://deb.nodesource.com/node_20.x/\nhttp://mirror.example/debian-security/\n\
                     http://mirror.example/debian/\nhttp://other.example/debian\n";
        assert_eq!(debian_mirror(known), "http://mirror.example/debian/");
        assert_eq!(
            debian_mirror("http://archive.ubuntu.com/ubuntu/\n"),
            "http://deb.debian.org/debian/"
        );
    }
}
