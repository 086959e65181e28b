//! Rights that the cloud has granted to callers, kept in memory and in the store (I7). In: credentials and rights that the cloud
//! accepted, granted or refused. Out: may this caller read this while the cloud is away? One hash lookup a request.
//!
//! A row is an account's: that of a token that has proven itself ([`super::judge`] says how), or anonymous callers'. Each
//! account has its share of the tables. Nothing that a client says of itself (User-Agent, an unproven token's claims) counts.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

pub(crate) use crate::authz::identity::{Credential, Identity};
use crate::authz::identity::{Token, TokenDigest, sha256};
use crate::authz::shares::{Limits, Shares, Verdict};
use crate::cache::change::Change;
use crate::cache::store::{Snapshot, StoreError};
use hublet_wire::request::Verb;

/// Most grants kept, in all and of one account.
pub(crate) const GRANTS: Limits = Limits {
    all: 16_384,
    account: 4_096,
};
/// Most grants of anonymous callers, beside those.
pub(crate) const ANONYMOUS_GRANTS: usize = 64;
/// Most credentials kept, in all and of one account.
pub(crate) const CREDENTIALS: Limits = Limits {
    all: 1_024,
    account: 256,
};
/// Most digests of refused tokens kept, in memory only.
const REFUSED: usize = 1_024;
/// A grant is written again when its time on disk is older than this, in milliseconds.
const REFRESH: u64 = 3_600_000;
/// How long somebody who was told 404 may read the object that he then writes, in milliseconds: twice as long as it takes
/// to note the 404 anew, since rights may change meanwhile.
const ABSENCE_COUNTS: u64 = 2 * REFRESH;
/// A clock that goes back by more than this has been set, in milliseconds.
const SET_BACK: u64 = 1_000;

/// An action that a right allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read, by this verb.
    Read(Verb),
    /// Be told that an object does not exist, as the cloud has told it.
    AbsenceOnly,
}

/// To do what with what, in whose stead: a SHA-256.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Right([u8; 32]);

impl Right {
    /// The right of `credential` to do this within a scope (a key of the store).
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
}

/// How the cloud stands to a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CredentialStatus {
    /// No credential, or none that the API server heeds.
    Anonymous,
    /// It has accepted the token.
    Accepted,
    /// It has refused the token.
    Refused,
    /// It has not said anything, or it isn't clear of what.
    Unknown,
}

#[derive(Debug)]
struct GrantTables {
    /// Tokens that have proven themselves, and when last.
    credentials: Shares<TokenDigest>,
    grants: Shares<Right>,
    anonymous: Shares<Right>,
    /// The last tokens that were refused, and when; newest at the back.
    refused: VecDeque<(TokenDigest, u64)>,
}

impl Default for GrantTables {
    fn default() -> Self {
        let anonymous = Limits {
            all: ANONYMOUS_GRANTS,
            account: ANONYMOUS_GRANTS,
        };
        Self {
            credentials: Shares::new(CREDENTIALS),
            grants: Shares::new(GRANTS),
            anonymous: Shares::new(anonymous),
            refused: VecDeque::new(),
        }
    }
}

impl GrantTables {
    fn refused_at(&self, token: &TokenDigest) -> Option<u64> {
        self.refused
            .iter()
            .find(|(digest, _)| digest == token)
            .map(|(_, at)| *at)
    }

    fn grants_of(&mut self, account: Identity) -> &mut Shares<Right> {
        if account == Identity::ANONYMOUS {
            &mut self.anonymous
        } else {
            &mut self.grants
        }
    }

    fn grant(&self, account: Identity, right: &Right) -> Option<Verdict> {
        let shares = if account == Identity::ANONYMOUS {
            &self.anonymous
        } else {
            &self.grants
        };
        shares.get(account, right)
    }

    fn put_grant(
        &mut self,
        account: Identity,
        right: Right,
        verdict: Verdict,
        changes: &mut Vec<Change>,
    ) {
        if let Some((from, right)) = self.grants_of(account).insert(account, right, verdict) {
            changes.push(Change::Revoke {
                key: row(from, right),
            });
        }
        changes.push(Change::Grant {
            key: row(account, right),
            at: verdict.stored(),
        });
    }

    fn put_credential(&mut self, token: &Token, verdict: Verdict, changes: &mut Vec<Change>) {
        if let Some((_, digest)) = self
            .credentials
            .insert(token.account, token.digest, verdict)
        {
            changes.push(Change::Credential {
                digest,
                value: Vec::new(),
            });
        }
        changes.push(stored_credential(token.account, token.digest, verdict));
    }
}

fn row(account: Identity, right: Right) -> Vec<u8> {
    [account.0.as_slice(), &right.0].concat()
}

/// Account and right, for a table; an unclear credential has anonymous callers' account, and no right in it.
pub(crate) fn row_of(credential: &Credential, right: Right) -> Vec<u8> {
    row(account(credential).unwrap_or(Identity::ANONYMOUS), right)
}

fn stored_credential(account: Identity, digest: TokenDigest, verdict: Verdict) -> Change {
    Change::Credential {
        digest,
        value: [verdict.stored().to_le_bytes().as_slice(), &account.0].concat(),
    }
}

/// The grants in memory.
#[derive(Debug, Default)]
pub(crate) struct Grants {
    known: RwLock<GrantTables>,
    /// The latest time that was seen, milliseconds since the epoch.
    latest: AtomicU64,
}

impl Grants {
    /// Reads what the store holds; also out comes what is to be written because it was from the future.
    ///
    /// # Errors
    /// redb's.
    pub(crate) fn load(snapshot: &Snapshot, now: u64) -> Result<(Self, Vec<Change>), StoreError> {
        let mut known = GrantTables::default();
        for (key, value) in snapshot.grants()? {
            let Some((account, right)) = key.split_first_chunk::<16>() else {
                continue;
            };
            if let Ok(right) = right.try_into() {
                let account = Identity(*account);
                known
                    .grants_of(account)
                    .insert(account, Right(right), Verdict::from_stored(value));
            }
        }
        for (digest, value) in snapshot.credentials()? {
            let Some((at, account)) = value.split_first_chunk::<8>() else {
                continue;
            };
            if let (Ok(digest), Ok(account)) = (digest.try_into(), account.try_into()) {
                let verdict = Verdict::from_stored(u64::from_le_bytes(*at));
                known.credentials.insert(Identity(account), digest, verdict);
            }
        }
        let grants = Self {
            known: RwLock::new(known),
            latest: AtomicU64::new(u64::MAX),
        };
        let changes = grants.follow(now);
        Ok((grants, changes))
    }

    /// The clock says `now`. Where it has been set back, what is from the future counts as of now from here on, so that
    /// it ages; out comes what is to be written.
    pub(crate) fn follow(&self, now: u64) -> Vec<Change> {
        let latest = self.latest.load(Ordering::Relaxed);
        if latest <= now.saturating_add(SET_BACK) {
            if latest < now {
                self.latest.fetch_max(now, Ordering::Relaxed);
            }
            return Vec::new();
        }
        let mut known = self.known.write();
        self.latest.store(now, Ordering::Relaxed);
        let mut grants = known.grants.not_after(now);
        grants.append(&mut known.anonymous.not_after(now));
        let grants = grants.into_iter().map(|(account, right, v)| Change::Grant {
            key: row(account, right),
            at: v.stored(),
        });
        let credentials = known.credentials.not_after(now).into_iter();
        grants
            .chain(credentials.map(|(account, digest, v)| stored_credential(account, digest, v)))
            .collect()
    }

    /// The credential has proven itself to the cloud within `max_age` milliseconds: a token that the cloud has accepted.
    pub(crate) fn knows(&self, credential: &Credential, now: u64, max_age: u64) -> bool {
        let Credential::Token { token, .. } = credential else {
            return false;
        };
        let proven = self
            .known
            .read()
            .credentials
            .get(token.account, &token.digest);
        proven.is_some_and(|proven| now.saturating_sub(proven.at()) <= max_age)
    }

    /// The token has proven itself so lately that another proof adds nothing.
    pub(crate) fn has_just_accepted(&self, token: &Token, now: u64) -> bool {
        is_fresh(
            self.known
                .read()
                .credentials
                .get(token.account, &token.digest),
            now,
        )
    }

    /// How the cloud stands to a credential, as far as it has said so within `max_age` milliseconds.
    pub(crate) fn credential_status(
        &self,
        credential: &Credential,
        now: u64,
        max_age: u64,
    ) -> CredentialStatus {
        let Credential::Token { token, .. } = credential else {
            return match credential {
                Credential::Unclear => CredentialStatus::Unknown,
                _ => CredentialStatus::Anonymous,
            };
        };
        let known = self.known.read();
        match known.credentials.get(token.account, &token.digest) {
            Some(proven) if now.saturating_sub(proven.at()) <= max_age => {
                CredentialStatus::Accepted
            }
            _ if known.refused_at(&token.digest).is_some() => CredentialStatus::Refused,
            _ => CredentialStatus::Unknown,
        }
    }

    /// The cloud's last word on this, if it is not older than `max_age` milliseconds: yes or no.
    pub(crate) fn verdict(
        &self,
        credential: &Credential,
        right: &Right,
        now: u64,
        max_age: u64,
    ) -> Option<bool> {
        let verdict = self.known.read().grant(account(credential)?, right)?;
        (now.saturating_sub(verdict.at()) <= max_age).then(|| verdict.is_yes())
    }

    /// The cloud has refused this after that moment, milliseconds since the epoch.
    pub(crate) fn refused_since(
        &self,
        credential: &Credential,
        right: &Right,
        moment: u64,
    ) -> bool {
        let verdict =
            account(credential).and_then(|account| self.known.read().grant(account, right));
        verdict.is_some_and(|verdict| !verdict.is_yes() && verdict.at() > moment)
    }

    /// The cloud has just given this token an answer that it gives nobody else, to a question of `asked_at`; what is to be
    /// written of it. A slow answer takes no later refusal back.
    pub(crate) fn accepted(&self, token: &Token, asked_at: u64, now: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        if !self.has_just_accepted(token, now) {
            let mut known = self.known.write();
            if known
                .refused_at(&token.digest)
                .is_some_and(|at| asked_at < at && at <= now)
            {
                return changes;
            }
            known.put_credential(token, Verdict::yes(now), &mut changes);
            known
                .refused
                .retain(|(refused, _)| *refused != token.digest);
        }
        changes
    }

    /// The cloud has just allowed this to a credential that has proven itself, or to nobody in particular.
    pub(crate) fn allowed(&self, credential: &Credential, right: Right, now: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(account) = owner(credential) else {
            return changes;
        };
        if !is_fresh(self.known.read().grant(account, &right), now) {
            self.known
                .write()
                .put_grant(account, right, Verdict::yes(now), &mut changes);
        }
        changes
    }

    /// The cloud has just shown a caller the object that he wrote. If he had been told 404 before, which the API server
    /// says to none who may not get it, he may get it.
    pub(crate) fn written(&self, credential: &Credential, object: &[u8], now: u64) -> Vec<Change> {
        let absence = Right::of(credential, Action::AbsenceOnly, object);
        if self.verdict(credential, &absence, now, ABSENCE_COUNTS) != Some(true) {
            return Vec::new();
        }
        self.allowed(
            credential,
            Right::of(credential, Action::Read(Verb::Get), object),
            now,
        )
    }

    /// The cloud has just answered 403: none of these holds any more. Only what was allowed before is remembered so.
    pub(crate) fn forbidden(
        &self,
        credential: &Credential,
        rights: &[Right],
        now: u64,
    ) -> Vec<Change> {
        let mut changes = Vec::new();
        let Some(account) = owner(credential) else {
            return changes;
        };
        if rights
            .iter()
            .all(|right| self.known.read().grant(account, right).is_none())
        {
            return changes;
        }
        let mut known = self.known.write();
        for right in rights {
            let Some(before) = known.grant(account, right) else {
                continue;
            };
            let mut written = Vec::new();
            known.put_grant(account, *right, Verdict::no(now), &mut written);
            // On disk a no is a no, whenever it was said last: it ages as fast as the yes that it took back.
            if before.is_yes() {
                changes.append(&mut written);
            }
        }
        changes
    }

    /// The cloud has just answered 401.
    pub(crate) fn rejected(&self, credential: &Credential, now: u64) -> Vec<Change> {
        let Credential::Token { token, .. } = credential else {
            return Vec::new();
        };
        let mut known = self.known.write();
        let had = known
            .credentials
            .remove(token.account, &token.digest)
            .is_some();
        match known
            .refused
            .iter_mut()
            .find(|(refused, _)| *refused == token.digest)
        {
            Some((_, at)) => *at = now,
            None => known.refused.push_back((token.digest, now)),
        }
        if known.refused.len() > REFUSED {
            known.refused.pop_front();
        }
        if had {
            vec![Change::Credential {
                digest: token.digest,
                value: Vec::new(),
            }]
        } else {
            Vec::new()
        }
    }

    /// Forgets all: another cluster has taken this one's place.
    pub(crate) fn forget(&self) {
        *self.known.write() = GrantTables::default();
    }

    /// Grants and credentials held.
    pub(crate) fn len(&self) -> (usize, usize) {
        let known = self.known.read();
        (
            known.grants.rows() + known.anonymous.rows(),
            known.credentials.rows(),
        )
    }
}

/// The account whose rights count for a credential: an ignored one gets what anonymous callers get.
fn account(credential: &Credential) -> Option<Identity> {
    match credential {
        Credential::Anonymous | Credential::Ignored => Some(Identity::ANONYMOUS),
        Credential::Token { token, .. } => Some(token.account),
        Credential::Unclear => None,
    }
}

/// The account whose rights an answer tells of.
fn owner(credential: &Credential) -> Option<Identity> {
    if *credential == Credential::Ignored {
        None
    } else {
        account(credential)
    }
}

fn is_fresh(verdict: Option<Verdict>, now: u64) -> bool {
    verdict.is_some_and(|v| {
        v.is_yes() && v.at() <= now + SET_BACK && now.saturating_sub(v.at()) < REFRESH
    })
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
