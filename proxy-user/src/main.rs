//! Arguments, logging, runtimes and exit codes.
#![forbid(unsafe_code)]

use std::error::Error;
use std::fmt::{Debug, Display};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use hublet::app::{AppError, Bound, Shutdown};
use hublet::cli::{self, Command};
use hublet::config::flags::Flags;
use hublet::config::{self, Checked};
use hublet::text::{Printable, with_causes};
use tokio::runtime::{Builder, Runtime};
use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};
use tracing_subscriber::prelude::*;

/// musl's allocator costs up to 2.8 times the CPU. Settings are compiled in (`.cargo/config.toml`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const EXIT_FAILURE: u8 = 1;
const EXIT_USAGE: u8 = 2;
/// The reader of the output has gone (`hublet status | head`): 128 + SIGPIPE, as in a shell.
const EXIT_BROKEN_PIPE: u8 = 128 + 13;

/// Threads for blocking work: reading lists from the store, DNS.
const BLOCKING_THREADS: usize = 32;

/// The target of request records. From verbosity 4 on each is logged, otherwise only failures.
const REQUEST_TARGET: &str = "hublet::telemetry::request";

fn main() -> ExitCode {
    let command = match cli::parse(std::env::args_os()) {
        Ok(Command::Run(flags)) if !flags.own.print_config => return run_daemon(flags),
        Ok(command) => command,
        Err(usage) => usage.exit(),
    };
    match print_result(command, &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if is_broken_pipe(&*error) => ExitCode::from(EXIT_BROKEN_PIPE),
        Err(error) => fail(&*error),
    }
}

/// Runs a command that isn't the daemon.
fn print_result(command: Command, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Run(flags) | Command::Config(flags) => print_config(flags, out)?,
        Command::Status(args) => cli::status::status(&args, out)?,
        Command::Bpf(command) => cli::bpf::bpf(&command, out)?,
        Command::Uninstall(args) => cli::uninstall::uninstall(&args, out)?,
        Command::Version => writeln!(out, "hublet {}", hublet::VERSION)?,
    }
    Ok(())
}

/// Checks the flags; exits on an error.
fn check_flags(flags: Flags) -> Checked {
    config::check(flags, &|name| std::env::var(name).ok()).unwrap_or_else(|error| {
        print_error(&error);
        print_error(&"see `hublet --help`");
        std::process::exit(EXIT_USAGE.into())
    })
}

fn print_config(flags: Flags, out: &mut dyn Write) -> io::Result<()> {
    let Checked { config, warnings } = check_flags(flags);
    for warning in warnings {
        print_error(&warning);
    }
    serde_json::to_writer_pretty(&mut *out, &config)?;
    writeln!(out)
}

fn run_daemon(flags: Flags) -> ExitCode {
    let checked = check_flags(flags);
    start_logging(checked.config.verbosity);
    for warning in &checked.warnings {
        tracing::warn!("{warning}");
    }
    match serve(checked) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn serve(checked: Checked) -> Result<(), AppError> {
    let runtime = traffic_runtime()?;
    let served = runtime.block_on(Box::pin(async {
        let shutdown = Shutdown::on_signals()?;
        Bound::build(checked).await?.run(shutdown).await;
        Ok(())
    }));
    // Threads that block don't hold up the exit.
    runtime.shutdown_background();
    served
}

/// A worker for each core; on a single core no workers at all.
fn traffic_runtime() -> Result<Runtime, AppError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut builder = match cores {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder
        .worker_threads(cores)
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_name("hublet-traffic")
        .enable_all()
        .build()
        .map_err(|error| AppError::System("can't start the traffic runtime", error))
}

/// Logs to standard error, with klog's levels of verbosity for hublet's own events. Libraries'
/// debug events need verbosity 9.
fn start_logging(verbosity: u8) {
    let events = tracing_subscriber::fmt::layer()
        .fmt_fields(printable_fields())
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_target(verbosity > 2);
    tracing_subscriber::registry()
        .with(events.with_filter(log_filter(verbosity)))
        .init();
}

fn log_filter(verbosity: u8) -> Targets {
    Targets::new()
        .with_target("hublet", own_level(verbosity))
        .with_target(REQUEST_TARGET, request_level(verbosity))
        .with_default(library_level(verbosity))
}

fn own_level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0 => LevelFilter::WARN,
        1 | 2 => LevelFilter::INFO,
        3 | 4 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    }
}

fn request_level(verbosity: u8) -> LevelFilter {
    match verbosity {
        3 => LevelFilter::INFO,
        _ => own_level(verbosity),
    }
}

fn library_level(verbosity: u8) -> LevelFilter {
    match verbosity {
        0..9 => LevelFilter::WARN,
        _ => LevelFilter::DEBUG,
    }
}

/// Formats an event as one line, whatever callers and servers have put into it.
fn printable_fields() -> impl for<'writer> FormatFields<'writer> {
    debug_fn(
        |writer: &mut Writer<'_>, field: &Field, value: &dyn Debug| {
            let value = Printable(format_args!("{value:?}"));
            match field.name() {
                "message" => write!(writer, "{value}"),
                name => write!(writer, "{name}={value}"),
            }
        },
    )
    .delimited(" ")
}

fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    match (error.downcast_ref::<io::Error>(), error.source()) {
        (Some(error), _) => error.kind() == io::ErrorKind::BrokenPipe,
        (None, Some(cause)) => is_broken_pipe(cause),
        (None, None) => false,
    }
}

fn fail(error: &dyn Error) -> ExitCode {
    print_error(&with_causes(error));
    ExitCode::from(EXIT_FAILURE)
}

fn print_error(text: &dyn Display) {
    for line in text.to_string().lines() {
        // If standard error can't be written, there is nowhere to report that.
        let _ = writeln!(io::stderr(), "hublet: {}", Printable(line));
    }
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_line_for_each_request_needs_verbosity_4() {
        for (verbosity, info, debug, request, library) in [
            (0, false, false, false, false),
            (2, true, false, false, false),
            (3, true, true, false, false),
            (4, true, true, true, false),
            (9, true, true, true, true),
        ] {
            let filter = log_filter(verbosity);
            let enables = |target, level| filter.would_enable(target, &level);
            assert_eq!(
                [
                    enables("hublet::app", Level::INFO),
                    enables("hublet::app", Level::DEBUG),
                    enables(REQUEST_TARGET, Level::DEBUG),
                    enables("hyper", Level::DEBUG),
                ],
                [info, debug, request, library],
                "--v={verbosity}"
            );
            assert!(enables("hublet::app", Level::WARN));
        }
    }

    #[test]
    fn a_broken_pipe_is_found_among_the_causes() {
        #[derive(Debug, thiserror::Error)]
        #[error("can't write")]
        struct Wrapper(#[source] io::Error);
        let wrap = |kind: io::ErrorKind| Wrapper(kind.into());
        assert!(is_broken_pipe(&wrap(io::ErrorKind::BrokenPipe)));
        assert!(!is_broken_pipe(&wrap(io::ErrorKind::NotFound)));
        assert!(is_broken_pipe(&io::Error::from(io::ErrorKind::BrokenPipe)));
    }
}
