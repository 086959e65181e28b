//! GET of one object from the store: the newest copy, byte for byte.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::body::LocalBody;
use super::error::LocalError;
use super::{Local, LocalRequest};
use crate::authz::authorizer::{AbsenceOnly, Allowed, Denied, Permission};
use crate::cache::keys::ObjectKey;
use crate::cache::record::Record;
use crate::cache::store::Lookup;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::request::ApiRequest;
use hublet_wire::status::{Status, StatusDetails};

/// The part of a record that answers a request, copied out of the store's page.
enum Extract {
    Body {
        encoding: Encoding,
        stored_at: Timestamp,
        bytes: Bytes,
    },
    OtherVersion(String),
    OtherEncoding(Encoding),
    TooOld,
}

impl Local {
    /// Answers a GET of an object. An absence is 404; an object that the store doesn't know is an error, which becomes 503.
    pub(super) async fn get(
        &self,
        allowed: Allowed<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let snapshot = self.snapshot(&allowed).await?;
        if let Some(response) = self.stored_variant(&snapshot, &allowed)? {
            return Ok(response);
        }
        let key = ObjectKey::new(allowed.scope());
        let found = snapshot.object(key, |record| self.extract(&allowed, &record))?;
        match found {
            Lookup::Found(Extract::Body {
                encoding,
                stored_at,
                bytes,
            }) => {
                let body = LocalBody::whole(bytes);
                Ok(self.response(encoding.content_type(), stored_at, body))
            }
            Lookup::Found(Extract::OtherVersion(stored)) => Err(other_version(&allowed, &stored)),
            Lookup::Found(Extract::OtherEncoding(stored)) => Err(other_encoding(&allowed, stored)),
            Lookup::Absent(at) => self.not_found(&allowed, at),
            Lookup::Found(Extract::TooOld) | Lookup::Unknown => Err(allowed.not_cached()),
        }
    }

    fn extract(&self, request: &LocalRequest<'_>, record: &Record<'_>) -> Extract {
        let encoding = record.encoding;
        let stored_at = record.stored_at;
        let wanted =
            ResourceVersion::parse(request.request().resource_version()).unwrap_or_default();
        if record.api_version != request.request().api_version() {
            Extract::OtherVersion(record.api_version.to_owned())
        } else if record.version < wanted || self.has_expired(request.scope(), stored_at) {
            Extract::TooOld
        } else if request.accepts.takes(encoding) {
            Extract::Body {
                encoding,
                stored_at,
                bytes: Bytes::copy_from_slice(record.body),
            }
        } else {
            Extract::OtherEncoding(encoding)
        }
    }

    /// Answers a caller who may only get a 404 for the object.
    pub(super) async fn get_absence(
        &self,
        absence: &AbsenceOnly<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        if let Some(at) = self.store.absent_since(absence).await? {
            return self.not_found(absence, at);
        }
        // The absence doesn't count any more. This caller's own write may have allowed it the object
        // since: the snapshot above waited until such a grant was written.
        match self.authorizer.authorize(**absence)? {
            Permission::Read(allowed) => self.get(allowed).await,
            Permission::AbsenceOnly(_) => Err(Denied::undecided(&absence.attributes).into()),
        }
    }

    /// Repeats the 404 that the API server answered at that time, unless the request names a resourceVersion.
    fn not_found(
        &self,
        request: &LocalRequest<'_>,
        at: Timestamp,
    ) -> Result<Response<LocalBody>, LocalError> {
        let info = request.request();
        if names_a_version(info) {
            return Err(request.not_cached());
        }
        let message = not_found_message(info);
        let status = Status {
            code: 404,
            reason: "NotFound",
            message: &message,
            details: Some(StatusDetails {
                name: info.name(),
                group: info.group(),
                resource: info.resource(),
            }),
        };
        let encoding = request.accepts.errors;
        let body = LocalBody::whole(status.encode(encoding));
        let mut response = self.response(encoding.content_type(), at, body);
        *response.status_mut() = StatusCode::NOT_FOUND;
        Ok(response)
    }
}

fn other_version(request: &LocalRequest<'_>, stored: &str) -> LocalError {
    let object = request.describe();
    LocalError::NotAcceptable(format!(
        "the newest copy of {object} is of apiVersion {stored}"
    ))
}

fn other_encoding(request: &LocalRequest<'_>, stored: Encoding) -> LocalError {
    LocalError::NotAcceptable(format!(
        "the newest copy of {} is in {}, which the request does not accept",
        request.describe(),
        stored.content_type()
    ))
}

/// True if the request names a resourceVersion: an absent object may have been created since, up to that version.
fn names_a_version(request: &ApiRequest) -> bool {
    ResourceVersion::parse(request.resource_version()).is_some()
}

/// As the API server words it: `deployments.apps "web" not found`.
fn not_found_message(request: &ApiRequest) -> String {
    let (resource, group, name) = (request.resource(), request.group(), request.name());
    let dot = if group.is_empty() { "" } else { "." };
    format!("{resource}{dot}{group} \"{name}\" not found")
}
