//! Objects that have changed since a list with selectors was stored. In: the request with its selectors, and the object as
//! stored now. Out: whether it certainly still matches them.

use serde::Deserialize;

use crate::cache::exchange::is_stable_selector;
use crate::cache::record::Record;
use hublet_wire::media::Encoding;
use hublet_wire::protobuf::{Fields, Unknown, Value};
use hublet_wire::request::ApiRequest;

/// True if the object certainly still matches the request's selectors, because the selected field never changes. A pod keeps
/// its node, but a later pod of the same name (a StatefulSet's) may run on another one.
pub(crate) fn stays(request: &ApiRequest, record: &Record<'_>) -> bool {
    if !is_stable_selector(request) {
        return false;
    }
    let Some(node) = request.field_selector().strip_prefix("spec.nodeName=") else {
        return true;
    };
    node_of(record).as_deref() == Some(node.strip_prefix('=').unwrap_or(node))
}

#[derive(Deserialize)]
struct Pod {
    spec: Spec,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    node_name: String,
}

/// `spec.nodeName` of a pod; `None` if it has none or can't be parsed.
fn node_of(record: &Record<'_>) -> Option<String> {
    match record.encoding {
        Encoding::Json => Some(
            serde_json::from_slice::<Pod>(record.body)
                .ok()?
                .spec
                .node_name,
        ),
        // `Pod` and `PodSpec` of `core/v1/generated.proto`.
        Encoding::Protobuf => {
            let pod = Unknown::parse(record.body).ok()?.raw;
            Some(String::from_utf8_lossy(field(field(pod, 2)?, 10)?).into_owned())
        }
    }
}

/// The last value of a field of a message.
fn field(message: &[u8], number: u64) -> Option<&[u8]> {
    let values = Fields::new(message)
        .flatten()
        .filter_map(|field| match field {
            (found, Value::Bytes(bytes)) if found == number => Some(bytes),
            _ => None,
        });
    values.last()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hublet_wire::meta::TypeMeta;
    use hublet_wire::protobuf::{encode_envelope, put_bytes};

    fn message(fields: &[(u64, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        fields
            .iter()
            .for_each(|(field, bytes)| put_bytes(&mut out, *field, bytes));
        out
    }

    #[test]
    fn a_pods_node_is_read_in_both_encodings() {
        let json =
            br#"{"kind":"Pod","metadata":{"name":"nodeName"},"spec":{"nodeName":"here","containers":[]}}"#;
        assert_eq!(
            node_of(&Record::bare(Encoding::Json, json)).as_deref(),
            Some("here")
        );
        assert_eq!(
            node_of(&Record::bare(
                Encoding::Json,
                br#"{"kind":"Pod","spec":{}}"#
            )),
            None
        );
        let spec = message(&[(9, b"account"), (10, b"here")]);
        let pod = encode_envelope(
            TypeMeta {
                api_version: "v1",
                kind: "Pod",
            },
            &message(&[(1, b"\x0a\x01a"), (2, &spec)]),
        );
        assert_eq!(
            node_of(&Record::bare(Encoding::Protobuf, &pod)).as_deref(),
            Some("here")
        );
    }
}
