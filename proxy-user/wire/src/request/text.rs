//! Pieces of a request's text: ranges of the URI, and of a buffer of decoded pieces.

/// A piece of text: a range of the raw text, or behind its end one of the decoded text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Part {
    start: u32,
    end: u32,
}

impl Part {
    /// The part's text, given the texts that it is a range of.
    pub(super) fn resolve<'t>(self, raw: &'t str, decoded: &'t str) -> &'t str {
        let (start, end) = (self.start as usize, self.end as usize);
        match start.checked_sub(raw.len()) {
            Some(start) => &decoded[start..end - raw.len()],
            None => &raw[start..end],
        }
    }

    pub(super) fn is_empty(self) -> bool {
        self.start == self.end
    }
}

/// The raw text of a request, and pieces of it that decoding has changed.
#[derive(Debug)]
pub(super) struct Text<'a> {
    raw: &'a str,
    decoded: String,
}

impl<'a> Text<'a> {
    pub(super) fn new(raw: &'a str) -> Self {
        Self {
            raw,
            decoded: String::new(),
        }
    }

    pub(super) fn raw(&self) -> &'a str {
        self.raw
    }

    pub(super) fn get(&self, part: Part) -> &str {
        part.resolve(self.raw, &self.decoded)
    }

    /// A range of the raw text. A URI is shorter than 64 KiB, so that no number overflows.
    pub(super) fn raw_part(start: usize, end: usize) -> Part {
        Part {
            start: u32::try_from(start).unwrap_or(0),
            end: u32::try_from(end).unwrap_or(0),
        }
    }

    /// Appends a piece that differs from its raw form.
    pub(super) fn push_decoded(&mut self, piece: &str) -> Part {
        let start = self.raw.len() + self.decoded.len();
        self.decoded.push_str(piece);
        Self::raw_part(start, start + piece.len())
    }

    pub(super) fn into_decoded(self) -> String {
        self.decoded
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_the_raw_or_of_the_decoded_text() {
        let mut text = Text::new("/api");
        let (raw, tail) = (Text::raw_part(1, 4), Text::raw_part(4, 4));
        let (one, two) = (text.push_decoded("é"), text.push_decoded("/x"));
        assert_eq!(
            [raw, tail, one, two].map(|part| text.get(part)),
            ["api", "", "é", "/x"]
        );
        let empty = text.push_decoded("");
        assert!(empty.is_empty() && Part::default().is_empty());
        assert_eq!((text.get(empty), text.get(Part::default())), ("", ""));
    }
}
