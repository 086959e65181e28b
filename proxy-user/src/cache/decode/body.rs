//! Bodies that are held whole: an object, a `Status`, a non-resource response, or a variant.

use hublet_wire::media::Encoding;
use hublet_wire::meta::{Meta, ResourceVersion, Timestamp};
use hublet_wire::request::Verb;
use hublet_wire::{CodecError, json, protobuf};

use super::delete_or_upsert;
use crate::cache::change::{Change, Extent};
use crate::cache::exchange::{Exchange, is_event, variant_key};
use crate::cache::paginate::ListAssembler;
use crate::cache::record::{NewRecord, ResponseRecord, TypeHint};
use crate::cache::variants::{self, PageHead};

/// A whole body, and where its changes go.
pub(super) struct WholeBody<'a> {
    pub exchange: &'a Exchange,
    pub bytes: &'a [u8],
    pub lists: &'a mut ListAssembler,
    pub changes: &'a mut Vec<Change>,
}

impl WholeBody<'_> {
    pub(super) fn decode(mut self) -> Result<(), CodecError> {
        let exchange = self.exchange;
        match exchange.status {
            _ if exchange.verb == Verb::NonResource => return self.store_nonresource(),
            404 => return self.decode_not_found(),
            409 => return self.decode_conflict(),
            _ if exchange.version_only.is_some() => return self.decode_version(),
            _ => {}
        }
        let may_be_variant = exchange.encoding == Encoding::Json && exchange.verb.is_read();
        if may_be_variant && variants::is_variant_json(self.bytes).unwrap_or(true) {
            let head = json::parse_head(self.bytes)?;
            if let Some(media_type) = variants::media_type(&head.api_version, &head.kind) {
                return self.store_variant(&media_type, &head);
            }
        }
        if exchange.verb == Verb::Delete && is_success(exchange, self.bytes)? {
            self.decode_deleted();
            return Ok(());
        }
        self.decode_object()
    }

    fn store_nonresource(&mut self) -> Result<(), CodecError> {
        let exchange = self.exchange;
        if exchange.content_type.starts_with("application/json") {
            serde_json::from_slice::<serde::de::IgnoredAny>(self.bytes)
                .map_err(|error| CodecError::Json(error.to_string()))?;
        }
        let key = [
            &exchange.key,
            b"\n".as_slice(),
            exchange.content_type.as_bytes(),
        ]
        .concat();
        let response = ResponseRecord {
            at: exchange.sent_at,
            content_type: &exchange.content_type,
            etag: &exchange.etag,
            body: self.bytes,
        };
        self.changes.push(Change::PutResponse {
            key,
            value: response.write(),
        });
        Ok(())
    }

    /// A 404 counts where it names the object itself, not its group, version or subresource.
    fn decode_not_found(&mut self) -> Result<(), CodecError> {
        let exchange = self.exchange;
        let name = named_in_status(exchange, self.bytes, "NotFound")?;
        if name.is_some_and(|name| name == exchange.name) {
            self.changes.push(Change::Delete {
                key: exchange.requested_object().to_buf(),
                version: ResourceVersion::UNSET,
                observed: exchange.observation(),
            });
        }
        Ok(())
    }

    fn decode_conflict(&mut self) -> Result<(), CodecError> {
        let existing = named_in_status(self.exchange, self.bytes, "AlreadyExists")?;
        self.changes.extend(existing.map(|name| Change::Supersede {
            key: [&self.exchange.key, name.as_bytes()].concat(),
            extent: Extent::Absences,
        }));
        Ok(())
    }

    /// The `Success` that a DELETE without a remaining object is answered with.
    fn decode_deleted(&mut self) {
        if self.exchange.status == 200 {
            self.changes.push(self.exchange.deletion());
        }
    }

    /// The name and resourceVersion in the response to a write. That to a DELETE may show the object as it was before.
    fn decode_version(&mut self) -> Result<(), CodecError> {
        let exchange = self.exchange;
        if exchange.verb == Verb::Delete {
            if !is_success(exchange, self.bytes)? {
                return Err(no_version());
            }
            self.decode_deleted();
            return Ok(());
        }
        let meta = object_meta(exchange.encoding, self.bytes)?;
        if meta.deleting && !meta.is_deletion_delayed() {
            self.changes.push(exchange.deletion_by_update());
            return Ok(());
        }
        self.changes.push(Change::Outdate {
            key: exchange.shown_object(&meta.namespace, &meta.name)?,
            version: meta.version().ok_or_else(no_version)?,
            observed: exchange.observation(),
        });
        Ok(())
    }

    fn decode_object(&mut self) -> Result<(), CodecError> {
        let exchange = self.exchange;
        let record = match exchange.encoding {
            Encoding::Json => {
                NewRecord::json(self.bytes, TypeHint::default(), exchange.answered_at)?
            }
            Encoding::Protobuf => NewRecord::protobuf(self.bytes, exchange.answered_at)?,
        };
        let key = exchange.shown_object(&record.namespace, &record.name)?;
        let observed = exchange.observation();
        self.changes.push(match exchange.verb {
            // A client never reads its own Events again, and the cloud drops them after an hour.
            Verb::Create if is_event(key.as_bytes()) => Change::Supersede {
                key: key.as_bytes().to_vec(),
                extent: Extent::Absences,
            },
            Verb::Delete if record.is_deleted_by_update && exchange.is_of_namespaces() => {
                exchange.deletion_by_update()
            }
            Verb::Delete if exchange.status == 200 => delete_or_upsert(key, record, observed),
            Verb::Update | Verb::Patch if record.is_deleted_by_update => {
                exchange.deletion_by_update()
            }
            _ => Change::Upsert {
                key,
                record,
                observed,
            },
        });
        Ok(())
    }

    /// Stores a Table or PartialObjectMetadata whole, under the request that it answers.
    fn store_variant(&mut self, media_type: &str, head: &json::Head<'_>) -> Result<(), CodecError> {
        let exchange = self.exchange;
        if !exchange.is_full_table {
            return Ok(());
        }
        let key = variant_key(&exchange.key, &exchange.api_version, media_type);
        if head.meta.lacks_token() {
            return Err(CodecError::Json("rows remain without a token".into()));
        }
        let next = &*head.meta.continue_token;
        if exchange.continue_token.is_empty() && next.is_empty() {
            variants::check_rows(&head.kind, self.bytes)?;
            self.put_variant(exchange.sent_at, key, self.bytes);
            return Ok(());
        }
        let page = PageHead {
            key,
            kind: &head.kind,
            api_version: &head.api_version,
            version: &head.meta.resource_version,
            sent_at: exchange.sent_at,
            continue_token: &exchange.continue_token,
            next,
        };
        if let Some(whole) = self.lists.variants.add_page(&page, self.bytes)? {
            self.put_variant(whole.sent_at, whole.key, &whole.body);
        }
        Ok(())
    }

    fn put_variant(&mut self, at: Timestamp, key: Vec<u8>, body: &[u8]) {
        let response = ResponseRecord {
            at,
            content_type: "application/json",
            etag: "",
            body,
        };
        self.changes.push(Change::PutResponse {
            key,
            value: response.write(),
        });
    }
}

fn object_meta(encoding: Encoding, bytes: &[u8]) -> Result<Meta<'_>, CodecError> {
    match encoding {
        Encoding::Json => Ok(json::parse_head(bytes)?.meta),
        Encoding::Protobuf => protobuf::parse_object_meta(protobuf::Unknown::parse(bytes)?.raw),
    }
}

fn no_version() -> CodecError {
    CodecError::Json("no resourceVersion to order it by".into())
}

/// The name in a `Status` of this resource with that reason.
fn named_in_status(
    exchange: &Exchange,
    bytes: &[u8],
    reason: &str,
) -> Result<Option<String>, CodecError> {
    let status = match exchange.encoding {
        Encoding::Json => json::parse_head(bytes)?.status,
        Encoding::Protobuf => protobuf::parse_status(protobuf::Unknown::parse(bytes)?.raw)?,
    };
    let matches =
        status.reason == reason && status.resource == exchange.plural && !status.name.is_empty();
    Ok(matches.then(|| status.name.clone().into()))
}

fn is_success(exchange: &Exchange, bytes: &[u8]) -> Result<bool, CodecError> {
    match exchange.encoding {
        Encoding::Json => {
            let head = json::parse_head(bytes)?;
            Ok(head.kind == "Status" && head.status.status == "Success")
        }
        Encoding::Protobuf => {
            let unknown = protobuf::Unknown::parse(bytes)?;
            Ok(unknown.type_meta.kind == "Status"
                && protobuf::parse_status(unknown.raw)?.status == "Success")
        }
    }
}
