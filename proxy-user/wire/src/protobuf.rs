//! The protobuf envelope and metadata of Kubernetes objects, read by field numbers without schemas.
//!
//! Field numbers: apimachinery's `runtime/generated.proto` and `meta/v1/generated.proto`. Every
//! object has `metadata = 1`, every list `items = 2`.

use crate::CodecError;
use crate::json::StatusHead;
use crate::meta::{INITIAL_EVENTS_END, ListMeta, Meta, TypeMeta};

/// The four bytes before every Kubernetes protobuf body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// The bytes behind the object in a whole body: empty `contentEncoding` and `contentType`.
pub const TAIL: &[u8; 4] = &[0x1a, 0, 0x22, 0];

const CUT: CodecError = CodecError::Protobuf("a field is cut off");

/// The value of one field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0, read as an unsigned number.
    Varint(u64),
    /// Wire type 2: a string, bytes, or a message.
    Bytes(&'a [u8]),
    /// Wire types 1 and 5, which are skipped.
    Fixed,
}

/// Reads a varint: its value and what follows; `None` where it is cut off or longer than 10 bytes.
pub fn read_varint(input: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0u64;
    for (i, byte) in input.iter().take(10).enumerate() {
        value |= u64::from(byte & 0x7f).checked_shl(7 * u32::try_from(i).ok()?)?;
        if byte & 0x80 == 0 {
            return Some((value, &input[i + 1..]));
        }
    }
    None
}

/// The fields of a message, in wire order.
#[derive(Debug, Clone)]
pub struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    /// Reads a message without its length or tag.
    pub fn new(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn read(&mut self) -> Result<(u64, Value<'a>), CodecError> {
        let (tag, rest) = read_varint(self.0).ok_or(CUT)?;
        let (value, rest) = match tag & 7 {
            0 => {
                let (value, rest) = read_varint(rest).ok_or(CUT)?;
                (Value::Varint(value), rest)
            }
            2 => {
                let (len, rest) = read_varint(rest).ok_or(CUT)?;
                let len = usize::try_from(len).map_err(|_| CUT)?;
                let (bytes, rest) = rest.split_at_checked(len).ok_or(CUT)?;
                (Value::Bytes(bytes), rest)
            }
            1 => (Value::Fixed, rest.get(8..).ok_or(CUT)?),
            5 => (Value::Fixed, rest.get(4..).ok_or(CUT)?),
            _ => return Err(CodecError::Protobuf("an unknown wire type")),
        };
        self.0 = rest;
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), CodecError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

/// The last value of a field of bytes; `None` where there is none, or the message is malformed.
pub fn find_bytes(message: &[u8], number: u64) -> Option<&[u8]> {
    let mut found = None;
    for field in Fields::new(message) {
        match field.ok()? {
            (at, Value::Bytes(bytes)) if at == number => found = Some(bytes),
            _ => {}
        }
    }
    found
}

fn parse_text(bytes: &[u8]) -> Result<&str, CodecError> {
    std::str::from_utf8(bytes).map_err(|_| CodecError::Protobuf("a string is not UTF-8"))
}

/// `runtime.Unknown`: an object's type, and its own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// `typeMeta` of the object.
    pub type_meta: TypeMeta<'a>,
    /// The object without its type.
    pub raw: &'a [u8],
}

impl<'a> Unknown<'a> {
    /// Reads a whole body.
    ///
    /// # Errors
    /// No magic, cut off, or an encoding inside that the API server never sends.
    pub fn parse(body: &'a [u8]) -> Result<Self, CodecError> {
        let message = body
            .strip_prefix(MAGIC)
            .ok_or(CodecError::Protobuf("the k8s\\0 prefix is missing"))?;
        let (mut type_meta, mut raw) = (TypeMeta::default(), None);
        for field in Fields::new(message) {
            match field? {
                (1, Value::Bytes(bytes)) => type_meta = parse_type_meta(bytes)?,
                (2, Value::Bytes(bytes)) => raw = Some(bytes),
                (3 | 4, Value::Bytes(bytes)) if !bytes.is_empty() => {
                    return Err(CodecError::Protobuf("the object is encoded or compressed"));
                }
                _ => {}
            }
        }
        let raw = raw.ok_or(CodecError::Protobuf("the object is missing"))?;
        Ok(Self { type_meta, raw })
    }
}

/// Reads a `runtime.TypeMeta`.
///
/// # Errors
/// Cut off or not UTF-8.
pub fn parse_type_meta(bytes: &[u8]) -> Result<TypeMeta<'_>, CodecError> {
    let mut type_meta = TypeMeta::default();
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(v)) => type_meta.api_version = parse_text(v)?,
            (2, Value::Bytes(v)) => type_meta.kind = parse_text(v)?,
            _ => {}
        }
    }
    Ok(type_meta)
}

/// Reads an object's `metadata`.
///
/// # Errors
/// Cut off or not UTF-8.
pub fn parse_object_meta(raw: &[u8]) -> Result<Meta<'_>, CodecError> {
    let mut meta = Meta::default();
    for field in Fields::new(raw) {
        if let (1, Value::Bytes(bytes)) = field? {
            read_meta(bytes, &mut meta)?;
        }
    }
    Ok(meta)
}

fn read_meta<'a>(bytes: &'a [u8], meta: &mut Meta<'a>) -> Result<(), CodecError> {
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(v)) => meta.name = parse_text(v)?.into(),
            (3, Value::Bytes(v)) => meta.namespace = parse_text(v)?.into(),
            (5, Value::Bytes(v)) => meta.uid = parse_text(v)?.into(),
            (6, Value::Bytes(v)) => meta.resource_version = parse_text(v)?.into(),
            (9, _) => meta.deleting = true,
            (10, Value::Varint(v)) => meta.grace_seconds = v,
            (12, Value::Bytes(v)) => {
                if is_initial_events_end(v)? {
                    meta.initial_events_end = true;
                }
            }
            (14, _) => meta.finalizers = true,
            _ => {}
        }
    }
    Ok(())
}

/// An entry of the annotations marks the end of a WatchList's initial events.
fn is_initial_events_end(entry: &[u8]) -> Result<bool, CodecError> {
    let (mut key, mut value) = (&b""[..], &b""[..]);
    for field in Fields::new(entry) {
        match field? {
            (1, Value::Bytes(v)) => key = v,
            (2, Value::Bytes(v)) => value = v,
            _ => {}
        }
    }
    Ok(key == INITIAL_EVENTS_END.as_bytes() && value == b"true")
}

/// Reads a `metav1.ListMeta`.
///
/// # Errors
/// Cut off or not UTF-8.
pub fn parse_list_meta(bytes: &[u8]) -> Result<ListMeta<'_>, CodecError> {
    let mut meta = ListMeta::default();
    for field in Fields::new(bytes) {
        match field? {
            (2, Value::Bytes(v)) => meta.resource_version = parse_text(v)?,
            (3, Value::Bytes(v)) => meta.continue_token = parse_text(v)?,
            _ => {}
        }
    }
    Ok(meta)
}

/// Reads a `metav1.Status`, as far as it decides how a response is remembered.
///
/// # Errors
/// Cut off or not UTF-8.
pub fn parse_status(raw: &[u8]) -> Result<StatusHead<'_>, CodecError> {
    let mut status = StatusHead::default();
    for field in Fields::new(raw) {
        match field? {
            (2, Value::Bytes(v)) => status.status = parse_text(v)?.into(),
            (4, Value::Bytes(v)) => status.reason = parse_text(v)?.into(),
            (5, Value::Bytes(v)) => read_status_details(v, &mut status)?,
            _ => {}
        }
    }
    Ok(status)
}

fn read_status_details<'a>(bytes: &'a [u8], status: &mut StatusHead<'a>) -> Result<(), CodecError> {
    for field in Fields::new(bytes) {
        match field? {
            (1, Value::Bytes(v)) => status.name = parse_text(v)?.into(),
            (3, Value::Bytes(v)) => status.resource = parse_text(v)?.into(),
            _ => {}
        }
    }
    Ok(())
}

/// Reads a watch frame without its length: event type, and the whole body of the object.
///
/// # Errors
/// Cut off, or a field is missing.
pub fn parse_watch_event(frame: &[u8]) -> Result<(&str, &[u8]), CodecError> {
    let (mut kind, mut body) = ("", None);
    for field in Fields::new(frame) {
        match field? {
            (1, Value::Bytes(v)) => kind = parse_text(v)?,
            // `runtime.RawExtension`, whose field 1 is the body.
            (2, Value::Bytes(v)) => {
                for field in Fields::new(v) {
                    if let (1, Value::Bytes(raw)) = field? {
                        body = Some(raw);
                    }
                }
            }
            _ => {}
        }
    }
    let body = body.ok_or(CodecError::Protobuf("a watch event without an object"))?;
    Ok((kind, body))
}

/// Appends a varint without a tag.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0x7f) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0x7f));
}

/// The number of bytes that [`put_varint`] appends.
pub fn varint_len(value: u64) -> usize {
    let bits = 64 - (value | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

/// Appends a length-delimited field.
pub fn put_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    put_varint(out, field << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Appends a varint field.
pub fn put_varint_field(out: &mut Vec<u8>, field: u64, value: u64) {
    put_varint(out, field << 3);
    put_varint(out, value);
}

/// Encodes what stands before an object or list of `raw_len` bytes in a whole body. Behind it
/// stands [`TAIL`].
pub fn encode_envelope_head(type_meta: TypeMeta<'_>, raw_len: usize) -> Vec<u8> {
    let TypeMeta { api_version, kind } = type_meta;
    let mut out = Vec::with_capacity(32 + api_version.len() + kind.len());
    out.extend_from_slice(MAGIC);
    let mut meta = Vec::with_capacity(8 + api_version.len() + kind.len());
    put_bytes(&mut meta, 1, api_version.as_bytes());
    put_bytes(&mut meta, 2, kind.as_bytes());
    put_bytes(&mut out, 1, &meta);
    put_varint(&mut out, 2 << 3 | 2);
    put_varint(&mut out, raw_len as u64);
    out
}

/// Encodes a whole body around an object's own bytes.
pub fn encode_envelope(type_meta: TypeMeta<'_>, raw: &[u8]) -> Vec<u8> {
    let mut out = encode_envelope_head(type_meta, raw.len());
    out.extend_from_slice(raw);
    out.extend_from_slice(TAIL);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: TypeMeta<'_> = TypeMeta {
        api_version: "v1",
        kind: "Pod",
    };

    #[test]
    fn an_envelope_reads_back() {
        let mut meta = Vec::new();
        put_bytes(&mut meta, 1, b"pod-a");
        put_bytes(&mut meta, 3, b"default");
        put_bytes(&mut meta, 5, b"u");
        put_bytes(&mut meta, 6, b"42");
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, &meta);
        let body = encode_envelope(POD, &raw);
        let unknown = Unknown::parse(&body).unwrap();
        assert_eq!((unknown.type_meta, unknown.raw), (POD, &raw[..]));
        let meta = parse_object_meta(unknown.raw).unwrap();
        assert_eq!(
            (&*meta.name, &*meta.namespace, &*meta.resource_version),
            ("pod-a", "default", "42")
        );
    }

    #[test]
    fn every_truncation_inside_the_object_is_refused() {
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, b"\x0a\x01a");
        let body = encode_envelope(POD, &raw);
        for cut in 0..body.len() - TAIL.len() {
            let parsed =
                Unknown::parse(&body[..cut]).and_then(|u| parse_object_meta(u.raw).map(|_| ()));
            assert!(parsed.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn varints_longer_than_ten_bytes_are_refused() {
        assert!(read_varint(&[0xff; 11]).is_none());
        assert_eq!(read_varint(&[0x96, 0x01, 7]), Some((150, &[7u8][..])));
    }

    #[test]
    fn a_varint_is_as_long_as_announced() {
        for value in [0, 1, 127, 128, 300, 16_383, 16_384, u64::MAX] {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            assert_eq!(out.len(), varint_len(value), "{value}");
            assert_eq!(read_varint(&out), Some((value, &[][..])));
        }
    }

    #[test]
    fn the_last_value_of_a_field_counts() {
        let mut message = Vec::new();
        put_bytes(&mut message, 2, b"a");
        put_varint_field(&mut message, 2, 7);
        put_bytes(&mut message, 2, b"b");
        put_bytes(&mut message, 3, b"c");
        assert_eq!(find_bytes(&message, 2), Some(&b"b"[..]));
        assert_eq!(find_bytes(&message, 4), None);
        message.push(0x0a);
        assert_eq!(find_bytes(&message, 2), None, "malformed");
    }
}
