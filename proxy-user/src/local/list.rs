//! LIST from the store: complete collections only (I2), in the API server's order and form, streamed
//! from a snapshot.

use http::Response;

use super::body::LocalBody;
use super::error::LocalError;
use super::stored_list::StoredList;
use super::{Local, LocalRequest};
use crate::authz::authorizer::Allowed;
use hublet_wire::meta::ResourceVersion;
use hublet_wire::request::ApiRequest;

const CONTINUE_EXPIRED: &str = "hublet: the cloud is away and the rest of this list can't be continued: list again from the start";

impl Local {
    pub(super) async fn list(
        &self,
        allowed: Allowed<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let request = allowed.request();
        let snapshot = self.snapshot(&allowed).await?;
        if let Some(response) = self.stored_variant(&snapshot, &allowed)? {
            self.listed.remember(&allowed, self.store.now());
            return Ok(response);
        }
        let found = self.find_collection(snapshot, &allowed)?;
        if found.may_have_lost_members(request)? {
            return Err(allowed.not_cached());
        }
        if !request.continue_token().is_empty() {
            return Err(LocalError::Expired(CONTINUE_EXPIRED.into()));
        }
        if !is_requested_version(found.collection.version, request) {
            return Err(allowed.not_cached());
        }
        let encoding = found.encoding(request, &allowed.accepts)?;
        let list = StoredList::new(&found, found.list_cursor(request, encoding), encoding)?;
        self.listed.remember(&allowed, self.store.now());
        let at = found.listed_at();
        Ok(self.response(encoding.content_type(), at, LocalBody::list(list)))
    }
}

/// True if a list's version is as new as the request's `resourceVersion`, or exactly that one with
/// `resourceVersionMatch=Exact`.
pub(super) fn is_requested_version(version: ResourceVersion, request: &ApiRequest) -> bool {
    let requested = ResourceVersion::parse(request.resource_version()).unwrap_or_default();
    if request.options().exact {
        version == requested
    } else {
        version >= requested
    }
}
