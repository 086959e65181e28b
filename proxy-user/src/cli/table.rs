//! Sections of fields, lines and tables, aligned for a terminal.
//!
//! Values may come from callers and servers: whatever is printed here has no control characters.

use std::fmt::Display;
use std::io::{self, Write};

use crate::text::Printable;

/// Formats an absent value as `-`.
pub(super) fn or_dash<T: Display>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

pub(super) fn yes_no(value: bool) -> String {
    let word = if value { "yes" } else { "no" };
    word.to_owned()
}

/// Prints a name and its value on each line.
pub(super) fn print_fields<N: AsRef<str>>(
    fields: impl IntoIterator<Item = (N, String)>,
    indent: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let fields: Vec<_> = fields.into_iter().collect();
    let names = fields.iter().map(|(name, _)| name.as_ref().chars().count());
    let width = names.max().unwrap_or_default();
    for (name, value) in &fields {
        let (name, value) = (Printable(name.as_ref()).to_string(), Printable(value));
        writeln!(out, "{indent}{name:width$}  {value}")?;
    }
    Ok(())
}

/// A section that isn't printed if it has no fields.
pub(super) fn print_field_section<N: AsRef<str>>(
    heading: &str,
    fields: impl IntoIterator<Item = (N, String)>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut fields = fields.into_iter().peekable();
    if fields.peek().is_none() {
        return Ok(());
    }
    print_heading(heading, out)?;
    print_fields(fields, "  ", out)
}

/// A section that isn't printed if it has no lines.
pub(super) fn print_line_section(
    heading: &str,
    lines: &[String],
    out: &mut dyn Write,
) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    print_heading(heading, out)?;
    lines
        .iter()
        .try_for_each(|line| writeln!(out, "  {}", Printable(line)))
}

/// A table that isn't printed if it has no rows. Each row has a cell for each column.
pub(super) fn print_table<C: AsRef<str>>(
    heading: &str,
    columns: &[C],
    rows: impl IntoIterator<Item = Vec<String>>,
    out: &mut dyn Write,
) -> io::Result<()> {
    let mut rows = rows.into_iter().peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    print_heading(heading, out)?;
    let titles = columns.iter().map(|title| title.as_ref().to_uppercase());
    let lines: Vec<Vec<String>> = std::iter::once(titles.collect())
        .chain(rows)
        .map(printable_cells)
        .collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| column_width(&lines, column))
        .collect();
    lines
        .iter()
        .try_for_each(|line| print_row(line, &widths, out))
}

fn printable_cells(cells: Vec<String>) -> Vec<String> {
    let cells = cells.into_iter();
    cells.map(|cell| Printable(cell).to_string()).collect()
}

fn column_width(lines: &[Vec<String>], column: usize) -> usize {
    let cells = lines.iter().filter_map(|line| line.get(column));
    cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
}

fn print_row(cells: &[String], widths: &[usize], out: &mut dyn Write) -> io::Result<()> {
    let padded = cells
        .iter()
        .zip(widths)
        .map(|(cell, width)| format!("{cell:width$}"));
    let row = padded.collect::<Vec<_>>().join("  ");
    writeln!(out, "  {}", row.trim_end())
}

fn print_heading(heading: &str, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "\n{}", Printable(heading.to_uppercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(print: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        print(&mut out).expect("written");
        String::from_utf8(out).expect("UTF-8")
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["1".to_owned(), "kubelet".to_owned()],
            vec!["12345".to_owned(), "c".to_owned()],
        ];
        assert_eq!(
            printed(|out| print_table("callers", &["pid", "command"], rows, out)),
            "\nCALLERS\n  PID    COMMAND\n  1      kubelet\n  12345  c\n"
        );
    }

    #[test]
    fn values_are_aligned_behind_their_names() {
        let fields = [
            ("node", "edge-1".to_owned()),
            ("uptime", or_dash::<u8>(None)),
        ];
        assert_eq!(
            printed(|out| print_field_section("daemon", fields, out)),
            "\nDAEMON\n  node    edge-1\n  uptime  -\n"
        );
    }

    #[test]
    fn a_section_without_content_is_left_out() {
        let text = printed(|out| {
            print_line_section("unready", &[], out)?;
            print_table("callers", &["pid"], [], out)?;
            print_field_section::<&str>("cloud", [], out)
        });
        assert_eq!(text, "");
    }

    #[test]
    fn control_characters_are_escaped_everywhere() {
        let hostile = || "\u{1b}[31m\n".to_owned();
        let text = printed(|out| {
            print_fields([(hostile(), hostile())], "", out)?;
            print_line_section("lines", &[hostile()], out)?;
            print_table(&hostile(), &[hostile()], [vec![hostile()]], out)
        });
        assert!(!text.contains('\u{1b}'), "{text}");
        assert_eq!(text.matches("\\u{1b}").count(), 6, "{text}");
    }
}
