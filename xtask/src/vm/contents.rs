//! The files of a virtual machine: daemon, suites, programs, kernel modules, and the environment that `init.sh` reads.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::MissingPrograms;
use super::initramfs::Tree;
use super::kernel::{Expected, Kernel};
use super::qemu::Board;
use crate::project::{Project, find_program};
use crate::test::suite::Suite;

/// Programs that tests and init.sh call, besides busybox.
pub(super) const PROGRAMS: [&str; 9] = [
    "ip", "nsenter", "bpftool", "curl", "openssl", "bash", "setpriv", "unshare", "prlimit",
];
/// Folders of programs in packages.
const FOLDERS: [&str; 4] = ["bin", "sbin", "usr/bin", "usr/sbin"];
/// One test at a time: QEMU gives both processors together the time of one.
const THREADS: u8 = 1;
/// Factor on the tests' timeouts: processors are emulated, and the machine below may have other work.
const SLOWNESS: u8 = 5;

/// The same for every kernel of an architecture.
#[derive(Debug)]
pub(super) struct Contents {
    /// The daemon as it is shipped.
    pub(super) daemon: PathBuf,
    /// Path of the scriptable cloud that the suites were compiled with, if it runs here.
    pub(super) cloud: Option<PathBuf>,
    pub(super) suites: Vec<Suite>,
    pub(super) programs: Programs,
}

/// Whose programs the machine has.
#[derive(Debug)]
pub(super) enum Programs {
    /// This machine's.
    Ours,
    /// Those of unpacked packages, with their libraries.
    Of(PathBuf),
}

impl Contents {
    /// The machine's files.
    pub(super) fn build_tree(
        &self,
        project: &Project,
        board: &Board,
        kernel: &Kernel,
        expected: &Expected,
    ) -> Result<Tree> {
        let mut tree = Tree::new();
        tree.add_script("/init", include_str!("init.sh"));
        self.programs.add_to(&mut tree)?;
        tree.add_link("/bin/sh", "busybox");
        tree.add_text(
            "/etc/passwd",
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
        );
        tree.add_text("/etc/hosts", "127.0.0.1 localhost\n");
        tree.add_program("/vm/hublet", &self.daemon)?;
        if let Some(cloud) = &self.cloud {
            tree.add_program(cloud, cloud)?;
        }
        let mut suites = String::new();
        for suite in &self.suites {
            let path = format!("/vm/{}", suite.name.replace("::", "-"));
            tree.add_program(&path, &suite.program)?;
            suites.push_str(&format!("{}\t{path}\n", suite.name));
        }
        tree.add_text("/vm/suites", suites);
        let mut modules = String::new();
        for module in kernel.modules(project)? {
            let path = Path::new("/vm/modules.d").join(module.file_name().unwrap_or_default());
            tree.add_file(&path, &module);
            modules.push_str(&format!("{}\n", path.display()));
        }
        tree.add_text("/vm/modules", modules);
        tree.add_text("/vm/environment", environment_file(board, expected));
        Ok(tree)
    }
}

/// Variables for init.sh and, through it, for the suites. `CI` is set, so that no test is skipped unnoticed.
fn environment_file(board: &Board, expected: &Expected) -> String {
    let left_out: Vec<String> = expected
        .left_out
        .iter()
        .map(|(test, _)| format!("--skip={test}"))
        .collect();
    let off = expected
        .off
        .as_ref()
        .map(|off| format!("export HUBLET_TEST_OFF='{}'\n", off.join(" ")));
    format!(
        "RESULTS={}\nTHREADS={THREADS}\nLEFT_OUT='{}'\n\
         export CI=true HUBLET_BIN=/vm/hublet HUBLET_TEST_SLOWNESS={SLOWNESS}\n{}",
        board.results,
        left_out.join(" "),
        off.unwrap_or_default()
    )
}

impl Programs {
    fn add_to(&self, tree: &mut Tree) -> Result<()> {
        match self {
            Self::Ours => {
                tree.add_program("/bin/busybox", &require_program("busybox")?)?;
                for name in PROGRAMS {
                    let program = require_program(name)?;
                    tree.add_program(&program, &program)?;
                }
                Ok(())
            }
            Self::Of(root) => {
                let busybox = FOLDERS.map(|folder| root.join(folder).join("busybox"));
                let busybox = busybox
                    .iter()
                    .find(|path| path.is_file())
                    .context("busybox-static has no busybox")?;
                tree.add_file("/bin/busybox", busybox);
                for name in PROGRAMS {
                    let paths = FOLDERS.map(|folder| root.join(folder).join(name));
                    if let Some(path) = paths.iter().find(|path| path.is_file()) {
                        tree.add_file(Path::new("/usr/sbin").join(name), path);
                    }
                }
                add_libraries(tree, root)
            }
        }
    }
}

/// All libraries of the packages: the loader that would say which are needed is another architecture's.
fn add_libraries(tree: &mut Tree, root: &Path) -> Result<()> {
    let parents = ["lib", "usr/lib"].map(|parent| root.join(parent));
    for parent in parents.iter().filter(|parent| parent.is_dir()) {
        let mut folders = vec![parent.clone()];
        for entry in parent.read_dir()? {
            let path = entry?.path();
            if path.is_dir() && path.to_string_lossy().ends_with("-linux-gnu") {
                folders.push(path);
            }
        }
        for folder in folders {
            for entry in folder.read_dir()? {
                let path = entry?.path();
                let library = path
                    .file_name()
                    .is_some_and(|name| name.to_string_lossy().contains(".so"));
                if library && path.is_file() {
                    // Links as what they lead to: `file` follows them.
                    tree.add_file(Path::new("/").join(path.strip_prefix(root)?), &path);
                }
            }
        }
    }
    Ok(())
}

/// Fails when a program that the virtual machine needs is missing here.
pub(super) fn check_programs(needed: &[&str]) -> Result<()> {
    needed
        .iter()
        .try_for_each(|program| require_program(program).map(drop))
}

fn require_program(program: &str) -> Result<PathBuf> {
    find_program(program).ok_or_else(|| {
        let missing = MissingPrograms(format!(
            "{program} is not installed here, and the machine is made with it (docs/vm.md)"
        ));
        missing.into()
    })
}
