//! Text on its way to people: the log, a terminal. In: words of callers, servers and files, and errors. Out: words that
//! no terminal obeys, and an error with its causes.
//!
//! A process names itself as it likes, and so do a cgroup and a server: with escape sequences that rewrite the screen,
//! or with a line break and what looks like another line of the log.

use std::error::Error;
use std::fmt::{self, Display, Write};

/// Displays as the same text, but for characters that aren't seen, which are written as `\n`, `\u{1b}` and so on.
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
        while let Some((at, unseen)) = rest.char_indices().find(|(_, c)| is_unseen(*c)) {
            self.0.write_str(&rest[..at])?;
            write!(self.0, "{}", unseen.escape_default())?;
            rest = &rest[at + unseen.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// A JSON text whose strings hold no unseen characters either: JSON itself lets most of them stand as they are. Line
/// breaks between the values stay.
pub fn printable_json(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || !is_unseen(c) {
            text.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(text, "\\u{unit:04x}");
        }
    }
    text
}

/// Control characters (C0, DEL, C1), and those that turn the direction of writing, break lines, or have no width.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}')
        || matches!(c, '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// An error with its causes, each once. Our own errors tell their causes themselves, so that whoever logs or prints one
/// needs its `Display` only; this is for those of libraries that leave theirs to be asked for.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            let _ = write!(text, ": {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_is_left() {
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
        assert!(text.chars().all(|c| c == '\n' || !is_unseen(c)), "{text}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).expect("JSON"),
            value
        );
    }

    #[derive(Debug, thiserror::Error)]
    enum Told {
        #[error("can't open the door: {0}")]
        Itself(#[source] std::io::Error),
        #[error("can't open the door")]
        NotItself(#[source] std::io::Error),
    }

    #[test]
    fn each_cause_is_told_once() {
        let cause = || std::io::Error::other("it is locked");
        for error in [Told::Itself(cause()), Told::NotItself(cause())] {
            assert_eq!(with_causes(&error), "can't open the door: it is locked");
        }
    }
}
