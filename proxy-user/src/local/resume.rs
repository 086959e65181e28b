//! Where a WATCH goes on from. In: the resourceVersion that a client has seen last, and what the store knows of its
//! collection. Out: the changes since, or that they can't be told and the client must list again (410); never silence
//! about what is known (I5).

use std::collections::HashMap;

use parking_lot::Mutex;

use super::authorize::Allowed;
use super::error::LocalError;
use super::list::CompleteCollection;
use super::{Local, LocalRequest};
use crate::authz::caller::Client;
use crate::cache::record::Record;
use crate::cache::store::StoreError;
use hublet_wire::media::Encoding;
use hublet_wire::request::Verb;
use hublet_wire::status::Status;
use hublet_wire::watch::{EventType, push_frame};

/// Most changes, and bytes of them, that are told; beyond it the client lists again.
const MAX_CHANGES: (usize, usize) = (512, 1 << 20);
/// Most callers and collections of which it is remembered when they were listed; beyond it all are forgotten.
const MAX_LISTED: usize = 4_096;

/// The moment at which each caller was last told a collection as a whole, in milliseconds since the epoch.
///
/// A change beyond a collection's resourceVersion (an object that was read or written since, a 404) can't be told
/// as an event: the client would go on from its resourceVersion and miss others' changes before it. So it has to list
/// again, once: the list holds those changes, at the collection's own resourceVersion.
#[derive(Debug, Default)]
pub(super) struct Listed(Mutex<HashMap<(Client, Vec<u8>), u64>>);

impl Listed {
    /// Two clients may share an account, and only one of them be told.
    fn key(question: &LocalRequest<'_>) -> (Client, Vec<u8>) {
        (question.flow.client(), question.asked().listing())
    }

    /// The caller is being told all of it now.
    pub(super) fn remember(&self, question: &LocalRequest<'_>, now: u64) {
        let mut listed = self.0.lock();
        if listed.len() >= MAX_LISTED {
            listed.clear();
        }
        listed.insert(Self::key(question), now);
    }

    fn at(&self, question: &LocalRequest<'_>) -> u64 {
        self.0
            .lock()
            .get(&Self::key(question))
            .copied()
            .unwrap_or(0)
    }
}

/// The beginning of a watch that resumes.
#[derive(Debug)]
pub(super) enum Resume {
    /// These events; none where nothing has changed.
    Events(Encoding, Vec<u8>),
    /// It must list again.
    Expired(String),
}

/// The changes of a collection since a resourceVersion.
#[derive(Debug, Default)]
struct Changes {
    told: Vec<(u64, Encoding, Vec<u8>)>,
    bytes: usize,
    /// When the last change was seen that the collection's resourceVersion does not cover.
    beyond: Option<u64>,
}

impl Changes {
    fn take(&mut self, record: &Record<'_>, (from, covered): (u64, u64)) {
        if record.version <= from {
            return;
        }
        if record.version > covered {
            self.beyond = self.beyond.max(Some(record.stored_at));
            return;
        }
        self.bytes += record.body.len();
        if !self.are_too_many() {
            self.told
                .push((record.version, record.encoding, record.object().to_vec()));
        }
    }

    fn are_too_many(&self) -> bool {
        self.told.len() >= MAX_CHANGES.0 || self.bytes > MAX_CHANGES.1
    }

    /// The events in the order of their resourceVersions.
    fn events(mut self) -> Vec<u8> {
        self.told.sort_unstable_by_key(|(version, ..)| *version);
        let mut out = Vec::with_capacity(self.bytes);
        for (_, encoding, object) in &self.told {
            push_frame(&mut out, EventType::Modified, *encoding, object);
        }
        out
    }
}

impl Local {
    /// The beginning of a watch by a client that has seen `from`.
    pub(super) fn resume(
        &self,
        question: &Allowed<'_>,
        found: Option<&CompleteCollection>,
        from: u64,
    ) -> Result<Resume, LocalError> {
        let accepts = question.accepts;
        let nothing = Resume::Events(
            accepts.preferred(|_| true).unwrap_or(Encoding::Json),
            Vec::new(),
        );
        let Some(found) = found else {
            let expired = Resume::Expired(format!("too old resource version: {from}"));
            return Ok(if self.is_behind(question, from)? {
                expired
            } else {
                nothing
            });
        };
        let collection = &found.collection;
        let expired = Resume::Expired(format!(
            "too old resource version: {from} ({})",
            collection.version
        ));
        let known_from = collection
            .followed_from
            .unwrap_or(collection.version)
            .max(collection.departed);
        if from < known_from {
            return Ok(expired);
        }
        let mut changes = Changes::default();
        let mut walk = found.walk()?;
        while walk
            .next(|record| changes.take(&record, (from, collection.version)))?
            .is_some()
        {}
        let beyond = changes.beyond.max(found.last_deletion_beyond(from)?);
        if changes.are_too_many() || beyond.is_some_and(|at| at > self.listed.at(question)) {
            return Ok(expired);
        }
        if changes.told.is_empty() {
            return Ok(nothing);
        }
        let encoding = found.encoding(question.request, &accepts)?;
        Ok(Resume::Events(encoding, changes.events()))
    }

    /// Of a collection that isn't known as a whole: something under it has changed since.
    fn is_behind(&self, question: &Allowed<'_>, from: u64) -> Result<bool, StoreError> {
        // The changes that a selection lacks aren't known.
        if question.request.has_selectors() || question.request.verb() != Verb::Watch {
            return Ok(false);
        }
        let snapshot = self.cache.stored(question)?;
        let gone = snapshot
            .last_deletion_beyond(question.scope(), (from, u64::MAX))?
            .is_some();
        Ok(gone || snapshot.has_changed_since(question.scope(), from, u64::MAX)?)
    }
}

/// The event that ends a watch which can't go on, as the API server sends it.
pub(super) fn expired(message: &str, encoding: Encoding) -> Vec<u8> {
    let status = Status {
        code: 410,
        reason: "Expired",
        message,
        details: None,
    }
    .encode(encoding);
    let mut out = Vec::with_capacity(status.len() + 64);
    push_frame(
        &mut out,
        EventType::Error,
        encoding,
        status.strip_suffix(b"\n").unwrap_or(&status),
    );
    out
}
