//! `metav1.Status`, the API server's error object, in JSON and protobuf byte for byte as kube-apiserver 1.34 writes it.

use serde::Serialize;

use crate::media::Encoding;
use crate::meta::TypeMeta;
use crate::protobuf::{encode_envelope, put_bytes, put_varint_field};

const STATUS: TypeMeta<'_> = TypeMeta {
    api_version: "v1",
    kind: "Status",
};

/// A `Status` of a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status<'a> {
    /// HTTP status code of the response.
    pub code: u16,
    /// `metav1.StatusReason`, a word for programs.
    pub reason: &'a str,
    /// The message for people.
    pub message: &'a str,
    /// The object that the failure is about.
    pub details: Option<StatusDetails<'a>>,
}

/// `metav1.StatusDetails`: the object that a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StatusDetails<'a> {
    /// The object's own name.
    pub name: &'a str,
    /// The API group, empty for core.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub group: &'a str,
    /// The resource (plural); the API calls this field `kind`.
    #[serde(rename = "kind")]
    pub resource: &'a str,
}

/// The JSON fields, in the API server's order.
#[derive(Serialize)]
struct JsonStatus<'a> {
    kind: &'static str,
    #[serde(rename = "apiVersion")]
    api_version: &'static str,
    metadata: Empty,
    status: &'static str,
    message: &'a str,
    reason: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<StatusDetails<'a>>,
    code: u16,
}

#[derive(Serialize)]
struct Empty {}

impl Status<'_> {
    /// The whole body in the given encoding.
    pub fn encode(&self, encoding: Encoding) -> Vec<u8> {
        match encoding {
            Encoding::Json => self.encode_json(),
            Encoding::Protobuf => self.encode_protobuf(),
        }
    }

    fn encode_json(&self) -> Vec<u8> {
        let status = JsonStatus {
            kind: STATUS.kind,
            api_version: STATUS.api_version,
            metadata: Empty {},
            status: "Failure",
            message: self.message,
            reason: self.reason,
            details: self.details,
            code: self.code,
        };
        let mut text = serde_json::to_vec(&status).unwrap_or_default();
        text.push(b'\n');
        text
    }

    /// `k8s\0` and `runtime.Unknown{typeMeta, raw = metav1.Status}`; field numbers of apimachinery's `generated.proto`.
    fn encode_protobuf(&self) -> Vec<u8> {
        let mut list_meta = Vec::new();
        put_bytes(&mut list_meta, 1, b"");
        put_bytes(&mut list_meta, 2, b"");
        put_bytes(&mut list_meta, 3, b"");
        let mut raw = Vec::with_capacity(256);
        put_bytes(&mut raw, 1, &list_meta);
        put_bytes(&mut raw, 2, b"Failure");
        put_bytes(&mut raw, 3, self.message.as_bytes());
        put_bytes(&mut raw, 4, self.reason.as_bytes());
        if let Some(details) = &self.details {
            put_bytes(&mut raw, 5, &details.encode_protobuf());
        }
        put_varint_field(&mut raw, 6, u64::from(self.code));
        encode_envelope(STATUS, &raw)
    }
}

impl StatusDetails<'_> {
    fn encode_protobuf(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 1, self.name.as_bytes());
        put_bytes(&mut bytes, 2, self.group.as_bytes());
        put_bytes(&mut bytes, 3, self.resource.as_bytes());
        put_varint_field(&mut bytes, 5, 0);
        put_bytes(&mut bytes, 6, b"");
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOT_FOUND: Status<'_> = Status {
        code: 404,
        reason: "NotFound",
        message: "ipamconfigs.crd.projectcalico.org \"default\" not found",
        details: Some(StatusDetails {
            name: "default",
            group: "crd.projectcalico.org",
            resource: "ipamconfigs",
        }),
    };

    #[test]
    fn a_404_in_json_equals_the_recorded_one() {
        let expected = concat!(
            r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"#,
            r#""ipamconfigs.crd.projectcalico.org \"default\" not found","reason":"NotFound","details":"#,
            r#"{"name":"default","group":"crd.projectcalico.org","kind":"ipamconfigs"},"code":404}"#,
            "\n"
        );
        assert_eq!(NOT_FOUND.encode(Encoding::Json), expected.as_bytes());
    }

    /// Recorded: GET ipamconfigs/default with Accept protobuf,json at kube-apiserver 1.34.4.
    #[test]
    fn a_404_in_protobuf_equals_the_recorded_one() {
        let hex = "6b3873000a0c0a0276311206537461747573128801\
            0a060a0012001a0012074661696c7572651a356970616d636f6e666967732e6372642e70726f6a65637463616c\
            69636f2e6f7267202264656661756c7422206e6f7420666f756e6422084e6f74466f756e642a310a0764656661756c74\
            12156372642e70726f6a65637463616c69636f2e6f72671a0b6970616d636f6e6669677328003200309403\
            1a002200";
        let hex: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
        let bytes: Vec<u8> = hex
            .chunks(2)
            .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
            .collect();
        assert_eq!(NOT_FOUND.encode(Encoding::Protobuf), bytes);
    }

    #[test]
    fn a_status_without_details_says_none() {
        let status = Status {
            details: None,
            ..NOT_FOUND
        };
        let text = String::from_utf8(status.encode(Encoding::Json)).unwrap();
        assert!(!text.contains("details"), "{text}");
    }
}
