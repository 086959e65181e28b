//! The cloud's refusals: `Status` bodies with the words, reasons and codes of the real API server.
use serde::Serialize;

use super::kinds::{Kind, qualify_name};

/// A failure as the API server says it.
#[derive(Clone, Debug)]
pub struct Failure {
    pub code: u16,
    /// `NotFound`, `Conflict` …
    pub reason: &'static str,
    pub message: String,
    pub details: Option<Box<Details>>,
    /// A token with which an expired page can be continued.
    pub next: Option<String>,
}

/// The object of a failure.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Details {
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    group: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    uid: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    causes: Vec<Cause>,
    /// Also sent as a `Retry-After` header.
    #[serde(rename = "retryAfterSeconds", skip_serializing_if = "is_zero")]
    pub retry_after: u32,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    field: String,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[derive(Serialize)]
struct Meta<'a> {
    #[serde(rename = "continue", skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

#[derive(Serialize)]
struct Status<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: Meta<'a>,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'a Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

impl Failure {
    /// A failure without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure {
            code,
            reason,
            message: message.into(),
            details: None,
            next: None,
        }
    }

    fn with_subject(mut self, name: &str, group: &str, kind: &str) -> Failure {
        let details = self.details.get_or_insert_default();
        (details.name, details.group, details.kind) = (name.into(), group.into(), kind.into());
        self
    }

    fn with_cause(mut self, reason: &'static str, message: &str, field: &str) -> Failure {
        let cause = Cause {
            reason,
            message: message.to_owned(),
            field: field.to_owned(),
        };
        self.details.get_or_insert_default().causes.push(cause);
        self
    }

    /// Adds `Retry-After`, in seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Failure {
        self.details.get_or_insert_default().retry_after = seconds;
        self
    }

    pub(super) fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "BadRequest", message)
    }

    pub(super) fn unauthorized() -> Failure {
        Failure::new(401, "Unauthorized", "Unauthorized")
    }

    pub(super) fn not_found(kind: &Kind, name: &str) -> Failure {
        let message = format!("{} \"{name}\" not found", kind.qualified_name());
        Failure::new(404, "NotFound", message).with_subject(name, kind.group, kind.resource)
    }

    pub(super) fn already_exists(kind: &Kind, name: &str) -> Failure {
        let message = format!("{} \"{name}\" already exists", kind.qualified_name());
        Failure::new(409, "AlreadyExists", message).with_subject(name, kind.group, kind.resource)
    }

    pub(super) fn conflict(kind: &Kind, name: &str) -> Failure {
        let why = "the object has been modified; please apply your changes to the latest version and try again";
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.qualified_name()
        );
        Failure::new(409, "Conflict", message).with_subject(name, kind.group, kind.resource)
    }

    /// An update whose UID is another object's.
    pub(super) fn uid_of_update(kind: &Kind, name: &str, wanted: &str, found: &str) -> Failure {
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {found}"
        );
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {why}",
            kind.qualified_name()
        );
        Failure::new(409, "Conflict", message).with_subject(name, kind.group, kind.resource)
    }

    /// A delete whose precondition names another object.
    pub(super) fn delete_precondition(
        kind: &Kind,
        name: &str,
        what: &str,
        pair: [&str; 2],
    ) -> Failure {
        let [wanted, found] = pair;
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": the {what} in the precondition ({wanted}) does not match \
             the {what} in record ({found}). The object might have been {}",
            qualify_name(kind.kind, kind.group),
            if what == "UID" {
                "deleted and then recreated"
            } else {
                "modified"
            },
        );
        Failure::new(409, "Conflict", message).with_subject(name, kind.group, kind.kind)
    }

    /// 422: a field of the object cannot be so. `why` is e.g. `Required value: …`.
    pub(super) fn invalid(kind: &Kind, name: &str, field: &str, why: &str) -> Failure {
        let message = format!(
            "{} \"{name}\" is invalid: {field}: {why}",
            qualify_name(kind.kind, kind.group)
        );
        let reason = match why.split(':').next() {
            Some("Required value") => "FieldValueRequired",
            Some("Forbidden") => "FieldValueForbidden",
            _ => "FieldValueInvalid",
        };
        Failure::new(422, "Invalid", message)
            .with_subject(name, kind.group, kind.kind)
            .with_cause(reason, why, field)
    }

    pub(super) fn list_options(field: &str, why: &str) -> Failure {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {field}: {why}");
        let failure =
            Failure::new(422, "Invalid", message).with_subject("", "meta.k8s.io", "ListOptions");
        failure.with_cause("FieldValueForbidden", why, field)
    }

    pub(super) fn too_large_version(wanted: u64, current: u64) -> Failure {
        let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
        let failure = Failure::new(504, "Timeout", message).retry_after(1);
        failure.with_cause("ResourceVersionTooLarge", "Too large resource version", "")
    }

    pub(super) fn unsupported_media(types: &str) -> Failure {
        let known =
            "the body of the request was in an unknown format - accepted media types include";
        Failure::new(415, "UnsupportedMediaType", format!("{known}: {types}"))
    }

    pub(super) fn unprocessable_patch(message: impl Into<String>) -> Failure {
        Failure::new(422, "Invalid", message)
    }

    pub(super) fn not_acceptable(types: &str) -> Failure {
        Failure::new(
            406,
            "NotAcceptable",
            format!("only the following media types are accepted: {types}"),
        )
    }

    pub(super) fn method_not_allowed() -> Failure {
        let message = "the server does not allow this method on the requested resource";
        Failure {
            details: Some(Box::default()),
            ..Failure::new(405, "MethodNotAllowed", message)
        }
    }

    pub(super) fn unknown_resource() -> Failure {
        let message = "the server could not find the requested resource";
        Failure {
            details: Some(Box::default()),
            ..Failure::new(404, "NotFound", message)
        }
    }

    pub(super) fn forbidden_resource(kind: [&str; 2], name: &str, message: String) -> Failure {
        let [resource, group] = kind;
        Failure::new(403, "Forbidden", message).with_subject(name, group, resource)
    }

    pub(super) fn forbidden_path(message: String) -> Failure {
        Failure {
            details: Some(Box::default()),
            ..Failure::new(403, "Forbidden", message)
        }
    }

    /// The `Status` body.
    #[must_use]
    pub fn to_body(&self) -> Vec<u8> {
        status_bytes(&Status {
            kind: "Status",
            api_version: "v1",
            metadata: Meta {
                next: self.next.as_deref(),
            },
            status: "Failure",
            message: &self.message,
            reason: self.reason,
            details: self.details.as_deref(),
            code: Some(self.code),
        })
    }
}

/// The `Status` body of a delete that is done.
pub(super) fn deleted_status(kind: &Kind, name: &str, uid: &str) -> Vec<u8> {
    let details = Details {
        name: name.into(),
        group: kind.group.into(),
        kind: kind.resource.into(),
        uid: uid.into(),
        ..Details::default()
    };
    status_bytes(&Status {
        kind: "Status",
        api_version: "v1",
        metadata: Meta { next: None },
        status: "Success",
        message: "",
        reason: "",
        details: Some(&details),
        code: None,
    })
}

fn status_bytes(status: &Status<'_>) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(status).expect("a Status has string keys only");
    bytes.push(b'\n');
    bytes
}
