//! Splits a list into its items as the bytes arrive, without holding the list. In: chunks of a JSON or protobuf list
//! body. Out: each item's bytes, in order, and at the end the list's own [`ListHead`]. Only a whole, well-formed list
//! ends well. Next: `ingest`.

use crate::protobuf::{self, MAGIC};
use crate::{CodecError, MAX_DEPTH, MAX_OBJECT, json};

/// Longest list envelope (all of a list but its items), in bytes.
const MAX_ENVELOPE: usize = 256 << 10;

/// What a list says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListHead {
    /// `kind`.
    pub kind: String,
    /// `apiVersion`.
    pub api_version: String,
    /// `metadata.resourceVersion`.
    pub resource_version: String,
    /// `metadata.continue`, empty on the last page.
    pub continue_token: String,
    /// Keys are sorted, so that `items` stands before `metadata` (custom resources).
    pub unstructured: bool,
}

/// Receives each item: the list's head as far as it is known yet, and the item's bytes.
pub type OnItem<'a> = dyn FnMut(&ListHead, &[u8]) -> Result<(), CodecError> + 'a;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Outside of the items: bytes belong to the envelope.
    Envelope,
    /// Inside `items`, before an item (`first`: none seen, so `]` may come) or between two.
    Value {
        first: bool,
    },
    /// Inside `items`, behind an item: a comma or the end.
    Comma,
    Item,
    End,
}

/// Splits a JSON list.
#[derive(Debug)]
pub struct JsonList {
    state: State,
    depth: u32,
    in_string: bool,
    escaped: bool,
    /// The string being read at depth 1, the candidate for a key.
    key: Vec<u8>,
    key_is_items: bool,
    seen_items: bool,
    envelope: Vec<u8>,
    item: Vec<u8>,
    head: ListHead,
}

impl Default for JsonList {
    fn default() -> Self {
        Self {
            state: State::Envelope,
            depth: 0,
            in_string: false,
            escaped: false,
            key: Vec::new(),
            key_is_items: false,
            seen_items: false,
            envelope: Vec::new(),
            item: Vec::new(),
            head: ListHead::default(),
        }
    }
}

fn bad(what: &str) -> CodecError {
    CodecError::Json(what.to_owned())
}

impl JsonList {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Malformed, or over a limit; the splitter is of no more use then.
    pub fn push(&mut self, chunk: &[u8], on_item: &mut OnItem<'_>) -> Result<(), CodecError> {
        let mut rest = chunk;
        while !rest.is_empty() {
            rest = match self.state {
                State::Envelope => self.envelope(rest)?,
                State::Item => self.item(rest, on_item)?,
                State::Value { .. } | State::Comma => self.between(rest)?,
                State::End => {
                    if !rest.iter().all(u8::is_ascii_whitespace) {
                        return Err(bad("bytes behind the list"));
                    }
                    &[]
                }
            };
        }
        Ok(())
    }

    /// Ends the list; its head.
    ///
    /// # Errors
    /// The list is not whole.
    pub fn finish(mut self) -> Result<ListHead, CodecError> {
        if self.state != State::End {
            return Err(bad("the list is cut off"));
        }
        self.read_head(&[])?;
        Ok(self.head)
    }

    fn read_head(&mut self, closing: &[u8]) -> Result<(), CodecError> {
        let mark = self.envelope.len();
        self.envelope.extend_from_slice(closing);
        let head = json::head(&self.envelope)?;
        self.head = ListHead {
            kind: head.kind.into_owned(),
            api_version: head.api_version.into_owned(),
            resource_version: head.meta.resource_version.into_owned(),
            continue_token: head.meta.continue_token.into_owned(),
            unstructured: self.head.unstructured,
        };
        self.envelope.truncate(mark);
        Ok(())
    }

    /// One string or structure byte; true where it changed the depth.
    fn step(&mut self, byte: u8) -> Result<bool, CodecError> {
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return Ok(false);
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => {
                self.depth += 1;
                if self.depth > MAX_DEPTH {
                    return Err(CodecError::Limit("nested too deep"));
                }
                return Ok(true);
            }
            b'}' | b']' => {
                self.depth = self
                    .depth
                    .checked_sub(1)
                    .ok_or_else(|| bad("unbalanced brackets"))?;
                return Ok(true);
            }
            _ => {}
        }
        Ok(false)
    }

    fn envelope<'a>(&mut self, chunk: &'a [u8]) -> Result<&'a [u8], CodecError> {
        for (i, &byte) in chunk.iter().enumerate() {
            let was_string = self.in_string;
            if self.envelope.len() >= MAX_ENVELOPE {
                return Err(CodecError::Limit("the list's own metadata is too long"));
            }
            self.envelope.push(byte);
            let bracket = self.step(byte)?;
            if self.depth == 0 && !byte.is_ascii_whitespace() {
                self.state = if bracket && byte == b'}' {
                    State::End
                } else {
                    return Err(bad("not an object"));
                };
                return Ok(&chunk[i + 1..]);
            }
            if bracket && self.depth == 2 && byte == b'[' && self.key_is_items {
                self.open_items()?;
                return Ok(&chunk[i + 1..]);
            }
            self.track_key(byte, was_string);
        }
        Ok(&[])
    }

    /// Follows the keys of the list itself (depth 1), to know `items` when it opens.
    fn track_key(&mut self, byte: u8, was_string: bool) {
        if self.depth != 1 {
            return;
        }
        match byte {
            b'"' if !was_string => self.key.clear(),
            b':' if !was_string => self.key_is_items = self.key == b"items",
            b',' if !was_string => self.key_is_items = false,
            _ if was_string && self.in_string && self.key.len() < 16 => self.key.push(byte),
            _ => {}
        }
    }

    fn open_items(&mut self) -> Result<(), CodecError> {
        if std::mem::replace(&mut self.seen_items, true) {
            return Err(bad("items twice"));
        }
        self.head.unstructured =
            !memchr::memmem::find(&self.envelope, b"\"metadata\"").is_some_and(|at| at > 0);
        self.read_head(b"]}")?;
        self.state = State::Value { first: true };
        Ok(())
    }

    fn between<'a>(&mut self, chunk: &'a [u8]) -> Result<&'a [u8], CodecError> {
        for (i, &byte) in chunk.iter().enumerate() {
            match (self.state, byte) {
                (_, b) if b.is_ascii_whitespace() => {}
                (State::Value { .. }, b'{') => {
                    self.state = State::Item;
                    self.item.clear();
                    return Ok(&chunk[i..]);
                }
                (State::Comma, b',') => self.state = State::Value { first: false },
                (State::Comma | State::Value { first: true }, b']') => {
                    self.envelope.push(b']');
                    self.depth -= 1;
                    self.key_is_items = false;
                    self.state = State::Envelope;
                    return Ok(&chunk[i + 1..]);
                }
                _ => return Err(bad("items holds something else than objects and commas")),
            }
        }
        Ok(&[])
    }

    fn item<'a>(
        &mut self,
        chunk: &'a [u8],
        on_item: &mut OnItem<'_>,
    ) -> Result<&'a [u8], CodecError> {
        let mut at = 0;
        while at < chunk.len() {
            // Inside a string only a quote or a backslash matters: skip to it.
            if self.in_string && !self.escaped {
                match memchr::memchr2(b'"', b'\\', &chunk[at..]) {
                    Some(skip) => at += skip,
                    None => break,
                }
            }
            let bracket = self.step(chunk[at])?;
            at += 1;
            if bracket && self.depth == 2 {
                self.state = State::Comma;
                let (mine, rest) = chunk.split_at(at);
                if self.item.is_empty() {
                    on_item(&self.head, mine)?;
                } else {
                    self.extend_item(mine)?;
                    let item = std::mem::take(&mut self.item);
                    on_item(&self.head, &item)?;
                    self.item = item;
                    self.item.clear();
                }
                return Ok(rest);
            }
        }
        self.extend_item(chunk)?;
        Ok(&[])
    }

    fn extend_item(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        if self.item.len() + bytes.len() > MAX_OBJECT {
            return Err(CodecError::Limit("an item is too long"));
        }
        self.item.extend_from_slice(bytes);
        Ok(())
    }
}

/// Splits a protobuf list: waits for one whole top-level field at a time.
#[derive(Debug, Default)]
pub struct ProtobufList {
    buffer: Vec<u8>,
    /// Bytes of the list's own message that have not come yet; `None` before its length is known.
    left: Option<u64>,
    head: ListHead,
    /// The four bytes behind the list.
    tail: Vec<u8>,
}

impl ProtobufList {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Malformed, or over a limit.
    pub fn push(&mut self, chunk: &[u8], on_item: &mut OnItem<'_>) -> Result<(), CodecError> {
        self.buffer.extend_from_slice(chunk);
        let mut at = 0;
        loop {
            let used = if self.left.is_none() {
                self.open(at)?
            } else {
                self.field(at, on_item)?
            };
            match used {
                Some(used) => at += used,
                None => break,
            }
        }
        self.buffer.drain(..at);
        if self.buffer.len() > MAX_OBJECT {
            return Err(CodecError::Limit("an item is too long"));
        }
        Ok(())
    }

    /// Ends the list; its head.
    ///
    /// # Errors
    /// The list is not whole.
    pub fn finish(self) -> Result<ListHead, CodecError> {
        if self.left != Some(0) || !self.buffer.is_empty() || self.tail != protobuf::TAIL {
            return Err(CodecError::Protobuf("the list is cut off"));
        }
        Ok(self.head)
    }

    /// Reads magic, type and the length of the list's message; `None` when more bytes are needed.
    fn open(&mut self, at: usize) -> Result<Option<usize>, CodecError> {
        let input = &self.buffer[at..];
        if input.len() < MAGIC.len() {
            return Ok(None);
        }
        let rest = input
            .strip_prefix(MAGIC)
            .ok_or(CodecError::Protobuf("the k8s\\0 prefix is missing"))?;
        let Some((0x0a, rest)) = protobuf::varint(rest) else {
            return Self::more(input, "no type");
        };
        let Some((len, rest)) = protobuf::varint(rest) else {
            return Self::more(input, "no type");
        };
        let Some(meta) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
            return Self::more(input, "the type is too long");
        };
        let rest = &rest[meta.len()..];
        let Some((0x12, rest)) = protobuf::varint(rest) else {
            return Self::more(input, "no list");
        };
        let Some((len, rest)) = protobuf::varint(rest) else {
            return Self::more(input, "no list");
        };
        let typed = [
            MAGIC.as_slice(),
            &[0x0a],
            &short(meta.len())?,
            meta,
            &[0x12, 0],
        ]
        .concat();
        let unknown = protobuf::Unknown::parse(&typed)?;
        (self.head.kind, self.head.api_version) =
            (unknown.kind.to_owned(), unknown.api_version.to_owned());
        self.left = Some(len);
        Ok(Some(input.len() - rest.len()))
    }

    fn more(input: &[u8], what: &'static str) -> Result<Option<usize>, CodecError> {
        if input.len() > 1024 {
            Err(CodecError::Protobuf(what))
        } else {
            Ok(None)
        }
    }

    /// Reads one field of the list; `None` when more bytes are needed.
    fn field(&mut self, at: usize, on_item: &mut OnItem<'_>) -> Result<Option<usize>, CodecError> {
        let input = &self.buffer[at..];
        let left = self.left.unwrap_or(0);
        if left == 0 {
            if self.tail.len() + input.len() > protobuf::TAIL.len() {
                return Err(CodecError::Protobuf("bytes behind the list"));
            }
            self.tail.extend_from_slice(input);
            return Ok(if input.is_empty() {
                None
            } else {
                Some(input.len())
            });
        }
        let cut = |need: bool| {
            if need {
                Ok(None)
            } else {
                Err(CodecError::Protobuf("a field is cut off"))
            }
        };
        let Some((tag, rest)) = protobuf::varint(input) else {
            return cut(input.len() < 10);
        };
        let Some((len, rest)) = protobuf::varint(rest) else {
            return cut(input.len() < 20);
        };
        if tag & 7 != 2 {
            return Err(CodecError::Protobuf("a list field of an unknown kind"));
        }
        let used = (input.len() - rest.len()) as u64;
        if used.checked_add(len).is_none_or(|all| all > left) {
            return Err(CodecError::Protobuf("a field is longer than its list"));
        }
        if len > MAX_OBJECT as u64 {
            return Err(CodecError::Limit("an item is too long"));
        }
        let Some(bytes) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
            return Ok(None);
        };
        match tag >> 3 {
            1 => {
                (self.head.resource_version, self.head.continue_token) = protobuf::list_meta(bytes)?
            }
            2 => on_item(&self.head, bytes)?,
            _ => {}
        }
        self.left = Some(left - used - len);
        Ok(Some(input.len() - rest.len() + bytes.len()))
    }
}

/// A length as one varint byte or two.
fn short(len: usize) -> Result<Vec<u8>, CodecError> {
    if len > 1024 {
        return Err(CodecError::Protobuf("the type is too long"));
    }
    let mut out = Vec::new();
    protobuf::put_varint(&mut out, len as u64);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(body: &[u8], chunk: usize) -> Result<(ListHead, Vec<String>), CodecError> {
        let mut items = Vec::new();
        let mut list = JsonList::default();
        for part in body.chunks(chunk) {
            list.push(part, &mut |_, item| {
                json::head(item)?;
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
            r#"[{"items":[]}]"#,
            r#"{"items":[{"metadata":["a"]}]}"#,
            r#"{"items":[}]}"#,
            "x",
            &deep,
        ] {
            assert!(split(bad.as_bytes(), 5).is_err(), "{bad}");
        }
    }

    fn protobuf_list() -> Vec<u8> {
        let mut meta = Vec::new();
        protobuf::put_bytes(&mut meta, 2, b"77");
        let mut raw = Vec::new();
        protobuf::put_bytes(&mut raw, 1, &meta);
        for name in ["a", "b", "c"] {
            let mut object = Vec::new();
            protobuf::put_bytes(&mut object, 1, &[&[0x0a, 1], name.as_bytes()].concat());
            protobuf::put_bytes(&mut object, 2, &[7; 300]);
            protobuf::put_bytes(&mut raw, 2, &object);
        }
        protobuf::envelope("v1", "PodList", &raw)
    }

    fn split_protobuf(body: &[u8], chunk: usize) -> Result<(ListHead, Vec<String>), CodecError> {
        let (mut items, mut list) = (Vec::new(), ProtobufList::default());
        for part in body.chunks(chunk) {
            list.push(part, &mut |_, item| {
                items.push(protobuf::object_meta(item)?.name.into_owned());
                Ok(())
            })?;
        }
        Ok((list.finish()?, items))
    }

    #[test]
    fn protobuf_lists_split_alike_at_every_chunk_size() {
        let body = protobuf_list();
        for chunk in 1..body.len() + 1 {
            let (head, items) = split_protobuf(&body, chunk).unwrap();
            assert_eq!((&*head.kind, &*head.resource_version), ("PodList", "77"));
            assert_eq!(items, ["a", "b", "c"], "chunks of {chunk}");
        }
        for cut in 0..body.len() {
            assert!(split_protobuf(&body[..cut], 64).is_err(), "cut at {cut}");
        }
    }
}
