//! The tables behind [`super::Grants`], without their lock and clock: a share of rows for each account. Whoever changes a
//! table gets the changes that the store needs to hold the same rows.

use std::collections::VecDeque;

use super::{Right, account_of, unproven_account_of};
use crate::authz::identity::{Credential, Identity, Token, TokenDigest};
use crate::authz::shares::{Limits, Shares};
use crate::cache::change::Change;
use crate::cache::grant_rows::{CredentialKey, CredentialRow, GrantKey, Verdict};
use hublet_wire::meta::Timestamp;

/// Most grants kept, in all and of one account.
pub(super) const GRANTS: Limits = Limits {
    all: 16_384,
    account: 4_096,
};
/// Most grants of anonymous callers, beside those.
pub(super) const ANONYMOUS_GRANTS: usize = 64;
/// Most credentials kept, in all and of one account.
pub(super) const CREDENTIALS: Limits = Limits {
    all: 1_024,
    account: 256,
};
/// Most denials of unknown rights kept, in all and of one account, in memory only.
pub(super) const DENIALS: Limits = Limits {
    all: 1_024,
    account: 128,
};
/// Most digests of rejected tokens kept, in memory only.
pub(super) const MAX_REJECTED: usize = 1_024;

#[derive(Debug)]
pub(super) struct GrantTables {
    /// The cluster that the rows are of.
    pub generation: u64,
    /// Tokens that have proven themselves, and when last.
    pub credentials: Shares<TokenDigest>,
    pub grants: Shares<Right>,
    pub anonymous: Shares<Right>,
    /// The last denials of rights that have no row in the tables above.
    pub denials: Shares<Right>,
    /// The time up to which rights of any account may have been denied whose denials are forgotten.
    pub denials_lost_at: Option<Timestamp>,
    /// The last tokens that were rejected, and when; newest at the back.
    pub rejected: VecDeque<(TokenDigest, Timestamp)>,
    /// The time of the last rejection that is forgotten.
    pub rejections_lost_at: Option<Timestamp>,
}

impl GrantTables {
    pub(super) fn new(generation: u64) -> Self {
        let anonymous = Limits {
            all: ANONYMOUS_GRANTS,
            account: ANONYMOUS_GRANTS,
        };
        Self {
            generation,
            credentials: Shares::new(CREDENTIALS),
            grants: Shares::new(GRANTS),
            anonymous: Shares::new(anonymous),
            denials: Shares::new(DENIALS),
            denials_lost_at: None,
            rejected: VecDeque::new(),
            rejections_lost_at: None,
        }
    }

    pub(super) fn rejected_at(&self, token: &TokenDigest) -> Option<Timestamp> {
        self.rejected
            .iter()
            .find(|(digest, _)| digest == token)
            .map(|(_, at)| *at)
    }

    /// The token has been rejected after `moment`, as far as is remembered: a forgotten rejection may be any token's.
    pub(super) fn rejected_since(
        &self,
        token: &TokenDigest,
        moment: Timestamp,
        now: Timestamp,
    ) -> bool {
        let rejected_at = self.rejected_at(token).or(self.rejections_lost_at);
        rejected_at.is_some_and(|at| moment < at && at <= now)
    }

    pub(super) fn put_rejected(&mut self, token: TokenDigest, now: Timestamp) {
        self.rejected.retain(|(digest, _)| *digest != token);
        self.rejected.push_back((token, now));
        if self.rejected.len() > MAX_REJECTED {
            let forgotten = self.rejected.pop_front().map(|(_, at)| at);
            self.rejections_lost_at = self.rejections_lost_at.max(forgotten);
        }
    }

    pub(super) fn grants_of(&mut self, account: Identity) -> &mut Shares<Right> {
        if account == Identity::ANONYMOUS {
            &mut self.anonymous
        } else {
            &mut self.grants
        }
    }

    pub(super) fn grant(&self, account: Identity, right: &Right) -> Option<Verdict> {
        let shares = if account == Identity::ANONYMOUS {
            &self.anonymous
        } else {
            &self.grants
        };
        shares.get(account, right)
    }

    /// Records the denial of a right that has no row. If an older denial is evicted for it, every right of that denial's
    /// account counts as denied now; if there is no room for that either, every right of all accounts.
    pub(super) fn put_denial(&mut self, account: Identity, right: Right, now: Timestamp) {
        let denied = Verdict::denied_at(now);
        if let Some((from, ..)) = self.denials.insert(account, right, denied)
            && let Some((other, ..)) = self.denials.insert(from, Right::EVERY, denied)
            && other != from
        {
            self.denials_lost_at = self.denials_lost_at.max(Some(now));
        }
    }

    /// The time of the last denial of a right that had no row.
    pub(super) fn denial(&self, account: Identity, right: &Right) -> Option<Timestamp> {
        let of_this = self.denials.get(account, right);
        let of_every = self.denials.get(account, &Right::EVERY);
        let known = of_this.into_iter().chain(of_every).map(Verdict::time);
        known.chain(self.denials_lost_at).max()
    }

    /// The cloud has denied this after `moment`, to the account or to this token.
    pub(super) fn denied_since(
        &self,
        credential: &Credential,
        right: &Right,
        moment: Timestamp,
    ) -> bool {
        let Some(account) = account_of(credential) else {
            return false;
        };
        if let Some(verdict) = self.grant(account, right) {
            return !verdict.is_allowed() && verdict.time() > moment;
        }
        let accounts = [Some(account), unproven_account_of(credential)];
        let denials = accounts.iter().flatten();
        denials
            .filter_map(|account| self.denial(*account, right))
            .any(|at| at > moment)
    }

    /// Puts a row in. If a denial is evicted for it, that counts as one of a right that has no row.
    pub(super) fn put_grant(
        &mut self,
        account: Identity,
        right: Right,
        verdict: Verdict,
        changes: &mut Vec<Change>,
    ) {
        let evicted = self.grants_of(account).insert(account, right, verdict);
        if let Some((from, right, evicted)) = evicted {
            if !evicted.is_allowed() {
                self.put_denial(from, right, verdict.time());
            }
            changes.push(Change::DeleteGrant {
                key: grant_key(from, right),
            });
        }
        changes.push(put_grant(account, right, verdict));
    }

    /// Adds a token that an earlier process has seen accepted, or has it deleted if this one has seen it rejected.
    pub(super) fn add_late_credential(
        &mut self,
        account: Identity,
        key: CredentialKey,
        verdict: Verdict,
        changes: &mut Vec<Change>,
    ) {
        if self.credentials.get(account, &key.0).is_some() {
            return;
        }
        let rejected = self.rejected_at(&key.0).or(self.rejections_lost_at);
        let deleted = match rejected {
            Some(_) => Some(key.0),
            None => self
                .credentials
                .insert(account, key.0, verdict)
                .map(|(_, digest, _)| digest),
        };
        changes.extend(deleted.map(|digest| Change::DeleteCredential {
            key: CredentialKey(digest),
        }));
    }

    /// Adds a right that an earlier process has seen; as `denied` if this process has seen it denied.
    pub(super) fn add_late_grant(
        &mut self,
        account: Identity,
        right: Right,
        verdict: Verdict,
        denied: Option<Verdict>,
        changes: &mut Vec<Change>,
    ) {
        if self.grant(account, &right).is_some() {
            return;
        }
        let mut put = Vec::new();
        let is_revoked = verdict.is_allowed() && denied.is_some();
        let verdict = denied.filter(|_| is_revoked).unwrap_or(verdict);
        self.put_grant(account, right, verdict, &mut put);
        if !is_revoked {
            // The row is on disk already; only one that it evicts has to be deleted there.
            put.retain(|change| matches!(change, Change::DeleteGrant { .. }));
        }
        changes.append(&mut put);
    }

    pub(super) fn put_credential(
        &mut self,
        token: &Token,
        verdict: Verdict,
        changes: &mut Vec<Change>,
    ) {
        if let Some((_, digest, _)) = self
            .credentials
            .insert(token.account, token.digest, verdict)
        {
            changes.push(Change::DeleteCredential {
                key: CredentialKey(digest),
            });
        }
        changes.push(put_credential(token.account, token.digest, verdict));
    }
}

/// Joins an account and a right of it.
pub(super) fn grant_key(account: Identity, right: Right) -> GrantKey {
    let mut key = [0; 48];
    let (account_part, right_part) = key.split_at_mut(account.0.len());
    account_part.copy_from_slice(&account.0);
    right_part.copy_from_slice(&right.0);
    GrantKey(key)
}

pub(super) fn split_grant_key(key: &GrantKey) -> Option<(Identity, Right)> {
    let (account, right) = key.0.split_first_chunk()?;
    Some((Identity(*account), Right(right.try_into().ok()?)))
}

pub(super) fn put_grant(account: Identity, right: Right, verdict: Verdict) -> Change {
    Change::PutGrant {
        key: grant_key(account, right),
        verdict,
    }
}

pub(super) fn put_credential(account: Identity, digest: TokenDigest, verdict: Verdict) -> Change {
    Change::PutCredential {
        key: CredentialKey(digest),
        row: CredentialRow {
            verdict,
            account: account.0,
        },
    }
}
