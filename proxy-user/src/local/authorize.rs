//! The way to the store leads through here: who asks is judged by grants alone, before anything is looked at, so that a
//! refusal tells nothing of what this node holds (I7). In: a question. Out: `Permission`, or [`Denied`].

use std::ops::Deref;
use std::sync::Arc;

use super::LocalRequest;
use crate::authz::decide::{Answered, Decision};
use crate::cache::Cache;
use crate::cache::keys::ObjectKey;
use crate::cache::store::{Lookup, Snapshot, StoreError};

/// A read that the caller is not known to be allowed while the cloud is away.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Denied {
    /// The cloud has rejected the credential (401).
    #[error("Unauthorized")]
    Unauthorized,
    /// The cloud has not been seen to accept the credential, nor to reject it.
    #[error("hublet: the cloud is away, and has not been seen to accept this credential")]
    UnknownCredential,
    /// Subresources (logs, scale) are never stored.
    #[error("hublet: {0} can't be had while the cloud is away")]
    CloudOnly(String),
    /// The cloud has neither allowed this to the caller nor refused it.
    #[error("hublet: {0}")]
    Undecided(String),
    /// The cloud has refused this to the caller, or has never allowed it to anonymous callers (403).
    #[error("{object} is forbidden: {why}")]
    Forbidden {
        /// The object or collection that was asked for.
        object: String,
        why: String,
    },
}

/// A question whose asker may have what it asks for. Made here only; whatever looks into the store needs it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed<'a>(LocalRequest<'a>);

impl<'a> Deref for Allowed<'a> {
    type Target = LocalRequest<'a>;

    fn deref(&self) -> &LocalRequest<'a> {
        &self.0
    }
}

/// A question for an object whose asker was told 404: he may be told so again.
#[derive(Debug, Clone, Copy)]
pub(super) struct AbsenceOnly<'a>(LocalRequest<'a>);

impl<'a> Deref for AbsenceOnly<'a> {
    type Target = LocalRequest<'a>;

    fn deref(&self) -> &LocalRequest<'a> {
        &self.0
    }
}

/// The part of the store that the caller may have.
#[derive(Debug)]
pub(super) enum Permission<'a> {
    Read(Allowed<'a>),
    /// The news that the object does not exist.
    AbsenceOnly(AbsenceOnly<'a>),
}

/// The store, which opens to who is allowed.
#[derive(Debug)]
pub(super) struct Guarded {
    cache: Arc<Cache>,
    /// How long the cloud's word counts, in milliseconds.
    max_age: u64,
}

impl Guarded {
    pub(super) fn new(cache: Arc<Cache>, max_age: u64) -> Self {
        Self { cache, max_age }
    }

    /// Milliseconds since the epoch.
    pub(super) fn now(&self) -> u64 {
        self.cache.clock.now()
    }

    pub(super) fn generation(&self) -> u64 {
        self.cache.generation()
    }

    pub(super) async fn opened_anew(&self, since: u64) -> bool {
        self.cache.opened_anew(since).await
    }

    pub(super) fn asked(&self, scope: &[u8]) {
        self.cache.asked(scope);
    }

    pub(super) fn judge(&self, question: &LocalRequest<'_>, answered: Answered) {
        self.cache.judge(&question.asked(), answered, self.max_age);
    }

    /// # Errors
    /// The cloud has not been seen to allow it, whatever the store holds.
    pub(super) fn authorize<'a>(
        &self,
        question: LocalRequest<'a>,
    ) -> Result<Permission<'a>, Denied> {
        let has_subresource = !question.request.subresource().is_empty();
        match self.cache.decide(&question.asked(), self.max_age) {
            Decision::Read => Ok(Permission::Read(Allowed(question))),
            Decision::AbsenceOnly => Ok(Permission::AbsenceOnly(AbsenceOnly(question))),
            Decision::Unauthorized => Err(Denied::Unauthorized),
            Decision::UnknownCaller => Err(Denied::UnknownCredential),
            Decision::Unknown if has_subresource => Err(Denied::CloudOnly(question.describe())),
            Decision::Unknown => Err(Denied::Undecided(question.not_allowed())),
            Decision::Forbidden => Err(Denied::Forbidden {
                object: question.describe(),
                why: question.not_allowed(),
            }),
        }
    }

    /// A snapshot that holds what has been seen so far.
    ///
    /// # Errors
    /// redb's.
    pub(super) async fn snapshot(&self, _: &Allowed<'_>) -> Result<Snapshot, StoreError> {
        self.cache.snapshot().await
    }

    /// A snapshot of what is on disk.
    ///
    /// # Errors
    /// redb's.
    pub(super) fn stored(&self, _: &Allowed<'_>) -> Result<Snapshot, StoreError> {
        self.cache.stored()
    }

    /// When the cloud said that the object does not exist, if nothing has been seen of it since.
    ///
    /// # Errors
    /// redb's.
    pub(super) async fn absent_since(
        &self,
        question: &AbsenceOnly<'_>,
    ) -> Result<Option<u64>, StoreError> {
        match self
            .cache
            .snapshot()
            .await?
            .object(ObjectKey::new(question.scope()), |_| ())?
        {
            Lookup::Absent(at) => Ok(Some(at)),
            Lookup::Found(()) | Lookup::Unknown => Ok(None),
        }
    }
}

impl LocalRequest<'_> {
    pub(super) fn not_allowed(&self) -> String {
        let (verb, what) = (self.request.verb().as_str(), self.describe());
        format!("the cloud is away, and has not been seen to allow this caller to {verb} {what}")
    }
}
