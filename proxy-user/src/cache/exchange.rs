//! A request to the API server and the head of its response, which decide whether and how the response is stored. In: a
//! request, a status code and headers. Out: an [`Exchange`], by which `decode` reads the body, or why it isn't stored.

mod writes;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, header};

use crate::cache::change::Extent;
use crate::cache::change::{Change, Observation, ObservedBy};
use crate::cache::keys::{self, CollectionKey, ObjectKey, ObjectKeyBuf};
use crate::cache::not_stored::NotStored;
use crate::cache::record::{NewRecord, TypeHint};
use hublet_wire::CodecError;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::request::{ApiRequest, Verb};
use writes::{is_of_pods, is_rpc, shows_version, written_extent};
pub(crate) use writes::{may_create, superseded_by};

/// A request, and the head of its response.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    /// The verb.
    pub verb: Verb,
    /// `apiVersion` that the objects must have.
    pub api_version: String,
    /// Key of the object, the collection with its selectors, or the document.
    pub key: Vec<u8>,
    /// `group/resource/`.
    pub resource: Vec<u8>,
    /// The resource's plural name.
    pub plural: String,
    /// The object's name, empty for a collection.
    pub name: String,
    /// True for selectors whose result loses a member only when that is deleted.
    pub stable_selector: bool,
    /// resourceVersion that a watch started from.
    pub watch_from: ResourceVersion,
    /// A watch with `sendInitialEvents`, which begins with the objects that exist.
    pub initial_events: bool,
    /// The `continue` token of the request; empty for the first page.
    pub continue_token: String,
    /// HTTP status.
    pub status: u16,
    /// Encoding of the body.
    pub encoding: Encoding,
    /// The body is gzipped.
    pub gzip: bool,
    /// `Content-Type`.
    pub content_type: String,
    /// `ETag`, empty when none.
    pub etag: String,
    /// True if a Table in the response has the default rows: the request has no `includeObject`.
    pub is_full_table: bool,
    /// The response reflects etcd itself and not the API server's watch cache, which may lag: a read without a
    /// `resourceVersion`, or a write (KEP-2340, "consistent reads").
    pub consistent: bool,
    /// The response shows the state at a resourceVersion from before the request: a further page, or
    /// `resourceVersionMatch=Exact`.
    pub historical: bool,
    /// Time of the request.
    pub sent_at: Timestamp,
    /// Time of the response's head; the state that it shows is no newer.
    pub answered_at: Timestamp,
    /// The caller of a write; its response shows the object as written.
    pub author: Option<Arc<dyn Author>>,
    /// The reason for which only the resourceVersion in the response to a write is taken, and not the object.
    pub version_only: Option<NotStored>,
}

/// The caller of a write; its response shows the object that it wrote.
pub(crate) trait Author: std::fmt::Debug + Send + Sync {
    /// The changes to grants that follow from the response having shown the object to this caller.
    fn observe_object(&self, object: ObjectKey<'_>, now: Timestamp) -> Vec<Change>;
}

/// The longest that a watch cache is assumed to lag behind etcd: an API server that lags longer fails its
/// own readiness check.
const MAX_WATCH_CACHE_LAG: Duration = Duration::from_secs(60);

/// The groups that the API server has itself, whose resources are the plurals of their kinds. In other groups a custom
/// resource's or an aggregated API's kind (`NodeMetrics`) may have any name.
const BUILT_IN_GROUPS: [&str; 23] = [
    "",
    "admissionregistration.k8s.io",
    "apiextensions.k8s.io",
    "apiregistration.k8s.io",
    "apps",
    "authentication.k8s.io",
    "authorization.k8s.io",
    "autoscaling",
    "batch",
    "certificates.k8s.io",
    "coordination.k8s.io",
    "discovery.k8s.io",
    "events.k8s.io",
    "flowcontrol.apiserver.k8s.io",
    "internal.apiserver.k8s.io",
    "networking.k8s.io",
    "node.k8s.io",
    "policy",
    "rbac.authorization.k8s.io",
    "resource.k8s.io",
    "scheduling.k8s.io",
    "storage.k8s.io",
    "storagemigration.k8s.io",
];

/// True if the API server's convention gives a kind this plural (`meta.UnsafeGuessKindToResource`).
fn is_plural_of(plural: &str, kind: &str) -> bool {
    let singular = kind.to_ascii_lowercase();
    match singular.strip_suffix('y') {
        _ if singular == "endpoints" => plural == singular,
        Some(stem) => plural.strip_suffix("ies") == Some(stem),
        None if singular.ends_with('s') => plural.strip_suffix("es") == Some(&singular),
        None => plural.strip_suffix('s') == Some(&singular),
    }
}

/// Longest that the API server keeps an Event (`--event-ttl`).
pub(crate) const EVENT_TTL: Duration = Duration::from_secs(3600);

/// True if objects of this `group/resource/` may be stored in another etcd than the cluster's, or in a server's memory, so
/// that their resourceVersions can restart while the others' go on: aggregated APIs, which look like custom resources,
/// Events, and `coordination.k8s.io` (`--etcd-servers-overrides`).
pub(crate) fn may_use_other_etcd(resource: &[u8]) -> bool {
    is_custom_resource(resource)
        || is_event(resource)
        || resource.starts_with(b"coordination.k8s.io/")
}

/// True if `resource` (`group/resource/`, or a key that begins with it) is of Events, which the API server deletes after
/// [`EVENT_TTL`].
pub(crate) fn is_event(resource: &[u8]) -> bool {
    [b"/events/".as_slice(), b"events.k8s.io/events/"]
        .iter()
        .any(|events| resource.starts_with(events))
}

/// True for non-resource paths whose responses are stored. Those that report the server's momentary state, such as
/// `/healthz`, are not.
fn is_document(path: &str) -> bool {
    let first = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    matches!(
        first,
        "api" | "apis" | "version" | "openapi" | "openid" | ".well-known"
    )
}

/// The key of a document: its path, and the `hash` parameter of the request, if it has one.
pub(crate) fn nonresource_key(request: &ApiRequest) -> String {
    let hash = request.hash();
    if hash.is_empty() {
        request.path().to_owned()
    } else {
        format!("{}?hash={hash}", request.path())
    }
}

/// True if the response to such a request may be in the store; logs and other subresources never are.
pub(crate) fn may_be_stored(request: &ApiRequest) -> bool {
    if request.is_resource() {
        matches!(request.subresource(), "" | "status")
    } else {
        is_document(request.path())
    }
}

/// True for selectors whose result loses a member only when that is deleted: a name never changes, nor does the node of a
/// scheduled pod. The `spec.nodeName` of other resources (custom ones, with `selectableFields`) may change.
pub(crate) fn is_stable_selector(request: &ApiRequest) -> bool {
    let fields = request.field_selector();
    let Some((field, value)) = fields.split_once('=') else {
        return false;
    };
    let fixed = field == "metadata.name" || (field == "spec.nodeName" && is_of_pods(request));
    let value = value.strip_prefix('=').unwrap_or(value);
    fixed && !value.is_empty() && !value.contains(',') && request.label_selector().is_empty()
}

/// The encoding of a response that may be stored, or the reason why it isn't, from the request and the headers alone.
fn reject_unstorable(request: &ApiRequest, headers: &HeaderMap) -> Result<Encoding, NotStored> {
    if !has_known_content_encoding(headers) {
        return Err(NotStored::ContentEncoding);
    }
    let encoding = Encoding::from_content_type(text(headers, header::CONTENT_TYPE));
    match request.verb() {
        Verb::Other => Err(NotStored::Verb),
        Verb::NonResource => {
            reject_live_path(request)?;
            Ok(encoding.unwrap_or(Encoding::Json))
        }
        _ => {
            reject_non_object(request)?;
            encoding.ok_or(NotStored::ContentType)
        }
    }
}

fn has_known_content_encoding(headers: &HeaderMap) -> bool {
    let encoding = text(headers, header::CONTENT_ENCODING);
    matches!(encoding, "" | "identity" | "gzip")
}

fn reject_live_path(request: &ApiRequest) -> Result<(), NotStored> {
    if !is_document(request.path()) {
        Err(NotStored::LiveNonResource)
    } else if request.options().pretty {
        Err(NotStored::Pretty)
    } else {
        Ok(())
    }
}

fn reject_non_object(request: &ApiRequest) -> Result<(), NotStored> {
    let options = request.options();
    if is_rpc(request.group(), request.resource()) {
        Err(NotStored::NotAnObject)
    } else if !request.is_resource() {
        Err(NotStored::Verb)
    } else if !may_be_stored(request) {
        Err(NotStored::Subresource)
    } else if options.dry_run {
        Err(NotStored::DryRun)
    } else if options.pretty {
        Err(NotStored::Pretty)
    } else {
        Ok(())
    }
}

/// A header's value; empty where it is missing or not text.
fn text(headers: &HeaderMap, name: header::HeaderName) -> &str {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

impl Exchange {
    /// Decides from a request and the head of its response whether and how the response is stored.
    ///
    /// # Errors
    /// The reason why nothing of it is stored.
    pub(crate) fn of(
        request: &ApiRequest,
        status: u16,
        headers: &HeaderMap,
        sent_at: Timestamp,
    ) -> Result<Self, NotStored> {
        match reject_unstorable(request, headers) {
            Ok(encoding) => {
                let exchange = Self::new(request, status, headers, sent_at, encoding);
                exchange
                    .is_storable()
                    .then_some(exchange)
                    .ok_or(NotStored::StatusCode)
            }
            Err(reason @ (NotStored::Pretty | NotStored::Subresource)) => {
                Self::of_version(request, status, headers, sent_at, reason)
            }
            Err(reason) => Err(reason),
        }
    }

    /// As [`Self::of`], for a successful write of whose response only the resourceVersion is used, for this reason.
    ///
    /// # Errors
    /// The same reason, if the response has none.
    pub(crate) fn of_version(
        request: &ApiRequest,
        status: u16,
        headers: &HeaderMap,
        sent_at: Timestamp,
        reason: NotStored,
    ) -> Result<Self, NotStored> {
        let is_written = matches!(status, 200..=299)
            && shows_version(request)
            && superseded_by(request).is_some()
            && has_known_content_encoding(headers);
        let encoding = Encoding::from_content_type(text(headers, header::CONTENT_TYPE));
        let encoding = encoding.filter(|_| is_written).ok_or(reason)?;
        Ok(Self {
            version_only: Some(reason),
            ..Self::new(request, status, headers, sent_at, encoding)
        })
    }

    fn new(
        request: &ApiRequest,
        status: u16,
        headers: &HeaderMap,
        sent_at: Timestamp,
        encoding: Encoding,
    ) -> Self {
        let options = request.options();
        let mut exchange = Self {
            verb: request.verb(),
            api_version: request.api_version().into_owned(),
            key: Vec::new(),
            resource: Vec::new(),
            plural: request.resource().to_owned(),
            name: request.name().to_owned(),
            stable_selector: is_stable_selector(request),
            watch_from: ResourceVersion::parse(request.resource_version())
                .unwrap_or(ResourceVersion::MAX),
            initial_events: options.send_initial_events,
            continue_token: request.continue_token().to_owned(),
            status,
            encoding,
            gzip: text(headers, header::CONTENT_ENCODING) == "gzip",
            content_type: text(headers, header::CONTENT_TYPE).to_owned(),
            etag: text(headers, header::ETAG).to_owned(),
            is_full_table: !options.include_object,
            consistent: request.resource_version().is_empty(),
            historical: options.exact || !request.continue_token().is_empty(),
            sent_at,
            answered_at: sent_at,
            author: None,
            version_only: None,
        };
        exchange.set_keys(request);
        exchange
    }

    fn set_keys(&mut self, request: &ApiRequest) {
        if request.verb() == Verb::NonResource {
            self.key = nonresource_key(request).into_bytes();
        } else {
            keys::push_resource(&mut self.resource, request.group(), request.resource());
            keys::push_scope(&mut self.key, request);
        }
    }

    /// For a successful write: the rows that don't count until its response is stored.
    pub(super) fn supersedes(&self) -> Option<(&[u8], Extent)> {
        let is_success = matches!(self.status, 200..=299);
        let extent = written_extent(self.verb).filter(|_| is_success)?;
        Some((keys::without_selectors(&self.key), extent))
    }

    /// For a successful write: the change to make if its response turns out to be unreadable.
    pub(super) fn unreadable_write(&self) -> Option<Change> {
        let (key, extent) = self.supersedes()?;
        Some(Change::Supersede {
            key: key.to_vec(),
            extent,
        })
    }

    /// No list that may hold objects of the requested collection is whole any more.
    pub(super) fn lists_changed(&self) -> Change {
        Change::Supersede {
            key: keys::without_selectors(&self.key).to_vec(),
            extent: Extent::Lists,
        }
    }

    /// True if the body of a response with this verb and status code can be stored, or shows whether an object exists.
    fn is_storable(&self) -> bool {
        match self.verb {
            Verb::NonResource => self.status == 200,
            Verb::Get => matches!(self.status, 200 | 404),
            Verb::List | Verb::Watch | Verb::DeleteCollection => self.status == 200,
            // 201 if it created the object: server-side apply, and kinds that a PUT may create.
            Verb::Patch | Verb::Update => matches!(self.status, 200 | 201 | 404),
            // 409: the object exists already.
            Verb::Create => matches!(self.status, 200..=202 | 409),
            Verb::Delete => matches!(self.status, 200 | 202 | 404),
            Verb::Other => false,
        }
    }

    /// The key of an object of this resource.
    pub(super) fn object_key(&self, namespace: &str, name: &str) -> ObjectKeyBuf {
        ObjectKeyBuf::join(&self.resource, namespace, name)
    }

    /// The key of the object that the response shows.
    ///
    /// # Errors
    /// It isn't the requested one, or has no name.
    pub(super) fn shown_object(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<ObjectKeyBuf, CodecError> {
        let key = self.object_key(namespace, name);
        let is_requested = self.name.is_empty() || key.as_key() == self.requested_object();
        if is_requested && !name.is_empty() {
            Ok(key)
        } else {
            Err(CodecError::Json(
                "the response holds another object than the one requested".into(),
            ))
        }
    }

    /// The key of an object of the requested collection.
    ///
    /// # Errors
    /// It is of another namespace: the collection would be stored as whole, and lack it.
    pub(super) fn member_key(&self, record: &NewRecord) -> Result<ObjectKeyBuf, CodecError> {
        let key = self.object_key(&record.namespace, &record.name);
        let prefix = self.requested_collection().without_selectors();
        if key.as_bytes().starts_with(prefix.as_bytes()) {
            Ok(key)
        } else {
            Err(CodecError::Json("an item of another namespace".into()))
        }
    }

    /// Checks that objects of this type are what was requested.
    ///
    /// # Errors
    /// They are of another API version, or of another kind as far as that is known.
    pub(super) fn check_type(&self, found: TypeHint<'_>) -> Result<(), CodecError> {
        let TypeHint { api_version, kind } = found;
        let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
        let is_known_kind = !BUILT_IN_GROUPS.contains(&group) || is_plural_of(&self.plural, kind);
        if api_version == self.api_version && is_known_kind {
            return Ok(());
        }
        let plural = &self.plural;
        Err(CodecError::Json(format!(
            "{kind:?} of {api_version:?} instead of {plural}"
        )))
    }

    /// The object that was requested.
    pub(super) fn requested_object(&self) -> ObjectKey<'_> {
        ObjectKey::new(&self.key)
    }

    /// The collection that was requested.
    pub(super) fn requested_collection(&self) -> CollectionKey<'_> {
        CollectionKey::new(&self.key)
    }

    /// The times of an object that the request names, as this response shows it.
    pub(super) fn observation(&self) -> Observation {
        let not_before = match (self.historical, self.consistent) {
            (true, _) => Timestamp::EPOCH,
            (false, true) => self.sent_at,
            (false, false) => self.sent_at - MAX_WATCH_CACHE_LAG,
        };
        Observation {
            requested_at: self.sent_at,
            not_before,
            not_after: self.answered_at,
            source: ObservedBy::Read,
        }
    }

    /// The deletion of the requested object by this request. Any state of it that was seen between request and response is
    /// deleted, too.
    pub(super) fn deletion(&self) -> Change {
        Change::Delete {
            key: self.requested_object().to_buf(),
            version: ResourceVersion::UNSET,
            observed: Observation {
                requested_at: self.answered_at,
                not_before: self.answered_at,
                not_after: self.answered_at,
                ..self.observation()
            },
        }
    }

    /// The change made by an update after which nothing delays the object's deletion. A namespace may still exist, since it
    /// also has finalizers in its spec.
    pub(super) fn deletion_by_update(&self) -> Change {
        if self.is_of_namespaces() {
            Change::Supersede {
                key: self.key.clone(),
                extent: Extent::Copies,
            }
        } else {
            self.deletion()
        }
    }

    pub(super) fn is_of_namespaces(&self) -> bool {
        self.resource == b"/namespaces/"
    }

    /// The times of an object in a list, as this response shows it.
    pub(super) fn list_observation(&self) -> Observation {
        Observation {
            source: ObservedBy::List,
            ..self.observation()
        }
    }

    pub(super) fn has_selectors(&self) -> bool {
        self.requested_collection().has_selectors()
    }
}

/// The key of a variant (Table, PartialObjectMetadata) of what is stored at `scope`. The API version is part of it, since
/// a Table's columns depend on it.
pub(crate) fn variant_key(scope: &[u8], api_version: &str, media_type: &str) -> Vec<u8> {
    [
        scope,
        b"\n",
        api_version.as_bytes(),
        b" ",
        media_type.as_bytes(),
    ]
    .concat()
}

/// The object or the collection without selectors that a variant's key names; `None` for the key of another document.
pub(super) fn variant_scope(key: &[u8]) -> Option<&[u8]> {
    let scope = key.split(|b| *b == b'\n').next()?;
    let is_variant = !std::str::from_utf8(scope).is_ok_and(is_document);
    is_variant.then(|| keys::without_selectors(scope))
}

/// The API server's own groups end in `.k8s.io` or have no dot; others are custom or aggregated.
pub(super) fn is_custom_resource(resource: &[u8]) -> bool {
    let group = resource.split(|b| *b == b'/').next().unwrap_or_default();
    group.contains(&b'.') && !group.ends_with(b".k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_the_plural_of_its_resource() {
        for (plural, kind) in [
            ("pods", "Pod"),
            ("endpoints", "Endpoints"),
            ("ingresses", "Ingress"),
            ("networkpolicies", "NetworkPolicy"),
            ("storageclasses", "StorageClass"),
            ("csistoragecapacities", "CSIStorageCapacity"),
            ("ipaddresses", "IPAddress"),
            ("events", "Event"),
        ] {
            assert!(is_plural_of(plural, kind), "{kind}");
        }
        for (plural, kind) in [("pods", "ConfigMap"), ("pods", ""), ("policies", "Policys")] {
            assert!(!is_plural_of(plural, kind), "{kind}");
        }
    }
}
