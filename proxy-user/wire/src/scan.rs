//! A scanner that follows JSON text through strings and brackets, without reading any value.

use crate::{CodecError, MAX_DEPTH};

/// The place in a JSON text that arrives in chunks.
#[derive(Debug, Default)]
pub(crate) struct Scanner {
    depth: u32,
    in_string: bool,
    is_escaped: bool,
}

/// The part that a byte plays outside of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// `{` or `[`: one level deeper.
    Open,
    /// `}` or `]`: one level up.
    Close,
    /// The quote that begins a string.
    StringStart,
    /// The quote that ends a string.
    StringEnd,
    /// Within a string.
    Text,
    /// Any other byte: of numbers and words, white space, `:` and `,`.
    Other,
}

/// JSON's white space, to which no form feed belongs.
pub(crate) fn is_whitespace(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

impl Scanner {
    /// The number of brackets that are open.
    pub(crate) fn depth(&self) -> u32 {
        self.depth
    }

    /// Takes the next byte.
    ///
    /// # Errors
    /// Too many brackets are open, or none is.
    pub(crate) fn step(&mut self, byte: u8) -> Result<Step, CodecError> {
        if self.in_string {
            return Ok(self.step_in_string(byte));
        }
        match byte {
            b'"' => {
                self.in_string = true;
                Ok(Step::StringStart)
            }
            b'{' | b'[' if self.depth == MAX_DEPTH => Err(CodecError::Limit("nested too deep")),
            b'{' | b'[' => {
                self.depth += 1;
                Ok(Step::Open)
            }
            b'}' | b']' => {
                self.depth = self
                    .depth
                    .checked_sub(1)
                    .ok_or_else(|| CodecError::Json("unbalanced brackets".into()))?;
                Ok(Step::Close)
            }
            _ => Ok(Step::Other),
        }
    }

    fn step_in_string(&mut self, byte: u8) -> Step {
        match byte {
            _ if self.is_escaped => self.is_escaped = false,
            b'\\' => self.is_escaped = true,
            b'"' => {
                self.in_string = false;
                return Step::StringEnd;
            }
            _ => {}
        }
        Step::Text
    }

    /// Reads on until a bracket closes that leaves `depth` open. The number of bytes up to there,
    /// that bracket included; `None` where it isn't in the chunk, which is read as a whole then.
    ///
    /// # Errors
    /// As of [`Scanner::step`].
    pub(crate) fn find_close(
        &mut self,
        chunk: &[u8],
        depth: u32,
    ) -> Result<Option<usize>, CodecError> {
        let mut at = 0;
        while at < chunk.len() {
            if self.in_string && !self.is_escaped {
                // Most bytes are text, and of text only these two matter.
                match memchr::memchr2(b'"', b'\\', &chunk[at..]) {
                    Some(skipped) => at += skipped,
                    None => return Ok(None),
                }
            }
            let step = self.step(chunk[at])?;
            at += 1;
            if step == Step::Close && self.depth == depth {
                return Ok(Some(at));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(text: &str) -> Vec<Step> {
        let mut scanner = Scanner::default();
        text.bytes().map(|b| scanner.step(b).unwrap()).collect()
    }

    #[test]
    fn brackets_and_quotes_count_outside_of_strings_only() {
        use Step::{Close, Open, Other, StringEnd, StringStart, Text};
        assert_eq!(
            steps(r#"{"}":["#),
            [Open, StringStart, Text, StringEnd, Other, Open]
        );
        assert_eq!(steps(r#""\"""#), [StringStart, Text, Text, StringEnd]);
        assert_eq!(steps(r#""\\""#), [StringStart, Text, Text, StringEnd]);
        assert_eq!(steps("[1]{}"), [Open, Other, Close, Open, Close]);
    }

    #[test]
    fn the_depth_has_a_limit_and_a_floor() {
        let mut scanner = Scanner::default();
        for _ in 0..MAX_DEPTH {
            scanner.step(b'[').unwrap();
        }
        assert_eq!(scanner.depth(), MAX_DEPTH);
        assert_eq!(
            scanner.step(b'{'),
            Err(CodecError::Limit("nested too deep"))
        );
        assert!(Scanner::default().step(b'}').is_err());
    }

    #[test]
    fn a_value_ends_at_the_same_byte_however_it_is_cut() {
        let text = br#"{"a":"}\\\"]","b":[{"c":"\u007d"}]}{"next":1}"#;
        let whole = Scanner::default().find_close(text, 0).unwrap().unwrap();
        assert_eq!(&text[whole..], br#"{"next":1}"#);
        for cut in 0..whole {
            let mut scanner = Scanner::default();
            assert_eq!(scanner.find_close(&text[..cut], 0).unwrap(), None, "{cut}");
            let rest = scanner.find_close(&text[cut..], 0).unwrap();
            assert_eq!(rest, Some(whole - cut), "{cut}");
        }
    }

    #[test]
    fn an_inner_value_ends_at_its_own_depth() {
        let mut scanner = Scanner::default();
        scanner.step(b'[').unwrap();
        assert_eq!(scanner.find_close(b"[{}]", 1).unwrap(), Some(4));
        assert_eq!(scanner.depth(), 1);
    }
}
