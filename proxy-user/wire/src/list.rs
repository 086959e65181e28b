//! Lists: splitters that hand out the items as the bytes arrive, without holding the list, and the
//! envelope that is written around items.
//!
//! Only a whole, well-formed list ends well.

use crate::meta::TypeMeta;
use crate::protobuf::{self, MAGIC, read_varint};
use crate::scan::{Scanner, Step};
use crate::{CodecError, MAX_OBJECT, json};

/// Longest list envelope in bytes: all of a list but its items.
const MAX_ENVELOPE: usize = 256 << 10;

/// Longest start of a protobuf list in bytes: magic, type, and the length of the list.
const MAX_START: usize = 1 << 10;

/// A list but for its items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListHead {
    /// The list's own `kind`, such as `PodList`.
    pub kind: String,
    /// The list's own `apiVersion`.
    pub api_version: String,
    /// `metadata.resourceVersion` of the whole list.
    pub resource_version: String,
    /// `metadata.continue`, empty on the last page.
    pub continue_token: String,
    /// Keys are sorted, so that `items` stands before `metadata` (custom resources).
    pub unstructured: bool,
}

/// Receives each item: the list's head as far as it is known yet, and the item's bytes.
pub type OnItem<'a> = dyn FnMut(&ListHead, &[u8]) -> Result<(), CodecError> + 'a;

/// The bytes before and behind a list's items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListEnvelope {
    /// Everything up to the first item.
    pub head: Vec<u8>,
    /// Everything behind the last item.
    pub tail: Vec<u8>,
}

impl ListHead {
    /// The envelope of a JSON list as the API server writes it.
    pub fn encode_json(&self) -> ListEnvelope {
        let (kind, api_version) = (quote(&self.kind), quote(&self.api_version));
        let version = quote(&self.resource_version);
        let token = quote(&self.continue_token);
        let (head, tail) = if self.unstructured {
            let meta = format!(r#"{{"continue":{token},"resourceVersion":{version}}}"#);
            (
                format!(r#"{{"apiVersion":{api_version},"items":["#),
                format!("],\"kind\":{kind},\"metadata\":{meta}}}\n"),
            )
        } else {
            let token = match self.continue_token.as_str() {
                "" => String::new(),
                _ => format!(r#","continue":{token}"#),
            };
            let meta = format!(r#"{{"resourceVersion":{version}{token}}}"#);
            (
                format!(
                    r#"{{"kind":{kind},"apiVersion":{api_version},"metadata":{meta},"items":["#
                ),
                "]}\n".to_owned(),
            )
        };
        ListEnvelope {
            head: head.into_bytes(),
            tail: tail.into_bytes(),
        }
    }

    /// The envelope of a protobuf list, whose items ([`push_protobuf_item`]) have this length.
    pub fn encode_protobuf(&self, items_len: usize) -> ListEnvelope {
        let mut meta = Vec::new();
        protobuf::put_bytes(&mut meta, 1, b"");
        protobuf::put_bytes(&mut meta, 2, self.resource_version.as_bytes());
        protobuf::put_bytes(&mut meta, 3, self.continue_token.as_bytes());
        let mut list_meta = Vec::new();
        protobuf::put_bytes(&mut list_meta, 1, &meta);
        let type_meta = TypeMeta {
            api_version: &self.api_version,
            kind: &self.kind,
        };
        let mut head = protobuf::encode_envelope_head(type_meta, list_meta.len() + items_len);
        head.extend_from_slice(&list_meta);
        ListEnvelope {
            head,
            tail: protobuf::TAIL.to_vec(),
        }
    }
}

fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Appends an object as an item of a protobuf list.
pub fn push_protobuf_item(out: &mut Vec<u8>, object: &[u8]) {
    protobuf::put_bytes(out, 2, object);
}

/// The length of an item of a protobuf list, given that of its object.
pub fn protobuf_item_len(object_len: usize) -> usize {
    1 + protobuf::varint_len(object_len as u64) + object_len
}

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
                State::End if rest.iter().all(u8::is_ascii_whitespace) => rest.len(),
                State::End => return Err(malformed("bytes behind the list")),
            };
            rest = &rest[used..];
        }
        Ok(())
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
        Ok(self.head)
    }

    fn read_head(&mut self) -> Result<(), CodecError> {
        let head = json::parse_head(&self.envelope)?;
        self.head = ListHead {
            kind: head.kind.into_owned(),
            api_version: head.api_version.into_owned(),
            resource_version: head.meta.resource_version.into_owned(),
            continue_token: head.meta.continue_token.into_owned(),
            unstructured: self.seen_items && self.head.unstructured,
        };
        Ok(())
    }

    /// Reads up to an item or the list's end; the number of bytes used.
    fn read_envelope(&mut self, chunk: &[u8]) -> Result<usize, CodecError> {
        for (i, &byte) in chunk.iter().enumerate() {
            if self.envelope.len() >= MAX_ENVELOPE {
                return Err(CodecError::Limit("the list's own metadata is too long"));
            }
            self.envelope.push(byte);
            let step = self.scanner.step(byte)?;
            if byte.is_ascii_whitespace() && step == Step::Other {
                continue;
            }
            if self.scanner.depth() == 0 {
                if byte != b'}' {
                    return Err(malformed("not an object"));
                }
                self.state = State::End;
                return Ok(i + 1);
            }
            if self.key == Key::Items {
                self.key = Key::Other;
                match byte {
                    b'[' => {
                        self.open_items()?;
                        return Ok(i + 1);
                    }
                    // `null`, which Go writes for a list without items.
                    b'n' => {}
                    _ => return Err(malformed("items is no array")),
                }
            }
            if self.scanner.depth() == 1 {
                self.track_key(step, byte)?;
            }
        }
        Ok(chunk.len())
    }

    /// Follows the keys of the list itself.
    fn track_key(&mut self, step: Step, byte: u8) -> Result<(), CodecError> {
        match step {
            Step::StringStart => self.string.clear(),
            Step::Text if self.string.len() < 16 => self.string.push(byte),
            Step::Other if byte == b':' => match self.string.as_slice() {
                b"items" => self.key = Key::Items,
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
        if std::mem::replace(&mut self.seen_items, true) {
            return Err(malformed("items twice"));
        }
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
                (_, b) if b.is_ascii_whitespace() => {}
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
        let Some(end) = self.scanner.find_close(chunk, 2)? else {
            self.extend_item(chunk)?;
            return Ok(chunk.len());
        };
        self.state = State::ItemEnd;
        if self.item.is_empty() {
            on_item(&self.head, &chunk[..end])?;
        } else {
            self.extend_item(&chunk[..end])?;
            on_item(&self.head, &self.item)?;
            self.item.clear();
        }
        Ok(end)
    }

    fn extend_item(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        if self.item.len() + bytes.len() > MAX_OBJECT {
            return Err(CodecError::Limit("an item is too long"));
        }
        self.item.extend_from_slice(bytes);
        Ok(())
    }
}

fn malformed(what: &str) -> CodecError {
    CodecError::Json(what.to_owned())
}

/// Splits a protobuf list: waits for one whole field of the list at a time.
#[derive(Debug, Default)]
pub struct ProtobufListSplitter {
    buffer: Vec<u8>,
    /// Bytes of the list's own message that are still to come; `None` before its length is known.
    left: Option<u64>,
    head: ListHead,
    /// The bytes behind the list, [`protobuf::TAIL`] once all are there.
    tail: Vec<u8>,
}

/// A field of the list that has arrived as a whole.
struct Field<'a> {
    number: u64,
    value: &'a [u8],
    /// Length with tag and length.
    len: usize,
}

impl ProtobufListSplitter {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Malformed, or over a limit. The splitter is of no further use then.
    pub fn push(&mut self, chunk: &[u8], on_item: &mut OnItem<'_>) -> Result<(), CodecError> {
        self.buffer.extend_from_slice(chunk);
        let mut at = 0;
        while let Some(used) = self.read_next(at, on_item)? {
            at += used;
        }
        self.buffer.drain(..at);
        if self.buffer.len() > MAX_OBJECT {
            return Err(CodecError::Limit("an item is too long"));
        }
        Ok(())
    }

    /// Ends the list and returns its head.
    ///
    /// # Errors
    /// The list is not whole.
    pub fn finish(self) -> Result<ListHead, CodecError> {
        if self.left != Some(0) || !self.buffer.is_empty() || self.tail != protobuf::TAIL {
            return Err(CodecError::Protobuf("the list is cut off"));
        }
        Ok(self.head)
    }

    /// Reads what follows in the buffer; the number of bytes used, `None` where more are needed.
    fn read_next(
        &mut self,
        at: usize,
        on_item: &mut OnItem<'_>,
    ) -> Result<Option<usize>, CodecError> {
        match self.left {
            None => self.read_start(at),
            Some(0) => self.read_tail(at),
            Some(left) => self.read_field(at, left, on_item),
        }
    }

    /// Reads the magic bytes, the type and the length of the list's message.
    fn read_start(&mut self, at: usize) -> Result<Option<usize>, CodecError> {
        let input = &self.buffer[at..];
        let Some(start) = parse_start(input)? else {
            return if input.len() > MAX_START {
                Err(CodecError::Protobuf("the list's type is too long"))
            } else {
                Ok(None)
            };
        };
        start.type_meta.kind.clone_into(&mut self.head.kind);
        let api_version = start.type_meta.api_version;
        api_version.clone_into(&mut self.head.api_version);
        self.left = Some(start.list_len);
        Ok(Some(start.len))
    }

    fn read_field(
        &mut self,
        at: usize,
        left: u64,
        on_item: &mut OnItem<'_>,
    ) -> Result<Option<usize>, CodecError> {
        let Some(field) = parse_field(&self.buffer[at..], left)? else {
            return Ok(None);
        };
        match field.number {
            1 => {
                let meta = protobuf::parse_list_meta(field.value)?;
                meta.resource_version
                    .clone_into(&mut self.head.resource_version);
                meta.continue_token
                    .clone_into(&mut self.head.continue_token);
            }
            2 => on_item(&self.head, field.value)?,
            _ => {}
        }
        self.left = Some(left - field.len as u64);
        Ok(Some(field.len))
    }

    fn read_tail(&mut self, at: usize) -> Result<Option<usize>, CodecError> {
        let input = &self.buffer[at..];
        if self.tail.len() + input.len() > protobuf::TAIL.len() {
            return Err(CodecError::Protobuf("bytes behind the list"));
        }
        self.tail.extend_from_slice(input);
        Ok((!input.is_empty()).then_some(input.len()))
    }
}

/// The beginning of a protobuf list, up to its first field.
struct Start<'a> {
    type_meta: TypeMeta<'a>,
    list_len: u64,
    /// Length of the beginning itself.
    len: usize,
}

/// Reads the beginning of a list; `None` where more bytes are needed.
fn parse_start(input: &[u8]) -> Result<Option<Start<'_>>, CodecError> {
    let known = input.len().min(MAGIC.len());
    if input[..known] != MAGIC[..known] {
        return Err(CodecError::Protobuf("the k8s\\0 prefix is missing"));
    }
    let Some((type_len, rest)) = parse_length(&input[known..], 0x0a)? else {
        return Ok(None);
    };
    let Some(type_bytes) = usize::try_from(type_len)
        .ok()
        .and_then(|len| rest.get(..len))
    else {
        return Ok(None);
    };
    let Some((list_len, rest)) = parse_length(&rest[type_bytes.len()..], 0x12)? else {
        return Ok(None);
    };
    Ok(Some(Start {
        type_meta: protobuf::parse_type_meta(type_bytes)?,
        list_len,
        len: input.len() - rest.len(),
    }))
}

/// Reads a tag, which must be this one, and a length; `None` where more bytes are needed.
fn parse_length(input: &[u8], tag: u64) -> Result<Option<(u64, &[u8])>, CodecError> {
    let Some((found, rest)) = read_varint(input) else {
        return Ok(None);
    };
    if found != tag {
        return Err(CodecError::Protobuf("no list"));
    }
    Ok(read_varint(rest))
}

/// Reads one field of a list of which `left` bytes are to come; `None` where more bytes are needed.
fn parse_field(input: &[u8], left: u64) -> Result<Option<Field<'_>>, CodecError> {
    const CUT: CodecError = CodecError::Protobuf("a field is cut off");
    let Some((tag, rest)) = read_varint(input) else {
        return if input.len() < 10 { Ok(None) } else { Err(CUT) };
    };
    let Some((len, rest)) = read_varint(rest) else {
        return if input.len() < 20 { Ok(None) } else { Err(CUT) };
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
    let value = usize::try_from(len).ok().and_then(|len| rest.get(..len));
    Ok(value.map(|value| Field {
        number: tag >> 3,
        value,
        len: input.len() - rest.len() + value.len(),
    }))
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
        protobuf::encode_envelope(
            TypeMeta {
                api_version: "v1",
                kind: "PodList",
            },
            &raw,
        )
    }

    fn split_protobuf(body: &[u8], chunk: usize) -> Result<(ListHead, Vec<String>), CodecError> {
        let (mut items, mut list) = (Vec::new(), ProtobufListSplitter::default());
        for part in body.chunks(chunk) {
            list.push(part, &mut |_, item| {
                items.push(protobuf::parse_object_meta(item)?.name.into_owned());
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
