//! Arguments, logging, runtimes, exit codes; nothing else.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::Context;
use hublet::app::{Bound, Stop};
use hublet::cli::{self, Command};
use hublet::config::flags::Flags;
use hublet::config::{Checked, checked};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::prelude::*;

/// musl's own allocator costs up to 2.8 times the CPU; settings are compiled in (`.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const FAILED: u8 = 1;
const USAGE: u8 = 2;

/// Threads for work that blocks: the store's lists, name look-ups.
const BLOCKING_THREADS: usize = 32;

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(command) => command,
        Err(usage) => usage.exit(),
    };
    let done = match command {
        Command::Run(flags) if flags.own.print_config => print_config(flags),
        Command::Run(flags) => return run(flags),
        Command::Config(flags) => print_config(flags),
        Command::Status(args) => {
            cli::status::status(&args, &mut std::io::stdout().lock()).map_err(Into::into)
        }
        Command::Bpf(command) => cli::bpf::bpf(&command, &mut std::io::stdout().lock()).map_err(Into::into),
        Command::Uninstall(args) => {
            cli::uninstall::uninstall(&args, &mut std::io::stdout().lock()).map_err(Into::into)
        }
        Command::Version => writeln!(std::io::stdout(), "hublet {}", cli::VERSION).map_err(Into::into),
    };
    done.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// Flags to configuration; usage errors end here.
fn configuration(flags: Flags) -> Checked {
    checked(flags, &|name| std::env::var(name).ok()).unwrap_or_else(|error| {
        complain(&error);
        complain(&"see `hublet --help`");
        std::process::exit(USAGE.into())
    })
}

fn print_config(flags: Flags) -> anyhow::Result<()> {
    let Checked { config, warnings } = configuration(flags);
    warnings.iter().for_each(|warning| complain(warning));
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &config)?;
    Ok(writeln!(out)?)
}

fn run(flags: Flags) -> ExitCode {
    let Checked { config, warnings } = configuration(flags);
    log_to_stderr(config.verbosity);
    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    let served = traffic_runtime().and_then(|runtime| {
        let served = runtime.block_on(Box::pin(async {
            let stop = Stop::by_signals()?;
            Bound::build(config).await?.run(stop).await;
            anyhow::Ok(())
        }));
        // Blocked threads don't hold up the end.
        runtime.shutdown_background();
        served
    });
    served.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// One worker a core; on one core no workers at all.
fn traffic_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = match cores {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder
        .worker_threads(cores)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("hublet-traffic")
        .enable_all()
        .build()
        .context("the traffic runtime can't be started")
}

/// klog's verbosity for our own events; what libraries have to say is for the highest one.
fn log_to_stderr(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 | 2 => LevelFilter::INFO,
        3 | 4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let libraries = if verbosity > 8 { LevelFilter::DEBUG } else { LevelFilter::WARN };
    let events = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(verbosity > 2);
    let filter = Targets::new().with_target("hublet", level).with_default(libraries);
    tracing_subscriber::registry().with(events.with_filter(filter)).init();
}

fn failed(error: &anyhow::Error) -> ExitCode {
    complain(&format_args!("{error:#}"));
    ExitCode::from(FAILED)
}

fn complain(what: &dyn std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "hublet: {what}");
}
