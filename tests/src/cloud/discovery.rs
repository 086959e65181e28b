//! Discovery, version and health: the documents of the real server, plain or aggregated, for the kinds served here.
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::json;

use super::answer::{self, Answer, set_header};
use super::json::Json;
use super::kinds::{KINDS, Kind};

/// The aggregated documents' content type.
const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// Ordered JSON: an object literal whose keys stay as written.
macro_rules! ordered {
    ($($key:literal : $value:expr),* $(,)?) => {
        Json::Object(vec![$(($key.to_owned(), Json::from($value))),*])
    };
}

impl From<Vec<Json>> for Json {
    fn from(items: Vec<Json>) -> Json {
        Json::Array(items)
    }
}

impl From<bool> for Json {
    fn from(value: bool) -> Json {
        Json::Bool(value)
    }
}

fn string_array(items: &[&str]) -> Json {
    items
        .iter()
        .map(|item| Json::from(*item))
        .collect::<Vec<_>>()
        .into()
}

/// The answer to a path that is no resource; `None` where there is nothing.
pub(super) fn find_document(path: &str, accept: &str, etag: &str) -> Option<Answer> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let aggregated = accept.contains("as=APIGroupDiscoveryList") && accept.contains("v=v2;");
    Some(match parts[..] {
        ["healthz" | "livez" | "readyz", ..] => answer::text_answer(200, "ok"),
        ["version"] => answer::json_answer(200, VERSION.as_bytes().to_vec()),
        ["api"] if aggregated => discovery_list(true, etag),
        ["apis"] if aggregated => discovery_list(false, etag),
        ["api"] => json_line(&ordered! {
            "kind": "APIVersions", "versions": string_array(&["v1"]),
            "serverAddressByClientCIDRs": json!([{"clientCIDR": "0.0.0.0/0", "serverAddress": "192.0.2.2:6443"}]),
        }),
        ["apis"] => {
            let groups: Vec<Json> = api_groups()
                .filter(|group| !group.is_empty())
                .map(|name| group_document(name, false))
                .collect();
            json_line(&ordered! {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
        }
        ["api", "v1"] => resource_list("", "v1")?,
        ["apis", name] if api_groups().any(|known| known == name) => {
            json_line(&group_document(name, true))
        }
        ["apis", name, version] if !name.is_empty() => resource_list(name, version)?,
        _ => return None,
    })
}

const VERSION: &str = "{\n  \"major\": \"1\",\n  \"minor\": \"34\",\n  \"gitVersion\": \"v1.34.4-scripted\",\n  \
                       \"gitCommit\": \"\",\n  \"gitTreeState\": \"\",\n  \"buildDate\": \"1970-01-01T00:00:00Z\",\n  \
                       \"goVersion\": \"go1.26\",\n  \"compiler\": \"gc\",\n  \"platform\": \"linux/amd64\"\n}";

fn json_line(document: &Json) -> Answer {
    let mut bytes = document.to_bytes();
    bytes.push(b'\n');
    answer::json_answer(200, bytes)
}

fn api_groups() -> impl Iterator<Item = &'static str> {
    let mut last = None;
    KINDS
        .iter()
        .map(|kind| kind.group)
        .filter(move |group| last.replace(*group) != Some(*group))
}

fn group_document(name: &str, alone: bool) -> Json {
    let version = ordered! {"groupVersion": format!("{name}/v1"), "version": "v1"};
    let mut document = if alone {
        ordered! {"kind": "APIGroup", "apiVersion": "v1"}
    } else {
        Json::empty_object()
    };
    document.set(&["name"], name);
    document.set(&["versions"], vec![version.clone()]);
    document.set(&["preferredVersion"], version);
    document
}

fn resource_list(group: &str, version: &str) -> Option<Answer> {
    let kinds: Vec<&Kind> = KINDS
        .iter()
        .filter(|kind| kind.group == group && kind.version == version)
        .collect();
    let api_version = kinds.first()?.api_version();
    let resources: Vec<Json> = kinds.into_iter().flat_map(resource_entries).collect();
    let mut document = ordered! {"kind": "APIResourceList"};
    if !group.is_empty() {
        document.set(&["apiVersion"], "v1");
    }
    document.set(&["groupVersion"], api_version);
    document.set(&["resources"], resources);
    Some(json_line(&document))
}

fn resource_entries(kind: &Kind) -> Vec<Json> {
    let mut resource = ordered! {
        "name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
        "verbs": string_array(kind.verbs()),
    };
    if !kind.short.is_empty() {
        resource.set(&["shortNames"], string_array(kind.short));
    }
    let mut resources = vec![resource];
    if kind.status {
        resources.push(ordered! {
            "name": format!("{}/status", kind.resource), "singularName": "", "namespaced": kind.namespaced,
            "kind": kind.kind, "verbs": string_array(&["get", "patch", "update"]),
        });
    }
    resources
}

fn discovery_list(core: bool, known_etag: &str) -> Answer {
    let items: Vec<Json> = api_groups()
        .filter(|group| group.is_empty() == core)
        .map(|group| {
            let mut item = ordered! {"metadata": Json::empty_object()};
            if !core {
                item.set(&["metadata", "name"], group);
            }
            let resources: Vec<Json> = KINDS
                .iter()
                .filter(|kind| kind.group == group)
                .map(aggregated_resource)
                .collect();
            let version =
                ordered! {"version": "v1", "resources": resources, "freshness": "Current"};
            item.set(&["versions"], vec![version]);
            item
        })
        .collect();
    let document = ordered! {
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": Json::empty_object(),
        "items": items,
    };
    let mut bytes = document.to_bytes();
    bytes.push(b'\n');
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    let etag = format!("\"{:016X}\"", hasher.finish());
    let mut answer = if known_etag == etag {
        answer::build_answer(304, AGGREGATED, answer::full_body(Vec::new()))
    } else {
        answer::build_answer(200, AGGREGATED, answer::full_body(bytes))
    };
    set_header(&mut answer, "cache-control", "public");
    set_header(&mut answer, "etag", &etag);
    set_header(&mut answer, "vary", "Accept");
    answer
}

fn aggregated_resource(kind: &Kind) -> Json {
    let (group, version) = if kind.builtin {
        ("", "")
    } else {
        (kind.group, kind.version)
    };
    let response = ordered! {"group": group, "version": version, "kind": kind.kind};
    let mut found = ordered! {
        "resource": kind.resource, "responseKind": response.clone(),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" }, "singularResource": kind.singular,
        "verbs": string_array(kind.verbs()),
    };
    if !kind.short.is_empty() {
        found.set(&["shortNames"], string_array(kind.short));
    }
    if kind.status {
        let verbs = string_array(&["get", "patch", "update"]);
        let status = ordered! {"subresource": "status", "responseKind": response, "verbs": verbs};
        found.set(&["subresources"], vec![status]);
    }
    found
}
