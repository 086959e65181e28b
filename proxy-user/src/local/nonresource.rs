//! Discovery, OpenAPI, `/version` and the like from the store, and Tables: the form that the `Accept` header asks for.

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use super::authorize::Allowed;
use super::body::LocalBody;
use super::error::LocalError;
use super::{Local, LocalRequest};
use crate::cache::continuity::resource_of;
use crate::cache::exchange::{nonresource_key, variant_key};
use crate::cache::keys;
use crate::cache::store::{Snapshot, StoreError};
use crate::cache::variants;
use hublet_wire::json;
use hublet_wire::media::{Encoding, clause_rank, requested_variants};
use hublet_wire::meta::parse_version;

impl Local {
    /// Objects in another form (a Table), as the cloud wrote it, where nothing has been seen to change since.
    pub(super) fn stored_variant(
        &self,
        snapshot: &Snapshot,
        question: &LocalRequest<'_>,
    ) -> Result<Option<Response<LocalBody>>, LocalError> {
        let request = question.request;
        let options = request.options();
        if !question.accepts.asks_for_variant
            || options.include_object
            || !request.continue_token().is_empty()
        {
            return Ok(None);
        }
        let api_version = question.request.api_version();
        let mut stored = None;
        for form in requested_variants(question.headers) {
            let key = variant_key(question.scope(), &api_version, &form);
            stored = snapshot.document(&key, |d| (d.at, Bytes::copy_from_slice(d.body)))?;
            if stored.is_some() {
                break;
            }
        }
        let Some((at, body)) = stored else {
            return Ok(None);
        };
        let version = json::parse_head(&body)
            .ok()
            .and_then(|head| head.meta.version());
        let scope = keys::without_selectors(question.scope());
        let Some(version) = version else {
            return Ok(None);
        };
        let wanted = parse_version(request.resource_version()).unwrap_or(0);
        if version < wanted || (options.exact && version != wanted) || self.has_expired(scope, at) {
            return Ok(None);
        }
        if snapshot.has_changed_since(scope, version, at)?
            || snapshot.has_lost_since(scope, version)?
            || lacks_a_row(snapshot, question.scope(), (version, &body))?
        {
            return Ok(None);
        }
        Ok(Some(self.response(
            Encoding::Json.content_type(),
            at,
            LocalBody::whole(body),
        )))
    }

    pub(super) async fn nonresource(
        &self,
        allowed: Allowed<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let question = *allowed;
        let path = nonresource_key(question.request);
        let snapshot = self.cache.snapshot(&allowed).await?;
        let types = snapshot.documents(&path)?;
        let ranked = types
            .iter()
            .filter_map(|t| clause_rank(question.headers, t).map(|rank| (rank, t)));
        let Some((_, content_type)) = ranked.min_by_key(|(rank, _)| *rank) else {
            return Err(question.not_cached());
        };
        let key = format!("{path}\n{content_type}");
        let copy = snapshot
            .document(key.as_bytes(), |d| {
                (d.at, d.etag.to_owned(), Bytes::copy_from_slice(d.body))
            })?
            .ok_or_else(|| question.not_cached())?;
        let (at, etag, body) = copy;
        let unchanged = !etag.is_empty()
            && question
                .headers
                .get(header::IF_NONE_MATCH)
                .is_some_and(|v| v.as_bytes() == etag.as_bytes());
        let mut response = Response::new(if unchanged {
            LocalBody::empty()
        } else {
            LocalBody::whole(body)
        });
        if unchanged {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        for (name, value) in [
            (header::CONTENT_TYPE, content_type.as_str()),
            (header::ETAG, &etag),
        ] {
            if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
                headers.insert(name, value);
            }
        }
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        self.age(headers, at);
        Ok(response)
    }
}

/// A list that is newer than this Table lacks an object that it shows. Since nothing else has changed, or it would have
/// been seen in the list, that is all that may be wrong with it.
fn lacks_a_row(
    snapshot: &Snapshot,
    scope: &[u8],
    (version, table): (u64, &[u8]),
) -> Result<bool, StoreError> {
    for list in keys::collections_around(scope) {
        let newer = snapshot
            .collection(list)?
            .is_some_and(|list| list.is_whole() && list.version > version);
        if !newer {
            continue;
        }
        let Some(objects) = variants::object_names(table) else {
            return Ok(true);
        };
        for (namespace, name) in objects {
            let mut key = resource_of(scope).to_vec();
            keys::push_object(&mut key, &namespace, &name);
            if !snapshot.holds(list, &key)? {
                return Ok(true);
            }
        }
    }
    Ok(false)
}
