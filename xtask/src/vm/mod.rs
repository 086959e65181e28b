//! `cargo xtask vm`: the kernel's suites on other kernels than this machine's, Debian's packages or any image. Logs are
//! in `target/vm/KERNEL/`; docs/vm.md is the guide.

mod apt;
mod contents;
mod cross;
mod initramfs;
mod kernel;
mod qemu;
mod report;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use crate::interrupt::Interrupt;
use crate::project::{OutputFormat, Project, Usage, is_ci};
use crate::test::suite::{self, Suite};
use crate::{build, step, toolchain};

use apt::Apt;
use contents::{Contents, Programs};
use kernel::Kernel;
use qemu::{Board, End, Machine};
use report::{Run, TestCounts};

/// Suites about the kernel, and the daemon as a whole. Those that need Go, recordings or much time stay out.
const SUITES: [&str; 10] = [
    "ebpf",
    "interface",
    "steering",
    "daemon",
    "dataplane",
    "guard",
    "handover",
    "listeners",
    "startup",
    "offline",
];
/// The first of them show that the object and the daemon work on another architecture.
const SMOKE: usize = 4;

#[derive(Debug, Args)]
pub(crate) struct VmArguments {
    /// Suites to run (as `cargo xtask test --list` prints them); the usual ones without one.
    #[arg(value_name = "SUITE")]
    names: Vec<String>,
    /// The machine's architecture; with aarch64 the smoke part alone, unless suites are named.
    #[arg(long, value_enum, default_value_t = Arch::X86_64)]
    arch: Arch,
    /// A kernel: a package of Debian's (its own without one), also of another release (`bullseye:linux-image-amd64`),
    /// the folder of an unpacked one, or an image; several by repeating it.
    #[arg(long = "kernel", value_name = "[RELEASE:]PACKAGE|PATH")]
    kernels: Vec<String>,
    /// The modules of an image, …/lib/modules/RELEASE.
    #[arg(long, value_name = "DIR")]
    modules: Option<PathBuf>,
    /// A module to leave out, to see what hublet does without it (`dummy`); several by repeating it.
    #[arg(long, value_name = "MODULE")]
    without: Vec<String>,
    /// Words for the kernel's command line (`lockdown=confidentiality`); several by repeating it.
    #[arg(long, value_name = "WORDS")]
    append: Vec<String>,
    /// Minutes that one machine may take.
    #[arg(long, value_name = "MINUTES", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    limit: u16,
    /// Format of the outcome.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Text)]
    output: OutputFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Arch {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

/// This machine lacks what the verb stands on, so nothing was run: exit code 3.
#[derive(Debug)]
pub(crate) struct MissingPrograms(String);

impl std::fmt::Display for MissingPrograms {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for MissingPrograms {}

/// As a step of `ci`: where QEMU can't be had it is left out, which is said; with `CI=true` it fails then.
pub(crate) fn step(project: &Project) -> Result<()> {
    let arguments = VmArguments {
        names: Vec::new(),
        arch: Arch::X86_64,
        kernels: Vec::new(),
        modules: None,
        without: Vec::new(),
        append: Vec::new(),
        limit: 15,
        output: OutputFormat::Text,
    };
    match run(project, &arguments) {
        Err(error) if error.is::<MissingPrograms>() && !is_ci() => {
            step::note(format_args!("left out: {error:#}"));
            Ok(())
        }
        outcome => outcome,
    }
}

/// Finds the kernels, builds, boots one after the other, reports.
pub(crate) fn run(project: &Project, arguments: &VmArguments) -> Result<()> {
    let interrupt = Interrupt::listen()?;
    let arch = arguments.arch;
    arch.install_packages(project)?;
    let kernels = arch.find_kernels(project, arguments)?;
    let contents = arch.build_contents(project, &arguments.names)?;
    let limit = Duration::from_secs(60 * u64::from(arguments.limit));
    let mut runs = Vec::new();
    for kernel in &kernels {
        let run = boot_kernel(project, arch.board(), kernel, &contents, limit, &interrupt)?;
        if arguments.output == OutputFormat::Text {
            println!("{}", run.text());
        }
        runs.push(run);
    }
    if arguments.output == OutputFormat::Json {
        println!("{}", serde_json::to_string_pretty(&runs)?);
    }
    print_outcome(&runs, arguments.output)
}

fn print_outcome(runs: &[Run], output: OutputFormat) -> Result<()> {
    if output == OutputFormat::Text {
        let counts: TestCounts = runs.iter().map(Run::test_counts).sum();
        println!("\n{counts}");
    }
    let bad: Vec<&str> = runs
        .iter()
        .filter(|run| !run.is_good(is_ci()))
        .map(|run| run.kernel.as_str())
        .collect();
    if !bad.is_empty() {
        bail!(
            "not all is well on {} (logs: target/vm/KERNEL/)",
            bad.join(", ")
        );
    }
    Ok(())
}

impl Arch {
    fn board(self) -> &'static Board {
        match self {
            Self::X86_64 => &qemu::X86_64,
            Self::Aarch64 => &qemu::AARCH64,
        }
    }

    fn usual_suites(self) -> impl Iterator<Item = &'static str> {
        let count = match self {
            Self::X86_64 => SUITES.len(),
            Self::Aarch64 => SMOKE,
        };
        SUITES.into_iter().take(count)
    }

    /// Debian's own kernel.
    fn own_kernel(self) -> &'static str {
        match self {
            Self::X86_64 => "linux-image-amd64",
            Self::Aarch64 => "linux-image-arm64",
        }
    }

    /// Installs what this machine needs for it, or says what is missing.
    fn install_packages(self, project: &Project) -> Result<()> {
        let common = ["depmod", "modprobe", self.board().qemu];
        match self {
            Self::X86_64 => {
                toolchain::for_vm(project)?;
                contents::check_programs(&[&common[..], &["busybox"], &contents::PROGRAMS].concat())
            }
            Self::Aarch64 => {
                toolchain::for_aarch64(project)?;
                contents::check_programs(&[&common[..], &[cross::GCC]].concat())
            }
        }
    }

    fn apt(self, project: &Project) -> Result<Apt<'_>> {
        match self {
            Self::X86_64 => Apt::for_host(project),
            Self::Aarch64 => Apt::for_architecture(project, cross::DEBIAN),
        }
    }

    /// `[RELEASE:]PACKAGE`, unpacked.
    fn fetch_package(self, project: &Project, wanted: &str) -> Result<PathBuf> {
        let (release, package) = kernel::parse_package(wanted)?;
        let apt = match release {
            None => self.apt(project)?,
            Some(release) => Apt::for_release(
                project,
                release,
                (self == Self::Aarch64).then_some(cross::DEBIAN),
            )?,
        };
        apt.package_tree(&apt.resolve_kernel(package)?)
    }

    fn find_kernels(self, project: &Project, arguments: &VmArguments) -> Result<Vec<Kernel>> {
        let usual = [self.own_kernel().to_owned()];
        let wanted = if arguments.kernels.is_empty() {
            &usual[..]
        } else {
            &arguments.kernels
        };
        let mut kernels = Vec::new();
        for wanted in wanted {
            let kernel = Kernel::find(wanted, arguments.modules.as_deref(), |package| {
                self.fetch_package(project, package)
            })?;
            kernels.push(kernel.with_options(&arguments.without, &arguments.append));
        }
        Ok(kernels)
    }

    /// The daemon as it is shipped, and the suites: here as `cargo xtask test` builds them.
    fn build_contents(self, project: &Project, names: &[String]) -> Result<Contents> {
        let usual = self.usual_suites().map(str::to_owned).collect::<Vec<_>>();
        let names = if names.is_empty() { &usual } else { names };
        match self {
            Self::X86_64 => {
                let object = build::build_development(project)?;
                let suites = choose_suites(&suite::build_suites(project, &object)?, names)?;
                let daemon = build::release_daemon(project)?;
                let cloud = Some(project.built_program("debug", "hublet-cloud"));
                Ok(Contents {
                    daemon,
                    cloud,
                    suites,
                    programs: Programs::Ours,
                })
            }
            Self::Aarch64 => {
                let apt = self.apt(project)?;
                let programs = Programs::Of(cross::programs_tree(&apt)?);
                let (daemon, suites) = cross::build_for(project, &apt, names)?;
                Ok(Contents {
                    daemon,
                    cloud: None,
                    suites,
                    programs,
                })
            }
        }
    }
}

/// The suites of these names, each once.
fn choose_suites(all: &[Suite], names: &[String]) -> Result<Vec<Suite>> {
    let mut suites: Vec<Suite> = Vec::new();
    for name in names {
        let before = suites.len();
        suites.extend(
            all.iter()
                .filter(|suite| suite.answers_to(name) && suite.is_program())
                .cloned(),
        );
        if suites.len() == before {
            return Err(Usage(format!("no suite {name}; see `cargo xtask test --list`")).into());
        }
    }
    let mut seen = BTreeSet::new();
    suites.retain(|suite| seen.insert(suite.name.clone()));
    Ok(suites)
}

fn boot_kernel(
    project: &Project,
    board: &Board,
    kernel: &Kernel,
    contents: &Contents,
    limit: Duration,
    interrupt: &Interrupt,
) -> Result<Run> {
    let dir = project.target.join("vm").join(&kernel.name);
    fs::create_dir_all(&dir)?;
    let expected = kernel.expected();
    let initramfs = dir.join("initramfs.cpio");
    let (name, seconds) = (&kernel.name, limit.as_secs());
    step::announce(format_args!("packing the machine's files for {name}"));
    contents
        .build_tree(project, board, kernel, &expected)?
        .write(&initramfs)?;
    initramfs::print_size(&initramfs)?;
    step::announce(format_args!("booting {name} (at most {seconds} s)"));
    let machine = Machine {
        board,
        kernel,
        initramfs: &initramfs,
        dir: &dir,
    };
    let mut run = Run::new(&kernel.name, &expected);
    let end = machine.run(project, limit, interrupt, |line| {
        if run.read_line(line) {
            eprintln!("    {line}");
        }
    })?;
    let why = match end {
        End::TooLong => Some(format!("the machine did not end within {seconds} s")),
        End::Gone => machine.panic_message(),
    };
    run.machine_ended(why, &expected);
    if !run.problems.is_empty() {
        step::note(machine.diagnostic_lines());
    }
    Ok(run)
}
