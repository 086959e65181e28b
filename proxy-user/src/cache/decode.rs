//! Reads one answer of the cloud as it streams by and says what it tells of the cluster. In: an [`Exchange`] (what was
//! asked, how it was answered) and the body's bytes. Out: [`Op`]s. Runs on the writer thread, off the response path.

mod events;

use std::io::Write;

use crate::cache::change::{Op, Said};
use crate::cache::exchange::{Exchange, form_key, is_short_lived};
use crate::cache::keys;
use crate::cache::paginate::{Page, Pages};
use crate::cache::record::{Collection, Document, NewRecord, TypeHint};
use crate::cache::variants::{self, PageHead};
use events::frame;
use flate2::write::MultiGzDecoder;
use hublet_wire::list::{JsonList, ListHead, OnItem, ProtobufList};
use hublet_wire::media::Encoding;
use hublet_wire::meta::parse_version;
use hublet_wire::request::Verb;
use hublet_wire::watch::{JsonFrames, ProtobufFrames};
use hublet_wire::{CodecError, MAX_OBJECT, json, protobuf};

/// Longest document that is stored, in bytes (OpenAPI v2 of a large cluster is about 6 MB).
const MAX_DOCUMENT: usize = variants::MAX_BYTES;
/// Memory of a decompressor, and of a list's member.
const GUNZIP: usize = 48 << 10;
const KEY: usize = 128;
/// Most members of one list that is stored.
pub(crate) const MAX_MEMBERS: usize = 250_000;

#[derive(Debug)]
enum Shape {
    /// One object, `Status`, or document: held whole.
    Whole(Vec<u8>),
    /// The beginning of a list in JSON, or of what was answered in its place.
    Beginning(Vec<u8>),
    JsonList(Box<JsonList>, Vec<Vec<u8>>),
    ProtobufList(ProtobufList, Vec<Vec<u8>>),
    JsonWatch(JsonFrames, Option<Vec<Vec<u8>>>),
    ProtobufWatch(ProtobufFrames, Option<Vec<Vec<u8>>>),
}

#[derive(Debug)]
pub(crate) struct Observer {
    exchange: Exchange,
    shape: Shape,
    gunzip: Option<MultiGzDecoder<Vec<u8>>>,
}

impl Observer {
    pub(crate) fn new(exchange: Exchange) -> Self {
        let members = exchange.initial_events.then(Vec::new);
        let shape = match (exchange.verb, exchange.encoding) {
            (Verb::List, Encoding::Json) => Shape::Beginning(Vec::new()),
            (Verb::DeleteCollection, Encoding::Json) => Shape::JsonList(Box::default(), Vec::new()),
            (Verb::List | Verb::DeleteCollection, Encoding::Protobuf) => {
                Shape::ProtobufList(ProtobufList::default(), Vec::new())
            }
            (Verb::Watch, Encoding::Json) => Shape::JsonWatch(JsonFrames::default(), members),
            (Verb::Watch, Encoding::Protobuf) => {
                Shape::ProtobufWatch(ProtobufFrames::default(), members)
            }
            _ => Shape::Whole(Vec::new()),
        };
        let gunzip = exchange.gzip.then(|| MultiGzDecoder::new(Vec::new()));
        Self {
            exchange,
            shape,
            gunzip,
        }
    }

    /// Bytes of memory that it keeps until the body has ended.
    pub(crate) fn held(&self) -> usize {
        let unpacking = if self.gunzip.is_some() { GUNZIP } else { 0 };
        let keys = |keys: &[Vec<u8>]| keys.len() * KEY;
        let body = match &self.shape {
            Shape::Whole(bytes) | Shape::Beginning(bytes) => bytes.capacity(),
            Shape::JsonList(_, members) | Shape::ProtobufList(_, members) => keys(members),
            Shape::JsonWatch(_, members) | Shape::ProtobufWatch(_, members) => {
                members.as_deref().map_or(0, keys)
            }
        };
        body + unpacking
    }

    /// The collection that it feeds, without selectors: that of a watch.
    pub(super) fn feeds(&self) -> Option<&[u8]> {
        (self.exchange.verb == Verb::Watch).then(|| keys::without_selectors(&self.exchange.key))
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// Malformed, or over a limit: the observer is of no more use then.
    pub(crate) fn push(
        &mut self,
        chunk: &[u8],
        now: u64,
        ops: &mut Vec<Op>,
    ) -> Result<(), CodecError> {
        let Some(mut gunzip) = self.gunzip.take() else {
            return self.plain(chunk, now, ops);
        };
        // A little at a time, so that a bomb meets the limits of what it unpacks to.
        for part in chunk.chunks(4 << 10) {
            gunzip
                .write_all(part)
                .map_err(|_| CodecError::Json("not gzip".into()))?;
            let plain = std::mem::take(gunzip.get_mut());
            self.plain(&plain, now, ops)?;
        }
        gunzip
            .flush()
            .map_err(|_| CodecError::Json("not gzip".into()))?;
        let plain = std::mem::take(gunzip.get_mut());
        self.plain(&plain, now, ops)?;
        self.gunzip = Some(gunzip);
        Ok(())
    }

    fn plain(&mut self, chunk: &[u8], now: u64, ops: &mut Vec<Op>) -> Result<(), CodecError> {
        let exchange = &self.exchange;
        match &mut self.shape {
            Shape::Whole(bytes) => {
                let document = matches!(exchange.verb, Verb::Document | Verb::List);
                let limit = if document { MAX_DOCUMENT } else { MAX_OBJECT };
                if bytes.len() + chunk.len() > limit {
                    return Err(CodecError::Limit("a body is too long"));
                }
                bytes.extend_from_slice(chunk);
                Ok(())
            }
            Shape::Beginning(bytes) => {
                bytes.extend_from_slice(chunk);
                let Some(other) = variants::is_other_json(bytes) else {
                    return Ok(());
                };
                let bytes = std::mem::take(bytes);
                self.shape = list_shape(other);
                self.plain(&bytes, now, ops)
            }
            Shape::JsonList(list, members) => list.push(chunk, &mut *item(exchange, members, ops)),
            Shape::ProtobufList(list, members) => {
                list.push(chunk, &mut *item(exchange, members, ops))
            }
            Shape::JsonWatch(frames, members) => {
                frames.push(chunk, &mut *frame(exchange, members, (now, ops)))
            }
            Shape::ProtobufWatch(frames, members) => {
                frames.push(chunk, &mut *frame(exchange, members, (now, ops)))
            }
        }
    }

    /// The body has ended well.
    ///
    /// # Errors
    /// It isn't whole after all, or isn't what was asked for.
    pub(crate) fn finish(
        self,
        now: u64,
        pages: &mut Pages,
        ops: &mut Vec<Op>,
    ) -> Result<(), CodecError> {
        let exchange = self.exchange;
        let (head, members) = match self.shape {
            Shape::JsonWatch(..) | Shape::ProtobufWatch(..) => return Ok(()),
            Shape::Beginning(_) => return Err(CodecError::Json("the list is cut off".into())),
            Shape::Whole(bytes) => return whole(&exchange, &bytes, pages, ops),
            Shape::JsonList(list, members) => (list.finish()?, members),
            Shape::ProtobufList(list, members) => (list.finish()?, members),
        };
        if exchange.verb == Verb::List {
            listed(exchange, head, members, pages, (now, ops))
        } else {
            Ok(())
        }
    }
}

/// How a list in JSON is read on, once its beginning has told whether it is one of the objects themselves.
fn list_shape(other: bool) -> Shape {
    if other {
        Shape::Whole(Vec::new())
    } else {
        Shape::JsonList(Box::default(), Vec::new())
    }
}

/// What to do with each item of a list (or of a DELETE of a collection).
fn item<'a>(
    exchange: &'a Exchange,
    members: &'a mut Vec<Vec<u8>>,
    ops: &'a mut Vec<Op>,
) -> Box<OnItem<'a>> {
    Box::new(move |head, bytes| {
        let Some(kind) = head.kind.strip_suffix("List") else {
            // Custom resources say their list's kind behind the items; each item says its own.
            return if head.unstructured {
                store_item(exchange, TypeHint::default(), bytes, (members, ops))
            } else {
                Err(CodecError::Json(format!(
                    "{:?} is no list of objects",
                    head.kind
                )))
            };
        };
        store_item(
            exchange,
            TypeHint {
                api_version: &head.api_version,
                kind,
            },
            bytes,
            (members, ops),
        )
    })
}

fn store_item(
    exchange: &Exchange,
    hint: TypeHint<'_>,
    bytes: &[u8],
    (members, ops): (&mut Vec<Vec<u8>>, &mut Vec<Op>),
) -> Result<(), CodecError> {
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(bytes, hint, exchange.answered)?,
        Encoding::Protobuf => NewRecord::protobuf_item(bytes, hint, exchange.answered)?,
    };
    let key = exchange.object_key(&record.namespace, &record.name);
    if members.len() >= MAX_MEMBERS {
        return Err(CodecError::Limit("a list has too many items"));
    }
    if exchange.verb == Verb::DeleteCollection {
        ops.push(deleted(key, record, exchange.said()));
    } else {
        members.push(key.clone());
        ops.push(Op::Upsert {
            key,
            record,
            said: exchange.said_of_many(),
        });
    }
    Ok(())
}

/// The answer to a DELETE showed this object: gone, or held back by finalizers or a grace period.
fn deleted(key: Vec<u8>, record: NewRecord, said: Said) -> Op {
    if record.going {
        Op::Gone {
            key,
            version: record.version,
            said,
        }
    } else {
        Op::Upsert { key, record, said }
    }
}

fn listed(
    exchange: Exchange,
    head: ListHead,
    members: Vec<Vec<u8>>,
    pages: &mut Pages,
    (now, ops): (u64, &mut Vec<Op>),
) -> Result<(), CodecError> {
    if variants::is_other(&head.api_version, &head.kind) {
        return Err(CodecError::OtherForm(head.kind));
    }
    if !head.kind.ends_with("List") {
        return Err(CodecError::Json(format!(
            "{:?} is no list of objects",
            head.kind
        )));
    }
    let version = parse_version(&head.resource_version)
        .ok_or_else(|| CodecError::Json("a list without a resourceVersion".into()))?;
    let record = Collection {
        unstructured: head.unstructured,
        ..Collection::new(version, exchange.answered, head.kind, head.api_version)
    };
    let said = exchange.said_of_many();
    let page = Page {
        collection: exchange.key,
        record,
        members,
        since: now,
        said,
    };
    if let Some(page) = pages.join(&exchange.continue_token, &head.continue_token, page) {
        let Page {
            collection,
            record,
            members,
            said,
            ..
        } = page;
        ops.push(Op::Complete {
            collection,
            record,
            members,
            said,
        });
    }
    Ok(())
}

/// A body held whole: an object, a `Status`, or a document.
fn whole(
    exchange: &Exchange,
    bytes: &[u8],
    pages: &mut Pages,
    ops: &mut Vec<Op>,
) -> Result<(), CodecError> {
    if exchange.verb == Verb::Document {
        let (content_type, etag) = (&exchange.content_type, &exchange.etag);
        if content_type.starts_with("application/json") {
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
                .map_err(|e| CodecError::Json(e.to_string()))?;
        }
        let key = [&exchange.key, b"\n".as_slice(), content_type.as_bytes()].concat();
        ops.push(Op::Document {
            key,
            value: Document {
                at: exchange.asked,
                content_type,
                etag,
                body: bytes,
            }
            .write(),
        });
        return Ok(());
    }
    if exchange.status == 404 {
        if is_not_found(exchange, bytes)? {
            ops.push(Op::Gone {
                key: exchange.key.clone(),
                version: 0,
                said: exchange.said(),
            });
        }
        return Ok(());
    }
    if exchange.status == 409 {
        let there = named_in_status(exchange, bytes, "AlreadyExists")?;
        ops.extend(there.map(|name| Op::Appeared {
            key: [&exchange.key, name.as_bytes()].concat(),
        }));
        return Ok(());
    }
    let json = exchange.encoding == Encoding::Json && exchange.verb.is_read();
    if json && variants::is_other_json(bytes).unwrap_or(true) {
        let head = json::head(bytes)?;
        if let Some(form) = variants::spelling(&head.api_version, &head.kind) {
            return other(exchange, &form, (&head, bytes), (pages, ops));
        }
    }
    if exchange.verb == Verb::Delete && is_success(exchange, bytes)? {
        if exchange.status == 200 {
            // Whatever was seen of it between question and answer is gone with it.
            let (asked, at) = (exchange.answered, exchange.answered);
            let said = Said {
                asked,
                since: asked,
                at,
                ..exchange.said()
            };
            ops.push(Op::Gone {
                key: exchange.key.clone(),
                version: 0,
                said,
            });
        }
        return Ok(());
    }
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(bytes, TypeHint::default(), exchange.answered)?,
        Encoding::Protobuf => NewRecord::protobuf(bytes, exchange.answered)?,
    };
    let key = exchange.object_key(&record.namespace, &record.name);
    if !exchange.name.is_empty() && key != exchange.key {
        return Err(CodecError::Json(
            "the answer is another object than was asked for".into(),
        ));
    }
    ops.push(match exchange.verb {
        // Nobody reads its own Events again, and the cloud drops them after an hour.
        Verb::Create if is_short_lived(&key) => Op::Appeared { key },
        Verb::Delete if exchange.status == 200 => deleted(key, record, exchange.said()),
        _ => Op::Upsert {
            key,
            record,
            said: exchange.said(),
        },
    });
    Ok(())
}

/// Objects in another form, kept whole under what was asked for.
fn other(
    exchange: &Exchange,
    form: &str,
    (head, bytes): (&json::Head<'_>, &[u8]),
    (pages, ops): (&mut Pages, &mut Vec<Op>),
) -> Result<(), CodecError> {
    if !exchange.keeps_tables {
        return Ok(());
    }
    let key = form_key(&exchange.key, &exchange.api_version, form);
    let mut keep = |at: u64, key: Vec<u8>, body: &[u8]| {
        let document = Document {
            at,
            content_type: "application/json",
            etag: "",
            body,
        };
        ops.push(Op::Document {
            key,
            value: document.write(),
        });
    };
    let tokens = (exchange.continue_token.as_str(), &*head.meta.continue_token);
    if tokens == ("", "") {
        keep(exchange.asked, key, bytes);
        return Ok(());
    }
    let page = PageHead {
        key,
        kind: &head.kind,
        api_version: &head.api_version,
        version: &head.meta.resource_version,
        asked: exchange.asked,
    };
    if let Some(whole) = pages.forms.join(tokens, &page, bytes)? {
        keep(whole.asked, whole.key, &whole.body);
    }
    Ok(())
}

/// A 404 that is about the object itself, not about its group, version or subresource.
fn is_not_found(exchange: &Exchange, bytes: &[u8]) -> Result<bool, CodecError> {
    Ok(named_in_status(exchange, bytes, "NotFound")?.is_some_and(|name| name == exchange.name))
}

/// The object of this resource of which a `Status` with that reason speaks.
fn named_in_status(
    exchange: &Exchange,
    bytes: &[u8],
    reason: &str,
) -> Result<Option<String>, CodecError> {
    let name = |is: &str, resource: &str, name: &str| {
        (is == reason && resource == exchange.plural && !name.is_empty()).then(|| name.to_owned())
    };
    match exchange.encoding {
        Encoding::Json => {
            let status = json::head(bytes)?.status;
            Ok(name(&status.reason, &status.resource, &status.name))
        }
        Encoding::Protobuf => {
            let status = protobuf::status(protobuf::Unknown::parse(bytes)?.raw)?;
            Ok(name(&status.reason, &status.resource, &status.name))
        }
    }
}

fn is_success(exchange: &Exchange, bytes: &[u8]) -> Result<bool, CodecError> {
    match exchange.encoding {
        Encoding::Json => {
            let head = json::head(bytes)?;
            Ok(head.kind == "Status" && head.status.status == "Success")
        }
        Encoding::Protobuf => {
            let unknown = protobuf::Unknown::parse(bytes)?;
            Ok(unknown.kind == "Status" && protobuf::status(unknown.raw)?.status == "Success")
        }
    }
}
