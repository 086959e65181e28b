//! Lists: splitters that hand out the items as the bytes arrive, without holding the list, and the envelope that is
//! written around items.
//!
//! A list counts only when it is whole: a splitter's `finish` says so.

mod json;
mod protobuf;

pub use json::JsonListSplitter;
pub use protobuf::ProtobufListSplitter;

use crate::CodecError;
use crate::meta::TypeMeta;
use crate::protobuf::{TAIL, encode_envelope_head, put_bytes, varint_len};

/// A list but for its items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListHead {
    /// The list's own `kind`, such as `PodList`.
    pub kind: String,
    /// The list's own `apiVersion`.
    pub api_version: String,
    /// `metadata.resourceVersion` of the whole list.
    pub resource_version: String,
    /// `metadata.continue`, empty on the last page.
    pub continue_token: String,
    /// Keys are sorted, so that `items` stands before `metadata` (custom resources).
    pub unstructured: bool,
}

/// The capacity that a splitter keeps between items, in bytes.
const KEPT_CAPACITY: usize = 16 << 10;

/// Receives each item: the list's head as far as it is known yet, and the item's bytes.
pub type OnItem<'a> = dyn FnMut(&ListHead, &[u8]) -> Result<(), CodecError> + 'a;

/// The bytes before and behind a list's items.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListEnvelope {
    /// Everything up to the first item.
    pub head: Vec<u8>,
    /// Everything behind the last item.
    pub tail: Vec<u8>,
}

impl ListHead {
    fn buffered_bytes(&self) -> usize {
        self.kind.capacity()
            + self.api_version.capacity()
            + self.resource_version.capacity()
            + self.continue_token.capacity()
    }

    /// The envelope of a JSON list as the API server writes it.
    pub fn encode_json(&self) -> ListEnvelope {
        if self.unstructured {
            self.encode_unstructured()
        } else {
            self.encode_structured()
        }
    }

    /// Of a built-in type: the fields in the order of its Go struct.
    fn encode_structured(&self) -> ListEnvelope {
        let [kind, api_version, version] = self.quoted_fields();
        let token = match self.continue_token.as_str() {
            "" => String::new(),
            token => format!(r#","continue":{}"#, quote_json(token)),
        };
        let meta = format!(r#"{{"resourceVersion":{version}{token}}}"#);
        let head =
            format!(r#"{{"kind":{kind},"apiVersion":{api_version},"metadata":{meta},"items":["#);
        ListEnvelope {
            head: head.into_bytes(),
            tail: b"]}\n".to_vec(),
        }
    }

    /// Of a custom resource: sorted keys, and `continue` even where it is empty.
    fn encode_unstructured(&self) -> ListEnvelope {
        let [kind, api_version, version] = self.quoted_fields();
        let token = quote_json(&self.continue_token);
        let meta = format!(r#"{{"continue":{token},"resourceVersion":{version}}}"#);
        let head = format!(r#"{{"apiVersion":{api_version},"items":["#);
        let tail = format!("],\"kind\":{kind},\"metadata\":{meta}}}\n");
        ListEnvelope {
            head: head.into_bytes(),
            tail: tail.into_bytes(),
        }
    }

    fn quoted_fields(&self) -> [String; 3] {
        [&self.kind, &self.api_version, &self.resource_version].map(|text| quote_json(text))
    }

    /// The envelope of a protobuf list, whose items ([`push_protobuf_item`]) have this length.
    pub fn encode_protobuf(&self, items_len: usize) -> ListEnvelope {
        let mut list_meta = Vec::new();
        put_bytes(&mut list_meta, 1, &self.encode_list_meta());
        let type_meta = TypeMeta {
            api_version: &self.api_version,
            kind: &self.kind,
        };
        let mut head = encode_envelope_head(type_meta, list_meta.len() + items_len);
        head.extend_from_slice(&list_meta);
        ListEnvelope {
            head,
            tail: TAIL.to_vec(),
        }
    }

    /// `metav1.ListMeta` in protobuf.
    fn encode_list_meta(&self) -> Vec<u8> {
        let mut meta = Vec::new();
        put_bytes(&mut meta, 1, b"");
        put_bytes(&mut meta, 2, self.resource_version.as_bytes());
        put_bytes(&mut meta, 3, self.continue_token.as_bytes());
        meta
    }
}

fn quote_json(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// Appends an object as an item of a protobuf list.
pub fn push_protobuf_item(out: &mut Vec<u8>, object: &[u8]) {
    put_bytes(out, 2, object);
}

/// The length of an item of a protobuf list, given that of its object.
pub fn protobuf_item_len(object_len: usize) -> usize {
    1 + varint_len(object_len as u64) + object_len
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(continue_token: &str, unstructured: bool) -> ListHead {
        ListHead {
            kind: "PodList".to_owned(),
            api_version: "v1".to_owned(),
            resource_version: "9".to_owned(),
            continue_token: continue_token.to_owned(),
            unstructured,
        }
    }

    /// Recorded: lists of pods and of ipamconfigs at kube-apiserver 1.34.4.
    #[test]
    fn json_envelopes_are_the_recorded_ones() {
        let table = [
            (
                head("", false),
                r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9"},"items":[|]}"#,
            ),
            (
                head("c\"", false),
                r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"9","continue":"c\""},"items":[|]}"#,
            ),
            (
                head("", true),
                r#"{"apiVersion":"v1","items":[|],"kind":"PodList","metadata":{"continue":"","resourceVersion":"9"}}"#,
            ),
        ];
        for (head, expected) in table {
            let ListEnvelope { head, tail } = head.encode_json();
            let written = [&head[..], b"|", &tail].concat();
            assert_eq!(String::from_utf8(written).unwrap(), format!("{expected}\n"));
        }
    }

    #[test]
    fn an_item_is_as_long_as_announced() {
        for len in [0, 1, 127, 128, 16_383, 16_384] {
            let mut out = Vec::new();
            push_protobuf_item(&mut out, &vec![7; len]);
            assert_eq!(out.len(), protobuf_item_len(len), "{len}");
        }
    }

    #[test]
    fn a_protobuf_envelope_reads_back() {
        let head = head("c", false);
        let mut items = Vec::new();
        push_protobuf_item(&mut items, b"\x0a\x03\x0a\x01a");
        let envelope = head.encode_protobuf(items.len());
        let body = [envelope.head, items, envelope.tail].concat();
        let (mut splitter, mut objects) = (ProtobufListSplitter::default(), Vec::new());
        let pushed = splitter.push(&body, &mut |_, object| {
            objects.push(object.to_vec());
            Ok(())
        });
        assert_eq!((pushed, splitter.finish()), (Ok(()), Ok(head)));
        assert_eq!(objects, [b"\x0a\x03\x0a\x01a"]);
    }
}
