//! The path of a request, split as `RequestInfoFactory.NewRequestInfo` splits it
//! (`k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`).

use http::Method;
use memchr::memchr_iter;
use percent_encoding::percent_decode_str;

use super::Verb;
use super::text::{Part, Text};

/// `apis/GROUP/VERSION/watch/namespaces/NAMESPACE/RESOURCE/NAME/SUBRESOURCE`.
const MAX_SEGMENTS: usize = 9;

/// A verb that stands in the path, in front of the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathVerb {
    /// `/api/v1/watch/…`, deprecated since 1.11 and still served.
    Watch,
    /// `/api/v1/proxy/…`, no longer served but still recognized.
    Proxy,
}

impl PathVerb {
    fn from_segment(segment: &str) -> Option<Self> {
        match segment {
            "watch" => Some(Self::Watch),
            "proxy" => Some(Self::Proxy),
            _ => None,
        }
    }
}

/// The segments that name a resource; all empty where the path names none.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Names {
    pub group: Part,
    pub version: Part,
    pub namespace: Part,
    pub resource: Part,
    pub name: Part,
    pub subresource: Part,
}

/// A path and how it is served.
#[derive(Debug, Default)]
pub(super) struct Target {
    pub names: Names,
    kind: TargetKind,
    path_verb: Option<PathVerb>,
    subresource_kind: SubresourceKind,
    /// Segments follow the subresource.
    has_rest: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum TargetKind {
    Resource,
    #[default]
    NonResource,
    /// An OpenAPI v3 document, whose `hash` the API server reads.
    OpenApiV3,
}

/// Decides whether the parameters of a query are those of the API server.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum SubresourceKind {
    #[default]
    NoneOrStatus,
    /// Logs, exec, proxy and the like read parameters of their own.
    Other,
}

impl SubresourceKind {
    fn from_segment(segment: &str) -> Self {
        match segment {
            "" | "status" => Self::NoneOrStatus,
            _ => Self::Other,
        }
    }
}

/// The first segments of a path, and how many there are in all.
#[derive(Debug, Default)]
struct Segments {
    parts: [Part; MAX_SEGMENTS],
    count: usize,
}

impl Segments {
    fn push(&mut self, part: Part) {
        if let Some(slot) = self.parts.get_mut(self.count) {
            *slot = part;
        }
        self.count += 1;
    }

    /// The segment at this place; empty where there is none, since no real segment is.
    fn get(&self, at: usize) -> Part {
        self.parts.get(at).copied().unwrap_or_default()
    }
}

impl Target {
    /// Reads a path, with which the raw text begins; `None` where it isn't wholly understood.
    pub(super) fn parse(path: &str, text: &mut Text<'_>) -> Option<Self> {
        let trimmed = path.strip_prefix('/')?;
        // Generated clients ask for discovery as "/api/v1/".
        let (trimmed, slash) = trimmed
            .strip_suffix('/')
            .map_or((trimmed, false), |rest| (rest, true));
        let segments = if path == "/" {
            Segments::default()
        } else {
            split_strictly(trimmed, text)?
        };
        if let Some(target) = Self::resource(&segments, text) {
            return target.is_plain(slash).then_some(target);
        }
        let kind = if path.starts_with("/openapi/v3/") {
            TargetKind::OpenApiV3
        } else {
            TargetKind::NonResource
        };
        (!path.contains('%')).then(|| Self {
            kind,
            ..Self::default()
        })
    }

    /// Finds the resource in a path's segments; `None` where they name none.
    fn resource(segments: &Segments, text: &Text<'_>) -> Option<Self> {
        let (grouped, least) = match text.get(segments.get(0)) {
            "api" => (false, 3),
            "apis" => (true, 4),
            _ => return None,
        };
        if segments.count < least {
            return None;
        }
        let mut names = Names::default();
        let mut at = 1;
        if grouped {
            names.group = segments.get(1);
            at = 2;
        }
        names.version = segments.get(at);
        at += 1;
        let path_verb = PathVerb::from_segment(text.get(segments.get(at)));
        at += usize::from(path_verb.is_some());
        if is_namespaced(segments, at, text) {
            names.namespace = segments.get(at + 1);
            at += 2;
        }
        names.resource = segments.get(at);
        names.name = segments.get(at + 1);
        names.subresource = segments.get(at + 2);
        Some(Self {
            names,
            kind: TargetKind::Resource,
            path_verb,
            subresource_kind: SubresourceKind::from_segment(text.get(names.subresource)),
            has_rest: segments.count > at + 3,
        })
    }

    /// Path and object or collection correspond one to one.
    fn is_plain(&self, trailing_slash: bool) -> bool {
        // A watch of one object is named by its path: no collection's.
        let one_object = self.path_verb.is_some() && !self.names.name.is_empty();
        self.path_verb != Some(PathVerb::Proxy)
            && !(self.has_rest || trailing_slash || one_object)
            && !self.names.resource.is_empty()
    }

    /// The Kubernetes verb; `watch` tells whether the query asks to watch.
    pub(super) fn verb(&self, method: &Method, watch: impl FnOnce() -> bool) -> Verb {
        if self.kind != TargetKind::Resource {
            return nonresource_verb(method);
        }
        match (method, self.path_verb, self.names.name.is_empty()) {
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

    /// The API server checks a `/watch/` path by the rules of a list.
    pub(super) fn is_watch_path(&self) -> bool {
        self.path_verb == Some(PathVerb::Watch)
    }

    /// The query's parameters are a subresource's own (logs, exec, proxy). Nothing of those is
    /// stored.
    pub(super) fn has_own_parameters(&self) -> bool {
        self.subresource_kind == SubresourceKind::Other
    }

    /// The API server reads `hash`.
    pub(super) fn reads_hash(&self) -> bool {
        self.kind == TargetKind::OpenApiV3
    }
}

/// `namespaces/NAMESPACE/RESOURCE…`. The namespace itself has the subresources `status` and
/// `finalize`.
fn is_namespaced(segments: &Segments, at: usize, text: &Text<'_>) -> bool {
    text.get(segments.get(at)) == "namespaces"
        && segments.count > at + 2
        && !matches!(text.get(segments.get(at + 2)), "status" | "finalize")
}

fn nonresource_verb(method: &Method) -> Verb {
    if method == Method::GET {
        Verb::NonResource
    } else {
        Verb::Other
    }
}

/// The verb of a path that isn't understood: split as Go splits it, slashes in escapes included.
pub(super) fn opaque_verb(method: &Method, path: &str, watch: bool) -> Verb {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let text = Text::new(&decoded);
    Target::resource(&split_loosely(&text), &text).map_or_else(
        || nonresource_verb(method),
        |target| target.verb(method, || watch),
    )
}

/// A segment of the path is `proxy`, as Go splits it.
pub(super) fn has_proxy_segment(path: &str) -> bool {
    percent_decode_str(path)
        .decode_utf8_lossy()
        .split('/')
        .any(|segment| segment == "proxy")
}

/// Splits and decodes a path between its outer slashes; `None` where a segment is no name.
fn split_strictly(trimmed: &str, text: &mut Text<'_>) -> Option<Segments> {
    let mut segments = Segments::default();
    let mut start = 0;
    for end in memchr_iter(b'/', trimmed.as_bytes()).chain([trimmed.len()]) {
        // Behind the path's first slash.
        segments.push(decode_segment(&trimmed[start..end], start + 1, text)?);
        start = end + 1;
    }
    Some(segments)
}

/// Splits a decoded path.
fn split_loosely(text: &Text<'_>) -> Segments {
    let mut segments = Segments::default();
    let path = text.raw();
    let mut start = path.len() - path.trim_start_matches('/').len();
    let end = path.trim_end_matches('/').len().max(start);
    for segment in path[start..end].split('/') {
        segments.push(Text::raw_part(start, start + segment.len()));
        start += segment.len() + 1;
    }
    segments
}

/// Bytes that may stand in a segment unescaped: RFC 3986, `pchar`.
const PCHAR: [bool; 256] = {
    let plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~!$&'()*+,;=:@";
    let (mut table, mut at) = ([false; 256], 0);
    while at < plain.len() {
        table[plain[at] as usize] = true;
        at += 1;
    }
    table
};

fn is_pchar(byte: u8) -> bool {
    PCHAR[usize::from(byte)]
}

/// Decodes the segment that starts at `start`; `None` for an empty or malformed one, and for one
/// that can't stand in the name of an object.
fn decode_segment(raw: &str, start: usize, text: &mut Text<'_>) -> Option<Part> {
    if matches!(raw, "" | "." | "..") {
        return None;
    }
    if raw.bytes().all(is_pchar) {
        return Some(Text::raw_part(start, start + raw.len()));
    }
    if !raw.bytes().all(|b| is_pchar(b) || b == b'%') || !has_whole_escapes(raw) {
        return None;
    }
    let decoded = percent_decode_str(raw).decode_utf8().ok()?;
    if decoded.contains(is_ambiguous) || matches!(decoded.as_ref(), "." | "..") {
        return None;
    }
    Some(text.push_decoded(&decoded))
}

/// A decoded slash is another path to the API server, and the others are another key of the store.
fn is_ambiguous(c: char) -> bool {
    c.is_control() || matches!(c, '/' | '\\' | '%' | '?' | '#')
}

/// Each `%` has its two digits. Go refuses any other; the `percent_encoding` crate keeps it.
pub(super) fn has_whole_escapes(text: &str) -> bool {
    text.split('%')
        .skip(1)
        .all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}
