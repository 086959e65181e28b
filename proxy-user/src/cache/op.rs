//! What the cloud said, as operations on the store. In: observed answers. Out: [`Op`]s for `apply`.

use super::record::{Collection, NewRecord};

/// One thing that the cloud said.
#[derive(Debug)]
pub enum Op {
    /// An object as it is.
    Upsert {
        /// Its key.
        key: Vec<u8>,
        /// Its value.
        record: NewRecord,
        /// When the question was asked, milliseconds since the epoch.
        asked: u64,
    },
    /// It does not exist: a 404, a DELETE's end, a DELETED event.
    Gone {
        /// Its key.
        key: Vec<u8>,
        /// resourceVersion of the deletion, 0 where the answer has none.
        version: u64,
        /// When the question was asked.
        asked: u64,
        /// When the answer came.
        at: u64,
    },
    /// It left a selector that may change: whether it exists isn't known any more.
    Forget {
        /// Its key.
        key: Vec<u8>,
        /// resourceVersion of the event.
        version: u64,
    },
    /// A whole list has come: what stands under it and isn't in `members` was not there at its resourceVersion.
    Complete {
        /// The collection's key.
        collection: Vec<u8>,
        /// What the list says of itself.
        record: Collection,
        /// The keys of its objects.
        members: Vec<Vec<u8>>,
    },
    /// A watch without a gap went on to this resourceVersion.
    Advance {
        /// The collection's key.
        collection: Vec<u8>,
        /// Where the watch started.
        from: u64,
        /// Where it is.
        version: u64,
        /// When.
        at: u64,
        /// The object that joined (`true`) or left a collection with selectors.
        member: Option<(Vec<u8>, bool)>,
    },
    /// A document.
    Document {
        /// Its key.
        key: Vec<u8>,
        /// Its value.
        value: Vec<u8>,
    },
    /// The cloud allowed this.
    Grant {
        /// Identity, verb, scope.
        key: Vec<u8>,
        /// When.
        at: u64,
    },
    /// The cloud forbade this, or the grant was evicted.
    Revoke {
        /// Identity, verb, scope.
        key: Vec<u8>,
    },
    /// The cloud accepted this token.
    Credential {
        /// Its SHA-256.
        digest: [u8; 32],
        /// When, then the identity; empty: it is accepted no more.
        value: Vec<u8>,
    },
}
