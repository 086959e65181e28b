//! The command line: the daemon, which is the default, and the other commands. The daemon's flags may
//! stand without the word `run`, whatever the binary is called: a manifest written for YurtHub needs
//! no change.

pub mod bpf;
pub mod status;
mod table;
pub mod uninstall;

use std::ffi::OsString;
use std::net::SocketAddr;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use crate::config::flags::Flags;

/// Serves a node's Kubernetes clients, from the cloud or, while it is away, from its own store.
#[derive(Debug, Parser)]
#[command(name = "hublet", version = crate::VERSION, args_conflicts_with_subcommands = true, args_override_self = true,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 141 broken pipe.")]
struct CommandLine {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Flags,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon (the default)
    #[command(args_override_self = true)]
    Run(Flags),
    /// Print the effective configuration as JSON
    #[command(args_override_self = true)]
    Config(Flags),
    /// Show a running hublet: its components, eBPF programs and counters, cloud, store and recent callers
    Status(StatusArgs),
    /// Show or detach the eBPF programs and maps, also without a daemon
    #[command(subcommand)]
    Bpf(bpf::BpfCommand),
    /// Remove everything that hublet created on this node: programs, interface, store, certificates
    Uninstall(uninstall::UninstallArgs),
    /// Print the version
    Version,
}

/// `hublet status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Admin address of the daemon
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10267")]
    pub admin: SocketAddr,
}

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

/// Parses the arguments, the binary's name first.
///
/// # Errors
/// Wrong usage, or a request for help; [`clap::Error::exit`] prints both with the right exit code.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Command, clap::Error> {
    let arguments = arguments.into_iter().skip(1).map(with_dashes);
    let named = std::iter::once(OsString::from("hublet")).chain(arguments);
    let matches = CommandLine::command().try_get_matches_from(named)?;
    let line = CommandLine::from_arg_matches(&matches)?;
    Ok(line.command.unwrap_or(Command::Run(line.run)))
}

/// Makes `--node-name=x` of `--node_name=x`, since Kubernetes' own binaries accept both.
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
