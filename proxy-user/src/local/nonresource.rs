//! Discovery, OpenAPI, `/version` and other non-resource paths from the store.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};

use super::body::LocalBody;
use super::error::LocalError;
use super::{Local, LocalRequest};
use crate::authz::authorizer::Allowed;
use crate::cache::exchange::nonresource_key;
use hublet_wire::media::clause_rank;

impl Local {
    pub(super) async fn nonresource(
        &self,
        allowed: Allowed<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let path = nonresource_key(allowed.request());
        let snapshot = self.snapshot(&allowed).await?;
        let stored_types = snapshot.documents(&path)?;
        let content_type =
            best_type(&stored_types, allowed.headers).ok_or_else(|| allowed.not_cached())?;
        let key = format!("{path}\n{content_type}");
        let document = snapshot.document(key.as_bytes(), |document| {
            let body = Bytes::copy_from_slice(document.body);
            (document.at, document.etag.to_owned(), body)
        })?;
        let (at, etag, body) = document.ok_or_else(|| allowed.not_cached())?;

        let mut response = if is_unchanged(allowed.headers, &etag) {
            not_modified()
        } else {
            Response::new(LocalBody::whole(body))
        };
        let headers = response.headers_mut();
        insert_if_valid(headers, header::CONTENT_TYPE, content_type);
        insert_if_valid(headers, header::ETAG, &etag);
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        self.insert_origin(headers, at);
        Ok(response)
    }
}

fn not_modified() -> Response<LocalBody> {
    let mut response = Response::new(LocalBody::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// The stored type that the `Accept` header ranks first.
fn best_type<'a>(stored: &'a [String], headers: &HeaderMap) -> Option<&'a str> {
    stored
        .iter()
        .filter_map(|stored| clause_rank(headers, stored).map(|rank| (rank, stored)))
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, stored)| stored.as_str())
}

fn is_unchanged(headers: &HeaderMap, etag: &str) -> bool {
    let known = headers.get(header::IF_NONE_MATCH);
    !etag.is_empty() && known.is_some_and(|known| known.as_bytes() == etag.as_bytes())
}

fn insert_if_valid(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let (false, Ok(value)) = (value.is_empty(), HeaderValue::from_str(value)) {
        headers.insert(name, value);
    }
}
