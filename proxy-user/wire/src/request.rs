//! An HTTP request as the Kubernetes API reads it. In: method and URI. Out: a [`Reading`], borrowed from them; pure.
//! Follows `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`. Next stage: `route`.

mod path;
mod query;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use http::{Method, Uri};

use path::Target;
pub use query::Query;

/// The Kubernetes verb. The numbers are stored in grants and stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Verb {
    /// GET of one object.
    Get = 1,
    /// GET of a collection.
    List = 2,
    /// GET of a collection whose `watch` the API server takes for true, or of a `/watch/` path.
    Watch = 3,
    /// GET of a path that is no resource: discovery, `/version`, OpenAPI …
    Document = 4,
    /// POST to a collection or a subresource.
    Create = 5,
    /// PUT of an object.
    Update = 6,
    /// PATCH of an object.
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

/// A request, as far as it is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading<'a> {
    /// The verb, as the API server sees it: a watch that can't be stored is a watch.
    pub verb: Verb,
    /// The path as it came.
    pub path: &'a str,
    request: Option<ApiRequest<'a>>,
}

/// One request, understood; made by [`ApiRequest::parse`] alone.
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

impl<'a> Reading<'a> {
    /// The request, where path and query mean to the API server exactly what they mean here, to the last parameter.
    /// Any other is forwarded as it came and tells nothing: only what is understood has a key to be stored under, to
    /// be allowed by, and to be answered from.
    pub fn understood(&self) -> Option<&ApiRequest<'a>> {
        self.request.as_ref()
    }

    /// The answer may be of what is behind a proxy of the API server's (`services/NAME/proxy/…`, and pods', and nodes').
    pub fn passes_a_proxy(&self) -> bool {
        path::passes_a_proxy(self.path)
    }

    /// The object or collection in words, for an error's message.
    pub fn describe(&self) -> String {
        self.request
            .as_ref()
            .map_or_else(|| self.path.to_owned(), ApiRequest::describe)
    }
}

impl<'a> ApiRequest<'a> {
    /// Takes a request apart as the API server does.
    pub fn parse(method: &Method, uri: &'a Uri) -> Reading<'a> {
        let (path, raw) = (uri.path(), uri.query().unwrap_or_default());
        let Some(target) = Target::of(path) else {
            let verb = path::opaque_verb(method, path, query::asks_to_watch(raw));
            return Reading {
                verb,
                path,
                request: None,
            };
        };
        let verb = target.verb(method, || query::asks_to_watch(raw));
        let query = Query::of(raw, verb, &target);
        Reading {
            verb,
            path,
            request: query.map(|query| target.into_request(verb, path, query)),
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

    /// The object or collection in words, for an error's message.
    pub fn describe(&self) -> String {
        if !self.is_resource() {
            return self.path.to_owned();
        }
        let dot = if self.group.is_empty() { "" } else { "." };
        let place = if self.namespace.is_empty() {
            String::new()
        } else {
            format!(" in namespace {:?}", self.namespace)
        };
        let name = if self.name.is_empty() {
            String::new()
        } else {
            format!(" {:?}", self.name)
        };
        let part = match &*self.subresource {
            "" => String::new(),
            subresource => format!("the {subresource} of "),
        };
        format!("{part}{}{dot}{}{name}{place}", self.resource, self.group)
    }
}
