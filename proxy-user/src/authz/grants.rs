//! Rights that the cloud has granted to callers, kept in memory and in the store (I7): one hash lookup a request.
//!
//! A row belongs to the account of a token that has proven itself ([`super::authorizer`]), or to anonymous callers. Each
//! account has its share of the tables. What a client claims about itself (User-Agent, an unproven token's claims) is ignored.

mod tables;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::identity::{Credential, Identity, Token, TokenDigest, sha256};
use crate::cache::change::Change;
use crate::cache::grant_rows::{ClusterGeneration, CredentialKey, GrantCounts, GrantKey, Verdict};
use crate::cache::keys::ObjectKey;
use crate::cache::store::{Snapshot, StoreError};
use hublet_wire::meta::Timestamp;
use hublet_wire::request::Verb;
use tables::{GrantTables, grant_key, put_credential, put_grant, split_grant_key};

/// A grant is written again when its time on disk is older than this.
const REFRESH: Duration = Duration::from_secs(3600);
/// The age up to which a 404 allows its caller to read the object that it then writes: twice as long as it
/// takes to note the 404 anew, since rights may change meanwhile.
const MAX_AGE_FOR_AUTHOR: Duration = Duration::from_secs(2 * 3600);
/// A clock that goes back by more than this has been set back on purpose.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(1);

/// An action that a right allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read, by this verb.
    Read(Verb),
    /// Get the 404 of an object that does not exist, as the API server answered it before.
    AbsenceOnly,
}

/// An action on a target, with the impersonation that it is done under: a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Right([u8; 32]);

impl Right {
    /// Stands for every right of an account; no SHA-256 is zero.
    const EVERY: Self = Self([0; 32]);

    /// The right of `credential` to an action on what is at `scope` (a key of the store).
    pub(crate) fn of(credential: &Credential, action: Action, scope: &[u8]) -> Self {
        let impersonation: &[u8] = match credential {
            Credential::Token {
                impersonation: Some(impersonation),
                ..
            } => impersonation,
            _ => &[],
        };
        let action = match action {
            Action::Read(verb) => verb as u8,
            Action::AbsenceOnly => 0,
        };
        Self(sha256(&[impersonation, &[action], scope]))
    }

    /// The key of this right's row; an unclear credential has anonymous callers' account, and no right in it.
    pub(super) fn key_for(self, credential: &Credential) -> GrantKey {
        grant_key(account_of(credential).unwrap_or(Identity::ANONYMOUS), self)
    }
}

/// The cloud's last response to a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CredentialStatus {
    /// No credential, or none that the API server heeds.
    Anonymous,
    Accepted,
    Rejected,
    /// None is known, or the credential isn't understood.
    Unknown,
}

/// The grants in memory.
#[derive(Debug)]
pub(crate) struct Grants {
    tables: RwLock<GrantTables>,
    cluster: ClusterGeneration,
    /// The latest time that was seen, milliseconds since the epoch.
    latest: AtomicU64,
}

impl Grants {
    /// Reads the grants that the store holds, and the changes that its rows need because they are from the future.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn load(
        snapshot: &Snapshot,
        now: Timestamp,
        cluster: ClusterGeneration,
    ) -> Result<(Self, Vec<Change>), StoreError> {
        let mut tables = GrantTables::new(cluster.current());
        for (key, verdict) in snapshot.grants()? {
            if let Some((account, right)) = split_grant_key(&key) {
                tables.grants_of(account).insert(account, right, verdict);
            }
        }
        for (CredentialKey(digest), row) in snapshot.credentials()? {
            let account = Identity(row.account);
            tables.credentials.insert(account, digest, row.verdict);
        }
        let grants = Self {
            tables: RwLock::new(tables),
            cluster,
            latest: AtomicU64::new(u64::MAX),
        };
        let redated = grants.follow_clock(now);
        Ok((grants, redated))
    }

    /// Adds the rows of a store that [`Self::load`] could not read. Anything that this process has seen is newer: a right
    /// that was refused meanwhile stays refused, and the refusal is written to disk. Returns the changes to write: none if
    /// the cluster is no longer that of `generation`, which was current before the snapshot.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn add_late(
        &self,
        snapshot: &Snapshot,
        generation: u64,
        now: Timestamp,
    ) -> Result<Vec<Change>, StoreError> {
        let (grants, credentials) = (snapshot.grants()?, snapshot.credentials()?);
        let (mut changes, mut tokens) = (Vec::new(), HashMap::<_, Vec<_>>::new());
        let mut tables = self.write();
        if tables.generation != generation {
            return Ok(changes);
        }
        for (key, row) in credentials {
            let account = Identity(row.account);
            tokens.entry(account).or_default().push(unproven(&key.0));
            tables.add_late_credential(account, key, row.verdict, &mut changes);
        }
        for (key, verdict) in grants {
            if let Some((account, right)) = split_grant_key(&key) {
                let tokens = tokens.get(&account).into_iter().flatten();
                let accounts = tokens.copied().chain([account]);
                let denied = accounts.filter_map(|account| tables.denial(account, &right));
                let denied = denied.max().map(Verdict::denied_at);
                tables.add_late_grant(account, right, verdict, denied, &mut changes);
            }
        }
        drop(tables);
        self.latest.store(u64::MAX, Ordering::Relaxed);
        changes.append(&mut self.follow_clock(now));
        Ok(changes)
    }

    /// Follows a clock that has been set back: rows from the future get the time `now`, so that they age.
    /// Returns the changes to write.
    pub(crate) fn follow_clock(&self, now: Timestamp) -> Vec<Change> {
        let latest = Timestamp::from_millis(self.latest.load(Ordering::Relaxed));
        if latest <= now + CLOCK_TOLERANCE {
            if latest < now {
                self.latest.fetch_max(now.as_millis(), Ordering::Relaxed);
            }
            return Vec::new();
        }
        let mut tables = self.write();
        self.latest.store(now.as_millis(), Ordering::Relaxed);
        let mut grants = tables.grants.redate_future(now);
        grants.append(&mut tables.anonymous.redate_future(now));
        let credentials = tables.credentials.redate_future(now).into_iter();
        tables.denials.redate_future(now);
        tables.denials_lost_at = tables.denials_lost_at.min(Some(now));
        tables.rejections_lost_at = tables.rejections_lost_at.min(Some(now));
        grants
            .into_iter()
            .map(|(account, right, verdict)| put_grant(account, right, verdict))
            .chain(credentials.map(|(account, digest, v)| put_credential(account, digest, v)))
            .collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, GrantTables> {
        let tables = self.tables.read();
        if tables.generation == self.cluster.current() {
            return tables;
        }
        drop(tables);
        RwLockWriteGuard::downgrade(self.write())
    }

    /// Another cluster's grants are dropped before anything of this one's is read or added.
    fn write(&self) -> RwLockWriteGuard<'_, GrantTables> {
        let mut tables = self.tables.write();
        let generation = self.cluster.current();
        if tables.generation != generation {
            *tables = GrantTables::new(generation);
        }
        tables
    }

    /// The cloud has accepted the token within `max_age`.
    pub(crate) fn has_accepted(
        &self,
        credential: &Credential,
        now: Timestamp,
        max_age: Duration,
    ) -> bool {
        let Credential::Token { token, .. } = credential else {
            return false;
        };
        let accepted = self.accepted_at(token);
        accepted.is_some_and(|verdict| now - verdict.time() <= max_age)
    }

    /// The token has proven itself so lately that another proof adds nothing.
    pub(crate) fn has_just_accepted(&self, token: &Token, now: Timestamp) -> bool {
        is_fresh(self.accepted_at(token), now)
    }

    fn accepted_at(&self, token: &Token) -> Option<Verdict> {
        let tables = self.read();
        tables.credentials.get(token.account, &token.digest)
    }

    /// The cloud's last response to a credential, if it is not older than `max_age`.
    pub(crate) fn credential_status(
        &self,
        credential: &Credential,
        now: Timestamp,
        max_age: Duration,
    ) -> CredentialStatus {
        let token = match credential {
            Credential::Token { token, .. } => token,
            Credential::Unclear => return CredentialStatus::Unknown,
            Credential::Anonymous | Credential::Ignored => return CredentialStatus::Anonymous,
        };
        let tables = self.read();
        match tables.credentials.get(token.account, &token.digest) {
            Some(accepted) if now - accepted.time() <= max_age => CredentialStatus::Accepted,
            _ if tables.rejected_at(&token.digest).is_some() => CredentialStatus::Rejected,
            _ => CredentialStatus::Unknown,
        }
    }

    /// True if the cloud's last response allowed this, false if it denied it, if that is not older than `max_age`.
    pub(crate) fn verdict(
        &self,
        credential: &Credential,
        right: &Right,
        now: Timestamp,
        max_age: Duration,
    ) -> Option<bool> {
        let verdict = self.read().grant(account_of(credential)?, right)?;
        (now - verdict.time() <= max_age).then(|| verdict.is_allowed())
    }

    /// The cloud has just answered a request of `requested_at` as it answers only callers whose token it accepts. Returns
    /// the changes to write: none if the token has been rejected since.
    pub(crate) fn accept(
        &self,
        token: &Token,
        requested_at: Timestamp,
        now: Timestamp,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        if self.has_just_accepted(token, now) {
            return changes;
        }
        let mut tables = self.write();
        if tables.rejected_since(&token.digest, requested_at, now) {
            return changes;
        }
        tables.put_credential(token, Verdict::allowed_at(now), &mut changes);
        tables
            .rejected
            .retain(|(digest, _)| *digest != token.digest);
        changes
    }

    /// The cloud has just allowed this, in a response to a request of `requested_at`, to an anonymous caller or to a
    /// credential that it has accepted. Returns the changes to write: none if the right has been denied since.
    pub(crate) fn allow(
        &self,
        credential: &Credential,
        right: Right,
        requested_at: Timestamp,
        now: Timestamp,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(account) = learning_account_of(credential) else {
            return changes;
        };
        if is_fresh(self.read().grant(account, &right), now) {
            return changes;
        }
        let mut tables = self.write();
        if !tables.denied_since(credential, &right, requested_at) {
            tables.put_grant(account, right, Verdict::allowed_at(now), &mut changes);
        }
        changes
    }

    /// The API server has just returned to a caller the object that it wrote. A caller that got a 404 before may get the
    /// object, since the API server answers 404 only to callers that may read it.
    pub(crate) fn allow_author(
        &self,
        author: &Credential,
        object: ObjectKey<'_>,
        now: Timestamp,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(account) = learning_account_of(author) else {
            return changes;
        };
        let absence = Right::of(author, Action::AbsenceOnly, object.as_bytes());
        let get = Right::of(author, Action::Read(Verb::Get), object.as_bytes());
        // One lock for both, or a denial between them would be overwritten.
        let mut tables = self.write();
        let may_read = tables.grant(account, &absence).is_some_and(|absence| {
            absence.is_allowed() && now - absence.time() <= MAX_AGE_FOR_AUTHOR
        });
        if may_read && !is_fresh(tables.grant(account, &get), now) {
            tables.put_grant(account, get, Verdict::allowed_at(now), &mut changes);
        }
        changes
    }

    /// The cloud has just answered 403: none of these rights holds any more. Returns the changes to write; the denial of
    /// a right that was not known is kept in memory, against slow responses to earlier requests.
    pub(crate) fn deny(
        &self,
        credential: &Credential,
        rights: &[Right],
        now: Timestamp,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(account) = learning_account_of(credential) else {
            return changes;
        };
        let mut tables = self.write();
        for right in rights {
            let Some(before) = tables.grant(account, right) else {
                tables.put_denial(account, *right, now);
                continue;
            };
            let mut put = Vec::new();
            tables.put_grant(account, *right, Verdict::denied_at(now), &mut put);
            // A denial is written once: on disk it expires at the same time as the permission that it revoked.
            if before.is_allowed() {
                changes.append(&mut put);
            }
        }
        changes
    }

    /// The cloud has just answered 403 to a token that has not proven itself. Its claims may name anybody, so this
    /// revokes nothing; it counts against slow responses to the same token, which may prove it.
    pub(crate) fn deny_unproven(&self, credential: &Credential, rights: &[Right], now: Timestamp) {
        if let Some(account) = unproven_account_of(credential) {
            let mut tables = self.write();
            for right in rights {
                tables.put_denial(account, *right, now);
            }
        }
    }

    /// The cloud has just answered 401.
    pub(crate) fn reject(&self, credential: &Credential, now: Timestamp) -> Vec<Change> {
        let Credential::Token { token, .. } = credential else {
            return Vec::new();
        };
        let mut tables = self.write();
        tables.put_rejected(token.digest, now);
        let accepted = tables.credentials.remove(token.account, &token.digest);
        let delete = accepted.map(|_| Change::DeleteCredential {
            key: CredentialKey(token.digest),
        });
        Vec::from_iter(delete)
    }

    pub(crate) fn row_counts(&self) -> GrantCounts {
        let tables = self.read();
        GrantCounts {
            grants: tables.grants.row_count() + tables.anonymous.row_count(),
            credentials: tables.credentials.row_count(),
        }
    }
}

/// The account whose rights count for a credential; an ignored one has those of anonymous callers.
fn account_of(credential: &Credential) -> Option<Identity> {
    match credential {
        Credential::Anonymous | Credential::Ignored => Some(Identity::ANONYMOUS),
        Credential::Token { token, .. } => Some(token.account),
        Credential::Unclear => None,
    }
}

/// The account whose rights a response proves: another server may read an ignored credential as somebody's.
fn learning_account_of(credential: &Credential) -> Option<Identity> {
    match credential {
        Credential::Ignored => None,
        _ => account_of(credential),
    }
}

/// The account of a token by itself, whatever its claims name.
fn unproven_account_of(credential: &Credential) -> Option<Identity> {
    let Credential::Token { token, .. } = credential else {
        return None;
    };
    Some(unproven(&token.digest))
}

fn unproven(digest: &TokenDigest) -> Identity {
    Identity(digest.first_chunk().copied().unwrap_or_default())
}

fn is_fresh(verdict: Option<Verdict>, now: Timestamp) -> bool {
    verdict.is_some_and(|verdict| {
        let time = verdict.time();
        verdict.is_allowed() && time <= now + CLOCK_TOLERANCE && now - time < REFRESH
    })
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
