//! The values in the store of an object, a collection and a document: byte-exact in
//! `docs/cache-format.md`. In: fields. Out: bytes, and back.

use serde::{Deserialize, Serialize};

use crate::cache::variants;
use hublet_wire::list::{protobuf_item_len, push_protobuf_item};
use hublet_wire::media::Encoding;
use hublet_wire::meta::{Meta, ResourceVersion, Timestamp, TypeMeta};
use hublet_wire::{CodecError, json, protobuf};

/// Version of the format of everything in this module. A store with another number is renamed and an empty one begun.
pub(crate) const FORMAT: u8 = 1;

const HEADER: usize = 32;

/// One stored object, borrowed from the store's page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// Encoding of `body`.
    pub encoding: Encoding,
    /// resourceVersion.
    pub version: ResourceVersion,
    /// Time of the API server's response.
    pub stored_at: Timestamp,
    /// `apiVersion`.
    pub api_version: &'a str,
    /// `kind`.
    pub kind: &'a str,
    /// `metadata.uid`.
    pub uid: &'a str,
    /// The response body of a GET: JSON with its newline, or the whole protobuf body.
    pub body: &'a [u8],
    item: (usize, usize),
}

fn u32_at(header: &[u8; HEADER], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().unwrap_or_default())
}

fn u64_at(header: &[u8; HEADER], at: usize) -> u64 {
    u64::from_le_bytes(header[at..at + 8].try_into().unwrap_or_default())
}

/// A text of this length, and the bytes behind it.
fn split_text(bytes: &[u8], len: usize) -> Option<(&str, &[u8])> {
    let (text, rest) = bytes.split_at_checked(len)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

impl<'a> Record<'a> {
    /// Parses a stored value; `None` if it is malformed (a damaged page that redb did not notice).
    pub(crate) fn read(value: &'a [u8]) -> Option<Self> {
        let header = value.first_chunk::<HEADER>()?;
        if header[0] != FORMAT {
            return None;
        }
        let encoding = if header[1] == 0 {
            Encoding::Json
        } else {
            Encoding::Protobuf
        };
        let rest = &value[HEADER..];
        let (api_version, rest) = split_text(rest, header[3].into())?;
        let (kind, rest) = split_text(rest, header[4].into())?;
        let (uid, body) = split_text(rest, header[5].into())?;
        let item = (u32_at(header, 24) as usize, u32_at(header, 28) as usize);
        (item.0.checked_add(item.1)? <= body.len()).then_some(Self {
            encoding,
            version: ResourceVersion::new(u64_at(header, 8)),
            stored_at: Timestamp::from_millis(u64_at(header, 16)),
            api_version,
            kind,
            uid,
            body,
            item,
        })
    }

    /// A record with a body and no metadata.
    #[cfg(test)]
    pub(crate) fn bare(encoding: Encoding, body: &'a [u8]) -> Self {
        Self {
            encoding,
            version: ResourceVersion::new(1),
            stored_at: Timestamp::EPOCH,
            api_version: "",
            kind: "",
            uid: "",
            body,
            item: (0, 0),
        }
    }

    /// Appends the object as an item of a list: bare (without kind and apiVersion) in a list of a built-in kind.
    pub(crate) fn push_item(&self, out: &mut Vec<u8>, unstructured: bool) {
        let (at, len) = self.item;
        match self.encoding {
            Encoding::Protobuf => push_protobuf_item(out, &self.body[at..at + len]),
            Encoding::Json if unstructured || at == 0 => {
                out.extend_from_slice(&self.body[..at + len])
            }
            Encoding::Json => {
                out.push(b'{');
                out.extend_from_slice(&self.body[at..at + len]);
            }
        }
    }

    /// Length of what [`Record::push_item`] appends for a protobuf list.
    pub(crate) fn protobuf_item_len(&self) -> usize {
        protobuf_item_len(self.item.1)
    }

    /// Appends the object as the `object` of a JSON watch event.
    pub(crate) fn object(&self) -> &'a [u8] {
        match self.encoding {
            Encoding::Json => &self.body[..self.item.0 + self.item.1],
            Encoding::Protobuf => self.body,
        }
    }
}

/// An object to be stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewRecord {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// resourceVersion.
    pub version: ResourceVersion,
    /// In the response to a DELETE: the object no longer exists, since no finalizer or grace period delays its removal.
    pub is_gone: bool,
    /// In the response to an update: marked for deletion, and nothing delays that any more. The update has deleted the object
    /// (`ShouldDeleteDuringUpdate` of the API server's generic registry).
    pub is_deleted_by_update: bool,
    /// It has the annotation that marks the end of initial events.
    pub initial_events_end: bool,
    /// The value for the store.
    pub value: Vec<u8>,
}

/// `apiVersion` and `kind` for an item that does not carry them itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct TypeHint<'a> {
    /// `apiVersion`.
    pub api_version: &'a str,
    /// `kind`.
    pub kind: &'a str,
}

impl NewRecord {
    /// An object in JSON: the response body of a GET, or an item of a list.
    ///
    /// # Errors
    /// Not an object with a name and a numeric resourceVersion.
    pub(crate) fn json(
        bytes: &[u8],
        hint: TypeHint<'_>,
        at: Timestamp,
    ) -> Result<Self, CodecError> {
        let bytes = bytes.trim_ascii();
        let head = json::parse_head(bytes)?;
        let bare = head.kind.is_empty();
        let (api_version, kind) = if bare {
            (hint.api_version, hint.kind)
        } else {
            (&*head.api_version, &*head.kind)
        };
        let prefix = format!("{{\"kind\":\"{kind}\",\"apiVersion\":\"{api_version}\",");
        let mut body = Vec::with_capacity(bytes.len() + prefix.len() + 1);
        let item = if bare {
            body.extend_from_slice(prefix.as_bytes());
            body.extend_from_slice(&bytes[1..]);
            (prefix.len(), bytes.len() - 1)
        } else {
            body.extend_from_slice(bytes);
            if bytes.starts_with(prefix.as_bytes()) {
                (prefix.len(), bytes.len() - prefix.len())
            } else {
                (0, bytes.len())
            }
        };
        body.push(b'\n');
        Self::build(
            Encoding::Json,
            &head.meta,
            TypeHint { api_version, kind },
            &Body {
                bytes: &body,
                item,
                at,
            },
        )
    }

    /// An object in protobuf: a whole body.
    ///
    /// # Errors
    /// As [`NewRecord::json`].
    pub(crate) fn protobuf(bytes: &[u8], at: Timestamp) -> Result<Self, CodecError> {
        let unknown = protobuf::Unknown::parse(bytes)?;
        let meta = protobuf::parse_object_meta(unknown.raw)?;
        let hint = TypeHint {
            api_version: unknown.type_meta.api_version,
            kind: unknown.type_meta.kind,
        };
        let offset = (unknown.raw.as_ptr() as usize) - (bytes.as_ptr() as usize);
        let item = (offset, unknown.raw.len());
        Self::build(Encoding::Protobuf, &meta, hint, &Body { bytes, item, at })
    }

    /// An item of a protobuf list.
    ///
    /// # Errors
    /// As [`NewRecord::json`].
    pub(crate) fn protobuf_item(
        raw: &[u8],
        hint: TypeHint<'_>,
        at: Timestamp,
    ) -> Result<Self, CodecError> {
        Self::protobuf(
            &protobuf::encode_envelope(
                TypeMeta {
                    api_version: hint.api_version,
                    kind: hint.kind,
                },
                raw,
            ),
            at,
        )
    }

    fn build(
        encoding: Encoding,
        meta: &Meta<'_>,
        kind: TypeHint<'_>,
        body: &Body<'_>,
    ) -> Result<Self, CodecError> {
        check_kind(kind)?;
        if meta.name.is_empty() {
            return Err(CodecError::Json("an object without a name".into()));
        }
        let version = meta
            .version()
            .ok_or_else(|| CodecError::Json("no resourceVersion to order it by".into()))?;
        let mut value = Vec::with_capacity(HEADER + 80 + body.bytes.len());
        let lens = [
            text_len(kind.api_version)?,
            text_len(kind.kind)?,
            text_len(&meta.uid)?,
        ];
        value.extend_from_slice(&[FORMAT, encoding as u8, 0, lens[0], lens[1], lens[2], 0, 0]);
        value.extend_from_slice(&version.get().to_le_bytes());
        value.extend_from_slice(&body.at.as_millis().to_le_bytes());
        value.extend_from_slice(&body_len(body.item.0)?.to_le_bytes());
        value.extend_from_slice(&body_len(body.item.1)?.to_le_bytes());
        for text in [kind.api_version, kind.kind, &meta.uid] {
            value.extend_from_slice(text.as_bytes());
        }
        value.extend_from_slice(body.bytes);
        Ok(Self {
            namespace: meta.namespace.clone().into_owned(),
            name: meta.name.clone().into_owned(),
            version,
            is_gone: !(meta.deleting && meta.is_deletion_delayed()),
            is_deleted_by_update: meta.deleting && !meta.is_deletion_delayed(),
            initial_events_end: meta.initial_events_end,
            value,
        })
    }
}

fn check_kind(hint: TypeHint<'_>) -> Result<(), CodecError> {
    let kind = hint.kind;
    if variants::is_variant(hint.api_version, kind) {
        return Err(CodecError::Variant(kind.to_owned()));
    }
    if matches!(kind, "" | "Status") {
        let problem = format!("kind {kind:?} is no object to store");
        return Err(CodecError::Json(problem));
    }
    Ok(())
}

fn text_len(text: &str) -> Result<u8, CodecError> {
    u8::try_from(text.len()).map_err(|_| CodecError::Limit("a type is too long"))
}

fn body_len(len: usize) -> Result<u32, CodecError> {
    u32::try_from(len).map_err(|_| CodecError::Limit("an object is too long"))
}

struct Body<'a> {
    bytes: &'a [u8],
    /// Offset and length of the object without its type and newline.
    item: (usize, usize),
    at: Timestamp,
}

/// An object that does not exist: the API server answered 404, or reported its deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Absence {
    /// Time of that response or event.
    pub at: Timestamp,
    /// resourceVersion of the deletion; 0 for a 404, which has none.
    pub version: ResourceVersion,
}

impl Absence {
    /// Reads a row of the table of absences.
    pub(crate) const fn from_row((at, version): (u64, u64)) -> Self {
        Self {
            at: Timestamp::from_millis(at),
            version: ResourceVersion::new(version),
        }
    }

    /// The row for the table of absences.
    pub(crate) const fn to_row(self) -> (u64, u64) {
        (self.at.as_millis(), self.version.get())
    }
}

/// The state of a list as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Collection {
    /// The list's resourceVersion, advanced by watches.
    pub version: ResourceVersion,
    /// Time of the API server's last response.
    pub at: Timestamp,
    /// The list's `kind`.
    pub kind: String,
    /// The list's `apiVersion`.
    pub api_version: String,
    /// Keys sorted, items before metadata, items carry their type (custom resources).
    pub unstructured: bool,
    /// False if pages are missing or a member became unknown: the list isn't served then.
    pub complete: bool,
    /// All changes since this resourceVersion were seen by a watch; `None`: none before `version`.
    #[serde(default)]
    pub followed_from: Option<ResourceVersion>,
    /// resourceVersion of the last deletion, or departure from the selection, since then.
    #[serde(default)]
    pub departed: ResourceVersion,
    /// resourceVersion of the last list that lacked a stored object: that was removed without a deletion having been seen.
    #[serde(default)]
    pub unnamed: ResourceVersion,
    /// resourceVersion at which an object left a selection, or was written by a client that was answered without the object.
    /// Until the collection's own watch has reached it, the state of that object is unknown.
    #[serde(default)]
    pub unclear: ResourceVersion,
    /// Time of the answer to the last such write.
    #[serde(default)]
    pub written_at: Timestamp,
}

impl Collection {
    /// The state of a complete list that was just received.
    pub(crate) fn new(
        version: ResourceVersion,
        at: Timestamp,
        kind: String,
        api_version: String,
    ) -> Self {
        let unstructured = false;
        Self {
            version,
            at,
            kind,
            api_version,
            unstructured,
            complete: true,
            followed_from: None,
            departed: ResourceVersion::UNSET,
            unnamed: ResourceVersion::UNSET,
            unclear: ResourceVersion::UNSET,
            written_at: Timestamp::EPOCH,
        }
    }

    /// This list, received after `before`; `lacks_objects` where an object is not in it that was stored.
    #[must_use]
    pub(super) fn following(&self, before: Option<&Self>, lacks_objects: bool) -> Self {
        let unset = ResourceVersion::UNSET;
        let (departed, unnamed) = match before {
            _ if lacks_objects => (self.version, self.version),
            Some(before) => (before.departed, before.unnamed),
            None => (unset, unset),
        };
        let known_from = before.map_or(self.version, |before| {
            before.followed_from.unwrap_or(before.version)
        });
        Self {
            followed_from: Some(known_from),
            departed,
            unnamed,
            ..self.clone()
        }
    }

    /// True if the list can be served: it is complete, and one of objects. (Versions before 0.1 stored an empty
    /// PartialObjectMetadataList in its place.)
    pub(crate) fn is_whole(&self) -> bool {
        self.complete && self.unclear <= self.version && !variants::is_variant("", &self.kind)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ResponseRecord<'a> {
    /// Time of the API server's response.
    pub at: Timestamp,
    /// `Content-Type`.
    pub content_type: &'a str,
    /// `ETag`, empty when none.
    pub etag: &'a str,
    /// The body.
    pub body: &'a [u8],
}

impl<'a> ResponseRecord<'a> {
    /// The value for the store.
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut value =
            Vec::with_capacity(16 + self.content_type.len() + self.etag.len() + self.body.len());
        value.extend_from_slice(&self.at.as_millis().to_le_bytes());
        for text in [self.content_type, self.etag] {
            let len = u16::try_from(text.len()).unwrap_or(0);
            value.extend_from_slice(&len.to_le_bytes());
            value.extend_from_slice(&text.as_bytes()[..usize::from(len)]);
        }
        value.extend_from_slice(self.body);
        value
    }

    /// Reads a stored value.
    pub(crate) fn read(value: &'a [u8]) -> Option<Self> {
        let (at, rest) = value.split_first_chunk::<8>()?;
        let (content_type, rest) = split_prefixed_text(rest)?;
        let (etag, body) = split_prefixed_text(rest)?;
        Some(Self {
            at: Timestamp::from_millis(u64::from_le_bytes(*at)),
            content_type,
            etag,
            body,
        })
    }
}

/// A text behind its length, and the bytes behind it.
fn split_prefixed_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    split_text(rest, u16::from_le_bytes(*len).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Timestamp = Timestamp::from_millis(5);
    const HINT: TypeHint<'_> = TypeHint {
        api_version: "v1",
        kind: "Pod",
    };

    #[test]
    fn a_built_in_item_becomes_the_answer_to_a_get_and_back() {
        let item = br#"{"metadata":{"name":"a","namespace":"d","uid":"u","resourceVersion":"7"},"spec":{}}"#;
        let new = NewRecord::json(item, HINT, AT).unwrap();
        let record = Record::read(&new.value).unwrap();
        let whole = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"d","uid":"u","resourceVersion":"7"},"spec":{}}"#;
        assert_eq!(record.body.trim_ascii_end(), whole);
        assert_eq!(
            (record.version.get(), record.stored_at, record.uid),
            (7, AT, "u")
        );
        let mut out = Vec::new();
        record.push_item(&mut out, false);
        assert_eq!(out, item);
        // And the same from a GET.
        let got = NewRecord::json(&[&whole[..], b"\n"].concat(), TypeHint::default(), AT).unwrap();
        assert_eq!(got, new);
    }

    #[test]
    fn a_custom_resource_stays_as_it_came() {
        let cr =
            br#"{"apiVersion":"x/v1","kind":"Y","metadata":{"name":"a","resourceVersion":"7"}}"#;
        let new = NewRecord::json(cr, HINT, AT).unwrap();
        let record = Record::read(&new.value).unwrap();
        assert_eq!((record.api_version, record.kind), ("x/v1", "Y"));
        let mut out = Vec::new();
        record.push_item(&mut out, true);
        assert_eq!(out, cr);
        assert_eq!(record.object(), cr);
    }

    #[test]
    fn protobuf_items_are_wrapped_and_unwrapped() {
        let mut raw = Vec::new();
        protobuf::put_bytes(&mut raw, 1, b"\x0a\x01a\x32\x017");
        let new = NewRecord::protobuf_item(&raw, HINT, AT).unwrap();
        assert_eq!((&*new.name, new.version.get()), ("a", 7));
        let record = Record::read(&new.value).unwrap();
        let (mut out, mut expected) = (Vec::new(), Vec::new());
        record.push_item(&mut out, false);
        protobuf::put_bytes(&mut expected, 2, &raw);
        assert_eq!(out, expected);
        assert_eq!(out.len(), record.protobuf_item_len());
    }

    #[test]
    fn a_body_that_is_no_object_is_refused() {
        for bad in [
            r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"7"},"rows":[]}"#,
            r#"{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"a","resourceVersion":"7"}}"#,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a"}}"#,
        ] {
            assert!(NewRecord::json(bad.as_bytes(), HINT, AT).is_err(), "{bad}");
        }
        for cut in 0..HEADER {
            assert!(Record::read(&[FORMAT; HEADER][..cut]).is_none());
        }
    }

    #[test]
    fn documents_read_back() {
        let doc = ResponseRecord {
            at: AT,
            content_type: "application/json",
            etag: "\"e\"",
            body: b"{}",
        };
        assert_eq!(ResponseRecord::read(&doc.write()), Some(doc));
        assert_eq!(ResponseRecord::read(&doc.write()[..12]), None);
    }
}
