//! `hublet status`: asks a running daemon's admin listener and shows the answer as tables or as JSON.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Output, StatusArgs};
use crate::text::{Printable, printable_json};

const PATIENCE: Duration = Duration::from_secs(5);

/// A status is some tens of kilobytes.
const MAX_ANSWER: u64 = 8 << 20;

/// Why there is no status to show.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    #[error(
        "no hublet answers on {0}: {1}; is it running, and is its --serve-port another? Say so by --admin=ADDR:PORT"
    )]
    Connect(SocketAddr, io::Error),
    #[error("what answers on {0} is no hublet: {1}")]
    Answer(SocketAddr, String),
    /// The output is closed.
    #[error("can't write: {0}")]
    Write(#[from] io::Error),
}

/// Asks and prints.
///
/// # Errors
/// Nobody answers, somebody else answers, or `out` is closed.
pub fn status(args: &StatusArgs, out: &mut dyn Write) -> Result<(), StatusError> {
    let body = ask(args.admin)?;
    let status: Value =
        serde_json::from_str(&body).map_err(|e| StatusError::Answer(args.admin, e.to_string()))?;
    match args.output {
        Output::Json => writeln!(out, "{}", printable_json(&format!("{status:#}")))?,
        Output::Table => tables(&status, out)?,
    }
    Ok(())
}

fn ask(admin: SocketAddr) -> Result<String, StatusError> {
    let answer = (|| {
        let mut stream = TcpStream::connect_timeout(&admin, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(format!("GET /v1/status HTTP/1.0\r\nHost: {admin}\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.take(MAX_ANSWER).read_to_string(&mut answer)?;
        Ok(answer)
    })()
    .map_err(|error| StatusError::Connect(admin, error))?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or_else(|| StatusError::Answer(admin, "it doesn't speak HTTP".into()))?;
    let line = head.lines().next().unwrap_or_default();
    if line.split(' ').nth(1) != Some("200") {
        return Err(StatusError::Answer(admin, format!("it says {line:?}")));
    }
    Ok(body.to_owned())
}

/// Scalars first, then a section for each object or list; rows of a list of objects become a table.
pub(super) fn tables(status: &Value, out: &mut dyn Write) -> io::Result<()> {
    let Value::Object(sections) = status else {
        return writeln!(out, "{}", Printable(status));
    };
    let scalars: Vec<_> = sections
        .iter()
        .filter(|(_, value)| !value.is_object() && !value.is_array())
        .collect();
    let width = scalars.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
    for (key, value) in scalars {
        writeln!(out, "{:width$}  {}", word(key), cell(value))?;
    }
    for (key, value) in sections {
        section(key, value, out)?;
    }
    Ok(())
}

fn section(name: &str, value: &Value, out: &mut dyn Write) -> io::Result<()> {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            let (flat, nested): (Vec<_>, Vec<_>) = fields
                .iter()
                .partition(|(_, v)| !is_table(v) && !v.is_object());
            if !flat.is_empty() {
                writeln!(out, "\n{}", word(&name.to_uppercase()))?;
                let width = flat.iter().map(|(key, _)| key.len()).max().unwrap_or(0);
                for (key, value) in flat {
                    writeln!(out, "  {:width$}  {}", word(key), cell(value))?;
                }
            }
            nested
                .into_iter()
                .try_for_each(|(key, value)| section(&format!("{name} {key}"), value, out))
        }
        Value::Array(rows) if !rows.is_empty() => {
            writeln!(out, "\n{}", word(&name.to_uppercase()))?;
            if is_table(value) {
                table(rows, out)
            } else {
                rows.iter()
                    .try_for_each(|row| writeln!(out, "  {}", cell(row)))
            }
        }
        _ => Ok(()),
    }
}

fn is_table(value: &Value) -> bool {
    value
        .as_array()
        .is_some_and(|rows| !rows.is_empty() && rows.iter().all(Value::is_object))
}

/// Columns that come first, in this order.
const FIRST: [&str; 15] = [
    "name",
    "on",
    "detail",
    "pid",
    "uid",
    "command",
    "cgroup",
    "original",
    "steered",
    "address",
    "port",
    "id",
    "connections",
    "bytes_up",
    "bytes_down",
];

/// Columns for programs only: `-o json` has them.
const HIDDEN: [&str; 7] = [
    "process",
    "gid",
    "cgroup_id",
    "netns",
    "last",
    "latency",
    "wanted",
];

/// Rows as a table; an object within a row adds its own columns.
fn table(rows: &[Value], out: &mut dyn Write) -> io::Result<()> {
    let rows: Vec<Map<String, Value>> =
        rows.iter().filter_map(Value::as_object).map(flat).collect();
    let mut columns: Vec<&str> = Vec::new();
    for key in rows
        .iter()
        .flat_map(|row| row.keys())
        .filter(|key| !HIDDEN.contains(&key.as_str()))
    {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    columns.sort_by_key(|column| {
        FIRST
            .iter()
            .position(|first| first == column)
            .unwrap_or(FIRST.len())
    });
    let line = |row: &Map<String, Value>| {
        columns
            .iter()
            .map(|column| cell(row.get(*column).unwrap_or(&Value::Null)))
            .collect::<Vec<_>>()
    };
    let head = columns
        .iter()
        .map(|column| word(&column.to_uppercase()))
        .collect();
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows.iter().map(line)).collect();
    let width = |n: usize| {
        lines
            .iter()
            .map(|line| line[n].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    for line in &lines {
        let cells = line
            .iter()
            .zip(&widths)
            .map(|(value, width)| format!("{value:width$}"));
        writeln!(out, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn flat(row: &Map<String, Value>) -> Map<String, Value> {
    let mut flat = row.clone();
    for inner in row.values().filter_map(Value::as_object) {
        flat.extend(inner.clone());
    }
    flat
}

/// A word of the daemon's, which may be a caller's: on a terminal it is text and nothing else.
fn word(text: &str) -> String {
    Printable(text).to_string()
}

/// One value in words; an address that serde made a pair of is an address again.
fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => word(text),
        Value::Array(items) => match items.as_slice() {
            [] => "-".into(),
            [Value::String(ip), Value::Number(port)] => format!("{}:{port}", word(ip)),
            items => items.iter().map(cell).collect::<Vec<_>>().join(", "),
        },
        Value::Object(fields) => fields
            .iter()
            .map(|(k, v)| format!("{}={}", word(k), cell(v)))
            .collect::<Vec<_>>()
            .join(" "),
        Value::Number(number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_shows_components_programs_counters_and_callers() {
        let status = json!({
            "version": "1.2.3", "node": "edge-1", "unready": [],
            "components": [{"name": "steering", "on": false, "detail": "no CAP_BPF"}],
            "ebpf": {"programs": [{"name": "hub_connect4", "id": 7, "attached": "/sys/fs/cgroup"}],
                "counters": {"steered": 12}},
            "callers": [
                {"process": {"pid": 42, "uid": 0, "command": "kubelet", "cgroup": null, "original": "10.96.0.1:443",
                    "netns": 4026531840_u64}, "address": "169.254.2.1:40000", "last": 1},
                {"process": null, "address": "10.244.0.7:40001", "last": 2},
            ],
        });
        let mut out = Vec::new();
        tables(&status, &mut out).expect("written");
        let text = String::from_utf8(out).expect("UTF-8");
        for line in [
            "version  1.2.3",
            "COMPONENTS",
            "no CAP_BPF",
            "EBPF PROGRAMS",
            "hub_connect4",
            "EBPF COUNTERS",
            "steered  12",
            "CALLERS",
            "PID",
            "kubelet",
            "10.96.0.1:443",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("UNREADY"), "an empty list is no section");
    }

    #[test]
    fn nobody_and_somebody_else_are_told_apart() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        let admin = listener.local_addr().expect("address");
        let args = StatusArgs {
            output: Output::Json,
            admin,
        };
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("accepted");
            let _ = stream.read(&mut [0; 512]);
            stream
                .write_all(b"HTTP/1.1 404 Not Found\r\n\r\n")
                .expect("written");
        });
        let error = status(&args, &mut Vec::new())
            .expect_err("a stranger")
            .to_string();
        assert!(
            error.contains("no hublet") && error.contains("404"),
            "{error}"
        );
        other.join().expect("joined");
        let error = status(&args, &mut Vec::new())
            .expect_err("closed")
            .to_string();
        assert!(
            error.contains("--admin") && error.contains(&admin.to_string()),
            "{error}"
        );
    }
}
