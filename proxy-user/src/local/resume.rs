//! Resuming a WATCH at a resourceVersion: the changes since, or 410 Expired if they are not all known.
//! A known change is never withheld (I5).

use std::collections::HashMap;

use parking_lot::Mutex;

use super::collection::CompleteCollection;
use super::error::LocalError;
use super::held_watch::InitialEvents;
use super::{Local, LocalRequest};
use crate::authz::authorizer::Allowed;
use crate::cache::grant_rows::GrantKey;
use crate::cache::record::{Collection, Record};
use crate::cache::store::{Covered, StoreError};
use crate::caller::Client;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::request::Verb;
use hublet_wire::status::Status;
use hublet_wire::watch::{EventType, push_frame};

/// Beyond this number or size of changes the client must list again.
const MAX_CHANGES: usize = 512;
const MAX_CHANGED_BYTES: usize = 1 << 20;

/// Beyond it all times are forgotten.
const MAX_LIST_TIMES: usize = 4_096;

/// The time at which each caller was last given a whole collection.
///
/// A change beyond a collection's resourceVersion (an object that was read or written since, a 404)
/// can't be sent as an event: the client would resume from its resourceVersion and miss others'
/// changes before it. So the client has to list again, once: the list contains those changes, at the
/// collection's own resourceVersion.
#[derive(Debug, Default)]
pub(super) struct ListTimes(Mutex<HashMap<ListKey, Timestamp>>);

/// Two clients may share an account, and only one of them have listed.
#[derive(Debug, PartialEq, Eq, Hash)]
struct ListKey {
    client: Client,
    /// Account and collection.
    list: GrantKey,
}

impl ListKey {
    fn of(request: &LocalRequest<'_>) -> Self {
        Self {
            client: request.flow.client(),
            list: request.attributes.list_key(),
        }
    }
}

impl ListTimes {
    pub(super) fn remember(&self, request: &LocalRequest<'_>, now: Timestamp) {
        let mut times = self.0.lock();
        if times.len() >= MAX_LIST_TIMES {
            times.clear();
        }
        times.insert(ListKey::of(request), now);
    }

    /// The epoch if it never was.
    fn last(&self, request: &LocalRequest<'_>) -> Timestamp {
        let key = ListKey::of(request);
        self.0.lock().get(&key).copied().unwrap_or_default()
    }
}

/// The beginning of a watch.
pub(super) enum Beginning {
    Events {
        encoding: Encoding,
        events: InitialEvents,
    },
    /// The client must list again: the message of the 410.
    Expired(String),
}

impl Beginning {
    fn unchanged(request: &LocalRequest<'_>) -> Self {
        Self::Events {
            encoding: request.preferred_encoding(),
            events: InitialEvents::Changes(Vec::new()),
        }
    }
}

/// A change since the client's resourceVersion.
#[derive(Debug)]
struct Changed {
    version: ResourceVersion,
    encoding: Encoding,
    object: Vec<u8>,
}

#[derive(Debug)]
struct Changes {
    /// The resourceVersion that the client has.
    from: ResourceVersion,
    /// The resourceVersion up to which the collection is complete.
    covered: ResourceVersion,
    changed: Vec<Changed>,
    bytes: usize,
    /// The time of the last change beyond the collection's resourceVersion.
    last_beyond: Option<Timestamp>,
}

impl Changes {
    fn new(from: ResourceVersion, covered: ResourceVersion) -> Self {
        Self {
            from,
            covered,
            changed: Vec::new(),
            bytes: 0,
            last_beyond: None,
        }
    }

    fn add(&mut self, record: &Record<'_>) {
        if record.version <= self.from {
            return;
        }
        if record.version > self.covered {
            self.last_beyond = self.last_beyond.max(Some(record.stored_at));
            return;
        }
        self.bytes += record.body.len();
        if !self.are_too_many() {
            self.changed.push(Changed {
                version: record.version,
                encoding: record.encoding,
                object: record.object().to_vec(),
            });
        }
    }

    fn are_too_many(&self) -> bool {
        self.changed.len() >= MAX_CHANGES || self.bytes > MAX_CHANGED_BYTES
    }

    /// Encodes the changes in the order of their resourceVersions.
    fn into_events(mut self) -> Vec<u8> {
        self.changed.sort_unstable_by_key(|change| change.version);
        let mut out = Vec::with_capacity(self.bytes);
        for change in &self.changed {
            push_frame(
                &mut out,
                EventType::Modified,
                change.encoding,
                &change.object,
            );
        }
        out
    }
}

impl Local {
    /// Resumes a watch of a client that has seen version `from`.
    pub(super) async fn resume(
        &self,
        allowed: &Allowed<LocalRequest<'_>>,
        found: Option<&CompleteCollection>,
        from: ResourceVersion,
    ) -> Result<Beginning, LocalError> {
        let Some(found) = found else {
            return Ok(if self.has_changed_since(allowed, from).await? {
                Beginning::Expired(format!("too old resource version: {from}"))
            } else {
                Beginning::unchanged(allowed)
            });
        };
        let changes = if from < changes_known_from(&found.collection) {
            None
        } else {
            self.known_changes(allowed, found, from)?
        };
        match changes {
            None => Ok(Beginning::Expired(format!(
                "too old resource version: {from} ({})",
                found.collection.version
            ))),
            Some(changes) if changes.changed.is_empty() => Ok(Beginning::unchanged(allowed)),
            Some(changes) => Ok(Beginning::Events {
                encoding: found.encoding(allowed.request(), &allowed.accepts)?,
                events: InitialEvents::Changes(changes.into_events()),
            }),
        }
    }

    /// All changes since `from`; `None` if they are too many, or can't all be sent as events.
    fn known_changes(
        &self,
        allowed: &Allowed<LocalRequest<'_>>,
        found: &CompleteCollection,
        from: ResourceVersion,
    ) -> Result<Option<Changes>, StoreError> {
        let mut changes = Changes::new(from, found.collection.version);
        let mut cursor = found.cursor()?;
        while cursor.next(|record| changes.add(&record))?.is_some() {}
        let last_beyond = changes.last_beyond.max(found.last_deletion_beyond(from)?);
        let must_list = last_beyond.is_some_and(|at| at > self.listed.last(allowed));
        Ok((!must_list && !changes.are_too_many()).then_some(changes))
    }

    /// True if an object has changed in a collection that is not completely known.
    async fn has_changed_since(
        &self,
        allowed: &Allowed<LocalRequest<'_>>,
        from: ResourceVersion,
    ) -> Result<bool, StoreError> {
        // Objects that have left a selection aren't known.
        if allowed.request().has_selectors() || allowed.request().verb() != Verb::Watch {
            return Ok(false);
        }
        let snapshot = self.store.snapshot(allowed).await?;
        let scope = allowed.scope();
        let covered = Covered {
            version: from,
            until: Timestamp::MAX,
        };
        let deletion = snapshot.last_deletion_beyond(scope, covered)?;
        Ok(deletion.is_some() || snapshot.has_changed_since(scope, from, Timestamp::MAX)?)
    }
}

/// The version from which on every change of the collection can be sent as an event.
fn changes_known_from(collection: &Collection) -> ResourceVersion {
    let followed_from = collection.followed_from;
    followed_from
        .unwrap_or(collection.version)
        .max(collection.departed)
}

/// The event that ends a watch whose resourceVersion is too old.
pub(super) fn expired_event(message: &str, encoding: Encoding) -> Vec<u8> {
    let status = Status {
        code: 410,
        reason: "Expired",
        message,
        details: None,
    };
    let object = status.encode(encoding);
    let object = object.strip_suffix(b"\n").unwrap_or(&object);
    let mut out = Vec::with_capacity(object.len() + 64);
    push_frame(&mut out, EventType::Error, encoding, object);
    out
}
