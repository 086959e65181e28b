//! Tables and other variants of objects, as the cloud encoded them.

use bytes::Bytes;
use http::Response;

use super::body::LocalBody;
use super::error::LocalError;
use super::list::is_requested_version;
use super::{Local, LocalRequest};
use crate::cache::exchange::variant_key;
use crate::cache::keys::{self, CollectionKey, ObjectKeyBuf};
use crate::cache::store::{Snapshot, StoreError};
use crate::cache::variants;
use hublet_wire::json;
use hublet_wire::media::{Encoding, requested_variants};
use hublet_wire::meta::{ResourceVersion, Timestamp};

/// A stored variant of one object or a list.
struct Variant {
    at: Timestamp,
    body: Bytes,
    version: ResourceVersion,
}

impl Local {
    /// The variant that the `Accept` header asks for, if nothing is known to have changed since.
    pub(super) fn stored_variant(
        &self,
        snapshot: &Snapshot,
        request: &LocalRequest<'_>,
    ) -> Result<Option<Response<LocalBody>>, LocalError> {
        if !asks_for_whole_variant(request) {
            return Ok(None);
        }
        let Some(variant) = find_variant(snapshot, request)? else {
            return Ok(None);
        };
        if !is_requested_version(variant.version, request.request())
            || !self.is_current(snapshot, request, &variant)?
        {
            return Ok(None);
        }
        Ok(Some(self.response(
            Encoding::Json.content_type(),
            variant.at,
            LocalBody::whole(variant.body),
        )))
    }

    fn is_current(
        &self,
        snapshot: &Snapshot,
        request: &LocalRequest<'_>,
        variant: &Variant,
    ) -> Result<bool, StoreError> {
        let scope = keys::without_selectors(request.scope());
        Ok(snapshot.is_up_to_date(scope)
            && !self.has_expired(scope, variant.at)
            && !snapshot.has_changed_since(scope, variant.version, variant.at)?
            && !snapshot.has_lost_since(scope, variant.version)?
            && !shows_missing_object(snapshot, request.scope(), variant)?)
    }
}

/// Variants are stored as a whole, and without their objects.
fn asks_for_whole_variant(request: &LocalRequest<'_>) -> bool {
    let info = request.request();
    request.accepts.asks_for_variant
        && !info.options().include_object
        && info.continue_token().is_empty()
}

fn find_variant(
    snapshot: &Snapshot,
    request: &LocalRequest<'_>,
) -> Result<Option<Variant>, StoreError> {
    let api_version = request.request().api_version();
    for form in requested_variants(request.headers) {
        let key = variant_key(request.scope(), &api_version, &form);
        let stored = snapshot.document(&key, |document| {
            (document.at, Bytes::copy_from_slice(document.body))
        })?;
        if let Some((at, body)) = stored {
            let version = json::parse_head(&body)
                .ok()
                .and_then(|head| head.meta.version());
            return Ok(version.map(|version| Variant { at, body, version }));
        }
    }
    Ok(None)
}

/// True if a list that is newer than the variant lacks one of its objects. Any other change would
/// have been seen in that list.
fn shows_missing_object(
    snapshot: &Snapshot,
    scope: &[u8],
    variant: &Variant,
) -> Result<bool, StoreError> {
    for list in keys::collections_around(scope) {
        let is_newer = snapshot
            .collection(CollectionKey::new(list))?
            .is_some_and(|list| list.is_whole() && list.version > variant.version);
        if !is_newer {
            continue;
        }
        let Some(objects) = variants::object_names(&variant.body) else {
            return Ok(true);
        };
        for (namespace, name) in objects {
            let key = ObjectKeyBuf::join(keys::resource_of(scope), &namespace, &name);
            if !snapshot.holds(CollectionKey::new(list), key.as_key())? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
