//! The splitter of JSON lists, which follows the list's own keys and brackets byte by byte.

use super::{KEPT_CAPACITY, ListHead, OnItem};
use crate::scan::{Scanner, Step, is_whitespace};
use crate::{CodecError, MAX_OBJECT, json};

/// Longest list envelope in bytes: all of a list but its items.
const MAX_ENVELOPE: usize = 256 << 10;

/// Kept beginning of a key in bytes: `items` in full, or up to its first escape.
const MAX_KEY: usize = 16;

/// The place of the next byte of a JSON list.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of `items`.
    #[default]
    Envelope,
    /// Behind the bracket that opens `items`.
    FirstItem,
    /// Behind a comma of `items`.
    NextItem,
    /// Within an item.
    Item,
    /// Behind an item.
    ItemEnd,
    /// Behind the list.
    End,
}

/// The last key of the list itself.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Key {
    #[default]
    Other,
    /// `items`, and its value has not begun.
    Items,
}

/// Splits a JSON list.
#[derive(Debug, Default)]
pub struct JsonListSplitter {
    state: State,
    scanner: Scanner,
    /// The beginning of the last string of the list itself, which may be a key.
    string: Vec<u8>,
    key: Key,
    seen_items: bool,
    seen_metadata: bool,
    envelope: Vec<u8>,
    /// An item that began in an earlier chunk.
    item: Vec<u8>,
    head: ListHead,
}

impl JsonListSplitter {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Malformed, or over a limit. The splitter is of no further use then.
    pub fn push(&mut self, chunk: &[u8], on_item: &mut OnItem<'_>) -> Result<(), CodecError> {
        let mut rest = chunk;
        while !rest.is_empty() {
            let used = match self.state {
                State::Envelope => self.read_envelope(rest)?,
                State::Item => self.read_item(rest, on_item)?,
                State::FirstItem | State::NextItem | State::ItemEnd => {
                    self.read_separators(rest)?
                }
                State::End if rest.iter().copied().all(is_whitespace) => rest.len(),
                State::End => return Err(malformed("bytes behind the list")),
            };
            rest = &rest[used..];
        }
        Ok(())
    }

    /// Bytes of memory that it keeps until the list has ended.
    pub fn buffered_bytes(&self) -> usize {
        self.envelope.capacity() + self.item.capacity() + self.head.buffered_bytes()
    }

    /// Ends the list and returns its head.
    ///
    /// # Errors
    /// The list is not whole.
    pub fn finish(mut self) -> Result<ListHead, CodecError> {
        if self.state != State::End {
            return Err(malformed("the list is cut off"));
        }
        self.read_head()?;
        if !self.seen_items && self.head.kind.ends_with("List") {
            return Err(malformed("a list without items"));
        }
        Ok(self.head)
    }

    fn read_head(&mut self) -> Result<(), CodecError> {
        let head = json::parse_head(&self.envelope)?;
        if head.meta.lacks_token() {
            return Err(malformed("items remain, and there is no continue token"));
        }
        self.head = ListHead {
            kind: head.kind.into_owned(),
            api_version: head.api_version.into_owned(),
            resource_version: head.meta.resource_version.into_owned(),
            continue_token: head.meta.continue_token.into_owned(),
            unstructured: self.head.unstructured,
        };
        Ok(())
    }

    /// Reads up to the items or the list's end; the number of bytes used.
    fn read_envelope(&mut self, chunk: &[u8]) -> Result<usize, CodecError> {
        for (i, &byte) in chunk.iter().enumerate() {
            self.read_envelope_byte(byte)?;
            if self.state != State::Envelope {
                return Ok(i + 1);
            }
        }
        Ok(chunk.len())
    }

    fn read_envelope_byte(&mut self, byte: u8) -> Result<(), CodecError> {
        if self.envelope.len() >= MAX_ENVELOPE {
            return Err(CodecError::Limit("the list's own metadata is too long"));
        }
        self.envelope.push(byte);
        let step = self.scanner.step(byte)?;
        if step == Step::Other && is_whitespace(byte) {
            return Ok(());
        }
        match self.scanner.depth() {
            0 if byte == b'}' => self.state = State::End,
            0 => return Err(malformed("not an object")),
            _ if self.key == Key::Items => return self.begin_items(byte),
            1 => return self.track_key(step, byte),
            _ => {}
        }
        Ok(())
    }

    /// Takes the first byte of the value of `items`.
    fn begin_items(&mut self, byte: u8) -> Result<(), CodecError> {
        self.key = Key::Other;
        match byte {
            b'[' => self.open_items(),
            // `null`, which Go writes for a list without items.
            b'n' => Ok(()),
            _ => Err(malformed("items is no array")),
        }
    }

    /// Follows the keys of the list itself.
    fn track_key(&mut self, step: Step, byte: u8) -> Result<(), CodecError> {
        match step {
            Step::StringStart => self.string.clear(),
            Step::Text if self.string.len() < MAX_KEY => self.string.push(byte),
            Step::Other if byte == b':' => match self.string.as_slice() {
                b"items" if self.seen_items => return Err(malformed("items twice")),
                b"items" => (self.key, self.seen_items) = (Key::Items, true),
                b"metadata" => self.seen_metadata = true,
                // It could spell `items`; the API server escapes no key.
                key if key.contains(&b'\\') => return Err(malformed("an escaped key")),
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    fn open_items(&mut self) -> Result<(), CodecError> {
        self.head.unstructured = !self.seen_metadata;
        // Close what is open to read the head so far.
        let len = self.envelope.len();
        self.envelope.extend_from_slice(b"]}");
        self.read_head()?;
        self.envelope.truncate(len);
        self.state = State::FirstItem;
        Ok(())
    }

    /// Reads the commas and brackets around items; the number of bytes used.
    fn read_separators(&mut self, chunk: &[u8]) -> Result<usize, CodecError> {
        for (i, &byte) in chunk.iter().enumerate() {
            match (self.state, byte) {
                (_, byte) if is_whitespace(byte) => {}
                (State::FirstItem | State::NextItem, b'{') => {
                    self.state = State::Item;
                    self.item.clear();
                    return Ok(i);
                }
                (State::ItemEnd, b',') => self.state = State::NextItem,
                (State::ItemEnd | State::FirstItem, b']') => {
                    self.envelope.push(b']');
                    self.scanner.step(b']')?;
                    self.state = State::Envelope;
                    return Ok(i + 1);
                }
                _ => return Err(malformed("items holds something else than objects")),
            }
        }
        Ok(chunk.len())
    }

    /// Reads up to an item's end; the number of bytes used.
    fn read_item(&mut self, chunk: &[u8], on_item: &mut OnItem<'_>) -> Result<usize, CodecError> {
        // Of the list and of `items` one bracket is open each.
        let end = self.scanner.find_close(chunk, 2)?;
        let part = &chunk[..end.unwrap_or(chunk.len())];
        if self.item.len() + part.len() > MAX_OBJECT {
            return Err(CodecError::Limit("an item is too long"));
        }
        match end {
            None => self.item.extend_from_slice(part),
            Some(_) if self.item.is_empty() => on_item(&self.head, part)?,
            Some(_) => {
                self.item.extend_from_slice(part);
                on_item(&self.head, &self.item)?;
                self.item.clear();
                self.item.shrink_to(KEPT_CAPACITY);
            }
        }
        if end.is_some() {
            self.state = State::ItemEnd;
        }
        Ok(part.len())
    }
}

fn malformed(what: &str) -> CodecError {
    CodecError::Json(what.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(body: &[u8], chunk: usize) -> Result<(ListHead, Vec<String>), CodecError> {
        let mut items = Vec::new();
        let mut list = JsonListSplitter::default();
        for part in body.chunks(chunk) {
            list.push(part, &mut |_, item| {
                json::parse_head(item)?;
                items.push(String::from_utf8_lossy(item).into_owned());
                Ok(())
            })?;
        }
        Ok((list.finish()?, items))
    }

    const TYPED: &str = concat!(
        r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":["#,
        r#"{"metadata":{"name":"a","annotations":{"items":"[{\"x\":1}]"}}}, {"metadata":{"name":"b\\"}}]}"#,
        "\n"
    );
    const UNSTRUCTURED: &str = concat!(
        r#"{"apiVersion":"x/v1","items":[{"metadata":{"items":[{"a":[]}],"name":"é"}}],"kind":"YList","#,
        r#""metadata":{"continue":"c","resourceVersion":"10"}}"#
    );

    #[test]
    fn lists_split_alike_at_every_chunk_size() {
        for chunk in 1..TYPED.len() + 1 {
            let (head, items) = split(TYPED.as_bytes(), chunk).unwrap();
            assert_eq!(
                (&*head.kind, &*head.resource_version, head.unstructured),
                ("PodList", "9", false)
            );
            assert_eq!(items.len(), 2, "chunks of {chunk}");
        }
        for chunk in 1..UNSTRUCTURED.len() + 1 {
            let (head, items) = split(UNSTRUCTURED.as_bytes(), chunk).unwrap();
            assert_eq!(
                (&*head.kind, &*head.continue_token, head.unstructured),
                ("YList", "c", true)
            );
            assert_eq!(items.len(), 1);
        }
        assert_eq!(split(br#"{"items":[],"kind":"L"}"#, 3).unwrap().1.len(), 0);
        assert_eq!(
            split(br#"{"items":null,"kind":"L"}"#, 3).unwrap().1.len(),
            0
        );
    }

    #[test]
    fn an_item_over_the_limit_is_refused_however_it_is_cut() {
        let text = "x".repeat(MAX_OBJECT);
        let body = format!(r#"{{"items":[{{"a":"{text}"}}]}}"#);
        for chunk in [body.len(), MAX_OBJECT, 64 << 10] {
            assert_eq!(
                split(body.as_bytes(), chunk),
                Err(CodecError::Limit("an item is too long"))
            );
        }
    }

    #[test]
    fn every_truncation_and_every_odd_list_is_refused() {
        for body in [TYPED.trim_end(), UNSTRUCTURED] {
            for cut in 0..body.len() {
                assert!(split(&body.as_bytes()[..cut], 7).is_err(), "cut at {cut}");
            }
        }
        let deep = format!(r#"{{"items":[{}]}}"#, "{\"a\":".repeat(200));
        for bad in [
            r#"{"items":[{}{}]}"#,
            r#"{"items":[{},]}"#,
            r#"{"items":[,{}]}"#,
            r#"{"items":[1]}"#,
            r#"{"items":[[]]}"#,
            r#"{"items":[{}]} {"items":[]}"#,
            r#"{"items":[],"items":[]}"#,
            r#"{"items":[{}],"items":null}"#,
            r#"{"items":null,"items":[{}]}"#,
            "{\"items\":[\x0c{}]}",
            "{\"items\":[]}\x0c",
            r#"[{"items":[]}]"#,
            r#"{"items":[{"metadata":["a"]}]}"#,
            r#"{"metadata":{"continue":"t"},"items":[{}],"metadata":{"resourceVersion":"9"}}"#,
            r#"{"metadata":{"continue":"t","continue":""},"items":[{}]}"#,
            r#"{"metadata":{"continue":7},"items":[{}]}"#,
            r#"{"metadata":{"remainingItemCount":1},"items":[{}]}"#,
            r#"{"items":[{}],"metadata":{"continue":"","remainingItemCount":1}}"#,
            r#"{"kind":"PodList","metadata":{"resourceVersion":"9"}}"#,
            r#"{"kind":"PodList","Items":[{}]}"#,
            r#"{"items":[}]}"#,
            "x",
            &deep,
        ] {
            assert!(split(bad.as_bytes(), 5).is_err(), "{bad}");
        }
    }
}
