//! Decodes one upstream response, as it streams by, into changes. Runs on the writer thread, off
//! the response path.

mod body;
mod events;

use std::io::Write;

use flate2::write::MultiGzDecoder;
use hublet_wire::list::{JsonListSplitter, ListHead, ProtobufListSplitter};
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::request::Verb;
use hublet_wire::watch::{JsonWatchSplitter, ProtobufWatchSplitter};
use hublet_wire::{CodecError, MAX_OBJECT};

use super::change::{Change, Evicted, Observation};
use super::exchange::Exchange;
use super::keys::{CollectionKey, ObjectKeyBuf};
use super::paginate::{ListAssembler, MAX_MEMBERS, PartialList};
use super::record::{Collection, NewRecord, TypeHint};
use super::variants;
use body::WholeBody;
use events::EventSink;

/// Longest non-resource response and variant, in bytes (OpenAPI v2 of a large cluster is about 6 MB).
const MAX_RESPONSE: usize = variants::MAX_BYTES;
/// Approximate memory of a decompressor, in bytes: its window, its tables and its output.
const GUNZIP_BYTES: usize = 80 << 10;
/// Approximate memory of one member's key, in bytes.
const MEMBER_BYTES: usize = 128;
/// Compressed bytes that are unpacked at once: a bomb then meets the limits of what it unpacks to.
const GUNZIP_STEP: usize = 4 << 10;

#[derive(Debug)]
enum BodyState {
    /// One object, `Status`, variant or non-resource response: held whole.
    Whole(Vec<u8>),
    /// The first bytes of a JSON list, which may turn out to be a variant.
    ListStart(Vec<u8>),
    JsonList {
        list: Box<JsonListSplitter>,
        members: Vec<ObjectKeyBuf>,
    },
    ProtobufList {
        list: ProtobufListSplitter,
        members: Vec<ObjectKeyBuf>,
    },
    JsonWatch {
        frames: JsonWatchSplitter,
        initial: Option<Vec<ObjectKeyBuf>>,
    },
    ProtobufWatch {
        frames: ProtobufWatchSplitter,
        initial: Option<Vec<ObjectKeyBuf>>,
    },
}

#[derive(Debug)]
pub(crate) struct ResponseDecoder {
    exchange: Exchange,
    state: BodyState,
    gunzip: Option<MultiGzDecoder<Vec<u8>>>,
}

impl ResponseDecoder {
    pub(crate) fn new(exchange: Exchange) -> Self {
        let initial = exchange.initial_events.then(Vec::new);
        let state = match (exchange.verb, exchange.encoding) {
            (Verb::List, Encoding::Json) => BodyState::ListStart(Vec::new()),
            (Verb::DeleteCollection, Encoding::Json) => BodyState::new_json_list(),
            (Verb::List | Verb::DeleteCollection, Encoding::Protobuf) => BodyState::ProtobufList {
                list: ProtobufListSplitter::default(),
                members: Vec::new(),
            },
            (Verb::Watch, Encoding::Json) => BodyState::JsonWatch {
                frames: JsonWatchSplitter::default(),
                initial,
            },
            (Verb::Watch, Encoding::Protobuf) => BodyState::ProtobufWatch {
                frames: ProtobufWatchSplitter::default(),
                initial,
            },
            _ => BodyState::Whole(Vec::new()),
        };
        let gunzip = exchange.gzip.then(|| MultiGzDecoder::new(Vec::new()));
        Self {
            exchange,
            state,
            gunzip,
        }
    }

    pub(super) fn exchange(&self) -> &Exchange {
        &self.exchange
    }

    /// Bytes of memory that it keeps until the body has ended.
    pub(crate) fn buffered_bytes(&self) -> usize {
        let gunzip = if self.gunzip.is_some() {
            GUNZIP_BYTES
        } else {
            0
        };
        gunzip + self.state.buffered_bytes()
    }

    /// The collection that a watch keeps current, without selectors.
    pub(super) fn watched_collection(&self) -> Option<CollectionKey<'_>> {
        let collection = self.exchange.requested_collection();
        (self.exchange.verb == Verb::Watch).then(|| collection.without_selectors())
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// Malformed, or over a limit: the decoder is of no more use then.
    pub(crate) fn push(
        &mut self,
        chunk: &[u8],
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) -> Result<(), CodecError> {
        let Some(mut gunzip) = self.gunzip.take() else {
            return self.push_plain(chunk, now, changes);
        };
        for part in chunk.chunks(GUNZIP_STEP) {
            gunzip.write_all(part).map_err(not_gzip)?;
            let plain = std::mem::take(gunzip.get_mut());
            self.push_plain(&plain, now, changes)?;
        }
        gunzip.flush().map_err(not_gzip)?;
        let plain = std::mem::take(gunzip.get_mut());
        self.push_plain(&plain, now, changes)?;
        self.gunzip = Some(gunzip);
        Ok(())
    }

    /// Checks the end of a compressed body: a gzip member that is cut off, or other bytes after it, may hide anything.
    fn end_gunzip(&mut self, now: Timestamp, changes: &mut Vec<Change>) -> Result<(), CodecError> {
        let Some(mut gunzip) = self.gunzip.take() else {
            return Ok(());
        };
        gunzip.try_finish().map_err(not_gzip)?;
        self.push_plain(gunzip.get_ref(), now, changes)
    }

    fn push_plain(
        &mut self,
        chunk: &[u8],
        now: Timestamp,
        changes: &mut Vec<Change>,
    ) -> Result<(), CodecError> {
        let exchange = &self.exchange;
        match &mut self.state {
            BodyState::Whole(bytes) => append_within(bytes, chunk, max_whole_body(exchange.verb)),
            BodyState::ListStart(bytes) => {
                bytes.extend_from_slice(chunk);
                let Some(state) = BodyState::for_json_list(bytes) else {
                    return Ok(());
                };
                let start = std::mem::take(bytes);
                self.state = state;
                self.push_plain(&start, now, changes)
            }
            BodyState::JsonList { list, members } => list.push(chunk, &mut |head, item| {
                decode_item(exchange, head, item, members, changes)
            }),
            BodyState::ProtobufList { list, members } => list.push(chunk, &mut |head, item| {
                decode_item(exchange, head, item, members, changes)
            }),
            BodyState::JsonWatch { frames, initial } => {
                let mut sink = EventSink::new(exchange, initial, now, changes);
                frames.push(chunk, &mut |frame| sink.push_frame(frame))
            }
            BodyState::ProtobufWatch { frames, initial } => {
                let mut sink = EventSink::new(exchange, initial, now, changes);
                frames.push(chunk, &mut |frame| sink.push_frame(frame))
            }
        }
    }

    /// The body has ended well.
    ///
    /// # Errors
    /// It is incomplete, or isn't what was requested.
    pub(crate) fn finish(
        mut self,
        now: Timestamp,
        lists: &mut ListAssembler,
        changes: &mut Vec<Change>,
    ) -> Result<(), CodecError> {
        self.end_gunzip(now, changes)?;
        let exchange = self.exchange;
        let (head, members) = match self.state {
            BodyState::JsonWatch { .. } | BodyState::ProtobufWatch { .. } => return Ok(()),
            BodyState::ListStart(_) => return Err(CodecError::Json("the list is cut off".into())),
            BodyState::Whole(bytes) => {
                let body = WholeBody {
                    exchange: &exchange,
                    bytes: &bytes,
                    lists,
                    changes,
                };
                return body.decode();
            }
            BodyState::JsonList { list, members } => (list.finish()?, members),
            BodyState::ProtobufList { list, members } => (list.finish()?, members),
        };
        if exchange.verb == Verb::List {
            let page = list_page(exchange, head, members, now)?;
            changes.extend(lists.add_page(page).map(PartialList::into_change));
        }
        Ok(())
    }
}

impl BodyState {
    fn new_json_list() -> Self {
        Self::JsonList {
            list: Box::default(),
            members: Vec::new(),
        }
    }

    /// The state that a JSON list with this beginning needs; `None` if that can't be decided yet.
    fn for_json_list(beginning: &[u8]) -> Option<Self> {
        let is_variant = variants::is_variant_json(beginning)?;
        Some(if is_variant {
            Self::Whole(Vec::new())
        } else {
            Self::new_json_list()
        })
    }

    fn buffered_bytes(&self) -> usize {
        match self {
            Self::Whole(bytes) | Self::ListStart(bytes) => bytes.capacity(),
            Self::JsonList { list, members } => list.buffered_bytes() + member_bytes(members),
            Self::ProtobufList { list, members } => list.buffered_bytes() + member_bytes(members),
            Self::JsonWatch { frames, initial } => {
                frames.buffered_bytes() + initial.as_deref().map_or(0, member_bytes)
            }
            Self::ProtobufWatch { frames, initial } => {
                frames.buffered_bytes() + initial.as_deref().map_or(0, member_bytes)
            }
        }
    }
}

fn member_bytes(members: &[ObjectKeyBuf]) -> usize {
    members.len() * MEMBER_BYTES
}

fn not_gzip(_: std::io::Error) -> CodecError {
    CodecError::Json("not gzip, or cut off".into())
}

fn max_whole_body(verb: Verb) -> usize {
    // A list held whole is a variant.
    if matches!(verb, Verb::NonResource | Verb::List) {
        MAX_RESPONSE
    } else {
        MAX_OBJECT
    }
}

fn append_within(bytes: &mut Vec<u8>, chunk: &[u8], limit: usize) -> Result<(), CodecError> {
    if bytes.len() + chunk.len() > limit {
        return Err(CodecError::Limit("a body is too long"));
    }
    bytes.extend_from_slice(chunk);
    Ok(())
}

/// Decodes an item of a list, or of the answer to a DELETE of a collection.
fn decode_item(
    exchange: &Exchange,
    head: &ListHead,
    item: &[u8],
    members: &mut Vec<ObjectKeyBuf>,
    changes: &mut Vec<Change>,
) -> Result<(), CodecError> {
    if members.len() >= MAX_MEMBERS {
        return Err(CodecError::Limit("a list has too many items"));
    }
    let hint = item_type(head)?;
    // The head of an unstructured list comes last.
    if members.is_empty() && !head.unstructured {
        exchange.check_type(hint)?;
    }
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(item, hint, exchange.answered_at)?,
        Encoding::Protobuf => NewRecord::protobuf_item(item, hint, exchange.answered_at)?,
    };
    let key = exchange.member_key(&record)?;
    if exchange.verb == Verb::DeleteCollection {
        if members.is_empty() {
            changes.push(exchange.lists_changed());
            members.push(key.clone());
        }
        // The response shows the object as it was before. It may still exist, for its finalizers or a grace period.
        changes.push(Change::Evict(Evicted::Object(key)));
        return Ok(());
    }
    members.push(key.clone());
    changes.push(Change::Upsert {
        key,
        record,
        observed: exchange.list_observation(),
    });
    Ok(())
}

/// The type of a list's items, from the list's own.
fn item_type(head: &ListHead) -> Result<TypeHint<'_>, CodecError> {
    match head.kind.strip_suffix("List") {
        Some(kind) => Ok(TypeHint {
            api_version: &head.api_version,
            kind,
        }),
        // Lists of custom resources name their kind behind the items; each item names its own.
        None if head.unstructured => Ok(TypeHint::default()),
        None => Err(not_a_list(&head.kind)),
    }
}

fn not_a_list(kind: &str) -> CodecError {
    CodecError::Json(format!("{kind:?} is no list of objects"))
}

/// The response to a DELETE shows an object that is deleted, or that finalizers or a grace period still keep.
fn delete_or_upsert(key: ObjectKeyBuf, record: NewRecord, observed: Observation) -> Change {
    if record.is_gone {
        Change::Delete {
            key,
            version: record.version,
            observed,
        }
    } else {
        Change::Upsert {
            key,
            record,
            observed,
        }
    }
}

fn list_page(
    exchange: Exchange,
    head: ListHead,
    members: Vec<ObjectKeyBuf>,
    now: Timestamp,
) -> Result<PartialList, CodecError> {
    if variants::is_variant(&head.api_version, &head.kind) {
        return Err(CodecError::Variant(head.kind));
    }
    let Some(kind) = head.kind.strip_suffix("List") else {
        return Err(not_a_list(&head.kind));
    };
    exchange.check_type(TypeHint {
        api_version: &head.api_version,
        kind,
    })?;
    let version = ResourceVersion::parse(&head.resource_version)
        .ok_or_else(|| CodecError::Json("a list without a resourceVersion".into()))?;
    let observed = exchange.list_observation();
    let record = Collection {
        unstructured: head.unstructured,
        ..Collection::new(version, exchange.answered_at, head.kind, head.api_version)
    };
    Ok(PartialList {
        collection: exchange.requested_collection().to_buf(),
        record,
        members,
        received_at: now,
        observed,
        continue_token: exchange.continue_token,
        next: head.continue_token,
    })
}
