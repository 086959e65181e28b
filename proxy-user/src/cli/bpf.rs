//! `hublet bpf`: shows and detaches the pinned programs and maps, without bpftool and without a daemon
//! that answers.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Output;
use super::status::tables;
use crate::ebpf::pins::{MAPS, Pinned, PinnedError};
use crate::text::printable_json;

/// Subcommands of `hublet bpf`.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// Show links, switches, services, selections, interfaces, counters and flows
    Status(BpfArgs),
    /// Show one map's entries: HUB_CONFIG, HUB_SERVICES, HUB_SELECT, HUB_SELECT_CMD, HUB_IFACES, HUB_STATS, HUB_FLOWS
    Dump(DumpArgs),
    /// Detach the programs: nothing is steered, attested or guarded until the daemon starts again
    Detach(BpfArgs),
}

/// Flags of every subcommand.
#[derive(Debug, Clone, Args)]
pub struct BpfArgs {
    /// Mount point of bpffs
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `hublet bpf dump`.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// Name of the map
    pub map: String,
    #[command(flatten)]
    pub common: BpfArgs,
}

#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    #[error("can't write: {0}")]
    Write(#[from] io::Error),
}

/// Runs a subcommand.
///
/// # Errors
/// Nothing is pinned, the kernel refuses, or `out` is closed.
pub fn bpf(command: &BpfCommand, out: &mut dyn Write) -> Result<(), BpfError> {
    match command {
        BpfCommand::Status(args) => {
            let status = read_status(&Pinned::find(&args.bpffs)?)?;
            print_value(&status, args.output, out)
        }
        BpfCommand::Dump(DumpArgs { map, common }) => {
            let rows = Pinned::find(&common.bpffs)?.dump(map)?;
            let shown = match common.output {
                Output::Json => rows,
                Output::Table => json!({ map.as_str(): rows }),
            };
            print_value(&shown, common.output, out)
        }
        BpfCommand::Detach(args) => {
            let detached: Vec<_> = Pinned::find(&args.bpffs)?
                .detach()?
                .iter()
                .map(|pin| pin.display().to_string())
                .collect();
            print_value(&json!({ "detached": detached }), args.output, out)
        }
    }
}

/// Reads the links and every map. Maps of another version can't be decoded: then a note says so.
fn read_status(pinned: &Pinned) -> Result<Value, PinnedError> {
    let mut status = serde_json::Map::from_iter([("links".to_owned(), pinned.links()?)]);
    for map in MAPS {
        let section = map.trim_start_matches("HUB_").to_lowercase();
        match pinned.dump(map) {
            Ok(rows) => status.insert(section, rows),
            Err(error @ PinnedError::Layout { .. }) => {
                status.insert("note".into(), error.to_string().into());
                break;
            }
            Err(error) => return Err(error),
        };
    }
    Ok(Value::Object(status))
}

fn print_value(value: &Value, output: Output, out: &mut dyn Write) -> Result<(), BpfError> {
    match output {
        Output::Json => writeln!(out, "{}", printable_json(&format!("{value:#}")))?,
        Output::Table => tables(value, out)?,
    }
    Ok(())
}
