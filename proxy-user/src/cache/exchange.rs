//! One question to the cloud and how its answer began: what decides whether and how the answer is stored. In: a request
//! and the head of its answer. Out: [`Exchange`]. Next: `observe` reads the body.

use std::sync::Arc;

use http::{HeaderMap, header};

use crate::cache::change::{Change, Observation, ObservedBy};
use crate::cache::keys::{self, CollectionKey, ObjectKey, ObjectKeyBuf};
use crate::cache::not_stored::NotStored;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{Timestamp, parse_version};
use hublet_wire::request::{ApiRequest, Verb};

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
    /// Selectors whose result can't lose a member but by its deletion.
    pub stable_selector: bool,
    /// resourceVersion that a watch started from.
    pub watch_from: u64,
    /// A watch that begins with what is there.
    pub initial_events: bool,
    /// The page asked for.
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
    /// A Table in this answer is one as everybody asks for it: its rows say no more and no less.
    pub is_full_table: bool,
    /// Answered from etcd itself, not from the API server's watch cache, which may lag: a read without a
    /// `resourceVersion`, or a write (KEP-2340, "consistent reads").
    pub consistent: bool,
    /// As it was at a resourceVersion from before the question: a further page, or `resourceVersionMatch=Exact`.
    pub historical: bool,
    /// Time of the request, milliseconds since the epoch.
    pub sent_at: u64,
    /// Time of the response's head: what it says was so by then.
    pub answered_at: u64,
    /// The caller of a write, which is answered with the object as written.
    pub author: Option<Arc<dyn Author>>,
}

/// The caller of a write, who is shown the object that it wrote.
pub(crate) trait Author: std::fmt::Debug + Send + Sync {
    /// The changes to grants that follow from having been shown the object.
    fn observe_object(&self, object: ObjectKey<'_>, now: Timestamp) -> Vec<Change>;
}

/// The most that a watch cache is believed to lag behind etcd, in milliseconds: an API server that lags longer fails its
/// own readiness check.
const MAX_WATCH_CACHE_LAG: u64 = 60_000;

/// Resources that are questions or orders rather than things: nothing of them is stored.
fn is_rpc(group: &str, plural: &str) -> bool {
    match group {
        "authentication.k8s.io" | "authorization.k8s.io" => plural.ends_with("reviews"),
        "" => matches!(plural, "bindings" | "componentstatuses"),
        _ => false,
    }
}

/// Longest that the API server keeps an Event (`--event-ttl`), in milliseconds.
pub(crate) const EVENT_TTL: u64 = 3_600_000;

/// Objects of this `group/resource/` may live in another etcd than the cluster's, or in a server's memory, and begin anew
/// alone: aggregated APIs, which look like custom resources, and Events and SnapshotLeases (`--etcd-servers-overrides`).
pub(crate) fn may_use_other_etcd(resource: &[u8]) -> bool {
    is_custom_resource(resource)
        || is_event(resource)
        || resource.starts_with(b"coordination.k8s.io/")
}

/// `resource` (`group/resource/`, or a key that begins so) is of Events, which the API server drops after
/// [`EVENT_TTL`] whether anybody watches or not.
pub(crate) fn is_event(resource: &[u8]) -> bool {
    [b"/events/".as_slice(), b"events.k8s.io/events/"]
        .iter()
        .any(|events| resource.starts_with(events))
}

/// Documents that say how the server is at this moment are not remembered.
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

/// Path of a document, and the hash that it was asked for by.
pub(crate) fn nonresource_key(request: &ApiRequest) -> String {
    let hash = request.hash();
    if hash.is_empty() {
        request.path().to_owned()
    } else {
        format!("{}?hash={hash}", request.path())
    }
}

/// The store may know the answer; of logs and other subresources it never does.
pub(crate) fn may_be_stored(request: &ApiRequest) -> bool {
    if request.is_resource() {
        matches!(request.subresource(), "" | "status")
    } else {
        is_document(request.path())
    }
}

/// Selectors whose result can't lose a member but by its deletion: a name never changes, nor does the node of a pod
/// that has one. Of other resources (custom ones, with `selectableFields`) `spec.nodeName` may change.
pub(crate) fn is_stable_selector(request: &ApiRequest) -> bool {
    let fields = request.field_selector();
    let Some((field, value)) = fields.split_once('=') else {
        return false;
    };
    let pods = request.group().is_empty() && request.resource() == "pods";
    let fixed = field == "metadata.name" || (field == "spec.nodeName" && pods);
    let value = value.strip_prefix('=').unwrap_or(value);
    fixed && !value.is_empty() && !value.contains(',') && request.label_selector().is_empty()
}

/// A write was done whose answer is in a form that isn't stored.
pub(crate) fn is_unrecorded_write(request: &ApiRequest, status: u16) -> bool {
    let writes = matches!(request.verb(), Verb::Create | Verb::Update | Verb::Patch);
    let stored = request.is_resource()
        && request.subresource().is_empty()
        && !is_rpc(request.group(), request.resource());
    writes && stored && !request.options().dry_run && matches!(status, 200..=299)
}

/// The encoding of a response that may be stored, as far as request and headers tell.
fn reject_unstorable(request: &ApiRequest, headers: &HeaderMap) -> Result<Encoding, NotStored> {
    let encoding = Encoding::from_content_type(text(headers, header::CONTENT_TYPE));
    let options = request.options();
    if !matches!(
        text(headers, header::CONTENT_ENCODING),
        "" | "identity" | "gzip"
    ) {
        return Err(NotStored::ContentEncoding);
    }
    match request.verb() {
        Verb::Other => return Err(NotStored::Verb),
        Verb::NonResource if !is_document(request.path()) => {
            return Err(NotStored::LiveNonResource);
        }
        Verb::NonResource if options.pretty => return Err(NotStored::Pretty),
        Verb::NonResource => return Ok(encoding.unwrap_or(Encoding::Json)),
        _ => {}
    }
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
        encoding.ok_or(NotStored::ContentType)
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
    /// Decides by a response's request and head what is stored of it.
    ///
    /// # Errors
    /// Nothing: the reason.
    pub(crate) fn of(
        request: &ApiRequest,
        status: u16,
        headers: &HeaderMap,
        sent_at: u64,
    ) -> Result<Self, NotStored> {
        let encoding = reject_unstorable(request, headers)?;
        let options = request.options();
        let mut exchange = Self {
            verb: request.verb(),
            api_version: request.api_version().into_owned(),
            key: Vec::new(),
            resource: Vec::new(),
            plural: request.resource().to_owned(),
            name: request.name().to_owned(),
            stable_selector: is_stable_selector(request),
            watch_from: parse_version(request.resource_version()).unwrap_or(u64::MAX),
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
        };
        if !exchange.is_storable() {
            return Err(NotStored::StatusCode);
        }
        if request.verb() == Verb::NonResource {
            exchange.key = nonresource_key(request).into_bytes();
        } else {
            keys::push_resource(&mut exchange.resource, request.group(), request.resource());
            keys::push_scope(&mut exchange.key, request);
        }
        Ok(exchange)
    }

    /// The status code, for this verb, comes with a body that tells of an object.
    fn is_storable(&self) -> bool {
        match self.verb {
            Verb::NonResource => self.status == 200,
            Verb::Get => matches!(self.status, 200 | 404),
            Verb::List | Verb::Watch | Verb::DeleteCollection => self.status == 200,
            // 201 where it made the object: server-side apply, and kinds that a PUT may make.
            Verb::Patch | Verb::Update => matches!(self.status, 200 | 201 | 404),
            // 409: it is there already.
            Verb::Create => matches!(self.status, 200..=202 | 409),
            Verb::Delete => matches!(self.status, 200 | 202 | 404),
            Verb::Other => false,
        }
    }

    /// The key of an object of this resource.
    pub(super) fn object_key(&self, namespace: &str, name: &str) -> ObjectKeyBuf {
        ObjectKeyBuf::join(&self.resource, namespace, name)
    }

    /// The object that was requested.
    pub(super) fn requested_object(&self) -> ObjectKey<'_> {
        ObjectKey::new(&self.key)
    }

    /// The collection that was requested.
    pub(super) fn requested_collection(&self) -> CollectionKey<'_> {
        CollectionKey::new(&self.key)
    }

    /// The response as an observation of one object that was requested alone.
    pub(super) fn observation(&self) -> Observation {
        let not_before = match (self.historical, self.consistent) {
            (true, _) => 0,
            (false, true) => self.sent_at,
            (false, false) => self.sent_at.saturating_sub(MAX_WATCH_CACHE_LAG),
        };
        Observation {
            requested_at: self.sent_at,
            not_before,
            not_after: self.answered_at,
            source: ObservedBy::Read,
        }
    }

    /// The response as an observation of one of many objects.
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

/// The key of a variant of what is at `scope`; a Table has other columns in another API version.
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

/// The API server's own groups end in `.k8s.io` or have no dot; others are custom or aggregated.
pub(super) fn is_custom_resource(resource: &[u8]) -> bool {
    let group = resource.split(|b| *b == b'/').next().unwrap_or_default();
    group.contains(&b'.') && !group.ends_with(b".k8s.io")
}
