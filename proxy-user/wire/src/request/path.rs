//! The path of a request. In: its text. Out: [`Target`], split as `RequestInfoFactory.NewRequestInfo` splits it
//! (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`), and only where each segment means one thing.

use std::borrow::Cow;

use http::Method;
use memchr::memchr_iter;
use percent_encoding::percent_decode_str;

use super::{ApiRequest, Query, Verb};

/// A verb that stands in the path, in front of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathVerb {
    /// `/api/v1/watch/…`, deprecated since 1.11 and still served.
    Watch,
    /// `/api/v1/proxy/…`, served no more and still told apart.
    Proxy,
}

/// The thing that a path names: empty fields for a document.
#[derive(Debug, Default)]
pub(super) struct Target<'a> {
    /// As opposed to a document.
    is_resource: bool,
    path_verb: Option<PathVerb>,
    group: Cow<'a, str>,
    version: Cow<'a, str>,
    namespace: Cow<'a, str>,
    resource: Cow<'a, str>,
    name: Cow<'a, str>,
    subresource: Cow<'a, str>,
    /// Segments behind the subresource.
    rest: bool,
    /// A document of OpenAPI v3, whose `hash` the API server reads.
    pub(super) hashed: bool,
}

impl<'a> Target<'a> {
    /// Reads a path; `None` where it isn't wholly understood.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        let trimmed = path.strip_prefix('/')?;
        // Generated clients ask for discovery as "/api/v1/".
        let (trimmed, slash) = trimmed
            .strip_suffix('/')
            .map_or((trimmed, false), |rest| (rest, true));
        let mut parts = Vec::with_capacity(8);
        if !path.eq("/") {
            let mut start = 0;
            for end in memchr_iter(b'/', trimmed.as_bytes()).chain([trimmed.len()]) {
                parts.push(segment(&trimmed[start..end])?);
                start = end + 1;
            }
        }
        if let Some(target) = Self::resource(parts) {
            let plain = target.path_verb != Some(PathVerb::Proxy) && !target.rest && !slash;
            // A watch of one object is named by its path: no collection's.
            let one = target.path_verb.is_some() && !target.name.is_empty();
            return (plain && !one && !target.resource.is_empty()).then_some(target);
        }
        let hashed = path.starts_with("/openapi/v3/");
        (!path.contains('%')).then(|| Self {
            hashed,
            ..Self::default()
        })
    }

    /// Splits a path's segments; `None` where they name no resource.
    fn resource(parts: Vec<Cow<'a, str>>) -> Option<Self> {
        let (grouped, least) = match parts.first().map(AsRef::as_ref) {
            Some("api") => (false, 3),
            Some("apis") => (true, 4),
            _ => return None,
        };
        if parts.len() < least {
            return None;
        }
        let mut parts = parts.into_iter().skip(1);
        let mut target = Self {
            is_resource: true,
            ..Self::default()
        };
        if grouped {
            target.group = parts.next()?;
        }
        target.version = parts.next()?;
        let mut first = parts.next()?;
        target.path_verb = match first.as_ref() {
            "watch" => Some(PathVerb::Watch),
            "proxy" => Some(PathVerb::Proxy),
            _ => None,
        };
        if target.path_verb.is_some() {
            first = parts.next().unwrap_or_default();
        }
        let (mut second, mut third) = (parts.next(), parts.next());
        // namespaces/NS/RESOURCE…, but namespaces/NS/{status,finalize} are subresources of the namespace itself.
        let namespaced = first == "namespaces"
            && third
                .as_deref()
                .is_some_and(|part| !matches!(part, "status" | "finalize"));
        if namespaced {
            target.namespace = second.take()?;
            first = third.take()?;
            (second, third) = (parts.next(), parts.next());
        }
        target.resource = first;
        target.name = second.unwrap_or_default();
        target.subresource = third.unwrap_or_default();
        target.rest = parts.next().is_some();
        Some(target)
    }

    /// The Kubernetes verb; `watch` tells whether the query asks to watch.
    pub(super) fn verb(&self, method: &Method, watch: impl FnOnce() -> bool) -> Verb {
        if !self.is_resource {
            return document_verb(method);
        }
        match (method, self.path_verb, self.name.is_empty()) {
            (&Method::GET, Some(PathVerb::Watch), _) => Verb::Watch,
            (method, Some(_), _) if method != Method::GET => Verb::Other,
            (&Method::GET, None, true) if watch() => Verb::Watch,
            (&Method::GET, None, true) => Verb::List,
            (&Method::GET, ..) => Verb::Get,
            (&Method::POST, ..) => Verb::Create,
            (&Method::PUT, ..) => Verb::Update,
            (&Method::PATCH, ..) => Verb::Patch,
            (&Method::DELETE, _, true) => Verb::DeleteCollection,
            (&Method::DELETE, _, false) => Verb::Delete,
            _ => Verb::Other,
        }
    }

    /// A `/watch/` path, which the API server checks by the rules of a list.
    pub(super) fn watched_by_path(&self) -> bool {
        self.path_verb == Some(PathVerb::Watch)
    }

    /// A subresource (logs, exec, proxy) that reads parameters of its own; nothing of it is ever stored.
    pub(super) fn has_own_parameters(&self) -> bool {
        !matches!(self.subresource.as_ref(), "" | "status")
    }

    pub(super) fn into_request(
        self,
        verb: Verb,
        path: &'a str,
        query: Query<'a>,
    ) -> ApiRequest<'a> {
        let Self {
            group,
            version,
            namespace,
            resource,
            name,
            subresource,
            ..
        } = self;
        ApiRequest {
            verb,
            path,
            group,
            version,
            resource,
            subresource,
            namespace,
            name,
            query,
        }
    }
}

fn document_verb(method: &Method) -> Verb {
    if method == Method::GET {
        Verb::Document
    } else {
        Verb::Other
    }
}

/// The verb of a request whose path isn't understood: the path is split as Go splits it, slashes in escapes included.
pub(super) fn opaque_verb(method: &Method, path: &str, watch: bool) -> Verb {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let parts = decoded
        .trim_matches('/')
        .split('/')
        .map(Cow::Borrowed)
        .collect();
    Target::resource(parts).map_or_else(
        || document_verb(method),
        |target| target.verb(method, || watch),
    )
}

/// A segment of the path is `proxy`, as Go splits it.
pub(super) fn passes_a_proxy(path: &str) -> bool {
    percent_decode_str(path)
        .decode_utf8_lossy()
        .split('/')
        .any(|part| part == "proxy")
}

/// Bytes that may stand in a segment as they are: RFC 3986, `pchar`.
const PCHAR: [bool; 256] = {
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@";
    let (mut table, mut at) = ([false; 256], 0);
    while at < plain.len() {
        table[plain[at] as usize] = true;
        at += 1;
    }
    table
};

/// One segment, decoded; `None` for what is empty, malformed, or can't stand in the name of a thing.
fn segment(raw: &str) -> Option<Cow<'_, str>> {
    let plain = |b: u8| PCHAR[usize::from(b)];
    if matches!(raw, "" | "." | "..") {
        return None;
    }
    if raw.bytes().all(plain) {
        return Some(Cow::Borrowed(raw));
    }
    if !raw.bytes().all(|b| plain(b) || b == b'%') || !escapes_are_whole(raw) {
        return None;
    }
    let decoded = percent_decode_str(raw).decode_utf8().ok()?;
    // A slash would be another path to the API server, and these others another key here.
    let odd = |c: char| c.is_control() || matches!(c, '/' | '\\' | '%' | '?' | '#');
    (!decoded.contains(odd) && !matches!(decoded.as_ref(), "." | "..")).then_some(decoded)
}

/// Each `%` has its two digits: Go refuses what has not, others leave it as it is.
pub(super) fn escapes_are_whole(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}
