//! Variants of objects: Tables (`kubectl get`) and PartialObjectMetadata. In: response bodies, recognized by their own
//! `apiVersion` and `kind`, not by the request. Out: whole documents; a Table in several pages is assembled once all of them
//! have arrived (I2).

use std::collections::HashMap;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use hublet_wire::CodecError;
use hublet_wire::meta::Timestamp;

/// Most bytes of a body that are searched for its kind and apiVersion, which precede everything else.
const BEGINNING: usize = 512;
/// Most incomplete documents; beyond it the one that has waited longest for its next page is dropped.
const MAX_WAITING: usize = 16;
/// Most bytes of one incomplete document, and of all of them together.
pub(crate) const MAX_BYTES: usize = 8 << 20;

/// True for the `apiVersion` (empty if unknown) and `kind` of a variant.
pub(crate) fn is_variant(api_version: &str, kind: &str) -> bool {
    api_version.starts_with("meta.k8s.io/")
        || matches!(
            kind,
            "Table" | "PartialObjectMetadata" | "PartialObjectMetadataList"
        )
}

/// True if a JSON body with this beginning is a variant; `None` if that can't be decided yet.
pub(crate) fn is_variant_json(beginning: &[u8]) -> Option<bool> {
    let end = [r#""metadata""#, r#""items""#, r#""rows""#]
        .iter()
        .filter_map(|key| find(beginning, key))
        .min();
    if end.is_none() && beginning.len() < BEGINNING {
        return None;
    }
    let group = find(beginning, r#""meta.k8s.io/"#);
    Some(group.is_some_and(|at| end.is_none_or(|end| at < end)))
}

fn find(bytes: &[u8], text: &str) -> Option<usize> {
    memchr::memmem::find(bytes, text.as_bytes())
}

/// The media type of a variant, as in [`hublet_wire::media::requested_variants`]; `None` for any other kind.
pub(crate) fn media_type(api_version: &str, kind: &str) -> Option<String> {
    let version = api_version.strip_prefix("meta.k8s.io/")?;
    Some(format!(
        "application/json;as={kind};g=meta.k8s.io;v={version}"
    ))
}

/// The parts of a page that are assembled.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PartialList<'a> {
    #[serde(borrow)]
    column_definitions: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    rows: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    items: Option<&'a RawValue>,
}

/// A field that is there, even if it is null.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

impl<'a> PartialList<'a> {
    /// # Errors
    /// Not JSON, or a Table or list that has no rows or items: it says nothing of what there is.
    fn parse(kind: &str, body: &'a [u8]) -> Result<Self, CodecError> {
        let page: Self =
            serde_json::from_slice(body).map_err(|error| CodecError::Json(error.to_string()))?;
        let lacks_rows = match kind {
            "Table" => page.rows.is_none(),
            "PartialObjectMetadataList" => page.items.is_none(),
            _ => false,
        };
        if lacks_rows {
            return Err(CodecError::Json(format!("a {kind} without its rows")));
        }
        Ok(page)
    }
}

/// Checks that a variant holds what a body of its kind must.
///
/// # Errors
/// As [`VariantAssembler::add_page`].
pub(crate) fn check_rows(kind: &str, body: &[u8]) -> Result<(), CodecError> {
    let page = PartialList::parse(kind, body)?;
    rows(page.rows.or(page.items)).map(drop)
}

/// Namespace and name of each object in a variant; `None` if one of them is missing.
pub(crate) fn object_names(body: &[u8]) -> Option<Vec<(String, String)>> {
    let shown: Shown = serde_json::from_slice(body).ok()?;
    let rows = shown
        .rows
        .unwrap_or_default()
        .into_iter()
        .map(|row| row.object.metadata);
    let items = shown
        .items
        .unwrap_or_default()
        .into_iter()
        .map(|item| item.metadata);
    let itself = shown.metadata.filter(|itself| !itself.name.is_empty());
    Some(
        rows.chain(items)
            .chain(itself)
            .map(|object| (object.namespace, object.name))
            .collect(),
    )
}

/// The fields of a variant that hold the names of its objects.
#[derive(Deserialize)]
struct Shown {
    metadata: Option<Name>,
    rows: Option<Vec<Row>>,
    items: Option<Vec<Object>>,
}

#[derive(Deserialize)]
struct Row {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Name,
}

#[derive(Deserialize)]
struct Name {
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    name: String,
}

/// A document whose last pages have not arrived.
#[derive(Debug)]
struct Waiting {
    key: Vec<u8>,
    version: String,
    sent_at: Timestamp,
    received_at: Timestamp,
    /// The body up to the rows.
    head: String,
    rows: Vec<u8>,
}

/// A page's metadata.
#[derive(Debug)]
pub(crate) struct PageHead<'a> {
    /// The document's key in the store.
    pub key: Vec<u8>,
    /// `kind`.
    pub kind: &'a str,
    /// `apiVersion`.
    pub api_version: &'a str,
    /// `metadata.resourceVersion`.
    pub version: &'a str,
    /// Time of the page's request.
    pub sent_at: Timestamp,
    /// The token that it was requested with; empty for the first page.
    pub continue_token: &'a str,
    /// The token of the next page; empty behind the last.
    pub next: &'a str,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct AssembledVariant {
    /// Its key in the store.
    pub key: Vec<u8>,
    /// Time of its first page's request.
    pub sent_at: Timestamp,
    /// The body, as the API server writes it without pages.
    pub body: Vec<u8>,
}

/// Incomplete documents, by the `continue` token of their next page.
#[derive(Debug, Default)]
pub(crate) struct VariantAssembler(HashMap<String, Waiting>);

impl VariantAssembler {
    /// Adds a page; returns the whole document if this was its last page and all others have arrived.
    ///
    /// # Errors
    /// Its rows or items are missing, or not a list.
    pub(crate) fn add_page(
        &mut self,
        head: &PageHead<'_>,
        body: &[u8],
    ) -> Result<Option<AssembledVariant>, CodecError> {
        let page = PartialList::parse(head.kind, body)?;
        let rows = rows(page.rows.or(page.items))?;
        let Some(mut whole) = self.begin_or_continue(head, &page) else {
            return Ok(None);
        };
        if !whole.rows.is_empty() && !rows.is_empty() {
            whole.rows.push(b',');
        }
        whole.rows.extend_from_slice(rows);
        whole.received_at = head.sent_at;
        if head.next.is_empty() {
            let body = [whole.head.as_bytes(), &whole.rows, b"]}\n"].concat();
            return Ok(Some(AssembledVariant {
                key: whole.key,
                sent_at: whole.sent_at,
                body,
            }));
        }
        self.keep_waiting(head.next, whole);
        Ok(None)
    }

    /// The document that a page belongs to; `None` if its earlier pages are missing.
    fn begin_or_continue(
        &mut self,
        head: &PageHead<'_>,
        page: &PartialList<'_>,
    ) -> Option<Waiting> {
        if head.continue_token.is_empty() {
            return Some(begin(head, page));
        }
        let before = self.0.remove(head.continue_token)?;
        (before.key == head.key && before.version == head.version).then_some(before)
    }

    fn keep_waiting(&mut self, next: &str, whole: Waiting) {
        if whole.rows.len() > MAX_BYTES {
            return;
        }
        self.0.insert(next.to_owned(), whole);
        while self.0.len() > MAX_WAITING
            || self.0.values().map(|w| w.rows.len()).sum::<usize>() > MAX_BYTES
        {
            let oldest = self
                .0
                .iter()
                .min_by_key(|(_, w)| w.received_at)
                .map(|(token, _)| token.clone());
            let Some(oldest) = oldest else { return };
            self.0.remove(&oldest);
        }
    }
}

/// The bytes between the brackets of a list; Go writes an empty one as null.
fn rows(list: Option<&RawValue>) -> Result<&[u8], CodecError> {
    let Some(list) = list else { return Ok(&[]) };
    let text = list.get().trim();
    if text == "null" {
        return Ok(&[]);
    }
    let inner = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    Ok(inner
        .ok_or_else(|| CodecError::Json("rows are no list".into()))?
        .trim()
        .as_bytes())
}

fn begin(head: &PageHead<'_>, page: &PartialList<'_>) -> Waiting {
    let PageHead {
        kind,
        api_version,
        version,
        ..
    } = head;
    let columns = page.column_definitions.map_or_else(String::new, |columns| {
        format!(r#""columnDefinitions":{},"#, columns.get())
    });
    let name = if *kind == "Table" { "rows" } else { "items" };
    let meta = format!(r#""metadata":{{"resourceVersion":"{version}"}}"#);
    Waiting {
        key: head.key.clone(),
        version: (*version).to_owned(),
        sent_at: head.sent_at,
        received_at: head.sent_at,
        head: format!(
            r#"{{"kind":"{kind}","apiVersion":"{api_version}",{meta},{columns}"{name}":["#
        ),
        rows: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(rows: &str, next: &str) -> String {
        let meta =
            format!(r#"{{"resourceVersion":"9","continue":"{next}","remainingItemCount":1}}"#);
        format!(
            r#"{{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{meta},"columnDefinitions":[{{"name":"N"}}],"rows":{rows}}}"#
        )
    }

    fn head<'a>(version: &'a str, continue_token: &'a str, next: &'a str) -> PageHead<'a> {
        PageHead {
            key: b"k".to_vec(),
            kind: "Table",
            api_version: "meta.k8s.io/v1",
            version,
            sent_at: Timestamp::from_millis(5),
            continue_token,
            next,
        }
    }

    #[test]
    fn i2_a_table_in_pages_is_whole_once_all_have_come() {
        let mut pages = VariantAssembler::default();
        assert_eq!(
            pages.add_page(&head("9", "", "1"), page("[{\"a\":1}]", "1").as_bytes()),
            Ok(None)
        );
        assert_eq!(
            pages.add_page(&head("9", "1", "2"), page("null", "2").as_bytes()),
            Ok(None)
        );
        let whole = pages
            .add_page(&head("9", "2", ""), page("[ {\"b\":2} ]", "").as_bytes())
            .unwrap()
            .unwrap();
        let expected = concat!(
            r#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{"resourceVersion":"9"},"#,
            r#""columnDefinitions":[{"name":"N"}],"rows":[{"a":1},{"b":2}]}"#,
            "\n"
        );
        assert_eq!(String::from_utf8(whole.body).unwrap(), expected);
        assert_eq!(
            pages.add_page(&head("9", "2", ""), page("[]", "").as_bytes()),
            Ok(None),
            "its beginning is gone"
        );
        assert_eq!(
            pages.add_page(&head("9", "", "1"), page("[]", "1").as_bytes()),
            Ok(None)
        );
        assert_eq!(
            pages.add_page(&head("10", "1", ""), page("[]", "").as_bytes()),
            Ok(None),
            "another snapshot"
        );
        for n in 0..100 {
            let _ = pages.add_page(&head("9", "", &n.to_string()), page("[]", "x").as_bytes());
        }
        assert_eq!(pages.0.len(), MAX_WAITING);
    }

    #[test]
    fn the_objects_of_each_form_are_named() {
        let meta = r#""metadata":{"namespace":"d","name":"a"}"#;
        let list = r#""metadata":{"resourceVersion":"7"}"#;
        let one = Some(vec![("d".to_owned(), "a".to_owned())]);
        assert_eq!(
            object_names(
                format!(r#"{{{list},"rows":[{{"cells":["a"],"object":{{{meta}}}}}]}}"#).as_bytes()
            ),
            one
        );
        assert_eq!(
            object_names(format!(r#"{{{list},"items":[{{{meta}}}]}}"#).as_bytes()),
            one
        );
        assert_eq!(object_names(format!("{{{meta}}}").as_bytes()), one);
        assert_eq!(
            object_names(format!(r#"{{{list},"rows":null}}"#).as_bytes()),
            Some(vec![])
        );
        assert_eq!(
            object_names(format!(r#"{{{list},"rows":[{{"cells":["a"]}}]}}"#).as_bytes()),
            None
        );
    }

    #[test]
    fn the_beginning_of_a_body_identifies_its_variant() {
        let table = br#"{"kind":"Table","apiVersion":"meta.k8s.io/v1","metadata":{}"#;
        assert_eq!(is_variant_json(&table[..40]), None);
        assert_eq!(is_variant_json(table), Some(true));
        let list = br#"{"kind":"PodList","apiVersion":"v1","metadata":{"x":"meta.k8s.io/v1"}"#;
        assert_eq!(is_variant_json(list), Some(false));
        assert_eq!(
            is_variant_json(br#"{"apiVersion":"x/v1","items":["meta.k8s.io/"#),
            Some(false)
        );
        assert_eq!(is_variant_json(&[b' '; BEGINNING]), Some(false));
    }
}
