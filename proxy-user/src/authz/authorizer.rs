//! Decides what a caller may read from the store, by what the cloud has been seen to allow it (I7).
//!
//! The status codes of the cloud's responses are observed: 2xx allows, 403 takes back, 401 rejects the credential. A token
//! counts as accepted only by a response that anonymous callers don't get: 2xx to anything but what is public by default,
//! or what anonymous callers have been seen to get. A 404 is remembered as this very absence, and as nothing else.
//!
//! [`Allowed`] and [`AbsenceOnly`] are the proofs of a decision. Their fields are private to this module, so that nothing
//! else can make one, and [`StoreReader`](super::reader::StoreReader) reads nothing without one.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::attributes::Attributes;
use super::grants::{CredentialStatus, Grants, Right};
use super::identity::Credential;
use crate::cache::Cache;
use crate::cache::change::Change;
use crate::cache::exchange::Author;
use crate::cache::grant_rows::GrantCounts;
use crate::cache::keys::ObjectKey;
use crate::cache::store::StoreError;
use hublet_wire::meta::Timestamp;

/// Time between two attempts to read the stored rights.
const RELOAD_DELAY: Duration = Duration::from_secs(1);

/// The parts of an API server's response that prove or revoke rights.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ObservedResponse {
    pub status: u16,
    /// The time at which the request was sent.
    pub requested_at: Timestamp,
}

/// The part of the store that is open to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// The object, list or document.
    Read,
    /// That it does not exist, if that was the cloud's last response to this caller.
    AbsenceOnly,
    /// The cloud has denied this, or has never allowed it to anonymous callers.
    Forbidden,
    /// The cloud has rejected the credential.
    Unauthorized,
    /// The cloud has never accepted the credential.
    UnknownCredential,
    /// The cloud has neither allowed nor denied this.
    NoOpinion,
}

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
    #[error("hublet: {0} is not available while the cloud is away")]
    CloudOnly(String),
    /// The cloud has neither allowed this to the caller nor denied it.
    #[error("hublet: {0}")]
    Undecided(String),
    /// The cloud has denied this to the caller, or has never allowed it to anonymous callers (403).
    #[error("{object} is forbidden: {reason}")]
    Forbidden {
        /// The object or collection that was requested.
        object: String,
        reason: String,
    },
}

impl Denied {
    /// No permission is known that would allow this.
    pub(crate) fn undecided(attributes: &Attributes<'_>) -> Self {
        Self::Undecided(not_seen_to_allow(attributes))
    }
}

/// Proof that the caller of a request may have its target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Allowed<R>(R);

/// Proof that the caller of a request may get a 404 for its target if that does not exist, and nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AbsenceOnly<R>(R);

impl<R> Deref for Allowed<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0
    }
}

impl<R> Deref for AbsenceOnly<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0
    }
}

/// The part of the store that a request may be answered with.
#[derive(Debug)]
pub(crate) enum Permission<R> {
    Read(Allowed<R>),
    AbsenceOnly(AbsenceOnly<R>),
}

/// Learns rights from the cloud's responses, keeps them in the store, and decides by them.
#[derive(Debug)]
pub(crate) struct Authorizer {
    cache: Arc<Cache>,
    grants: Arc<Grants>,
    /// Held while a right changes, here and on its way to the disk, so that both see the same order.
    changing: Mutex<()>,
    /// The store could not be read when the grants were loaded.
    is_partial: AtomicBool,
    /// The age up to which an observed right or credential counts.
    max_age: Duration,
}

impl Authorizer {
    /// Loads the grants that the store holds. An observed right counts up to `max_age`.
    ///
    /// # Errors
    /// The store can't be read.
    pub(crate) fn load(cache: Arc<Cache>, max_age: Duration) -> Result<Self, StoreError> {
        let cluster = cache.cluster_generation();
        let now = cache.clock.now();
        let is_partial = !cache.is_readable();
        let (grants, redated) = Grants::load(&cache.stored()?, now, cluster)?;
        cache.ingest().submit(redated);
        Ok(Self {
            cache,
            grants: Arc::new(grants),
            changing: Mutex::default(),
            is_partial: AtomicBool::new(is_partial),
            max_age,
        })
    }

    /// Adds the grants of a store that could not be read by [`Self::load`], once it can be. Returns at once if it could.
    pub(crate) async fn load_late(&self) {
        while self.is_partial.load(Ordering::Acquire) {
            self.cache.wait_until_readable().await;
            match self.add_late() {
                Ok(()) => self.is_partial.store(false, Ordering::Release),
                Err(error) => {
                    tracing::warn!(%error, "the stored rights can't be read yet");
                    tokio::time::sleep(RELOAD_DELAY).await;
                }
            }
        }
    }

    fn add_late(&self) -> Result<(), StoreError> {
        let _changing = self.changing.lock();
        let generation = self.cache.cluster_generation().current();
        let snapshot = self.cache.stored()?;
        let changes = self.grants.add_late(&snapshot, generation, self.now())?;
        let (revoked, others): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(Change::is_revocation);
        self.submit(revoked);
        self.submit(others);
        Ok(())
    }

    /// Learns from a response of the cloud what its caller is allowed.
    pub(crate) fn observe_response(&self, attributes: &Attributes<'_>, response: ObservedResponse) {
        let now = self.now();
        let _changing = self.changing.lock();
        // By itself: a denial is submitted however full the queue is, these changes are not.
        self.submit(self.grants.follow_clock(now));
        let mut changes = self.observe_credential_of(attributes, response, now);
        changes.append(&mut self.observe_right(attributes, response, now));
        self.submit(changes);
    }

    /// As [`Self::observe_response`], for a request that isn't understood: of its response only a 401 counts.
    pub(crate) fn observe_status(&self, credential: &Credential, status: u16) {
        if status == 401 {
            let _changing = self.changing.lock();
            self.submit(self.grants.reject(credential, self.now()));
        }
    }

    /// Decides by rights alone, before the store is read, so that a denial does not reveal what this node has stored.
    ///
    /// # Errors
    /// The cloud has not been seen to allow this, whatever the store holds.
    pub(crate) fn authorize<'a, R: AsRef<Attributes<'a>>>(
        &self,
        request: R,
    ) -> Result<Permission<R>, Denied> {
        let attributes = request.as_ref();
        match self.decide(attributes) {
            Decision::Read => Ok(Permission::Read(Allowed(request))),
            Decision::AbsenceOnly => Ok(Permission::AbsenceOnly(AbsenceOnly(request))),
            Decision::Unauthorized => Err(Denied::Unauthorized),
            Decision::UnknownCredential => Err(Denied::UnknownCredential),
            Decision::NoOpinion if attributes.request.subresource().is_empty() => {
                Err(Denied::undecided(attributes))
            }
            Decision::NoOpinion => Err(Denied::CloudOnly(attributes.request.describe())),
            Decision::Forbidden => Err(Denied::Forbidden {
                object: attributes.request.describe(),
                reason: not_seen_to_allow(attributes),
            }),
        }
    }

    /// The cloud has accepted this credential, however long ago.
    pub(crate) fn has_accepted(&self, credential: &Credential) -> bool {
        let now = self.now();
        self.grants.has_accepted(credential, now, Duration::MAX)
    }

    /// The author of a write, which may thereby read what it has written.
    pub(crate) fn author(&self, credential: &Credential) -> Arc<dyn Author> {
        Arc::new(GrantedAuthor {
            grants: Arc::clone(&self.grants),
            credential: credential.clone(),
        })
    }

    pub(crate) fn row_counts(&self) -> GrantCounts {
        self.grants.row_counts()
    }

    fn now(&self) -> Timestamp {
        self.cache.clock.now()
    }

    fn submit(&self, changes: Vec<Change>) {
        self.cache.ingest().submit(changes);
    }

    /// A token proves itself by a success that anonymous callers don't get.
    fn observe_credential_of(
        &self,
        attributes: &Attributes<'_>,
        response: ObservedResponse,
        now: Timestamp,
    ) -> Vec<Change> {
        match attributes.credential {
            Credential::Token { token, .. }
                if is_success(response.status)
                    && !self.grants.has_just_accepted(token, now)
                    && !self.is_public(attributes, now) =>
            {
                self.grants.accept(token, response.requested_at, now)
            }
            _ => Vec::new(),
        }
    }

    fn observe_right(
        &self,
        attributes: &Attributes<'_>,
        response: ObservedResponse,
        now: Timestamp,
    ) -> Vec<Change> {
        let (grants, credential) = (&self.grants, attributes.credential);
        if response.status == 401 {
            return grants.reject(credential, now);
        }
        // The claims of a token that hasn't proven itself may name anybody.
        let is_proven = grants.has_accepted(credential, now, self.max_age);
        let is_known = is_proven || *credential == Credential::Anonymous;
        let allowed = match (response.status, attributes.right()) {
            (403, Some(_)) if is_known => {
                return grants.deny(credential, &attributes.revoked_rights(), now);
            }
            (403, Some(_)) => {
                grants.deny_unproven(credential, &attributes.revoked_rights(), now);
                return Vec::new();
            }
            _ if !is_known => return Vec::new(),
            (404, _) if is_proven => attributes.absence_right(),
            (status, right) if is_success(status) => right,
            _ => None,
        };
        match allowed {
            Some(right) => grants.allow(credential, right, response.requested_at, now),
            None => Vec::new(),
        }
    }

    /// Anonymous callers may have the target, as far as is known.
    fn is_public(&self, attributes: &Attributes<'_>, now: Timestamp) -> bool {
        let right = attributes.anonymous_right();
        attributes.is_public_by_default()
            || self
                .grants
                .verdict(&Credential::Anonymous, &right, now, Duration::MAX)
                == Some(true)
    }

    fn decide(&self, attributes: &Attributes<'_>) -> Decision {
        let (grants, now) = (&self.grants, self.now());
        self.submit(grants.follow_clock(now));
        let credential = attributes.credential;
        let credential_status = grants.credential_status(credential, now, self.max_age);
        match credential_status {
            CredentialStatus::Rejected => return Decision::Unauthorized,
            CredentialStatus::Unknown => return Decision::UnknownCredential,
            CredentialStatus::Anonymous | CredentialStatus::Accepted => {}
        }
        let Some(right) = attributes.right() else {
            return Decision::NoOpinion;
        };
        let verdict = grants.verdict(credential, &right, now, self.max_age);
        if verdict == Some(true) || self.allows_any(credential, &attributes.covering_rights(), now)
        {
            return Decision::Read;
        }
        if self.allows_any(credential, attributes.absence_right().as_slice(), now) {
            return Decision::AbsenceOnly;
        }
        match (credential_status, verdict) {
            (CredentialStatus::Anonymous, _) if attributes.request.is_resource() => {
                Decision::Forbidden
            }
            (_, Some(false)) => Decision::Forbidden,
            _ => Decision::NoOpinion,
        }
    }

    fn allows_any(&self, credential: &Credential, rights: &[Right], now: Timestamp) -> bool {
        rights
            .iter()
            .any(|right| self.grants.verdict(credential, right, now, self.max_age) == Some(true))
    }
}

/// The caller of a write, by its credential.
#[derive(Debug)]
struct GrantedAuthor {
    grants: Arc<Grants>,
    credential: Credential,
}

impl Author for GrantedAuthor {
    fn observe_object(&self, object: ObjectKey<'_>, now: Timestamp) -> Vec<Change> {
        self.grants.allow_author(&self.credential, object, now)
    }
}

/// A 304 is sent to no one who may not have the document.
fn is_success(status: u16) -> bool {
    matches!(status, 200..=299 | 304)
}

fn not_seen_to_allow(attributes: &Attributes<'_>) -> String {
    let verb = attributes.request.verb().as_str();
    let target = attributes.request.describe();
    format!("the cloud is away, and has not been seen to allow this caller to {verb} {target}")
}

#[cfg(test)]
#[path = "authorizer_tests.rs"]
mod tests;
