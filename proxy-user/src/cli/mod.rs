//! The command line: what was asked of the binary, and the commands that are not the daemon itself.
//!
//! In: the process's arguments. Out: a [`Command`]. The daemon's flags may stand with or without the word `run`,
//! whatever the binary is called, so that a manifest written for YurtHub needs no edit.

pub mod bpf;
pub mod status;
pub mod uninstall;

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::flags::Flags;

/// Serves a node's Kubernetes clients, from the cloud or, while it is away, from its own store.
#[derive(Debug, Parser)]
#[command(name = "hublet", version = VERSION, args_conflicts_with_subcommands = true, args_override_self = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 141 nobody reads the output any more.")]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Flags,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve (what hublet does without a command, too)
    #[command(args_override_self = true)]
    Run(Flags),
    /// Print the effective configuration as JSON
    #[command(args_override_self = true)]
    Config(Flags),
    /// Show a running hublet: its components, eBPF programs and counters, cloud, store and last callers
    Status(StatusArgs),
    /// Look at the eBPF programs and maps, or take them off, also without a daemon
    #[command(subcommand)]
    Bpf(bpf::BpfCommand),
    /// Remove everything that hublet made on this node: programs, interface, store, certificates
    Uninstall(uninstall::UninstallArgs),
    Version,
}

/// `hublet status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Admin address of the daemon
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10267")]
    pub admin: SocketAddr,
}

/// How a command prints data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// The version, as `hublet version` and `/v1/status` tell it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Reads the arguments, the binary's name first.
///
/// # Errors
/// Wrong usage, or a wish for help; [`clap::Error::exit`] prints either with the right exit code.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let arguments = arguments
        .into_iter()
        .enumerate()
        .map(|(n, argument)| match n {
            0 => OsString::from("hublet"),
            _ => with_dashes(argument),
        });
    let line =
        CommandLine::from_arg_matches(&CommandLine::command().try_get_matches_from(arguments)?)?;
    Ok(line.command.unwrap_or(Command::Run(line.run)))
}

/// `--node_name=x` as `--node-name=x`: Kubernetes' own binaries take both.
fn with_dashes(argument: OsString) -> OsString {
    let Some(text) = argument.to_str().filter(|text| text.starts_with("--")) else {
        return argument;
    };
    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
    if name.contains('_') {
        format!("{}{value}", name.replace('_', "-")).into()
    } else {
        argument
    }
}
