//! An HTTP request as the Kubernetes API reads it, following
//! `k8s.io/apiserver/pkg/endpoints/request/requestinfo.go`.
//!
//! A request is parsed once, into an owned [`RequestInfo`]. Only a request that is understood to
//! the last parameter yields an [`ApiRequest`], and only an `ApiRequest` can be made into a key
//! of the store; any other is forwarded as it came.

mod options;
mod path;
mod query;
#[cfg(test)]
mod tests;
mod text;

use std::borrow::Cow;

use http::uri::PathAndQuery;
use http::{Method, Uri};

pub use options::Options;
use options::Values;
use path::{Names, Target};
use text::{Part, Text};

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
    /// GET of a path that names no resource: discovery, `/version`, OpenAPI.
    NonResource = 4,
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
    /// Anything else: HEAD, OPTIONS, a write to a path that names no resource.
    Other = 10,
}

impl Verb {
    /// The verb as Kubernetes spells it in authorisation rules and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get | Self::NonResource => "get",
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

    /// Reads may be answered by a store and may be sent twice.
    pub fn is_read(self) -> bool {
        matches!(
            self,
            Self::Get | Self::List | Self::Watch | Self::NonResource
        )
    }
}

/// The parsed method and URI of any request.
#[derive(Debug, Clone)]
pub struct RequestInfo(Kind);

#[derive(Debug, Clone)]
enum Kind {
    Understood(ApiRequest),
    Opaque { verb: Verb, target: PathAndQuery },
}

/// A request that is understood to the last parameter. [`RequestInfo::parse`] alone makes one.
///
/// Text that needed no decoding is a range of the URI, which is shared and not copied.
#[derive(Debug, Clone)]
pub struct ApiRequest {
    verb: Verb,
    target: PathAndQuery,
    decoded: String,
    names: Names,
    values: Values,
    options: Options,
}

impl RequestInfo {
    /// Reads a request as the API server does. Never fails: an opaque request has a verb, too.
    pub fn parse(method: &Method, uri: &Uri) -> Self {
        // Only CONNECT has a URI without a path.
        let target = uri
            .path_and_query()
            .cloned()
            .unwrap_or_else(|| PathAndQuery::from_static("*"));
        let kind = match ApiRequest::parse(method, &target) {
            Ok(request) => Kind::Understood(request),
            Err(verb) => Kind::Opaque { verb, target },
        };
        Self(kind)
    }

    /// The verb as the API server sees it, of an opaque request as well.
    pub fn verb(&self) -> Verb {
        match &self.0 {
            Kind::Understood(request) => request.verb,
            Kind::Opaque { verb, .. } => *verb,
        }
    }

    /// The path without the query, as it came.
    pub fn path(&self) -> &str {
        match &self.0 {
            Kind::Understood(request) => request.path(),
            Kind::Opaque { target, .. } => target.path(),
        }
    }

    /// The request, where path and query mean to the API server exactly what they mean here.
    ///
    /// An opaque request has no key: it is neither stored, nor allowed, nor answered from the
    /// store.
    pub fn understood(&self) -> Option<&ApiRequest> {
        match &self.0 {
            Kind::Understood(request) => Some(request),
            Kind::Opaque { .. } => None,
        }
    }

    /// A parameter asks for a dry run, or may do so in a spelling that isn't understood.
    pub fn may_be_dry_run(&self) -> bool {
        match &self.0 {
            Kind::Understood(request) => request.options().dry_run,
            Kind::Opaque { target, .. } => {
                query::mentions_dry_run(target.query().unwrap_or_default())
            }
        }
    }

    /// A proxy of the API server's may pass the request on (`services/NAME/proxy/…`, and pods' and
    /// nodes'), so that the response is not the API server's own.
    pub fn is_proxied(&self) -> bool {
        path::has_proxy_segment(self.path())
    }

    /// The object or collection in words, for error messages.
    pub fn describe(&self) -> String {
        match &self.0 {
            Kind::Understood(request) => request.describe(),
            Kind::Opaque { target, .. } => target.path().to_owned(),
        }
    }
}

impl ApiRequest {
    /// Reads path and query; only the verb where they aren't wholly understood.
    fn parse(method: &Method, target: &PathAndQuery) -> Result<Self, Verb> {
        let (path, query) = (target.path(), target.query().unwrap_or_default());
        let mut text = Text::new(target.as_str());
        let Some(parsed) = Target::parse(path, &mut text) else {
            let watch = query::asks_to_watch(query);
            return Err(path::opaque_verb(method, path, watch));
        };
        let verb = parsed.verb(method, || query::asks_to_watch(query));
        let (values, options) = query::parse(query, verb, &parsed, &mut text).ok_or(verb)?;
        Ok(Self {
            verb,
            decoded: text.into_decoded(),
            target: target.clone(),
            names: parsed.names,
            values,
            options,
        })
    }

    fn text(&self, part: Part) -> &str {
        part.resolve(self.target.as_str(), &self.decoded)
    }

    /// The verb as the API server sees it.
    pub fn verb(&self) -> Verb {
        self.verb
    }

    /// The path without the query, as it came.
    pub fn path(&self) -> &str {
        self.target.path()
    }

    /// API group, empty for core.
    pub fn group(&self) -> &str {
        self.text(self.names.group)
    }

    /// API version within the group.
    pub fn version(&self) -> &str {
        self.text(self.names.version)
    }

    /// Resource (plural), empty where the path names none.
    pub fn resource(&self) -> &str {
        self.text(self.names.resource)
    }

    /// Subresource, empty when none.
    pub fn subresource(&self) -> &str {
        self.text(self.names.subresource)
    }

    /// Namespace, empty for cluster scope and for all namespaces.
    pub fn namespace(&self) -> &str {
        self.text(self.names.namespace)
    }

    /// Name, empty for a collection.
    pub fn name(&self) -> &str {
        self.text(self.names.name)
    }

    /// `labelSelector` in its canonical spelling.
    pub fn label_selector(&self) -> &str {
        self.text(self.values.label_selector)
    }

    /// `fieldSelector` in its canonical spelling.
    pub fn field_selector(&self) -> &str {
        self.text(self.values.field_selector)
    }

    /// `resourceVersion`; of a read it is empty, `0`, or a number.
    pub fn resource_version(&self) -> &str {
        self.text(self.values.resource_version)
    }

    /// `continue`, the token of a further page.
    pub fn continue_token(&self) -> &str {
        self.text(self.values.continue_token)
    }

    /// `hash` of an OpenAPI v3 document.
    pub fn hash(&self) -> &str {
        self.text(self.values.hash)
    }

    /// The query's numbers and switches.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The path names a resource.
    pub fn is_resource(&self) -> bool {
        !self.resource().is_empty()
    }

    /// `group/version`, or `version` for core: the `apiVersion` of the objects.
    pub fn api_version(&self) -> Cow<'_, str> {
        if self.group().is_empty() {
            Cow::Borrowed(self.version())
        } else {
            Cow::Owned(format!("{}/{}", self.group(), self.version()))
        }
    }

    /// Label or field selectors narrow the collection.
    pub fn has_selectors(&self) -> bool {
        !(self.label_selector().is_empty() && self.field_selector().is_empty())
    }

    /// The object or collection in words, for error messages.
    pub fn describe(&self) -> String {
        if !self.is_resource() {
            return self.path().to_owned();
        }
        let dot = if self.group().is_empty() { "" } else { "." };
        let namespace = match self.namespace() {
            "" => String::new(),
            namespace => format!(" in namespace {namespace:?}"),
        };
        let name = match self.name() {
            "" => String::new(),
            name => format!(" {name:?}"),
        };
        let subresource = match self.subresource() {
            "" => String::new(),
            subresource => format!("the {subresource} of "),
        };
        let (resource, group) = (self.resource(), self.group());
        format!("{subresource}{resource}{dot}{group}{name}{namespace}")
    }
}
