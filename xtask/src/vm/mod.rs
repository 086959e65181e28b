//! `cargo xtask vm`: the suites that speak of the kernel, on other kernels than this machine's. In: kernels (Debian's
//! packages or paths) and names of suites, or none for the usual ones. Out: per kernel and suite what passed and
//! failed; the logs in `target/vm/KERNEL/`. docs/vm.md tells more.

mod initramfs;
mod kernel;
mod qemu;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::interrupt::Interrupt;
use crate::project::{Project, Usage, is_ci, which};
use crate::test::suite::{self, Suite};
use crate::{build, step, toolchain};

use initramfs::Tree;
use kernel::{Expected, Kernel};
use qemu::{End, Machine, X86_64};
use report::Run;

/// What needs the kernel, and the daemon's ways as a whole. Suites that need Go, recordings or much time stay out.
const SUITES: [&str; 9] =
    ["ebpf", "dataplane", "handover", "interface", "steering", "daemon", "listeners", "startup", "offline"];
/// The distribution's own kernel.
const KERNEL: &str = "linux-image-amd64";
/// What tests and init.sh call, besides busybox.
const PROGRAMS: [&str; 9] =
    ["ip", "nsenter", "bpftool", "curl", "openssl", "bash", "setpriv", "unshare", "prlimit"];
/// A test at a time for each of the machine's processors.
const THREADS: u8 = 2;
/// What tests multiply their patience with: processors are emulated, and the machine below may have other work.
const SLOWNESS: u8 = 5;

/// Arguments of `vm`.
#[derive(Debug, Args)]
pub(crate) struct VmArguments {
    /// Suites to run (as `cargo xtask test --list` prints them); the usual ones without one.
    #[arg(value_name = "SUITE")]
    names: Vec<String>,
    /// A kernel: a package of Debian's, the folder of an unpacked one, or an image; several by repeating it.
    #[arg(long = "kernel", value_name = "PACKAGE|PATH", default_value = KERNEL)]
    kernels: Vec<String>,
    /// The modules of an image, …/lib/modules/RELEASE.
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// A module to leave out, to see what hublet does without it (`dummy`); several by repeating it.
    #[arg(long, value_name = "MODULE")]
    without: Vec<String>,
    /// Minutes that one machine may take.
    #[arg(long, value_name = "MINUTES", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
    /// How the outcome is printed.
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// This machine lacks what the verb stands on, so nothing was run: exit code 3.
#[derive(Debug)]
pub(crate) struct Lacks(String);

impl std::fmt::Display for Lacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Lacks {}

/// What goes into every machine.
#[derive(Debug)]
struct Contents {
    daemon: PathBuf,
    suites: Vec<Suite>,
}

/// As a step of `ci`: where QEMU can't be had it is left out, which is said; with `CI=true` it fails then.
pub(crate) fn in_ci(project: &Project) -> Result<()> {
    let arguments = VmArguments {
        names: Vec::new(),
        kernels: vec![KERNEL.to_owned()],
        modules: None,
        without: Vec::new(),
        limit: 15,
        output: Output::Table,
    };
    match run(project, &arguments) {
        Err(error) if error.is::<Lacks>() && !is_ci() => {
            step::note(format_args!("left out: {error:#}"));
            Ok(())
        }
        outcome => outcome,
    }
}

/// Finds the kernels, builds, boots one after the other, reports.
pub(crate) fn run(project: &Project, arguments: &VmArguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    toolchain::for_vm(project)?;
    for program in [X86_64.qemu, "busybox", "depmod", "modprobe"].iter().chain(&PROGRAMS) {
        if which(program).is_none() {
            return Err(Lacks(format!("{program} is not installed here, and the machine needs it")).into());
        }
    }
    let find = |wanted: &String| -> Result<Kernel> {
        let kernel = Kernel::find(project, wanted, arguments.modules.as_deref())?;
        Ok(kernel.without(&arguments.without))
    };
    let kernels = arguments.kernels.iter().map(find).collect::<Result<Vec<_>>>()?;
    let contents = Contents::build(project, &arguments.names)?;
    let limit = Duration::from_secs(60 * u64::from(arguments.limit));
    let mut runs = Vec::new();
    for kernel in &kernels {
        let run = boot(project, kernel, &contents, limit, &interrupt)?;
        if arguments.output == Output::Table {
            println!("{}", run.text());
        }
        runs.push(run);
    }
    if arguments.output == Output::Json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
    }
    conclude(&runs, arguments.output)
}

fn conclude(runs: &[Run], output: Output) -> Result<()> {
    let count =
        |of: fn((usize, usize, usize)) -> usize| -> usize { runs.iter().map(|run| of(run.counts())).sum() };
    if output == Output::Table {
        println!("\n{} passed, {} failed, {} skipped", count(|c| c.0), count(|c| c.1), count(|c| c.2));
    }
    let bad: Vec<&str> =
        runs.iter().filter(|run| !run.good(is_ci())).map(|run| run.kernel.as_str()).collect();
    if !bad.is_empty() {
        bail!("not all is well on {} (logs: target/vm/KERNEL/)", bad.join(", "));
    }
    Ok(())
}

impl Contents {
    /// The daemon as it is shipped, and the suites as `cargo xtask test` builds them.
    fn build(project: &Project, names: &[String]) -> Result<Self> {
        let object = build::development(project)?;
        let all = suite::build(project, &object)?;
        let usual = SUITES.map(str::to_owned);
        let names = if names.is_empty() { &usual[..] } else { names };
        let mut suites = Vec::new();
        for name in names {
            let before = suites.len();
            suites.extend(all.iter().filter(|suite| suite.answers_to(name) && suite.is_program()).cloned());
            if suites.len() == before {
                let text = format!("no suite {name}; see `cargo xtask test --list`");
                return Err(Usage(text).into());
            }
        }
        let mut seen = BTreeSet::new();
        suites.retain(|suite| seen.insert(suite.name.clone()));
        Ok(Self { daemon: build::daemon(project)?, suites })
    }

    /// The machine's files.
    fn tree(&self, project: &Project, kernel: &Kernel, expected: &Expected) -> Result<Tree> {
        let mut tree = Tree::new();
        tree.script("/init", include_str!("init.sh"));
        tree.program("/bin/busybox", &found("busybox")?)?;
        tree.link("/bin/sh", "busybox");
        for name in PROGRAMS {
            let program = found(name)?;
            tree.program(&program, &program)?;
        }
        tree.text("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n");
        tree.text("/etc/hosts", "127.0.0.1 localhost\n");
        tree.program("/vm/hublet", &self.daemon)?;
        // Where the suites were told at their build that it is.
        let cloud = project.binary("debug", "hublet-cloud");
        tree.program(&cloud, &cloud)?;
        let mut suites = String::new();
        for suite in &self.suites {
            let path = format!("/vm/{}", suite.name.replace("::", "-"));
            tree.program(&path, &suite.program)?;
            suites.push_str(&format!("{}\t{path}\n", suite.name));
        }
        tree.text("/vm/suites", suites);
        let mut modules = String::new();
        for module in kernel.modules(project)? {
            let path = Path::new("/vm/modules.d").join(module.file_name().unwrap_or_default());
            tree.file(&path, &module);
            modules.push_str(&format!("{}\n", path.display()));
        }
        tree.text("/vm/modules", modules);
        tree.text("/vm/environment", environment(expected));
        Ok(tree)
    }
}

/// What init.sh reads, and what it gives to the suites. Nothing may be skipped there but what is known.
fn environment(expected: &Expected) -> String {
    let left_out: Vec<String> = expected.left_out.iter().map(|(test, _)| format!("--skip={test}")).collect();
    format!(
        "RESULTS={}\nTHREADS={THREADS}\nLEFT_OUT='{}'\n\
         export CI=true HUBLET_BIN=/vm/hublet HUBLET_TEST_SLOWNESS={SLOWNESS}\n",
        X86_64.results,
        left_out.join(" ")
    )
}

fn found(program: &str) -> Result<PathBuf> {
    which(program).ok_or_else(|| Lacks(format!("{program} is not installed here")).into())
}

fn boot(
    project: &Project,
    kernel: &Kernel,
    contents: &Contents,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Run> {
    let dir = project.target.join("vm").join(&kernel.name);
    fs::create_dir_all(&dir)?;
    let expected = kernel.expected();
    let initramfs = dir.join("initramfs.cpio");
    step::say(format_args!("packing the machine's files for {}", kernel.name));
    contents.tree(project, kernel, &expected)?.write(&initramfs)?;
    initramfs::shown_size(&initramfs)?;
    step::say(format_args!("booting {} (at most {} s)", kernel.name, limit.as_secs()));
    let machine = Machine { board: &X86_64, kernel: &kernel.image, initramfs: &initramfs, dir: &dir };
    let mut run = Run::new(&kernel.name, &expected);
    let end = machine.run(project, limit, interrupt, |line| {
        if run.line(line) {
            eprintln!("    {line}");
        }
    })?;
    let why = match end {
        End::TooLong => Some(format!("the machine did not end within {} s", limit.as_secs())),
        End::Gone => machine.panic(),
    };
    run.end(why, &expected);
    if !run.problems.is_empty() {
        step::note(machine.last_words());
    }
    Ok(run)
}
