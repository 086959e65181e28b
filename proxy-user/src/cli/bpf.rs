//! `hublet bpf`: shows and detaches the pinned programs and maps, without bpftool and without a daemon
//! that answers.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::Output;
use super::table::{or_dash, print_field_section, print_line_section, print_table, yes_no};
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
    let mut status = Map::from_iter([("links".to_owned(), pinned.links()?)]);
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
        Output::Table => print_sections(value, out)?,
    }
    Ok(())
}

/// Prints a section for each map: fields of an object, a table of a list of objects.
fn print_sections(value: &Value, out: &mut dyn Write) -> io::Result<()> {
    let sections = value.as_object().into_iter().flatten();
    for (name, value) in sections {
        match value {
            Value::Object(fields) => print_field_section(name, &to_fields(fields), out)?,
            Value::Array(items) => print_items(name, items, out)?,
            other => print_line_section(name, &[to_cell(other)], out)?,
        }
    }
    Ok(())
}

fn to_fields(fields: &Map<String, Value>) -> Vec<(&String, String)> {
    let fields = fields.iter();
    fields.map(|(name, value)| (name, to_cell(value))).collect()
}

fn print_items(name: &str, items: &[Value], out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<_> = items.iter().filter_map(Value::as_object).collect();
    if rows.is_empty() {
        let lines: Vec<_> = items.iter().map(to_cell).collect();
        return print_line_section(name, &lines, out);
    }
    let columns = column_names(&rows);
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            columns
                .iter()
                .map(|name| to_cell(row.get(*name).unwrap_or(&Value::Null)))
                .collect()
        })
        .collect();
    print_table(name, &columns, &cells, out)
}

/// Columns that come first, in this order.
const LEADING: [&str; 5] = ["name", "service", "to", "kind", "command"];

/// The rows of one map have the same fields. Buckets are for programs: `-o json` has them.
fn column_names<'a>(rows: &[&'a Map<String, Value>]) -> Vec<&'a String> {
    let names = rows.first().into_iter().flat_map(|row| row.keys());
    let mut names: Vec<_> = names.filter(|name| *name != "latency").collect();
    names.sort_by_key(|name| {
        let position = LEADING.iter().position(|leading| leading == name);
        position.unwrap_or(LEADING.len())
    });
    names
}

fn to_cell(value: &Value) -> String {
    match value {
        Value::Null => or_dash::<&str>(None),
        Value::Bool(value) => yes_no(*value),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => or_dash::<&str>(None),
        Value::Array(items) => items.iter().map(to_cell).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(value: &Value) -> String {
        let mut out = Vec::new();
        print_value(value, Output::Table, &mut out).expect("written");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn a_map_of_entries_is_a_table_whose_leading_columns_come_first() {
        let text = printed(&json!({"services": [
            {"use": "steered", "to": "169.254.2.1:10268", "service": "10.96.0.1:443"},
            {"use": "own", "to": "127.0.0.1:10261", "service": "127.0.0.1:10261"},
        ]}));
        assert_eq!(
            text,
            "\nSERVICES\n  SERVICE          TO                 USE\n  \
             10.96.0.1:443    169.254.2.1:10268  steered\n  \
             127.0.0.1:10261  127.0.0.1:10261    own\n"
        );
    }

    #[test]
    fn a_single_entry_is_a_list_of_fields() {
        let config = json!({"steering": true, "guard": false, "heartbeatAgeMs": null, "ports": [443, 10268]});
        let text = printed(&json!({ "config": config }));
        for line in [
            "CONFIG\n",
            "guard           no\n",
            "heartbeatAgeMs  -\n",
            "ports           443, 10268\n",
            "steering        yes\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn pins_and_notes_are_lines_and_an_empty_map_is_left_out() {
        let text =
            printed(&json!({"detached": ["/a", "/b"], "flows": [], "note": "another layout"}));
        assert_eq!(text, "\nDETACHED\n  /a\n  /b\n\nNOTE\n  another layout\n");
    }

    #[test]
    fn buckets_are_in_json_only() {
        let rows =
            json!({"flows": [{"service": "10.96.0.1:443", "latency": [0, 1], "steered": 1}]});
        assert!(!printed(&rows).contains("LATENCY"));
        let mut out = Vec::new();
        print_value(&rows, Output::Json, &mut out).expect("written");
        assert_eq!(serde_json::from_slice::<Value>(&out).expect("JSON"), rows);
    }

    #[test]
    fn without_pins_the_error_names_the_directory() {
        let bpffs = tempfile::tempdir().expect("a directory");
        let args = BpfArgs {
            bpffs: bpffs.path().to_path_buf(),
            output: Output::Table,
        };
        for command in [BpfCommand::Status(args.clone()), BpfCommand::Detach(args)] {
            let error = bpf(&command, &mut Vec::new())
                .expect_err("no pins")
                .to_string();
            assert!(
                error.contains(&bpffs.path().display().to_string()),
                "{error}"
            );
        }
    }
}
