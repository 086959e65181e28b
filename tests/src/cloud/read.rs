//! GET and LIST. Lists are written as the real server writes them: built-ins in struct order with bare items, custom resources
//! with sorted keys.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use super::answer::{Answer, json_answer};
use super::faults::ServerFault;
use super::json::Json;
use super::kinds::Kind;
use super::request::{Resource, Target};
use super::selector::Selector;
use super::status::Failure;
use super::store::{Key, Store};

/// The real server waits this long for a version that it has not seen.
const VERSION_TIMEOUT: Duration = Duration::from_secs(3);

/// A collection's request, parsed.
pub(super) struct Collection<'a> {
    pub(super) store: &'a Store,
    pub(super) kind: &'static Kind,
    pub(super) namespace: &'a str,
    pub(super) selector: Selector,
    pub(super) target: &'a Target,
}

impl<'a> Collection<'a> {
    pub(super) fn parse(
        store: &'a Store,
        kind: &'static Kind,
        resource: &'a Resource,
        target: &'a Target,
    ) -> Result<Collection<'a>, Failure> {
        let selector = Selector::parse(
            kind,
            target.parameter("labelSelector"),
            target.parameter("fieldSelector"),
        )?;
        let namespace = if kind.namespaced {
            resource.namespace.as_str()
        } else {
            ""
        };
        Ok(Collection {
            store,
            kind,
            namespace,
            selector,
            target,
        })
    }

    pub(super) fn version(&self) -> Result<Option<u64>, Failure> {
        match self.target.parameter("resourceVersion") {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                let cause = format!("strconv.ParseUint: parsing \"{text}\": invalid syntax");
                let field = format!("resourceVersion: Invalid value: \"{text}\": {cause}");
                Failure::bad_request(format!("invalid resource version: {field}"))
            }),
        }
    }

    /// The objects that a client of this collection sees.
    pub(super) fn select_objects(
        &self,
        objects: BTreeMap<Key, Arc<Json>>,
    ) -> Vec<(Key, Arc<Json>)> {
        objects
            .into_iter()
            .filter(|(key, _)| self.namespace.is_empty() || key.0 == self.namespace)
            .filter(|(_, object)| self.selector.matches(object))
            .collect()
    }

    /// The position of a page's end, in the form of the real server's keys.
    fn page_position(&self, key: &Key) -> String {
        if self.kind.namespaced && self.namespace.is_empty() {
            format!("/{}/{}", key.0, key.1)
        } else {
            format!("/{}", key.1)
        }
    }

    /// Cuts a list off after `limit` objects, and notes where the next page begins.
    fn end_page(&self, page: &mut Page, found: &mut Vec<(Key, Arc<Json>)>, limit: usize) {
        if self.selector.is_empty() {
            page.remaining = found.len() - limit;
        }
        found.truncate(limit);
        if let Some((key, _)) = found.last() {
            let start = format!("{}\0", self.page_position(key));
            page.next = Next::encode_token(page.version.cast_signed(), &start);
        }
    }

    pub(super) async fn list(&self, fault: Option<&ServerFault>) -> Result<Answer, Failure> {
        let version = self.version()?;
        await_version(self.store, version.unwrap_or(0)).await?;
        let next = self.target.parameter("continue");
        let exact = self.target.parameter("resourceVersionMatch") == "Exact";
        let (at, start) = match next {
            "" => (version.filter(|_| exact), String::new()),
            token => Next::parse(token)?,
        };
        let (version, objects) = self.store.list_at(self.kind, at).map_err(|_| match next {
            "" => Failure::new(
                410,
                "Expired",
                "The resourceVersion for the provided list is too old.",
            ),
            _ => Failure {
                next: Some(Next::encode_token(-1, &start)),
                ..Failure::new(410, "Expired", PAGE_TOO_OLD)
            },
        })?;
        let mut found = self.select_objects(objects);
        found.retain(|(key, _)| self.page_position(key).as_str() >= start.as_str());
        let limit = self.target.parameter("limit").parse().unwrap_or(0_usize);
        let mut page = Page::all_at(version);
        // From "any version" the real server answers with everything, whatever the limit.
        if limit > 0 && found.len() > limit && self.target.parameter("resourceVersion") != "0" {
            self.end_page(&mut page, &mut found, limit);
        }
        if matches!(fault, Some(ServerFault::EmptyList)) {
            (found, page.next, page.remaining) = (Vec::new(), String::new(), 0);
        }
        let objects: Vec<Arc<Json>> = found.into_iter().map(|(_, object)| object).collect();
        Ok(json_answer(200, encode_list(self.kind, &page, &objects)))
    }
}

#[derive(Debug, Default)]
pub(super) struct Page {
    version: u64,
    next: String,
    remaining: usize,
}

impl Page {
    /// All there is, at a version.
    pub(super) fn all_at(version: u64) -> Page {
        Page {
            version,
            ..Page::default()
        }
    }
}

fn encode_items(kind: &Kind, objects: &[Arc<Json>]) -> Vec<u8> {
    let mut items = Vec::new();
    for (index, object) in objects.iter().enumerate() {
        if index > 0 {
            items.push(b',');
        }
        match &**object {
            Json::Object(entries) if kind.builtin => {
                let bare = entries
                    .iter()
                    .filter(|(name, _)| name != "kind" && name != "apiVersion")
                    .cloned();
                items.extend(Json::Object(bare.collect()).to_bytes());
            }
            object => items.extend(object.to_bytes()),
        }
    }
    items
}

/// Encodes a list as the API server does: fields in Go's order for built-in kinds, in the alphabet's for custom resources.
pub(super) fn encode_list(kind: &Kind, page: &Page, objects: &[Arc<Json>]) -> Vec<u8> {
    let items = encode_items(kind, objects);
    let Page {
        version,
        next,
        remaining,
    } = page;
    let api = kind.api_version();
    let remaining = if *remaining > 0 {
        format!("\"remainingItemCount\":{remaining}")
    } else {
        String::new()
    };
    let comma = if remaining.is_empty() { "" } else { "," };
    let (head, tail) = if kind.builtin {
        let next = if next.is_empty() {
            String::new()
        } else {
            format!(",\"continue\":\"{next}\"")
        };
        let meta = format!("\"resourceVersion\":\"{version}\"{next}{comma}{remaining}");
        let kind = kind.kind;
        (
            format!(
                "{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api}\",\"metadata\":{{{meta}}},\"items\":["
            ),
            "]}\n".into(),
        )
    } else {
        let meta =
            format!("\"continue\":\"{next}\",{remaining}{comma}\"resourceVersion\":\"{version}\"");
        let kind = kind.kind;
        (
            format!("{{\"apiVersion\":\"{api}\",\"items\":["),
            format!("],\"kind\":\"{kind}List\",\"metadata\":{{{meta}}}}}\n"),
        )
    };
    [head.as_bytes(), &items, tail.as_bytes()].concat()
}

pub(super) fn get_object(
    store: &Store,
    kind: &'static Kind,
    key: &Key,
    fault: Option<&ServerFault>,
) -> Result<Answer, Failure> {
    let object = store
        .get(kind, key)
        .ok_or_else(|| Failure::not_found(kind, &key.1))?;
    let object = match fault {
        Some(ServerFault::Stale) => store.previous_version(kind, key).unwrap_or(object),
        _ => object,
    };
    Ok(object_answer(200, &object))
}

/// An answer of one object.
pub(super) fn object_answer(code: u16, object: &Json) -> Answer {
    let mut bytes = object.to_bytes();
    bytes.push(b'\n');
    json_answer(code, bytes)
}

pub(super) async fn await_version(store: &Store, wanted: u64) -> Result<(), Failure> {
    let mut changes = store.subscribe();
    let arrived = timeout(
        VERSION_TIMEOUT,
        changes.wait_for(|version| *version >= wanted),
    )
    .await;
    let current = store.version();
    match arrived {
        Err(_) if current < wanted => Err(Failure::too_large_version(wanted, current)),
        _ => Ok(()),
    }
}

const PAGE_TOO_OLD: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
    created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// A page's continuation, as the real server encodes it.
#[derive(Debug, Serialize, Deserialize)]
struct Next {
    v: String,
    rv: i64,
    start: String,
}

impl Next {
    fn encode_token(rv: i64, start: &str) -> String {
        let next = Next {
            v: "meta.k8s.io/v1".into(),
            rv,
            start: start.into(),
        };
        URL_SAFE_NO_PAD
            .encode(serde_json::to_vec(&next).expect("a continuation has string keys only"))
    }

    fn parse(token: &str) -> Result<(Option<u64>, String), Failure> {
        let next = Next::decode(token).map_err(|cause| {
            Failure::bad_request(format!(
                "invalid continue token: continue key is not valid: {cause}"
            ))
        })?;
        Ok((u64::try_from(next.rv).ok(), next.start))
    }

    fn decode(token: &str) -> anyhow::Result<Next> {
        let bytes = URL_SAFE_NO_PAD.decode(token.trim_end_matches('='))?;
        Ok(serde_json::from_slice(&bytes)?)
    }
}
