//! The patches that clients send: JSON patch (RFC 6902) and merge patch (RFC 7386), and of strategic merge patch what a
//! node's clients use.
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::json::Json;
use super::kinds::Kind;
use super::status::Failure;

/// The kind of a patch, by its media type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PatchKind {
    Json,
    Merge,
    Strategic,
}

impl PatchKind {
    /// Custom resources have no strategic merge patch.
    pub(super) fn from_content_type(text: &str, kind: &Kind) -> Result<PatchKind, Failure> {
        match text {
            "application/json-patch+json" => Ok(PatchKind::Json),
            "application/merge-patch+json" => Ok(PatchKind::Merge),
            "application/strategic-merge-patch+json" if kind.builtin => Ok(PatchKind::Strategic),
            _ => {
                let mut types =
                    "application/json-patch+json, application/merge-patch+json".to_owned();
                if kind.builtin {
                    types.push_str(", application/strategic-merge-patch+json");
                }
                Err(Failure::unsupported_media(&types))
            }
        }
    }

    /// The object after the patch.
    pub(super) fn apply(self, object: &Json, patch: &[u8]) -> Result<Json, Failure> {
        match self {
            PatchKind::Json => {
                let patch: json_patch::Patch = decode(patch)?;
                let mut value = object.to_value();
                json_patch::patch(&mut value, &patch).map_err(|cause| {
                    Failure::unprocessable_patch(format!("the patch can't be applied: {cause}"))
                })?;
                Ok(order_as_before(value, object))
            }
            PatchKind::Merge => {
                let mut value = object.to_value();
                json_patch::merge(&mut value, &decode(patch)?);
                Ok(order_as_before(value, object))
            }
            PatchKind::Strategic => {
                let mut patched = object.clone();
                merge_strategically(&mut patched, decode(patch)?);
                Ok(patched)
            }
        }
    }
}

fn decode<T: DeserializeOwned>(patch: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(patch)
        .map_err(|cause| Failure::bad_request(format!("error decoding patch: {cause}")))
}

/// The patched value, its keys in the order of the object that it was made of.
fn order_as_before(patched: Value, object: &Json) -> Json {
    let mut patched = Json::from(patched);
    patched.order_like(object);
    patched
}

/// Merges conditions by type; directives are dropped.
fn merge_strategically(object: &mut Json, patch: Json) {
    let Json::Object(changes) = patch else {
        *object = patch;
        return;
    };
    if !matches!(object, Json::Object(_)) {
        *object = Json::empty_object();
    }
    for (name, value) in changes {
        let key = [name.as_str()];
        match value {
            _ if name.starts_with('$') => {}
            Json::Null => drop(object.remove(&key)),
            Json::Object(_) => merge_strategically(object.make_path(&key), value),
            Json::Array(items) => {
                let present = match object.get_path(&key) {
                    Some(Json::Array(present)) if name == "conditions" => present.clone(),
                    _ => Vec::new(),
                };
                object.set(&key, merge_items(present, items));
            }
            value => object.set(&key, value),
        }
    }
}

/// Items over `present` ones of the same type; elements that are directives are dropped.
fn merge_items(mut present: Vec<Json>, items: Vec<Json>) -> Json {
    let known = present.len();
    for item in items {
        let same = present[..known]
            .iter_mut()
            .find(|one| one.text_at(&["type"]) == item.text_at(&["type"]));
        match same {
            Some(same) => merge_strategically(same, item),
            None if item.entries().iter().any(|(name, _)| name.starts_with('$')) => {}
            None => present.push(item),
        }
    }
    Json::Array(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apply(kind: PatchKind, object: &str, patch: &str) -> Result<String, Failure> {
        let object: Json = serde_json::from_str(object).unwrap();
        let patched = kind.apply(&object, patch.as_bytes())?;
        Ok(String::from_utf8(patched.to_bytes()).unwrap())
    }

    #[test]
    fn a_json_patch_changes_what_its_operations_name() {
        let object = r#"{"kind":"ConfigMap","data":{"k":"v","a":"1"}}"#;
        let patch =
            r#"[{"op":"add","path":"/data/j","value":"1"},{"op":"remove","path":"/data/a"}]"#;
        assert_eq!(
            apply(PatchKind::Json, object, patch).unwrap(),
            r#"{"kind":"ConfigMap","data":{"k":"v","j":"1"}}"#
        );
    }

    #[test]
    fn a_json_patch_of_which_one_operation_fails_changes_nothing() {
        let patch =
            r#"[{"op":"remove","path":"/data"},{"op":"test","path":"/kind","value":"Pod"}]"#;
        let object = r#"{"kind":"ConfigMap","data":{}}"#;
        assert!(apply(PatchKind::Json, object, patch).is_err());
        assert!(apply(PatchKind::Json, object, r#"{"op":"remove"}"#).is_err());
    }

    #[test]
    fn null_in_a_merge_patch_removes_and_arrays_are_replaced() {
        let object = r#"{"z":{"b":1,"a":[1,2]},"c":true}"#;
        assert_eq!(
            apply(
                PatchKind::Merge,
                object,
                r#"{"c":null,"z":{"a":[3],"n":{}}}"#
            )
            .unwrap(),
            r#"{"z":{"b":1,"a":[3],"n":{}}}"#
        );
    }

    #[test]
    fn a_strategic_merge_patch_merges_conditions_by_type() {
        let object = r#"{"conditions":[{"type":"Ready","status":"False","x":1},{"type":"Disk"}]}"#;
        let patch = r#"{"conditions":[{"type":"Ready","status":"True"},{"$patch":"delete"}],"$setElementOrder":[]}"#;
        assert_eq!(
            apply(PatchKind::Strategic, object, patch).unwrap(),
            r#"{"conditions":[{"type":"Ready","status":"True","x":1},{"type":"Disk"}]}"#
        );
    }
}
