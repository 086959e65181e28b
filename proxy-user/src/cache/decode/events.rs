//! Watch events: each frame reports a change of one object and advances its collection.

use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::{CodecError, json, protobuf};

use crate::cache::change::{Change, Membership, Observation};
use crate::cache::exchange::{Exchange, is_custom_resource};
use crate::cache::keys::ObjectKeyBuf;
use crate::cache::paginate::MAX_MEMBERS;
use crate::cache::record::{Collection, NewRecord, TypeHint};
use crate::cache::variants;

/// Decodes the frames of one chunk of a watch.
pub(super) struct EventSink<'a> {
    exchange: &'a Exchange,
    /// The keys seen so far, until the bookmark that ends the initial events.
    initial: &'a mut Option<Vec<ObjectKeyBuf>>,
    /// Time of the chunk's arrival.
    now: Timestamp,
    changes: &'a mut Vec<Change>,
}

/// The fields of a bookmark that matter here.
struct Bookmark {
    api_version: String,
    kind: String,
    version: Option<ResourceVersion>,
    ends_initial_events: bool,
}

impl<'a> EventSink<'a> {
    pub(super) fn new(
        exchange: &'a Exchange,
        initial: &'a mut Option<Vec<ObjectKeyBuf>>,
        now: Timestamp,
        changes: &'a mut Vec<Change>,
    ) -> Self {
        Self {
            exchange,
            initial,
            now,
            changes,
        }
    }

    pub(super) fn push_frame(&mut self, frame: &[u8]) -> Result<(), CodecError> {
        match self.exchange.encoding {
            Encoding::Json => {
                let (kind, object) = json::parse_watch_event(frame)?;
                self.push_event(&kind, object)
            }
            Encoding::Protobuf => {
                let (kind, object) = protobuf::parse_watch_event(frame)?;
                self.push_event(kind, object)
            }
        }
    }

    fn push_event(&mut self, kind: &str, object: &[u8]) -> Result<(), CodecError> {
        match kind {
            "BOOKMARK" => self.push_bookmark(&Bookmark::decode(self.exchange.encoding, object)?),
            "ADDED" | "MODIFIED" => self.push_object(object),
            "DELETED" => self.push_deletion(object),
            _ => Err(CodecError::Json(format!("the watch ended with {kind}"))),
        }
    }

    fn decode_record(&self, object: &[u8]) -> Result<NewRecord, CodecError> {
        match self.exchange.encoding {
            Encoding::Json => NewRecord::json(object, TypeHint::default(), self.now),
            Encoding::Protobuf => NewRecord::protobuf(object, self.now),
        }
    }

    fn push_object(&mut self, object: &[u8]) -> Result<(), CodecError> {
        let record = self.decode_record(object)?;
        let key = self.exchange.member_key(&record)?;
        let version = record.version;
        let observed = match self.initial {
            Some(members) if members.len() >= MAX_MEMBERS => {
                return Err(CodecError::Limit("a watch has too many initial events"));
            }
            Some(members) => {
                members.push(key.clone());
                self.initial_observation()
            }
            None => Observation::watch_event(self.now),
        };
        let member = self.membership(&key, true);
        self.changes.push(Change::Upsert {
            key,
            record,
            observed,
        });
        self.advance(version, member);
        Ok(())
    }

    fn push_deletion(&mut self, object: &[u8]) -> Result<(), CodecError> {
        let record = self.decode_record(object)?;
        let key = self.exchange.member_key(&record)?;
        let version = record.version;
        // An object that leaves a changeable selector is reported as DELETED, but may still exist.
        let member = self.membership(&key, false);
        let is_deleted = !self.exchange.has_selectors() || self.exchange.stable_selector;
        self.changes.push(if is_deleted {
            Change::Delete {
                key,
                version,
                observed: Observation::watch_event(self.now),
            }
        } else {
            Change::Invalidate { key, version }
        });
        self.advance_past_departure(version, member);
        Ok(())
    }

    fn push_bookmark(&mut self, bookmark: &Bookmark) -> Result<(), CodecError> {
        if variants::is_variant(&bookmark.api_version, &bookmark.kind) {
            return Err(CodecError::Variant(bookmark.kind.clone()));
        }
        let Some(version) = bookmark.version else {
            return Ok(());
        };
        match self.initial.take_if(|_| bookmark.ends_initial_events) {
            Some(members) => self.complete_initial_events(version, bookmark, members),
            None => {
                self.advance(version, None);
                Ok(())
            }
        }
    }

    /// Stores the initial events, which are complete now, as a list.
    fn complete_initial_events(
        &mut self,
        version: ResourceVersion,
        bookmark: &Bookmark,
        members: Vec<ObjectKeyBuf>,
    ) -> Result<(), CodecError> {
        let Bookmark {
            api_version, kind, ..
        } = bookmark;
        self.exchange.check_type(TypeHint { api_version, kind })?;
        let api_version = api_version.clone();
        let record = Collection {
            unstructured: is_custom_resource(&self.exchange.resource),
            ..Collection::new(version, self.now, format!("{kind}List"), api_version)
        };
        self.changes.push(Change::ReplaceCollection {
            collection: self.exchange.requested_collection().to_buf(),
            record,
            members,
            observed: self.initial_observation(),
        });
        Ok(())
    }

    fn advance(&mut self, version: ResourceVersion, member: Option<Membership>) {
        self.push_advance(version, member, false);
    }

    fn advance_past_departure(&mut self, version: ResourceVersion, member: Option<Membership>) {
        self.push_advance(version, member, true);
    }

    fn push_advance(
        &mut self,
        version: ResourceVersion,
        member: Option<Membership>,
        departs: bool,
    ) {
        // Initial events are in no order of versions: only the bookmark behind them counts.
        if self.initial.is_none() {
            self.changes.push(Change::AdvanceCollection {
                collection: self.exchange.requested_collection().to_buf(),
                from: self.exchange.watch_from,
                version,
                at: self.now,
                member,
                departs,
            });
        }
    }

    fn membership(&self, key: &ObjectKeyBuf, joins: bool) -> Option<Membership> {
        self.exchange.has_selectors().then(|| Membership {
            key: key.clone(),
            joins,
        })
    }

    fn initial_observation(&self) -> Observation {
        Observation {
            not_after: self.now,
            ..self.exchange.list_observation()
        }
    }
}

impl Bookmark {
    fn decode(encoding: Encoding, object: &[u8]) -> Result<Self, CodecError> {
        match encoding {
            Encoding::Json => {
                let head = json::parse_head(object)?;
                Ok(Self {
                    version: head.meta.version(),
                    ends_initial_events: head.meta.initial_events_end,
                    api_version: head.api_version.into_owned(),
                    kind: head.kind.into_owned(),
                })
            }
            Encoding::Protobuf => {
                let unknown = protobuf::Unknown::parse(object)?;
                let meta = protobuf::parse_object_meta(unknown.raw)?;
                Ok(Self {
                    version: meta.version(),
                    ends_initial_events: meta.initial_events_end,
                    api_version: unknown.type_meta.api_version.to_owned(),
                    kind: unknown.type_meta.kind.to_owned(),
                })
            }
        }
    }
}
