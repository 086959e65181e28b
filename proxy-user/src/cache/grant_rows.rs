//! The rows of the tables `grants` and `credentials`. `authz` makes them and knows what they mean; the store only keeps them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hublet_wire::meta::Timestamp;

/// The key of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct GrantKey(pub [u8; 48]);

/// The key of a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CredentialKey(pub [u8; 32]);

/// A credential that the cloud has accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CredentialRow {
    pub verdict: Verdict,
    pub account: [u8; 16],
}

impl CredentialRow {
    /// The time, then the account.
    pub(super) fn encode(&self) -> Vec<u8> {
        [
            self.verdict.stored().to_le_bytes().as_slice(),
            &self.account,
        ]
        .concat()
    }

    pub(super) fn decode(value: &[u8]) -> Option<Self> {
        let (at, account) = value.split_first_chunk::<8>()?;
        Some(Self {
            verdict: Verdict::from_stored(u64::from_le_bytes(*at)),
            account: account.try_into().ok()?,
        })
    }
}

/// The time at which the cloud last allowed or denied something, and which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Verdict(u64);

impl Verdict {
    /// The bit of a denial.
    const DENIED: u64 = 1 << 63;

    pub(crate) fn allowed_at(time: Timestamp) -> Self {
        Self(time.as_millis() & !Self::DENIED)
    }

    pub(crate) fn denied_at(time: Timestamp) -> Self {
        Self(time.as_millis() | Self::DENIED)
    }

    pub(super) fn from_stored(value: u64) -> Self {
        Self(value)
    }

    pub(super) fn stored(self) -> u64 {
        self.0
    }

    pub(crate) fn time(self) -> Timestamp {
        Timestamp::from_millis(self.0 & !Self::DENIED)
    }

    /// The same verdict, of another time.
    #[must_use]
    pub(crate) fn with_time(self, time: Timestamp) -> Self {
        Self(time.as_millis() & !Self::DENIED | self.0 & Self::DENIED)
    }

    pub(crate) fn is_allowed(self) -> bool {
        self.0 & Self::DENIED == 0
    }
}

/// Grants and credentials that are held in memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct GrantCounts {
    pub grants: usize,
    pub credentials: usize,
}

/// Counts the clusters that the store has held; grants of a former one are void.
#[derive(Debug, Clone, Default)]
pub(crate) struct ClusterGeneration(Arc<AtomicU64>);

impl ClusterGeneration {
    pub(crate) fn current(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Called when another cluster has replaced this one.
    pub(crate) fn advance(&self) {
        self.0.fetch_add(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_keeps_its_answer_when_its_time_is_moved() {
        let [earlier, later] = [500, 900].map(Timestamp::from_millis);
        let denied = Verdict::denied_at(later).with_time(earlier);
        assert_eq!(denied, Verdict::denied_at(earlier));
        assert_eq!(denied.time(), earlier);
        assert!(!denied.is_allowed());
        assert!(Verdict::allowed_at(later).with_time(earlier).is_allowed());
        assert_eq!(Verdict::from_stored(denied.stored()), denied);
    }

    #[test]
    fn a_credential_is_decoded_as_it_was_encoded() {
        let row = CredentialRow {
            verdict: Verdict::allowed_at(Timestamp::from_millis(7)),
            account: [3; 16],
        };
        assert_eq!(CredentialRow::decode(&row.encode()), Some(row));
        assert_eq!(CredentialRow::decode(&row.encode()[1..]), None, "too short");
    }
}
