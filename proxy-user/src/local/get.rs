//! GET of one object from the store: the bytes that came, the newest of them.

use bytes::Bytes;
use http::{Response, StatusCode};

use super::authorize::{AbsenceOnly, Allowed, Denied, Permission};
use super::body::LocalBody;
use super::error::LocalError;
use super::{Local, LocalRequest};
use crate::cache::record::Record;
use crate::cache::store::Lookup;
use hublet_wire::media::Encoding;
use hublet_wire::meta::parse_version;
use hublet_wire::status::{Status, StatusDetails};

/// What is copied out of the store's page.
enum Extract {
    Body(Encoding, u64, Bytes),
    OtherVersion(String),
    OtherEncoding(Encoding),
    TooOld,
}

impl Local {
    pub(super) async fn get(
        &self,
        allowed: Allowed<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let question = *allowed;
        let request = question.request;
        let accepts = question.accepts;
        let wanted = parse_version(request.resource_version()).unwrap_or(0);
        let copy = |record: Record<'_>| {
            if !is_version(record.api_version, request.group(), request.version()) {
                Extract::OtherVersion(record.api_version.to_owned())
            } else if record.version < wanted
                || self.has_expired(question.scope(), record.stored_at)
            {
                Extract::TooOld
            } else if accepts.takes(record.encoding) {
                Extract::Body(
                    record.encoding,
                    record.stored_at,
                    Bytes::copy_from_slice(record.body),
                )
            } else {
                Extract::OtherEncoding(record.encoding)
            }
        };
        let snapshot = self.cache.snapshot(&allowed).await?;
        if let Some(response) = self.stored_variant(&snapshot, &question)? {
            return Ok(response);
        }
        let found = snapshot.object(question.scope(), copy)?;
        let what = || question.describe();
        match found {
            Lookup::Found(Extract::Body(encoding, at, bytes)) => {
                Ok(self.response(encoding.content_type(), at, LocalBody::whole(bytes)))
            }
            Lookup::Found(Extract::OtherVersion(stored)) => Err(LocalError::NotAcceptable(
                format!("the newest copy of {} is of apiVersion {stored}", what()),
            )),
            Lookup::Found(Extract::OtherEncoding(stored)) => {
                Err(LocalError::NotAcceptable(format!(
                    "the newest copy of {} is in {}, which the request does not accept",
                    what(),
                    stored.content_type()
                )))
            }
            // It may have been made since the cloud said 404, and before the version that is asked for.
            Lookup::Absent(_) if wanted > 0 => Err(question.not_cached()),
            Lookup::Found(Extract::TooOld) | Lookup::Unknown => Err(question.not_cached()),
            Lookup::Absent(at) => Ok(self.remembered_404(&question, accepts.errors, at)),
        }
    }

    /// The answer to a caller who has only been told 404: the same again, or that he isn't known to be allowed more.
    pub(super) async fn absence(
        &self,
        absence: &AbsenceOnly<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        if let Some(at) = self.cache.absent_since(absence).await? {
            if parse_version(absence.request.resource_version()).is_some_and(|wanted| wanted > 0) {
                return Err(absence.not_cached());
            }
            return Ok(self.remembered_404(absence, absence.accepts.errors, at));
        }
        // The writer may just have read that he wrote it himself.
        match self.cache.authorize(**absence)? {
            Permission::Read(allowed) => self.get(allowed).await,
            Permission::AbsenceOnly(_) => Err(Denied::Undecided(absence.not_allowed()).into()),
        }
    }

    fn remembered_404(
        &self,
        question: &LocalRequest<'_>,
        encoding: Encoding,
        at: u64,
    ) -> Response<LocalBody> {
        let request = question.request;
        let (group, resource, name) = (request.group(), request.resource(), request.name());
        let dot = if group.is_empty() { "" } else { "." };
        let status = Status {
            code: 404,
            reason: "NotFound",
            message: &format!("{resource}{dot}{group} \"{name}\" not found"),
            details: Some(StatusDetails {
                name,
                group,
                resource,
            }),
        };
        let body = LocalBody::whole(status.encode(encoding));
        let mut response = self.response(encoding.content_type(), at, body);
        *response.status_mut() = StatusCode::NOT_FOUND;
        response
    }
}

/// `api_version` is that group and version.
fn is_version(api_version: &str, group: &str, version: &str) -> bool {
    match api_version.split_once('/') {
        Some((g, v)) => g == group && v == version,
        None => group.is_empty() && api_version == version,
    }
}
