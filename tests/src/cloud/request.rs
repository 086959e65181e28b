//! The attributes of a request that authorization and routing need.
use std::borrow::Cow;

use http::{Method, Uri};

/// A parsed request line.
#[derive(Clone, Debug, Default)]
pub(super) struct Target {
    pub(super) path: String,
    pub(super) verb: &'static str,
    /// `None`: not a resource (discovery, health, version).
    pub(super) resource: Option<Resource>,
    pub(super) query: Vec<(String, String)>,
}

/// The resource part of a path.
#[derive(Clone, Debug, Default)]
pub(super) struct Resource {
    pub(super) group: String,
    pub(super) version: String,
    pub(super) resource: String,
    pub(super) subresource: String,
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Target {
    pub(super) fn parse(method: &Method, uri: &Uri) -> Target {
        let path = percent_decode(uri.path()).into_owned();
        let query: Vec<_> = uri
            .query()
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| {
                (
                    percent_decode(key).into_owned(),
                    percent_decode(&value.replace('+', " ")).into_owned(),
                )
            })
            .collect();
        let resource = parse_resource(&path);
        let mut target = Target {
            path,
            verb: "",
            resource,
            query,
        };
        target.verb = target.resolve_verb(method);
        target
    }

    fn resolve_verb(&self, method: &Method) -> &'static str {
        let named = self
            .resource
            .as_ref()
            .is_none_or(|resource| !resource.name.is_empty());
        match *method {
            Method::GET | Method::HEAD if self.resource.is_none() => "get",
            Method::GET if named => "get",
            Method::GET if self.is_set("watch") => "watch",
            Method::GET => "list",
            Method::POST => "create",
            Method::PUT => "update",
            Method::PATCH => "patch",
            Method::DELETE if named => "delete",
            Method::DELETE => "deletecollection",
            _ => "",
        }
    }

    /// A query parameter's value, `""` when it is absent.
    pub(super) fn parameter(&self, name: &str) -> &str {
        self.query
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value)
    }

    /// As `Convert_Slice_string_To_bool`: what is there and isn't "0" or "false" is true.
    pub(super) fn is_set(&self, name: &str) -> bool {
        let value = self
            .query
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str());
        value.is_some_and(|value| value != "0" && !value.eq_ignore_ascii_case("false"))
    }
}

fn parse_resource(path: &str) -> Option<Resource> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return None,
    };
    let mut found = Resource {
        group: group.into(),
        version: version.into(),
        ..Resource::default()
    };
    let rest = match rest {
        ["namespaces", namespace, sub @ ("status" | "finalize")] => {
            &["namespaces", *namespace, *sub][..]
        }
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => {
            found.namespace = (*namespace).into();
            rest
        }
        rest => rest,
    };
    let mut rest = rest.iter().map(|part| (*part).to_owned());
    found.resource = rest.next().unwrap_or_default();
    found.name = rest.next().unwrap_or_default();
    found.subresource = rest.collect::<Vec<_>>().join("/");
    if found.resource == "namespaces" {
        found.namespace.clone_from(&found.name);
    }
    Some(found)
}

fn percent_decode(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let hex = bytes
            .get(index + 1..index + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if bytes[index] == b'%' => {
                out.push(byte);
                index += 3;
            }
            _ => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    Cow::Owned(String::from_utf8_lossy(&out).into_owned())
}
