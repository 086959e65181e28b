//! Arguments, logging, runtimes, exit codes; nothing else.

use std::error::Error;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use hublet::app::{AppError, Bound, Shutdown};
use hublet::cli::{self, Command};
use hublet::config::flags::Flags;
use hublet::config::{self, Checked};
use hublet::text::{Printable, with_causes};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::prelude::*;

/// musl's own allocator costs up to 2.8 times the CPU; settings are compiled in (`.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// Whoever read our output has gone (`hublet status | head`): what a shell calls a process that SIGPIPE ended.
const NOBODY_READS: u8 = 128 + 13;

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
            cli::status::status(&args, &mut io::stdout().lock()).map_err(Into::into)
        }
        Command::Bpf(command) => {
            cli::bpf::bpf(&command, &mut io::stdout().lock()).map_err(Into::into)
        }
        Command::Uninstall(args) => {
            cli::uninstall::uninstall(&args, &mut io::stdout().lock()).map_err(Into::into)
        }
        Command::Version => writeln!(io::stdout(), "hublet {}", cli::VERSION).map_err(Into::into),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if nobody_reads(&*error) => ExitCode::from(NOBODY_READS),
        Err(error) => failed(&*error),
    }
}

/// Flags to configuration; usage errors end here.
fn configuration(flags: Flags) -> Checked {
    config::check(flags, &|name| std::env::var(name).ok()).unwrap_or_else(|error| {
        complain(&error);
        complain(&"see `hublet --help`");
        std::process::exit(USAGE.into())
    })
}

fn print_config(flags: Flags) -> Result<(), Box<dyn Error>> {
    let Checked { config, warnings } = configuration(flags);
    warnings.iter().for_each(|warning| complain(warning));
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &config).map_err(io::Error::from)?;
    Ok(writeln!(out)?)
}

fn run(flags: Flags) -> ExitCode {
    let checked = configuration(flags);
    log_to_stderr(checked.config.verbosity);
    checked
        .warnings
        .iter()
        .for_each(|warning| tracing::warn!("{warning}"));
    let served = traffic_runtime().and_then(|runtime| {
        let served = runtime.block_on(Box::pin(async {
            let shutdown = Shutdown::on_signals()?;
            Bound::build(checked).await?.run(shutdown).await;
            Ok(())
        }));
        // Blocked threads don't hold up the end.
        runtime.shutdown_background();
        served
    });
    served.map_or_else(|error: AppError| failed(&error), |()| ExitCode::SUCCESS)
}

/// One worker a core; on one core no workers at all.
fn traffic_runtime() -> Result<tokio::runtime::Runtime, AppError> {
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
        .map_err(|error| AppError::System("the traffic runtime can't be started", error))
}

/// klog's verbosity for our own events; what libraries have to say is for the highest one.
fn log_to_stderr(verbosity: u8) {
    let level = match verbosity {
        0 => LevelFilter::WARN,
        1 | 2 => LevelFilter::INFO,
        3 | 4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    let libraries = if verbosity > 8 {
        LevelFilter::DEBUG
    } else {
        LevelFilter::WARN
    };
    let events = tracing_subscriber::fmt::layer()
        .fmt_fields(fields())
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbosity > 2);
    let filter = Targets::new()
        .with_target("hublet", level)
        .with_default(libraries);
    tracing_subscriber::registry()
        .with(events.with_filter(filter))
        .init();
}

/// An event is one line, whatever callers and servers have put into it.
fn fields() -> impl for<'writer> FormatFields<'writer> {
    let field =
        |to: &mut Writer<'_>, field: &tracing::field::Field, value: &dyn std::fmt::Debug| {
            let value = Printable(format_args!("{value:?}"));
            match field.name() {
                "message" => write!(to, "{value}"),
                name => write!(to, "{name}={value}"),
            }
        };
    debug_fn(field).delimited(" ")
}

fn nobody_reads(error: &(dyn Error + 'static)) -> bool {
    match (error.downcast_ref::<io::Error>(), error.source()) {
        (Some(error), _) => error.kind() == io::ErrorKind::BrokenPipe,
        (None, cause) => cause.is_some_and(nobody_reads),
    }
}

fn failed(error: &dyn Error) -> ExitCode {
    complain(&with_causes(error));
    ExitCode::from(FAILED)
}

fn complain(what: &dyn std::fmt::Display) {
    for line in what.to_string().lines() {
        let _ = writeln!(io::stderr(), "hublet: {}", Printable(line));
    }
}
