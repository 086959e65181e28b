//! Text for people, in the log and on the terminal: without control characters, and errors with their
//! causes.
//!
//! Processes, cgroups and servers choose their own names. Such a name could rewrite the terminal by
//! escape sequences, or forge a line of the log by a line break.

use std::error::Error;
use std::fmt::{self, Display, Write};

/// Displays as the same text, with invisible characters escaped as `\n`, `\u{1b}` and so on.
#[derive(Debug, Clone, Copy)]
pub struct Printable<T>(pub T);

impl<T: Display> Display for Printable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escaping(f), "{}", self.0)
    }
}

struct Escaping<'a, 'f>(&'a mut fmt::Formatter<'f>);

impl Write for Escaping<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, invisible)) = rest.char_indices().find(|(_, c)| is_invisible(*c)) {
            self.0.write_str(&rest[..at])?;
            write!(self.0, "{}", invisible.escape_default())?;
            rest = &rest[at + invisible.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Escapes invisible characters in JSON text, which allows most of them unescaped in strings. Line
/// breaks between values stay.
pub fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_invisible(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

/// Control characters (C0, DEL, C1), and those that change the direction of text, break lines, or have
/// no width.
fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// Formats an error of a library with its causes, each once. The `Display` of hublet's own errors
/// includes their causes already.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.contains(&message) {
            let _ = write!(text, ": {message}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped() {
        for (text, expected) in [
            ("kubelet", "kubelet"),
            ("café/\\x2d \"1\"", "café/\\x2d \"1\""),
            ("\u{1b}[31mroot\n", "\\u{1b}[31mroot\\n"),
            ("a\tb\r", "a\\tb\\r"),
            ("\u{7f}\u{9b}2J", "\\u{7f}\\u{9b}2J"),
            ("gpj.\u{202e}exe", "gpj.\\u{202e}exe"),
        ] {
            assert_eq!(Printable(text).to_string(), expected);
        }
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({"command": "\u{1b}[31m\u{9b}\u{202e}\u{e0041}\n"});
        let text = printable_json(&format!("{value:#}"));
        assert!(
            text.chars().all(|c| c == '\n' || !is_invisible(c)),
            "{text}"
        );
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON"),
            value
        );
    }

    #[derive(Debug, thiserror::Error)]
    enum Wrapper {
        #[error("can't open the door: {0}")]
        WithCause(#[source] std::io::Error),
        #[error("can't open the door")]
        WithoutCause(#[source] std::io::Error),
    }

    #[test]
    fn each_cause_is_shown_once() {
        let cause = || std::io::Error::other("it is locked");
        for error in [Wrapper::WithCause(cause()), Wrapper::WithoutCause(cause())] {
            assert_eq!(with_causes(&error), "can't open the door: it is locked");
        }
    }
}
