//! What the cloud said, as operations on the store. In: observed answers. Out: [`Op`]s for `apply`.

use crate::authz::shares::Verdict;
use crate::cache::record::{Collection, NewRecord};

/// From where something is known of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A read or write of this object.
    Alone,
    Listed,
    Event,
}

/// When something was said, milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Said {
    /// When the question was asked; of a watch's event: when it came.
    pub asked: u64,
    /// It tells of no moment before this one, so it overrules what was known before, whatever the resourceVersions; 0
    /// where resourceVersions alone say what is older.
    pub since: u64,
    /// When the answer began: it tells of no moment after this one.
    pub at: u64,
    /// The kind of answer.
    pub answer: Answer,
}

impl Said {
    /// A watch's event that came at this time: as late as the watch is slow.
    pub(crate) fn event(now: u64) -> Self {
        Self {
            asked: now,
            since: 0,
            at: now,
            answer: Answer::Event,
        }
    }

    /// It counts more than what was known at this time, even against the resourceVersions. Of the same millisecond it is
    /// taken to be later: it was asked for once that was known.
    pub(crate) fn overrules(&self, at: u64) -> bool {
        self.since > 0 && self.since >= at
    }

    /// Answered by etcd, not by a cache that may lag.
    pub(crate) fn is_fresh(&self) -> bool {
        self.since == self.asked
    }
}

/// One thing that the cloud said.
#[derive(Debug)]
pub(crate) enum Op {
    /// An object as it is.
    Upsert {
        key: Vec<u8>,
        record: NewRecord,
        /// When it was said.
        said: Said,
    },
    /// It does not exist: a 404, a DELETE's end, a DELETED event.
    Gone {
        key: Vec<u8>,
        /// resourceVersion of the deletion, 0 where the answer has none.
        version: u64,
        /// When it was said.
        said: Said,
    },
    /// It left a selector that may change: whether it exists isn't known any more.
    Forget {
        key: Vec<u8>,
        /// resourceVersion of the event.
        version: u64,
    },
    /// It may be there by now: a 404 counts no more.
    Appeared {
        /// Its key; or that of a collection, any of whose objects it may be.
        key: Vec<u8>,
    },
    /// A whole list has come: what stands under it and isn't in `members` was not there at its resourceVersion.
    Complete {
        collection: Vec<u8>,
        /// What the list says of itself.
        record: Collection,
        /// The keys of its objects.
        members: Vec<Vec<u8>>,
        /// When it was said.
        said: Said,
    },
    /// A watch without a gap went on to this resourceVersion.
    Advance {
        collection: Vec<u8>,
        /// Where the watch started.
        from: u64,
        version: u64,
        at: u64,
        /// The object that joined (`true`) or left a collection with selectors.
        member: Option<(Vec<u8>, bool)>,
        /// An object was deleted, or left the selection.
        departs: bool,
    },
    Document {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    /// The cloud's last word on a right.
    Grant {
        key: Vec<u8>,
        /// When, and which ([`crate::authz::shares::Verdict::stored`]).
        at: u64,
    },
    /// A right was evicted.
    Revoke {
        key: Vec<u8>,
    },
    /// The cloud accepted this token.
    Credential {
        digest: [u8; 32],
        /// When, then the account; empty: it is accepted no more.
        value: Vec<u8>,
    },
    /// It goes, to make room: nothing is known of it any more.
    Evict(Evicted),
}

/// Rows that are evicted.
#[derive(Debug)]
pub(crate) enum Evicted {
    /// The key of an object that stands in no collection that stays.
    Object(Vec<u8>),
    /// The key of a collection; its objects stay.
    Collection(Vec<u8>),
    /// The key of a document.
    Document(Vec<u8>),
}

impl Op {
    /// Takes something back that was allowed: lost, it would be allowed again after the next start.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Revoke { .. } => true,
            Self::Grant { at, .. } => !Verdict::from_stored(*at).is_yes(),
            Self::Credential { value, .. } => value.is_empty(),
            _ => false,
        }
    }

    /// Bytes that it holds in memory, about.
    pub(super) fn size(&self) -> usize {
        64 + match self {
            Self::Upsert { record, .. } => record.value.len(),
            Self::Document { value, .. } => value.len(),
            Self::Complete { members, .. } => members.iter().map(|member| member.len() + 24).sum(),
            _ => 0,
        }
    }
}
