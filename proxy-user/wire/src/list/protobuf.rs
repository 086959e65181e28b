//! The splitter of protobuf lists, which reads one whole field of the list's message after the other.

use super::{KEPT_CAPACITY, ListHead, OnItem};
use crate::meta::TypeMeta;
use crate::protobuf::{self, MAGIC, read_varint};
use crate::{CodecError, MAX_OBJECT};

/// Longest start of a protobuf list in bytes: magic, type, and the length of the list.
const MAX_START: usize = 1 << 10;

/// Splits a protobuf list: waits for one whole field of the list at a time.
#[derive(Debug, Default)]
pub struct ProtobufListSplitter {
    buffer: Vec<u8>,
    /// Bytes of the list's own message that are still to come; `None` before its length is known.
    left: Option<u64>,
    head: ListHead,
    seen_metadata: bool,
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
        if at > 0 {
            self.buffer.drain(..at);
            self.buffer.shrink_to(KEPT_CAPACITY);
        }
        if self.buffer.len() > MAX_OBJECT {
            return Err(CodecError::Limit("an item is too long"));
        }
        Ok(())
    }

    /// Bytes of memory that it keeps until the list has ended.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.capacity() + self.tail.capacity() + self.head.buffered_bytes()
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
            // Its fields would have to be merged with those of the first.
            1 if self.seen_metadata => return Err(CodecError::Protobuf("metadata twice")),
            1 => {
                self.seen_metadata = true;
                read_metadata(&mut self.head, field.value)?;
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

fn read_metadata(head: &mut ListHead, metadata: &[u8]) -> Result<(), CodecError> {
    let meta = protobuf::parse_list_meta(metadata)?;
    if meta.lacks_token() {
        return Err(CodecError::Protobuf("items remain without a token"));
    }
    meta.resource_version.clone_into(&mut head.resource_version);
    meta.continue_token.clone_into(&mut head.continue_token);
    Ok(())
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

    /// The second one hid the token of the first, and a page was taken for the whole list.
    #[test]
    fn a_list_with_metadata_twice_is_refused() {
        let (mut raw, mut page) = (Vec::new(), Vec::new());
        protobuf::put_bytes(&mut page, 3, b"t");
        protobuf::put_bytes(&mut raw, 1, &page);
        protobuf::put_bytes(&mut raw, 1, b"");
        let list = TypeMeta {
            api_version: "v1",
            kind: "PodList",
        };
        let body = protobuf::encode_envelope(list, &raw);
        let refused = Err(CodecError::Protobuf("metadata twice"));
        assert_eq!(split_protobuf(&body, body.len()), refused);
    }

    #[test]
    fn a_page_without_a_token_for_the_next_is_refused() {
        let list = TypeMeta {
            api_version: "v1",
            kind: "PodList",
        };
        let split = |token: &[u8], count| {
            let (mut raw, mut meta) = (Vec::new(), Vec::new());
            protobuf::put_bytes(&mut meta, 3, token);
            meta.extend_from_slice(&[4 << 3, count]);
            protobuf::put_bytes(&mut raw, 1, &meta);
            let body = protobuf::encode_envelope(list, &raw);
            split_protobuf(&body, body.len()).map(drop)
        };
        let refused = Err(CodecError::Protobuf("items remain without a token"));
        assert_eq!(split(b"", 1), refused);
        assert_eq!((split(b"t", 1), split(b"", 0)), (Ok(()), Ok(())));
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
