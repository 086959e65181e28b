//! `hublet bpf`: the programs and maps as they are pinned, for machines without bpftool, and for the time when the daemon
//! does not answer. In: where bpffs is. Out: tables, JSON, or nothing left attached.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::Output;
use super::status::tables;
use crate::ebpf::pins::{MAPS, Pinned, PinnedError};
use crate::text::printable_json;

/// What to do with what is pinned.
#[derive(Debug, Subcommand)]
pub enum BpfCommand {
    /// Links, switches, services, selections, interfaces, counters and flows
    Status(BpfArgs),
    /// One map's entries: HUB_CONFIG, HUB_SERVICES, HUB_SELECT, HUB_SELECT_CMD, HUB_IFACES, HUB_STATS, HUB_FLOWS
    Dump(DumpArgs),
    /// Take the programs off: nothing is steered, attested or guarded until the daemon starts again
    Detach(BpfArgs),
}

/// Where, and how to print.
#[derive(Debug, Clone, Args)]
pub struct BpfArgs {
    /// Where bpffs is mounted
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf")]
    pub bpffs: PathBuf,
    /// Form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
}

/// `hublet bpf dump`.
#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    /// Name of the map
    pub map: String,
    /// Where, and how to print
    #[command(flatten)]
    pub at: BpfArgs,
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    #[error(transparent)]
    Pinned(#[from] PinnedError),
    /// The output is closed.
    #[error("can't write: {0}")]
    Write(#[from] io::Error),
}

/// Does it.
///
/// # Errors
/// Nothing is pinned, the kernel refuses, or `out` is closed.
pub fn bpf(command: &BpfCommand, out: &mut dyn Write) -> Result<(), BpfError> {
    match command {
        BpfCommand::Status(args) => print(&status(&Pinned::find(&args.bpffs)?)?, args.output, out),
        BpfCommand::Dump(DumpArgs { map, at }) => {
            let rows = Pinned::find(&at.bpffs)?.dump(map)?;
            match at.output {
                Output::Json => print(&rows, at.output, out),
                Output::Table => print(&json!({ map.as_str(): rows }), at.output, out),
            }
        }
        BpfCommand::Detach(args) => {
            let gone: Vec<_> = Pinned::find(&args.bpffs)?
                .detach()?
                .iter()
                .map(|pin| pin.display().to_string())
                .collect();
            print(&json!({ "detached": gone }), args.output, out)
        }
    }
}

/// Everything; what another version pinned is named by its links only.
fn status(pinned: &Pinned) -> Result<Value, PinnedError> {
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

fn print(value: &Value, output: Output, out: &mut dyn Write) -> Result<(), BpfError> {
    match output {
        Output::Json => writeln!(out, "{}", printable_json(&format!("{value:#}")))?,
        Output::Table => tables(value, out)?,
    }
    Ok(())
}
