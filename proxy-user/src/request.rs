//! What an HTTP request asks of the Kubernetes API. In: method and URI. Out: [`ApiRequest`], borrowed from them; pure.
//! Follows `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`. Next stage: `route`.

use std::borrow::Cow;

use http::{Method, Uri};
use percent_encoding::percent_decode_str;

/// The Kubernetes verb.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verb {
    /// GET of one object.
    Get = 1,
    /// GET of a collection.
    List = 2,
    /// GET of a collection with `watch=true`, or of a `/watch/` path.
    Watch = 3,
    /// GET of a path that is no resource: discovery, `/version`, OpenAPI …
    Document = 4,
    /// POST.
    Create = 5,
    /// PUT.
    Update = 6,
    /// PATCH.
    Patch = 7,
    /// DELETE of one object.
    Delete = 8,
    /// DELETE of a collection.
    DeleteCollection = 9,
    /// Anything else (HEAD, OPTIONS, a write to a path that is no resource).
    Other = 10,
}

impl Verb {
    /// Kubernetes' word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get | Self::Document => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
            Self::Other => "other",
        }
    }

    /// A read that a store may answer.
    pub fn is_read(self) -> bool {
        matches!(self, Self::Get | Self::List | Self::Watch | Self::Document)
    }
}

/// One request, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiRequest<'a> {
    /// The verb.
    pub verb: Verb,
    /// The path as it came.
    pub path: &'a str,
    /// API group, empty for core.
    pub group: Cow<'a, str>,
    /// API version.
    pub version: Cow<'a, str>,
    /// Resource (plural), empty for a document.
    pub resource: Cow<'a, str>,
    /// Subresource, empty when none.
    pub subresource: Cow<'a, str>,
    /// Namespace, empty for cluster scope and for all namespaces.
    pub namespace: Cow<'a, str>,
    /// Name, empty for a collection.
    pub name: Cow<'a, str>,
    /// The query.
    pub query: Query<'a>,
}

/// The query parameters that change an answer (`metav1.ListOptions`, `metav1.GetOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    /// The query as it came.
    pub raw: &'a str,
    /// `labelSelector`.
    pub label_selector: Cow<'a, str>,
    /// `fieldSelector`.
    pub field_selector: Cow<'a, str>,
    /// `resourceVersion`.
    pub resource_version: Cow<'a, str>,
    /// `resourceVersionMatch=Exact`.
    pub exact: bool,
    /// `continue`.
    pub continue_token: Cow<'a, str>,
    /// `limit`, 0 when none.
    pub limit: u64,
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<u64>,
    /// `watch=true`.
    pub watch: bool,
    /// `sendInitialEvents=true`.
    pub send_initial_events: bool,
    /// `allowWatchBookmarks=true`.
    pub bookmarks: bool,
    /// `dryRun` is there.
    pub dry_run: bool,
    /// `pretty` is there.
    pub pretty: bool,
}

impl<'a> ApiRequest<'a> {
    /// Takes a request apart; never fails: what is no resource is a document or `Other`.
    pub fn parse(method: &Method, uri: &'a Uri) -> Self {
        let path = uri.path();
        let query = Query::parse(uri.query().unwrap_or_default());
        resource(method, path, &query).unwrap_or_else(|| Self::document(method, path, query))
    }

    fn document(method: &Method, path: &'a str, query: Query<'a>) -> Self {
        let verb = if method == Method::GET { Verb::Document } else { Verb::Other };
        let none = || Cow::Borrowed("");
        Self {
            verb,
            path,
            group: none(),
            version: none(),
            resource: none(),
            subresource: none(),
            namespace: none(),
            name: none(),
            query,
        }
    }

    /// A resource, as opposed to a document.
    pub fn is_resource(&self) -> bool {
        !self.resource.is_empty()
    }

    /// `group/version`, or `version` for core: what an object's `apiVersion` must say.
    pub fn api_version(&self) -> Cow<'_, str> {
        if self.group.is_empty() {
            Cow::Borrowed(&self.version)
        } else {
            Cow::Owned(format!("{}/{}", self.group, self.version))
        }
    }

    /// Label or field selectors are there.
    pub fn has_selectors(&self) -> bool {
        !(self.query.label_selector.is_empty() && self.query.field_selector.is_empty())
    }
}

/// The path's segments, percent-decoded; `None` for a path that holds an empty or undecodable segment.
fn segments(path: &str) -> Option<Vec<Cow<'_, str>>> {
    let trimmed = path.strip_prefix('/')?;
    let trimmed = trimmed.strip_suffix('/').unwrap_or(trimmed);
    let mut parts = Vec::with_capacity(8);
    for part in trimmed.split('/') {
        let decoded =
            if part.contains('%') { percent_decode_str(part).decode_utf8().ok()? } else { part.into() };
        // A decoded slash, NUL or dot segment would make a key that means something else.
        if decoded.is_empty() || decoded == "." || decoded == ".." || decoded.contains(['/', '\0']) {
            return None;
        }
        parts.push(decoded);
    }
    Some(parts)
}

fn resource<'a>(method: &Method, path: &'a str, query: &Query<'a>) -> Option<ApiRequest<'a>> {
    let mut parts = segments(path)?.into_iter();
    let (group, version) = match parts.next()?.as_ref() {
        "api" => (Cow::Borrowed(""), parts.next()?),
        "apis" => (parts.next()?, parts.next()?),
        _ => return None,
    };
    let mut rest: Vec<Cow<'a, str>> = parts.collect();
    let watch_path = rest.first().is_some_and(|p| p == "watch");
    if watch_path {
        rest.remove(0);
    }
    // namespaces/NS/RESOURCE…, but namespaces/NS/{status,finalize} are subresources of the namespace itself.
    let namespaced =
        rest.len() > 2 && rest[0] == "namespaces" && !matches!(rest[2].as_ref(), "status" | "finalize");
    let mut rest = rest.into_iter();
    let namespace = if namespaced {
        rest.next();
        rest.next()?
    } else {
        Cow::Borrowed("")
    };
    let resource = rest.next()?;
    let name = rest.next().unwrap_or_default();
    let subresource = rest.next().unwrap_or_default();
    let verb = verb(method, name.is_empty(), watch_path || query.watch);
    let query = query.clone();
    Some(ApiRequest { verb, path, group, version, resource, subresource, namespace, name, query })
}

fn verb(method: &Method, collection: bool, watch: bool) -> Verb {
    match (method, collection) {
        (&Method::GET, true) if watch => Verb::Watch,
        (&Method::GET, true) => Verb::List,
        (&Method::GET, false) => Verb::Get,
        (&Method::POST, _) => Verb::Create,
        (&Method::PUT, _) => Verb::Update,
        (&Method::PATCH, _) => Verb::Patch,
        (&Method::DELETE, true) => Verb::DeleteCollection,
        (&Method::DELETE, false) => Verb::Delete,
        _ => Verb::Other,
    }
}

impl<'a> Query<'a> {
    /// Parses a query string; unknown parameters are ignored, as the API server does.
    pub fn parse(raw: &'a str) -> Self {
        let mut query = Self { raw, ..Self::default() };
        for pair in raw.split('&').filter(|p| !p.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let truth = || matches!(value, "" | "1" | "true" | "True" | "TRUE" | "t" | "T");
            match key {
                "labelSelector" => query.label_selector = canonical(decode(value)),
                "fieldSelector" => query.field_selector = canonical(decode(value)),
                "resourceVersion" => query.resource_version = decode(value),
                "resourceVersionMatch" => query.exact = value == "Exact",
                "continue" => query.continue_token = decode(value),
                "limit" => query.limit = value.parse().unwrap_or(0),
                "timeoutSeconds" => query.timeout_seconds = value.parse().ok(),
                "watch" => query.watch = truth(),
                "sendInitialEvents" => query.send_initial_events = truth(),
                "allowWatchBookmarks" => query.bookmarks = truth(),
                "dryRun" => query.dry_run = true,
                "pretty" => query.pretty = true,
                _ => {}
            }
        }
        query
    }
}

fn decode(value: &str) -> Cow<'_, str> {
    if value.contains(['%', '+']) {
        let spaced = value.replace('+', " ");
        Cow::Owned(percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
    } else {
        Cow::Borrowed(value)
    }
}

/// One spelling for equal selectors: requirements sorted, where none holds a set (`in (a,b)`).
fn canonical(selector: Cow<'_, str>) -> Cow<'_, str> {
    if !selector.contains(',') || selector.contains('(') {
        return selector;
    }
    let mut parts: Vec<&str> = selector.split(',').map(str::trim).collect();
    if parts.is_sorted() {
        return selector;
    }
    parts.sort_unstable();
    Cow::Owned(parts.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<'a>(method: &Method, uri: &'a Uri) -> ApiRequest<'a> {
        ApiRequest::parse(method, uri)
    }

    /// `METHOD uri → verb group version resource subresource namespace name`, "-" for empty.
    #[test]
    fn requests_are_taken_apart_like_the_api_server_does() {
        let table = [
            ("GET /api/v1/namespaces/default/pods/pod-a", "get - v1 pods - default pod-a"),
            ("GET /api/v1/namespaces/default/pods", "list - v1 pods - default -"),
            ("GET /api/v1/pods?watch=true", "watch - v1 pods - - -"),
            ("GET /api/v1/watch/pods", "watch - v1 pods - - -"),
            ("GET /api/v1/namespaces/default", "get - v1 namespaces - - default"),
            ("GET /api/v1/namespaces", "list - v1 namespaces - - -"),
            ("PUT /api/v1/namespaces/x/finalize", "update - v1 namespaces finalize - x"),
            ("PATCH /api/v1/namespaces/default/pods/a/status", "patch - v1 pods status default a"),
            (
                "GET /apis/crd.projectcalico.org/v1/ipamblocks/10-0-0-0-26",
                "get crd.projectcalico.org v1 ipamblocks - - 10-0-0-0-26",
            ),
            (
                "POST /apis/crd.projectcalico.org/v1/ipamhandles",
                "create crd.projectcalico.org v1 ipamhandles - - -",
            ),
            ("DELETE /api/v1/namespaces/a/configmaps", "deletecollection - v1 configmaps - a -"),
            ("DELETE /api/v1/namespaces/a/configmaps/b", "delete - v1 configmaps - a b"),
            ("GET /apis/apps/v1", "get - - - - - -"),
            ("GET /api", "get - - - - - -"),
            ("GET /version", "get - - - - - -"),
            ("POST /version", "other - - - - - -"),
            ("GET /api/v1/namespaces/a%2Fb/pods/x", "get - - - - - -"),
            ("GET /api/v1/namespaces/../pods/x", "get - - - - - -"),
        ];
        for (input, expected) in table {
            let (method, uri) = input.split_once(' ').unwrap();
            let uri: Uri = uri.parse().unwrap();
            let r = parse(&method.parse().unwrap(), &uri);
            let dash = |s: &str| if s.is_empty() { "-".to_owned() } else { s.to_owned() };
            let got = [&*r.group, &r.version, &r.resource, &r.subresource, &r.namespace, &r.name].map(dash);
            assert_eq!(format!("{} {}", r.verb.as_str(), got.join(" ")), expected, "{input}");
        }
    }

    #[test]
    fn equal_selectors_have_one_spelling() {
        let a: Uri = "/api/v1/pods?labelSelector=b%3D1,a%3D2&fieldSelector=x%3Dy".parse().unwrap();
        let b: Uri = "/api/v1/pods?fieldSelector=x%3Dy&labelSelector=a%3D2%2Cb%3D1".parse().unwrap();
        let (a, b) = (parse(&Method::GET, &a), parse(&Method::GET, &b));
        assert_eq!(a.query.label_selector, b.query.label_selector);
        assert_eq!(a.query.label_selector, "a=2,b=1");
        let set = Query::parse("labelSelector=z+in+(b,a),c");
        assert_eq!(set.label_selector, "z in (b,a),c");
    }
}
