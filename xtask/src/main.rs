//! `cargo xtask`: one module a verb. Exit codes: 2 for usage, 3 when this machine lacks a program that the verb needs, 1
//! for any other failure.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "what a verb reports is its product")]

mod arrows;
mod bench;
mod build;
mod child;
mod ci;
mod compile;
mod ebpf;
mod fuzz;
mod interrupt;
mod mutants;
mod plain_http;
mod project;
mod run;
mod step;
mod test;
mod toolchain;
mod vm;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::project::Project;

/// Every command of the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Builds everything, starts a cloud and hublet against it, and prints three commands to try.
    Run(run::RunArguments),
    /// Builds the BPF object and the release daemon, target/release/hublet.
    Build,
    /// Builds the BPF object from source, writes it to proxy-ebpf/object/, and prints the built one's path.
    Ebpf(EbpfArguments),
    /// Runs every test, or the suites named.
    Test(test::TestArguments),
    /// Boots Debian's kernel, or the ones named, under QEMU and runs the suites there that speak of the kernel.
    Vm(vm::VmArguments),
    /// Checks format, arrows, lints and unit tests: seconds when warm, no root.
    Check(ci::CheckArguments),
    /// Runs the steps of CI, or some of them: format to the kernel's suites in `vm`.
    Ci(ci::CiArguments),
    /// Checks which stage of the daemon uses which, and that no two files use each other.
    Arrows(arrows::ArrowsArguments),
    /// Fuzzes the parsers of hublet-wire, each from its kept corpus.
    Fuzz(fuzz::FuzzArguments),
    /// Changes the pure modules in small ways and names the changes that no unit test notices.
    Mutants(mutants::MutantsArguments),
    /// Measures hublet beside nginx on the same objects in the same run.
    Bench(bench::BenchArguments),
}

#[derive(Debug, Args)]
struct EbpfArguments {
    /// Builds it a second time, from a copy of the sources in another folder, and fails unless both are the same and
    /// that of proxy-ebpf/object/; prints what `sha256sum` does instead of the path.
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = Project::find().and_then(|project| match arguments.verb {
        Verb::Run(arguments) => run::run(&project, &arguments),
        Verb::Build => build::build_release(&project).map(drop),
        Verb::Ebpf(EbpfArguments { check: false }) => {
            ebpf::update_committed(&project).map(|path| println!("{}", path.display()))
        }
        Verb::Ebpf(EbpfArguments { check: true }) => {
            ebpf::check_object(&project).map(|sum| println!("{sum}"))
        }
        Verb::Test(arguments) => test::run(&project, &arguments),
        Verb::Vm(arguments) => vm::run(&project, &arguments),
        Verb::Check(arguments) => ci::check(&project, &arguments),
        Verb::Ci(arguments) => ci::run(&project, &arguments),
        Verb::Arrows(arguments) => arrows::run(&project, &arguments),
        Verb::Fuzz(arguments) => fuzz::run(&project, &arguments),
        Verb::Mutants(arguments) => mutants::run(&project, &arguments),
        Verb::Bench(arguments) => bench::run(&project, &arguments),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(match &error {
                error if error.is::<project::Usage>() => 2,
                error if error.is::<vm::MissingPrograms>() => 3,
                _ => 1,
            })
        }
    }
}
