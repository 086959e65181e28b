//! Reads one answer of the cloud as it streams by and says what it tells of the cluster. In: an [`Exchange`] (what was
//! asked, how it was answered) and the body's bytes. Out: [`Op`]s. Runs on the writer thread, off the response path.

use std::io::Write;

use super::codec::list::{JsonList, ListHead, OnItem, ProtobufList};
use super::codec::watch::{JsonFrames, OnFrame, ProtobufFrames};
use super::codec::{CodecError, MAX_OBJECT, json, parse_version, protobuf};
use super::exchange::{Exchange, form_key};
use super::op::Op;
use super::pages::{Page, Pages};
use super::record::{Collection, Document, NewRecord, TypeHint};
use crate::local::negotiate::Encoding;
use crate::request::Verb;
use flate2::write::MultiGzDecoder;

/// Longest document that is stored, in bytes (OpenAPI v2 of a large cluster is about 6 MB).
const MAX_DOCUMENT: usize = 8 << 20;
/// Memory of a decompressor, and of a list's member.
const GUNZIP: usize = 48 << 10;
const KEY: usize = 128;
/// Most members of one list that is stored.
pub const MAX_MEMBERS: usize = 250_000;

#[derive(Debug)]
enum Shape {
    /// One object, `Status`, or document: held whole.
    Whole(Vec<u8>),
    JsonList(Box<JsonList>, Vec<Vec<u8>>),
    ProtobufList(ProtobufList, Vec<Vec<u8>>),
    JsonWatch(JsonFrames, Option<Vec<Vec<u8>>>),
    ProtobufWatch(ProtobufFrames, Option<Vec<Vec<u8>>>),
}

/// Follows one answer.
#[derive(Debug)]
pub struct Observer {
    exchange: Exchange,
    shape: Shape,
    gunzip: Option<MultiGzDecoder<Vec<u8>>>,
}

impl Observer {
    /// Begins.
    pub fn new(exchange: Exchange) -> Self {
        let members = exchange.initial_events.then(Vec::new);
        let shape = match (exchange.verb, exchange.encoding) {
            _ if exchange.form.is_some() => Shape::Whole(Vec::new()),
            (Verb::List | Verb::DeleteCollection, Encoding::Json) => {
                Shape::JsonList(Box::default(), Vec::new())
            }
            (Verb::List | Verb::DeleteCollection, Encoding::Protobuf) => {
                Shape::ProtobufList(ProtobufList::default(), Vec::new())
            }
            (Verb::Watch, Encoding::Json) => Shape::JsonWatch(JsonFrames::default(), members),
            (Verb::Watch, Encoding::Protobuf) => Shape::ProtobufWatch(ProtobufFrames::default(), members),
            _ => Shape::Whole(Vec::new()),
        };
        let gunzip = exchange.gzip.then(|| MultiGzDecoder::new(Vec::new()));
        Self { exchange, shape, gunzip }
    }

    /// Bytes of memory that it keeps until the body has ended.
    pub fn held(&self) -> usize {
        let unpacking = if self.gunzip.is_some() { GUNZIP } else { 0 };
        let keys = |keys: &[Vec<u8>]| keys.len() * KEY;
        let body = match &self.shape {
            Shape::Whole(bytes) => bytes.capacity(),
            Shape::JsonList(_, members) | Shape::ProtobufList(_, members) => keys(members),
            Shape::JsonWatch(_, members) | Shape::ProtobufWatch(_, members) => {
                members.as_deref().map_or(0, keys)
            }
        };
        body + unpacking
    }

    /// Takes the next bytes of the body.
    ///
    /// # Errors
    /// Malformed, or over a limit: the observer is of no more use then.
    pub fn push(&mut self, chunk: &[u8], now: u64, ops: &mut Vec<Op>) -> Result<(), CodecError> {
        let Some(mut gunzip) = self.gunzip.take() else { return self.plain(chunk, now, ops) };
        // A little at a time, so that a bomb meets the limits of what it unpacks to.
        for part in chunk.chunks(4 << 10) {
            gunzip.write_all(part).map_err(|_| CodecError::Json("not gzip".into()))?;
            let plain = std::mem::take(gunzip.get_mut());
            self.plain(&plain, now, ops)?;
        }
        gunzip.flush().map_err(|_| CodecError::Json("not gzip".into()))?;
        let plain = std::mem::take(gunzip.get_mut());
        self.plain(&plain, now, ops)?;
        self.gunzip = Some(gunzip);
        Ok(())
    }

    fn plain(&mut self, chunk: &[u8], now: u64, ops: &mut Vec<Op>) -> Result<(), CodecError> {
        let exchange = &self.exchange;
        match &mut self.shape {
            Shape::Whole(bytes) => {
                let document = exchange.verb == Verb::Document || exchange.form.is_some();
                let limit = if document { MAX_DOCUMENT } else { MAX_OBJECT };
                if bytes.len() + chunk.len() > limit {
                    return Err(CodecError::Limit("a body is too long"));
                }
                bytes.extend_from_slice(chunk);
                Ok(())
            }
            Shape::JsonList(list, members) => list.push(chunk, &mut *item(exchange, members, ops)),
            Shape::ProtobufList(list, members) => list.push(chunk, &mut *item(exchange, members, ops)),
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
    pub fn finish(self, now: u64, pages: &mut Pages, ops: &mut Vec<Op>) -> Result<(), CodecError> {
        let exchange = self.exchange;
        let (head, members) = match self.shape {
            Shape::JsonWatch(..) | Shape::ProtobufWatch(..) => return Ok(()),
            Shape::Whole(bytes) => return whole(&exchange, &bytes, now, ops),
            Shape::JsonList(list, members) => (list.finish()?, members),
            Shape::ProtobufList(list, members) => (list.finish()?, members),
        };
        if exchange.verb == Verb::List { listed(exchange, head, members, pages, (now, ops)) } else { Ok(()) }
    }
}

/// What to do with each item of a list (or of a DELETE of a collection).
fn item<'a>(exchange: &'a Exchange, members: &'a mut Vec<Vec<u8>>, ops: &'a mut Vec<Op>) -> Box<OnItem<'a>> {
    Box::new(move |head, bytes| {
        let Some(kind) = head.kind.strip_suffix("List") else {
            // Custom resources say their list's kind behind the items; each item says its own.
            return if head.unstructured {
                store_item(exchange, TypeHint::default(), bytes, (members, ops))
            } else {
                Err(CodecError::Json(format!("{:?} is no list of objects", head.kind)))
            };
        };
        store_item(exchange, TypeHint { api_version: &head.api_version, kind }, bytes, (members, ops))
    })
}

fn store_item(
    exchange: &Exchange,
    hint: TypeHint<'_>,
    bytes: &[u8],
    (members, ops): (&mut Vec<Vec<u8>>, &mut Vec<Op>),
) -> Result<(), CodecError> {
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(bytes, hint, exchange.asked)?,
        Encoding::Protobuf => NewRecord::protobuf_item(bytes, hint, exchange.asked)?,
    };
    let key = exchange.object_key(&record.namespace, &record.name);
    if members.len() >= MAX_MEMBERS {
        return Err(CodecError::Limit("a list has too many items"));
    }
    if exchange.verb == Verb::DeleteCollection {
        ops.push(deleted(key, record, exchange.asked));
    } else {
        members.push(key.clone());
        ops.push(Op::Upsert { key, record, asked: exchange.asked });
    }
    Ok(())
}

/// The answer to a DELETE showed this object: gone, or held back by finalizers or a grace period.
fn deleted(key: Vec<u8>, record: NewRecord, asked: u64) -> Op {
    if record.going {
        Op::Gone { key, version: record.version, asked, at: asked }
    } else {
        Op::Upsert { key, record, asked }
    }
}

fn listed(
    exchange: Exchange,
    head: ListHead,
    members: Vec<Vec<u8>>,
    pages: &mut Pages,
    (now, ops): (u64, &mut Vec<Op>),
) -> Result<(), CodecError> {
    if !head.kind.ends_with("List") || head.kind == "PartialObjectMetadataList" {
        return Err(CodecError::Json(format!("{:?} is no list of objects", head.kind)));
    }
    let version = parse_version(&head.resource_version)
        .ok_or_else(|| CodecError::Json("a list without a resourceVersion".into()))?;
    let record = Collection {
        version,
        at: exchange.asked,
        kind: head.kind,
        api_version: head.api_version,
        unstructured: head.unstructured,
        complete: true,
    };
    let page = Page { collection: exchange.key, record, members, since: now };
    if let Some(page) = pages.join(&exchange.continue_token, &head.continue_token, page) {
        ops.push(Op::Complete { collection: page.collection, record: page.record, members: page.members });
    }
    Ok(())
}

/// What to do with each frame of a watch.
fn frame<'a>(
    exchange: &'a Exchange,
    members: &'a mut Option<Vec<Vec<u8>>>,
    (now, ops): (u64, &'a mut Vec<Op>),
) -> Box<OnFrame<'a>> {
    Box::new(move |frame| match exchange.encoding {
        Encoding::Json => {
            let (kind, object) = json::watch_event(frame)?;
            event(exchange, &kind, object, members, (now, ops))
        }
        Encoding::Protobuf => {
            let (kind, object) = protobuf::watch_event(frame)?;
            event(exchange, kind, object, members, (now, ops))
        }
    })
}

fn event(
    exchange: &Exchange,
    kind: &str,
    object: &[u8],
    members: &mut Option<Vec<Vec<u8>>>,
    (now, ops): (u64, &mut Vec<Op>),
) -> Result<(), CodecError> {
    let collection = || exchange.key.clone();
    if kind == "BOOKMARK" {
        return bookmark(exchange, object, members, (now, ops));
    }
    if !matches!(kind, "ADDED" | "MODIFIED" | "DELETED") {
        return Err(CodecError::Json(format!("the watch ended with {kind}")));
    }
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(object, TypeHint::default(), now)?,
        Encoding::Protobuf => NewRecord::protobuf(object, now)?,
    };
    let key = exchange.object_key(&record.namespace, &record.name);
    let version = record.version;
    let joins = kind != "DELETED";
    if let (Some(members), true) = (members.as_mut(), joins) {
        if members.len() >= MAX_MEMBERS {
            return Err(CodecError::Limit("a watch has too many initial events"));
        }
        members.push(key.clone());
    }
    let member = exchange.selective().then(|| (key.clone(), joins));
    ops.push(if joins {
        Op::Upsert { key, record, asked: now }
    } else if !exchange.selective() || exchange.fixed_selector {
        Op::Gone { key, version, asked: now, at: now }
    } else {
        Op::Forget { key, version }
    });
    // Initial events come in no order of versions: the bookmark behind them counts.
    if members.is_none() {
        ops.push(Op::Advance { collection: collection(), from: exchange.from, version, at: now, member });
    }
    Ok(())
}

fn bookmark(
    exchange: &Exchange,
    object: &[u8],
    members: &mut Option<Vec<Vec<u8>>>,
    (now, ops): (u64, &mut Vec<Op>),
) -> Result<(), CodecError> {
    let (kind, version, end) = match exchange.encoding {
        Encoding::Json => {
            let head = json::head(object)?;
            (head.kind.into_owned(), head.meta.version(), head.meta.initial_events_end)
        }
        Encoding::Protobuf => {
            let unknown = protobuf::Unknown::parse(object)?;
            let meta = protobuf::object_meta(unknown.raw)?;
            (unknown.kind.to_owned(), meta.version(), meta.initial_events_end)
        }
    };
    let Some(version) = version else { return Ok(()) };
    if let (true, Some(members)) = (end, members.take()) {
        // A group of custom resources has a dot and is served unstructured; built-in ones are typed.
        let unstructured = is_custom(&exchange.resource);
        let record = Collection {
            version,
            at: now,
            kind: format!("{kind}List"),
            api_version: exchange.api_version.clone(),
            unstructured,
            complete: true,
        };
        ops.push(Op::Complete { collection: exchange.key.clone(), record, members });
    } else if members.is_none() {
        let collection = exchange.key.clone();
        ops.push(Op::Advance { collection, from: exchange.from, version, at: now, member: None });
    }
    Ok(())
}

/// The API server's own groups end in `.k8s.io` or have no dot; all others are custom resources or aggregated.
fn is_custom(resource: &[u8]) -> bool {
    let group = resource.split(|b| *b == b'/').next().unwrap_or_default();
    group.contains(&b'.') && !group.ends_with(b".k8s.io")
}

/// A body held whole: an object, a `Status`, or a document.
fn whole(exchange: &Exchange, bytes: &[u8], now: u64, ops: &mut Vec<Op>) -> Result<(), CodecError> {
    if exchange.verb == Verb::Document {
        let (content_type, etag) = (&exchange.document.0, &exchange.document.1);
        if content_type.starts_with("application/json") {
            serde_json::from_slice::<serde::de::IgnoredAny>(bytes)
                .map_err(|e| CodecError::Json(e.to_string()))?;
        }
        let key = [&exchange.key, b"\n".as_slice(), content_type.as_bytes()].concat();
        ops.push(Op::Document { key, value: Document { at: now, content_type, etag, body: bytes }.write() });
        return Ok(());
    }
    if let (200, Some(form)) = (exchange.status, &exchange.form) {
        return other(exchange, form, bytes, ops);
    }
    if exchange.status == 404 {
        if is_not_found(exchange, bytes)? {
            ops.push(Op::Gone { key: exchange.key.clone(), version: 0, asked: exchange.asked, at: now });
        }
        return Ok(());
    }
    if exchange.verb == Verb::Delete && is_success(exchange, bytes)? {
        if exchange.status == 200 {
            ops.push(Op::Gone { key: exchange.key.clone(), version: 0, asked: now, at: now });
        }
        return Ok(());
    }
    let record = match exchange.encoding {
        Encoding::Json => NewRecord::json(bytes, TypeHint::default(), now)?,
        Encoding::Protobuf => NewRecord::protobuf(bytes, now)?,
    };
    let key = exchange.object_key(&record.namespace, &record.name);
    if !exchange.name.is_empty() && key != exchange.key {
        return Err(CodecError::Json("the answer is another object than was asked for".into()));
    }
    ops.push(match exchange.verb {
        Verb::Delete if exchange.status == 200 => deleted(key, record, exchange.asked),
        _ => Op::Upsert { key, record, asked: exchange.asked },
    });
    Ok(())
}

/// Objects in another form, kept whole under what was asked for.
fn other(exchange: &Exchange, form: &str, bytes: &[u8], ops: &mut Vec<Op>) -> Result<(), CodecError> {
    let head = json::head(bytes)?;
    if !matches!(&*head.kind, "Table" | "PartialObjectMetadata" | "PartialObjectMetadataList") {
        return Err(CodecError::Json(format!("{:?} is not the form that was asked for", head.kind)));
    }
    if head.meta.continue_token.is_empty() {
        let document =
            Document { at: exchange.asked, content_type: "application/json", etag: "", body: bytes };
        ops.push(Op::Document { key: form_key(&exchange.key, form), value: document.write() });
    }
    Ok(())
}

/// A 404 that is about the object itself, not about its group, version or subresource.
fn is_not_found(exchange: &Exchange, bytes: &[u8]) -> Result<bool, CodecError> {
    let about = |reason: &str, name: &str, resource: &str| {
        reason == "NotFound" && name == exchange.name && resource == exchange.plural
    };
    match exchange.encoding {
        Encoding::Json => {
            let status = json::head(bytes)?.status;
            Ok(about(&status.reason, &status.name, &status.resource))
        }
        Encoding::Protobuf => {
            let status = protobuf::status(protobuf::Unknown::parse(bytes)?.raw)?;
            Ok(about(&status.reason, &status.name, &status.resource))
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
