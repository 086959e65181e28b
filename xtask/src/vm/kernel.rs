//! Kernels to boot: the image, its modules in loading order, and the features to expect of that release.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::project::{Project, Usage};
use crate::step;

/// Modules that the suites and hublet use; the ones that a kernel has built in, or lacks, are not loaded.
const MODULES: [&str; 8] = [
    "dummy",
    "ifb",
    "bridge",
    "veth",
    "sch_ingress",
    "sch_netem",
    "sch_tbf",
    "cls_bpf",
];

/// Kinds of links that hublet makes, the best first.
const LINKS: [&str; 3] = ["dummy", "ifb", "bridge"];

/// The tests that need the guard; that it is off is another one's business.
const GUARD: [&str; 2] = [
    "i10_the_guard_refuses_crafted_syns",
    "i10_the_guard_admits_pods_to_the_secure_port_only",
];

#[derive(Debug)]
pub(super) struct Kernel {
    /// As reports name it, and as its folder in `target/vm/` is called.
    pub(super) name: String,
    /// The image that QEMU boots.
    pub(super) image: PathBuf,
    /// The folder in which `lib/modules/RELEASE` is.
    modules: Option<(PathBuf, String)>,
    /// Modules that are not loaded.
    without: Vec<String>,
    /// Further words of its command line.
    pub(super) words: String,
}

/// Features that hublet must find on a release; a difference fails the run, so that no fallback is taken unnoticed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// Facts that the machine reports.
    pub(super) facts: Vec<(&'static str, &'static str)>,
    /// Parts of hublet's setup that this kernel can't have, if that is known; the suite `steering` compares.
    pub(super) off: Option<Vec<&'static str>>,
    /// Tests that can't run there, with the reason; they are named in the report.
    pub(super) left_out: Vec<(&'static str, &'static str)>,
}

impl Kernel {
    /// Finds what `--kernel` names: a package, the folder of an unpacked one, or an image (with `--modules`).
    /// Packages come by `fetch`.
    pub(super) fn find(
        wanted: &str,
        modules: Option<&Path>,
        fetch: impl FnOnce(&str) -> Result<PathBuf>,
    ) -> Result<Self> {
        let path = Path::new(wanted);
        if path.is_dir() {
            return Self::from_package_tree(&path.canonicalize()?);
        }
        if path.is_file() {
            return Self::from_image(&path.canonicalize()?, modules);
        }
        if wanted.contains('/') {
            return Err(Usage(format!(
                "--kernel={wanted}: there is no such file or folder"
            ))
            .into());
        }
        Self::from_package_tree(&fetch(wanted)?)
    }

    /// The same kernel, with these modules left out, and these words on its command line.
    pub(super) fn with_options(self, without: &[String], words: &[String]) -> Self {
        Self {
            without: without.to_vec(),
            words: words.join(" "),
            ..self
        }
    }

    /// The tree of a kernel's package.
    fn from_package_tree(tree: &Path) -> Result<Self> {
        let mut images = dir_entries(&tree.join("boot"))?;
        images.retain(|path| file_name(path).starts_with("vmlinu"));
        let image = images
            .pop()
            .with_context(|| format!("no boot/vmlinuz-* in {}", tree.display()))?;
        // Debian 13 and later have the modules in usr/lib; depmod and modprobe are told the folder above lib.
        if !tree.join("lib").exists() && tree.join("usr/lib").exists() {
            std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
        }
        let release = dir_entries(&tree.join("lib/modules"))
            .unwrap_or_default()
            .pop();
        let modules = release.map(|release| (tree.to_path_buf(), file_name(&release)));
        Ok(Self {
            name: file_name(tree),
            image,
            modules,
            without: Vec::new(),
            words: String::new(),
        })
    }

    fn from_image(image: &Path, modules: Option<&Path>) -> Result<Self> {
        let modules = match modules {
            None => None,
            Some(dir) => {
                let dir = dir
                    .canonicalize()
                    .with_context(|| format!("--modules={}", dir.display()))?;
                let root = dir
                    .ancestors()
                    .nth(3)
                    .filter(|root| root.join("lib/modules") == dir.parent().unwrap_or(root));
                let root = root
                    .with_context(|| format!("{} is not …/lib/modules/RELEASE", dir.display()))?;
                Some((root.to_path_buf(), file_name(&dir)))
            }
        };
        Ok(Self {
            name: file_name(image),
            image: image.to_path_buf(),
            modules,
            without: Vec::new(),
            words: String::new(),
        })
    }

    /// The files of the wanted modules and of what they stand on, in the order of loading.
    pub(super) fn modules(&self, project: &Project) -> Result<Vec<PathBuf>> {
        let Some((root, release)) = &self.modules else {
            return Ok(Vec::new());
        };
        if !root
            .join("lib/modules")
            .join(release)
            .join("modules.dep")
            .exists()
        {
            step::read_output(project.command("depmod").arg("-b").arg(root).arg(release))?;
        }
        let mut files: Vec<PathBuf> = Vec::new();
        for module in MODULES.into_iter().filter(|module| self.is_wanted(module)) {
            let mut show = project.command("modprobe");
            // Without this machine's own configuration.
            show.args(["--show-depends", "-C", "/dev/null", "-S", release, "-d"])
                .arg(root)
                .arg(module);
            let Ok(printed) = step::read_output(&mut show) else {
                step::note(format_args!("{} has no module {module}", self.name));
                continue;
            };
            for line in printed.lines() {
                let Some(path) = line.trim().strip_prefix("insmod ") else {
                    continue;
                };
                let path = decompressed_module(project, Path::new(path.trim()))?;
                if !files.contains(&path) {
                    files.push(path);
                }
            }
        }
        Ok(files)
    }

    fn is_wanted(&self, module: &str) -> bool {
        !self.without.iter().any(|left| left == module)
    }

    /// Expected features, by its release.
    pub(super) fn expected(&self) -> Expected {
        self.modules
            .as_ref()
            .map_or_else(Expected::default, |(root, release)| {
                let list = root.join("lib/modules").join(release).join("modules.dep");
                let list = fs::read_to_string(list).unwrap_or_default();
                let has =
                    |kind: &&&str| list.contains(&format!("/{kind}.ko")) && self.is_wanted(kind);
                Expected::for_release(release, LINKS.iter().find(has).copied())
            })
    }
}

impl Expected {
    /// By version, from the table in docs/vm.md; `link` is the best kind of link that it has as a module.
    fn for_release(release: &str, link: Option<&'static str>) -> Self {
        let mut expected = Self::default();
        expected.facts.extend(link.map(|kind| ("link", kind)));
        if let Some(version) = parse_version(release) {
            expected.facts.push((
                "tcx",
                if version >= (6, 6) {
                    "present"
                } else {
                    "absent"
                },
            ));
            let guard = version >= (5, 17);
            expected.off = Some(if guard { vec![] } else { vec!["guard"] });
            if !guard {
                let reason = "sk_lookup doesn't tell the interface before Linux 5.17";
                expected.left_out.extend(GUARD.map(|test| (test, reason)));
            }
        }
        expected
    }
}

/// `bullseye:linux-image-amd64` is a release of Debian's and a package; without a release it is the machine's own.
pub(super) fn parse_package(wanted: &str) -> Result<(Option<&str>, &str)> {
    let (release, package) = wanted
        .split_once(':')
        .map_or((None, wanted), |(a, b)| (Some(a), b));
    if release.is_none_or(is_debian_name) && is_debian_name(package) {
        Ok((release, package))
    } else {
        Err(Usage(format!(
            "--kernel={wanted}: neither [RELEASE:]PACKAGE nor a file or folder"
        ))
        .into())
    }
}

/// A name of Debian's: letters and digits, then also `+`, `-` and `.`.
fn is_debian_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// `6.1.0-56-amd64` is (6, 1).
fn parse_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|number| number.parse().ok());
    Some((numbers.next()?, numbers.next()?))
}

/// A module that busybox can load: unpacked when the kernel's package has it compressed.
fn decompressed_module(project: &Project, module: &Path) -> Result<PathBuf> {
    let tool = match module.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        Some("gz") => "gzip",
        _ => return Ok(module.to_path_buf()),
    };
    let unpacked = module.with_extension("");
    if !unpacked.exists() {
        step::read_output(project.command(tool).args(["-d", "-k", "-q"]).arg(module))?;
    }
    Ok(unpacked)
}

fn dir_entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let found = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut found = found
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    found.sort();
    Ok(found)
}

fn file_name(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_may_be_of_another_release() {
        assert_eq!(
            parse_package("linux-image-amd64").unwrap(),
            (None, "linux-image-amd64")
        );
        assert_eq!(
            parse_package("trixie:linux-image-6.12.1+deb13").unwrap().0,
            Some("trixie")
        );
        for wrong in [
            "",
            ":linux-image-amd64",
            "bullseye:",
            "a b:c",
            "a:b:c",
            "..:b",
            "-o:b",
        ] {
            assert!(parse_package(wrong).unwrap_err().is::<Usage>(), "{wrong}");
        }
    }

    #[test]
    fn what_is_expected_follows_from_the_release() {
        let old = Expected::for_release("6.1.0-56-amd64", Some("dummy"));
        assert_eq!(old.facts, [("link", "dummy"), ("tcx", "absent")]);
        assert_eq!(
            Expected::for_release("6.12.9+deb13-cloud-amd64", None).facts,
            [("tcx", "present")]
        );
        assert_eq!((old.off, old.left_out), (Some(vec![]), vec![]));
        assert_eq!(Expected::for_release("nonsense", None), Expected::default());
        let older = Expected::for_release("5.10.0-32-amd64", Some("dummy"));
        assert_eq!(older.off, Some(vec!["guard"]));
        assert_eq!(
            older
                .left_out
                .iter()
                .map(|(test, _)| *test)
                .collect::<Vec<_>>(),
            GUARD
        );
    }
}
