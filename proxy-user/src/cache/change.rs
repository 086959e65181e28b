//! Changes to the store, derived from upstream responses.

use super::grant_rows::{CredentialKey, CredentialRow, GrantKey, Verdict};
use super::keys::{CollectionKeyBuf, ObjectKeyBuf};
use super::record::{Collection, NewRecord};
use hublet_wire::meta::{ResourceVersion, Timestamp};

/// The rows at a key that no longer count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Extent {
    /// Absences alone: the object may exist by now.
    Absences,
    /// Absences and lists: a client knows that the object was created.
    Lists,
    /// Absences, lists and copies: a client knows that the object was changed or deleted.
    Copies,
}

/// The kind of response that an object was seen in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObservedBy {
    /// A read or write of this object alone.
    Read,
    List,
    Watch,
}

/// The times at which the state that a response shows was current.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Observation {
    /// Time of the request; of a watch event, that of its arrival.
    pub requested_at: Timestamp,
    /// The state is no older than this, so it replaces what was stored earlier even against the
    /// resourceVersions. The epoch where resourceVersions alone order it.
    pub not_before: Timestamp,
    /// Time of the response's head; the state is no newer than this.
    pub not_after: Timestamp,
    pub source: ObservedBy,
}

impl Observation {
    /// A watch event that arrived at this time. A watch may lag, so it has no lower bound.
    pub(crate) fn watch_event(now: Timestamp) -> Self {
        Self {
            requested_at: now,
            not_before: Timestamp::EPOCH,
            not_after: now,
            source: ObservedBy::Watch,
        }
    }

    /// True if the response is certainly later than what was stored at this time, and so replaces it even against the
    /// resourceVersions. Within one millisecond the request is assumed to be the later one.
    pub(crate) fn overrules(&self, stored_at: Timestamp) -> bool {
        self.not_before > Timestamp::EPOCH && self.not_before >= stored_at
    }

    /// Answered by etcd, not by a watch cache that may lag.
    pub(crate) fn is_consistent(&self) -> bool {
        self.not_before == self.requested_at
    }
}

/// One change to the store.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// The object exists in this version.
    Upsert {
        key: ObjectKeyBuf,
        record: NewRecord,
        observed: Observation,
    },
    /// The object does not exist: a 404, a completed DELETE, or a DELETED event.
    Delete {
        key: ObjectKeyBuf,
        /// resourceVersion of the deletion, 0 where the response has none.
        version: ResourceVersion,
        observed: Observation,
    },
    /// The object left a selector that it may still exist outside of, so it becomes unknown.
    Invalidate {
        key: ObjectKeyBuf,
        /// resourceVersion of the event.
        version: ResourceVersion,
    },
    /// A client's write has made this version of the object; nothing else is known about it.
    Outdate {
        key: ObjectKeyBuf,
        version: ResourceVersion,
        observed: Observation,
    },
    /// These rows no longer count, since there is a later state that isn't known.
    Supersede {
        /// An object's key, or a collection's for any object in it; empty for all objects.
        key: Vec<u8>,
        extent: Extent,
    },
    /// A complete list: what is stored under it and not in `members` did not exist at its
    /// resourceVersion.
    ReplaceCollection {
        collection: CollectionKeyBuf,
        record: Collection,
        /// The keys of its objects.
        members: Vec<ObjectKeyBuf>,
        observed: Observation,
    },
    /// A watch without a gap reached this resourceVersion.
    AdvanceCollection {
        collection: CollectionKeyBuf,
        /// resourceVersion that the watch started from.
        from: ResourceVersion,
        version: ResourceVersion,
        at: Timestamp,
        /// The object that joined or left a collection with selectors.
        member: Option<Membership>,
        /// An object was deleted, or left the selection.
        departs: bool,
    },
    /// A non-resource response, or a Table or PartialObjectMetadata variant.
    PutResponse {
        key: Vec<u8>,
        value: Vec<u8>,
    },
    PutGrant {
        key: GrantKey,
        verdict: Verdict,
    },
    /// A grant was evicted.
    DeleteGrant {
        key: GrantKey,
    },
    /// The API server accepted this token.
    PutCredential {
        key: CredentialKey,
        row: CredentialRow,
    },
    /// The API server rejected this token, or it was evicted.
    DeleteCredential {
        key: CredentialKey,
    },
    /// It is unknown which grants and credentials were revoked.
    DeleteAllRights,
    /// Removed to make room; the row becomes unknown.
    Evict(Evicted),
}

/// An object that joined or left a collection with selectors.
#[derive(Debug, Clone)]
pub(crate) struct Membership {
    pub key: ObjectKeyBuf,
    pub joins: bool,
}

/// A row that is evicted, by its key.
#[derive(Debug, Clone)]
pub(crate) enum Evicted {
    /// An object that no remaining collection contains.
    Object(ObjectKeyBuf),
    /// A collection; its objects stay.
    Collection(CollectionKeyBuf),
    Response(Vec<u8>),
}

impl Change {
    /// Takes a right back. If it were lost, the right would hold again after a restart.
    pub(crate) fn is_revocation(&self) -> bool {
        match self {
            Self::DeleteGrant { .. } | Self::DeleteCredential { .. } | Self::DeleteAllRights => {
                true
            }
            Self::PutGrant { verdict, .. } => !verdict.is_allowed(),
            _ => false,
        }
    }

    pub(super) fn revokes_grant(&self, grant: &GrantKey) -> bool {
        match self {
            Self::DeleteGrant { key } => key == grant,
            Self::PutGrant { key, verdict } => key == grant && !verdict.is_allowed(),
            Self::DeleteAllRights => true,
            _ => false,
        }
    }

    pub(super) fn revokes_credential(&self, credential: &CredentialKey) -> bool {
        match self {
            Self::DeleteCredential { key } => key == credential,
            Self::DeleteAllRights => true,
            _ => false,
        }
    }

    /// The stored rows that don't count as long as this change isn't written: the key of an object, or of a collection for
    /// any object in it. A change that was only read ends absences; copies and lists go on to count.
    pub(super) fn superseded(&self) -> Option<(&[u8], Extent)> {
        match self {
            Self::Upsert { key, .. } => Some((key.as_bytes(), Extent::Absences)),
            Self::Outdate { key, .. } => Some((key.as_bytes(), Extent::Copies)),
            Self::Supersede { key, extent } => Some((key, *extent)),
            _ => None,
        }
    }

    /// Approximate bytes of memory.
    pub(super) fn size(&self) -> usize {
        64 + match self {
            Self::Upsert { record, .. } => record.value.len(),
            Self::PutResponse { value, .. } => value.len(),
            Self::ReplaceCollection { members, .. } => members
                .iter()
                .map(|member| member.as_bytes().len() + 16)
                .sum(),
            _ => 0,
        }
    }
}
