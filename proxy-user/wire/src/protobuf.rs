//! The protobuf envelope and metadata of Kubernetes objects, read by field numbers without schemas. In: bytes of one
//! object, list, or watch frame. Out: slices and [`Meta`]. Field numbers: apimachinery's `runtime/generated.proto`
//! and `meta/v1/generated.proto`; every object has `metadata = 1`, every list `items = 2`.

use crate::CodecError;
use crate::json::StatusHead;
use crate::meta::{INITIAL_EVENTS_END, Meta};

/// The four bytes before every Kubernetes protobuf body.
pub const MAGIC: &[u8; 4] = b"k8s\0";

/// One field of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// Wire type 0, read as an unsigned number.
    Varint(u64),
    /// Wire type 2: a string, bytes, or a message.
    Bytes(&'a [u8]),
    /// Wire types 1 and 5, skipped over.
    Fixed,
}

/// Reads a varint: its value and what follows; `None` when cut off or longer than 10 bytes.
pub fn varint(input: &[u8]) -> Option<(u64, &[u8])> {
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
        const CUT: CodecError = CodecError::Protobuf("a field is cut off");
        let (tag, rest) = varint(self.0).ok_or(CUT)?;
        let (value, rest) = match tag & 7 {
            0 => {
                let (value, rest) = varint(rest).ok_or(CUT)?;
                (Value::Varint(value), rest)
            }
            2 => {
                let (len, rest) = varint(rest).ok_or(CUT)?;
                let len = usize::try_from(len).map_err(|_| CUT)?;
                if len > rest.len() {
                    return Err(CUT);
                }
                (Value::Bytes(&rest[..len]), &rest[len..])
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

fn text(bytes: &[u8]) -> Result<&str, CodecError> {
    std::str::from_utf8(bytes).map_err(|_| CodecError::Protobuf("a string is not UTF-8"))
}

/// `runtime.Unknown`: type, and the object's own bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// `apiVersion`.
    pub api_version: &'a str,
    /// `kind`.
    pub kind: &'a str,
    /// The object without its type.
    pub raw: &'a [u8],
}

impl<'a> Unknown<'a> {
    /// Opens a whole body.
    ///
    /// # Errors
    /// No magic, cut off, or an encoding inside that the API server never sends.
    pub fn parse(body: &'a [u8]) -> Result<Self, CodecError> {
        let message = body
            .strip_prefix(MAGIC)
            .ok_or(CodecError::Protobuf("the k8s\\0 prefix is missing"))?;
        let (mut api_version, mut kind, mut raw) = ("", "", None);
        for field in Fields::new(message) {
            match field? {
                (1, Value::Bytes(meta)) => {
                    for field in Fields::new(meta) {
                        match field? {
                            (1, Value::Bytes(v)) => api_version = text(v)?,
                            (2, Value::Bytes(v)) => kind = text(v)?,
                            _ => {}
                        }
                    }
                }
                (2, Value::Bytes(v)) => raw = Some(v),
                (3 | 4, Value::Bytes(v)) if !v.is_empty() => {
                    return Err(CodecError::Protobuf(
                        "the object within is encoded otherwise",
                    ));
                }
                _ => {}
            }
        }
        let raw = raw.ok_or(CodecError::Protobuf("the object is missing"))?;
        Ok(Self {
            api_version,
            kind,
            raw,
        })
    }
}

/// Reads an object's `metadata` (field 1 of `raw`).
///
/// # Errors
/// Cut off or not UTF-8.
pub fn object_meta(raw: &[u8]) -> Result<Meta<'_>, CodecError> {
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
            (1, Value::Bytes(v)) => meta.name = text(v)?.into(),
            (3, Value::Bytes(v)) => meta.namespace = text(v)?.into(),
            (5, Value::Bytes(v)) => meta.uid = text(v)?.into(),
            (6, Value::Bytes(v)) => meta.resource_version = text(v)?.into(),
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

/// Reads `ListMeta` (field 1 of a list): resourceVersion and continue.
///
/// # Errors
/// Cut off or not UTF-8.
pub fn list_meta(bytes: &[u8]) -> Result<(String, String), CodecError> {
    let (mut version, mut token) = (String::new(), String::new());
    for field in Fields::new(bytes) {
        match field? {
            (2, Value::Bytes(v)) => version = text(v)?.to_owned(),
            (3, Value::Bytes(v)) => token = text(v)?.to_owned(),
            _ => {}
        }
    }
    Ok((version, token))
}

/// Reads a `Status`: what decides how it is remembered.
///
/// # Errors
/// Cut off or not UTF-8.
pub fn status(raw: &[u8]) -> Result<StatusHead<'_>, CodecError> {
    let mut status = StatusHead::default();
    for field in Fields::new(raw) {
        match field? {
            (2, Value::Bytes(v)) => status.status = text(v)?.into(),
            (4, Value::Bytes(v)) => status.reason = text(v)?.into(),
            (5, Value::Bytes(v)) => {
                for field in Fields::new(v) {
                    match field? {
                        (1, Value::Bytes(v)) => status.name = text(v)?.into(),
                        (3, Value::Bytes(v)) => status.resource = text(v)?.into(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(status)
}

/// A watch frame's payload (without its length): event type and the whole object body.
///
/// # Errors
/// Cut off, or a field is missing.
pub fn watch_event(frame: &[u8]) -> Result<(&str, &[u8]), CodecError> {
    let (mut kind, mut body) = ("", None);
    for field in Fields::new(frame) {
        match field? {
            (1, Value::Bytes(v)) => kind = text(v)?,
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
    Ok((
        kind,
        body.ok_or(CodecError::Protobuf("a watch event without an object"))?,
    ))
}

/// Appends a varint without a tag.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap_or(0x7f) | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap_or(0x7f));
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

/// What stands before `raw_len` bytes of an object or list in a whole body (see [`TAIL`]).
pub fn envelope_head(api_version: &str, kind: &str, raw_len: usize) -> Vec<u8> {
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

/// What stands behind the object in a whole body: empty contentEncoding and contentType.
pub const TAIL: &[u8; 4] = &[0x1a, 0, 0x22, 0];

/// A whole body around an object's own bytes.
pub fn envelope(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
    let mut out = envelope_head(api_version, kind, raw.len());
    out.extend_from_slice(raw);
    out.extend_from_slice(TAIL);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_envelope_reads_back() {
        let mut meta = Vec::new();
        put_bytes(&mut meta, 1, b"pod-a");
        put_bytes(&mut meta, 3, b"default");
        put_bytes(&mut meta, 5, b"u");
        put_bytes(&mut meta, 6, b"42");
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, &meta);
        let body = envelope("v1", "Pod", &raw);
        let unknown = Unknown::parse(&body).unwrap();
        assert_eq!(
            (unknown.api_version, unknown.kind, unknown.raw),
            ("v1", "Pod", &raw[..])
        );
        let meta = object_meta(unknown.raw).unwrap();
        assert_eq!(
            (&*meta.name, &*meta.namespace, &*meta.resource_version),
            ("pod-a", "default", "42")
        );
    }

    #[test]
    fn every_truncation_inside_the_object_is_refused() {
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, b"\x0a\x01a");
        let body = envelope("v1", "Pod", &raw);
        for cut in 0..body.len() - TAIL.len() {
            let parsed = Unknown::parse(&body[..cut]).and_then(|u| object_meta(u.raw).map(|_| ()));
            assert!(parsed.is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn varints_longer_than_ten_bytes_are_refused() {
        assert!(varint(&[0xff; 11]).is_none());
        assert_eq!(varint(&[0x96, 0x01, 7]), Some((150, &[7u8][..])));
    }
}
