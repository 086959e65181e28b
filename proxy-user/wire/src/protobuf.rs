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
            (4, Value::Varint(count)) => meta.has_remaining_items = count != 0,
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
        assert_eq!(meta.uid, "u");
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

    fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (number, bytes) in fields {
            put_bytes(&mut out, *number, bytes);
        }
        out
    }

    #[test]
    fn metadata_says_whether_the_object_is_deleted() {
        let mut meta = message(&[(9, b""), (14, b"f")]);
        put_varint_field(&mut meta, 10, 30);
        let raw = message(&[(1, &meta)]);
        let meta = parse_object_meta(&raw).unwrap();
        assert!(meta.deleting && meta.finalizers && !meta.initial_events_end);
        assert_eq!(meta.grace_seconds, 30);
    }

    #[test]
    fn one_annotation_alone_ends_the_initial_events() {
        let ends = |key: &str, value: &[u8]| {
            let entry = message(&[(1, key.as_bytes()), (2, value)]);
            let meta = message(&[(12, &entry), (12, &message(&[(1, b"a"), (2, b"true")]))]);
            parse_object_meta(&message(&[(1, &meta)]))
                .unwrap()
                .initial_events_end
        };
        assert!(ends(INITIAL_EVENTS_END, b"true"));
        assert!(!ends(INITIAL_EVENTS_END, b"false"));
        assert!(!ends("k8s.io/other", b"true"));
    }

    #[test]
    fn a_list_meta_holds_version_and_token() {
        let bytes = message(&[(1, b"link"), (2, b"77"), (3, b"next")]);
        let meta = parse_list_meta(&bytes).unwrap();
        assert_eq!((meta.resource_version, meta.continue_token), ("77", "next"));
        assert!(parse_list_meta(&message(&[(2, b"\xff")])).is_err());
    }

    #[test]
    fn a_status_holds_reason_name_and_resource() {
        let details = message(&[(1, b"a"), (2, b"apps"), (3, b"deployments")]);
        let raw = message(&[
            (2, b"Failure"),
            (3, b"words"),
            (4, b"NotFound"),
            (5, &details),
        ]);
        let status = parse_status(&raw).unwrap();
        assert_eq!((&*status.status, &*status.reason), ("Failure", "NotFound"));
        assert_eq!((&*status.name, &*status.resource), ("a", "deployments"));
        assert!(parse_status(&message(&[(5, b"\x0a")])).is_err());
    }

    #[test]
    fn a_watch_event_holds_type_and_object() {
        let object = message(&[(1, b"body"), (2, b"other")]);
        let frame = message(&[(1, b"ADDED"), (2, &object), (3, b"later")]);
        assert_eq!(parse_watch_event(&frame), Ok(("ADDED", &b"body"[..])));
        assert!(parse_watch_event(&message(&[(1, b"ADDED")])).is_err());
        assert!(
            parse_watch_event(&message(&[(1, b"ADDED"), (2, &message(&[(2, b"x")]))])).is_err()
        );
    }

    #[test]
    fn an_encoded_object_is_refused_and_unknown_fields_are_skipped() {
        let plain = message(&[(2, b"raw"), (3, b""), (4, b""), (5, b"later")]);
        let body = [&MAGIC[..], &plain].concat();
        assert_eq!(Unknown::parse(&body).unwrap().raw, b"raw");
        for number in [3, 4] {
            let odd = message(&[(2, b"raw"), (number, b"gzip")]);
            assert!(
                Unknown::parse(&[&MAGIC[..], &odd].concat()).is_err(),
                "{number}"
            );
        }
        assert!(Unknown::parse(&[&MAGIC[..], &message(&[(3, b"")])].concat()).is_err());
        assert!(Unknown::parse(&plain).is_err(), "no magic");
    }

    #[test]
    fn fields_of_every_wire_type_are_skipped_by_their_length() {
        let mut bytes = vec![1 << 3 | 1, 1, 2, 3, 4, 5, 6, 7, 8, 2 << 3 | 5, 1, 2, 3, 4];
        put_varint_field(&mut bytes, 3, 300);
        put_bytes(&mut bytes, 4, b"text");
        let fields: Result<Vec<_>, _> = Fields::new(&bytes).collect();
        let expected = vec![
            (1, Value::Fixed),
            (2, Value::Fixed),
            (3, Value::Varint(300)),
            (4, Value::Bytes(b"text")),
        ];
        assert_eq!(fields, Ok(expected));
        for cut in [1, 8, 10, 13, 15] {
            assert!(
                Fields::new(&bytes[..cut]).any(|field| field.is_err()),
                "{cut}"
            );
        }
        assert!(
            Fields::new(&[1 << 3 | 3]).any(|field| field.is_err()),
            "a group"
        );
        assert_eq!(
            Fields::new(&[0xff, 0xff]).count(),
            1,
            "an error ends the fields"
        );
    }
}
