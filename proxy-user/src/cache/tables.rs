//! The tables of the store. Byte-exact in `docs/cache-format.md`.

use redb::TableDefinition;

/// A table of bytes by bytes.
pub(super) type BytesTable = TableDefinition<'static, &'static [u8], &'static [u8]>;

/// Object key → [`super::record::Record`].
pub(super) const OBJECTS: BytesTable = TableDefinition::new("objects");
/// Object key → (time of the 404 or of the deletion event, resourceVersion of the deletion or 0).
pub(super) const ABSENT: TableDefinition<'static, &[u8], (u64, u64)> =
    TableDefinition::new("absent");
/// Collection key → [`super::record::Collection`] in JSON.
pub(super) const COLLECTIONS: BytesTable = TableDefinition::new("collections");
/// Collection key + NUL + object key → nothing; for collections with selectors only.
pub(super) const MEMBERS: TableDefinition<'static, &[u8], ()> = TableDefinition::new("members");
/// `group/resource/` + NUL + encoding + apiVersion → how many objects are stored so.
pub(super) const ENCODINGS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("forms");
/// Path and query + newline + content type → [`super::record::ResponseRecord`].
pub(super) const DOCUMENTS: BytesTable = TableDefinition::new("documents");
/// Account and right → [`super::grant_rows::Verdict`]: the time of the last response that allowed or denied it.
pub(super) const GRANTS: TableDefinition<'static, &[u8], u64> = TableDefinition::new("allowed");
/// SHA-256 of a bearer token → the time at which the API server last accepted it, then the account.
pub(super) const CREDENTIALS: BytesTable = TableDefinition::new("accepted");
/// Format version, [`CLUSTER`] and [`MENTIONED`].
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");

/// In [`META`]: a fingerprint of the uid of the cluster's kube-system namespace.
pub(super) const CLUSTER: &str = "cluster";
/// In [`META`]: 1 once an object was stored that mentions hublet's domain ([`super::notices::mentions_domain`]), 0 before.
/// Absent in a store of an earlier version, where it is unknown.
pub(super) const MENTIONED: &str = "mentioned";
