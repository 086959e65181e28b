//! Which of the stored encodings a caller takes. In: the `Accept` header. Out: [`Accepts`]. Kubernetes' way:
//! clauses in order, parameters `as`, `g`, `v` ask for another form of the object; `*/*` means JSON.

use http::{HeaderMap, header};

/// How a stored object is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Encoding {
    /// `application/json`, the default encoding.
    Json = 0,
    /// `application/vnd.kubernetes.protobuf`, for built-in types only.
    Protobuf = 1,
}

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

impl Encoding {
    /// The media type of objects and lists.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => PROTOBUF,
        }
    }

    /// The media type of a watch.
    pub const fn watch_content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Protobuf => "application/vnd.kubernetes.protobuf;stream=watch",
        }
    }

    /// The encoding that a clause's media type asks for.
    fn of_clause(media: &[u8]) -> Option<Self> {
        match media {
            b"application/json" | b"*/*" | b"application/*" => Some(Self::Json),
            media if media == PROTOBUF.as_bytes() => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// The encoding of an answer, by its `Content-Type`; `None` for any other.
    pub fn of_content_type(value: &str) -> Option<Self> {
        match value.split(';').next()?.trim() {
            "application/json" => Some(Self::Json),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// The forms and encodings that a caller takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// The plain encodings in the caller's order.
    plain: [Option<Encoding>; 2],
    /// Some clause asks for another form of the object (`as`).
    pub other_forms: bool,
    /// The encoding of errors, which are negotiated without regard to `as`.
    pub errors: Encoding,
}

impl Accepts {
    /// Reads the `Accept` header; a missing one means JSON.
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(text) = headers
            .get(header::ACCEPT)
            .filter(|value| value.to_str().is_ok())
        else {
            return Self {
                plain: [Some(Encoding::Json), None],
                other_forms: false,
                errors: Encoding::Json,
            };
        };
        let (mut plain, mut other_forms, mut errors) = ([None, None], false, None);
        for clause in text.as_bytes().split(|byte| *byte == b',') {
            let mut parts = clause.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let media = parts.next().and_then(Encoding::of_clause);
            let other = parts.any(|parameter| parameter.starts_with(b"as="));
            other_forms |= other;
            let Some(encoding) = media else { continue };
            errors = errors.or(Some(encoding));
            if other || plain.contains(&Some(encoding)) {
                continue;
            }
            if let Some(slot) = plain.iter_mut().find(|s| s.is_none()) {
                *slot = Some(encoding);
            }
        }
        Self {
            plain,
            other_forms,
            errors: errors.unwrap_or(Encoding::Json),
        }
    }

    /// The caller takes this encoding.
    pub fn takes(&self, encoding: Encoding) -> bool {
        self.plain.contains(&Some(encoding))
    }

    /// The first of the caller's encodings that `stored` has too; none of the caller's: `None`.
    pub fn first_of(&self, stored: impl Fn(Encoding) -> bool) -> Option<Encoding> {
        self.plain.iter().flatten().copied().find(|e| stored(*e))
    }
}

/// The other forms of the objects (Tables, PartialObjectMetadata) that `Accept` asks for in JSON before plain objects,
/// each in one spelling; empty where plain objects are asked for first.
pub fn other_forms(headers: &HeaderMap) -> Vec<String> {
    let text = headers
        .get(header::ACCEPT)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    let other = |clause| {
        let (media, chosen) = form(clause);
        let asks = media == "application/json" && chosen.iter().any(|p| p.starts_with("as="));
        asks.then(|| format!("{media};{}", chosen.join(";")))
    };
    text.split(',').map_while(other).collect()
}

/// A stored document of this `Content-Type` answers that `Accept` header: media type, `as`, `g` and `v` agree. The
/// rank of the clause that it answers, lower is better.
pub fn document_rank(headers: &HeaderMap, content_type: &str) -> Option<usize> {
    let Some(text) = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()) else {
        return (form(content_type).1.is_empty()).then_some(0);
    };
    let stored = form(content_type);
    text.split(',').position(|clause| {
        let wanted = form(clause);
        // A document in plain text (the index of OpenAPI v3) is what the server sends whatever is asked for.
        let media = matches!(wanted.0, "*/*" | "application/*")
            || wanted.0 == stored.0
            || stored.0 == "text/plain";
        media && wanted.1 == stored.1
    })
}

/// Media type, and the parameters that choose another form of the object, sorted.
fn form(clause: &str) -> (&str, Vec<&str>) {
    let mut parts = clause.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let mut chosen: Vec<&str> = parts
        .filter(|p| ["as=", "g=", "v="].iter().any(|start| p.starts_with(start)))
        .collect();
    chosen.sort_unstable();
    (media, chosen)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        if !accept.is_empty() {
            headers.insert(header::ACCEPT, accept.parse().unwrap());
        }
        headers
    }

    #[test]
    fn accept_headers_of_the_real_clients() {
        use Encoding::{Json, Protobuf};
        let table: [(&str, &[Encoding], Encoding); 7] = [
            ("", &[Json], Json),
            ("*/*", &[Json], Json),
            ("application/json, */*", &[Json], Json),
            (
                "application/vnd.kubernetes.protobuf,application/json",
                &[Protobuf, Json],
                Protobuf,
            ),
            (
                "application/vnd.kubernetes.protobuf, */*",
                &[Protobuf, Json],
                Protobuf,
            ),
            (
                "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
                &[Json],
                Json,
            ),
            (
                "application/vnd.kubernetes.protobuf;stream=watch",
                &[Protobuf],
                Protobuf,
            ),
        ];
        for (accept, plain, errors) in table {
            let got = Accepts::of(&headers(accept));
            assert_eq!(
                got.plain.iter().flatten().copied().collect::<Vec<_>>(),
                plain,
                "{accept}"
            );
            assert_eq!(got.errors, errors, "{accept}");
        }
        assert!(!Accepts::of(&headers("application/cbor")).takes(Json));
    }

    #[test]
    fn a_table_is_told_from_plain_objects() {
        let table = headers("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(
            other_forms(&table),
            ["application/json;as=Table;g=meta.k8s.io;v=v1"]
        );
        let both = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(other_forms(&headers(both)).len(), 2);
        assert!(other_forms(&headers("application/json")).is_empty());
        assert!(other_forms(&headers("")).is_empty());
    }

    #[test]
    fn aggregated_and_plain_discovery_are_told_apart() {
        let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let both = headers(&format!("{aggregated},application/json"));
        assert_eq!(document_rank(&both, aggregated), Some(0));
        assert_eq!(document_rank(&both, "application/json"), Some(1));
        assert_eq!(
            document_rank(&headers("application/json"), aggregated),
            None
        );
        assert_eq!(document_rank(&headers(""), "application/json"), Some(0));
        assert_eq!(document_rank(&headers("*/*"), "application/json"), Some(0));
        assert_eq!(
            document_rank(
                &headers("application/vnd.kubernetes.protobuf"),
                "application/json"
            ),
            None
        );
    }
}
