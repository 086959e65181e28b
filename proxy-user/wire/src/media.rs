//! Media types, and the negotiation of a response's encoding by the `Accept` header.
//!
//! As Kubernetes negotiates: clauses in order of preference; the parameters `as`, `g` and `v` ask
//! for a variant of the object (a Table, its metadata alone); `*/*` means JSON.

use http::{HeaderMap, header};

/// The encoding of an object. The numbers are stored and stay as they are.
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
    fn from_clause(media: &[u8]) -> Option<Self> {
        match media {
            b"application/json" | b"*/*" | b"application/*" => Some(Self::Json),
            media if media == PROTOBUF.as_bytes() => Some(Self::Protobuf),
            _ => None,
        }
    }

    /// The encoding of a response with this `Content-Type`; `None` for any other type.
    pub fn from_content_type(value: &str) -> Option<Self> {
        match value.split(';').next()?.trim() {
            "application/json" => Some(Self::Json),
            PROTOBUF => Some(Self::Protobuf),
            _ => None,
        }
    }
}

/// The variants and encodings that a request accepts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepts {
    /// Encodings of plain objects in order of preference.
    plain: [Option<Encoding>; 2],
    /// Some clause asks for a variant of the object (`as`, `g`, `v`).
    pub asks_for_variant: bool,
    /// The encoding of errors, which are negotiated without regard to variants.
    pub errors: Encoding,
}

impl Accepts {
    /// A request without `Accept`.
    const JSON: Self = Self {
        plain: [Some(Encoding::Json), None],
        asks_for_variant: false,
        errors: Encoding::Json,
    };

    /// Reads the `Accept` header; a missing one means JSON.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        headers
            .get(header::ACCEPT)
            .filter(|value| value.to_str().is_ok())
            .map_or(Self::JSON, |text| Self::parse(text.as_bytes()))
    }

    fn parse(text: &[u8]) -> Self {
        let (mut plain, mut asks_for_variant, mut errors) = ([None, None], false, None);
        for clause in text.split(|byte| *byte == b',') {
            let mut parts = clause.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
            let encoding = parts.next().and_then(Encoding::from_clause);
            let is_variant = parts.any(is_variant_parameter);
            asks_for_variant |= is_variant;
            let Some(encoding) = encoding else { continue };
            errors = errors.or(Some(encoding));
            if is_variant || plain.contains(&Some(encoding)) {
                continue;
            }
            if let Some(slot) = plain.iter_mut().find(|slot| slot.is_none()) {
                *slot = Some(encoding);
            }
        }
        Self {
            plain,
            asks_for_variant,
            errors: errors.unwrap_or(Encoding::Json),
        }
    }

    /// Plain objects are accepted in this encoding.
    pub fn takes(&self, encoding: Encoding) -> bool {
        self.plain.contains(&Some(encoding))
    }

    /// The most preferred of the encodings that are `available`.
    pub fn preferred(&self, available: impl Fn(Encoding) -> bool) -> Option<Encoding> {
        let mut accepted = self.plain.iter().flatten().copied();
        accepted.find(|encoding| available(*encoding))
    }
}

/// The variants of objects (Tables, PartialObjectMetadata) that `Accept` prefers to plain objects, in
/// JSON and each in one spelling; empty where plain objects are preferred.
pub fn requested_variants(headers: &HeaderMap) -> Vec<String> {
    accept_text(headers)
        .unwrap_or_default()
        .split(',')
        .map_while(|clause| {
            let (media, variant) = split_clause(clause);
            let is_variant =
                media == "application/json" && variant.iter().any(|p| p.starts_with("as="));
            is_variant.then(|| format!("{media};{}", variant.join(";")))
        })
        .collect()
}

/// The place of the clause of `Accept` that a document of this `Content-Type` satisfies: media type,
/// `as`, `g` and `v` agree. The lowest is preferred; `None` where no clause is satisfied.
pub fn clause_rank(headers: &HeaderMap, content_type: &str) -> Option<usize> {
    let (stored_media, stored_variant) = split_clause(content_type);
    let Some(text) = accept_text(headers) else {
        return stored_variant.is_empty().then_some(0);
    };
    text.split(',').position(|clause| {
        let (media, variant) = split_clause(clause);
        // Plain text (the index of OpenAPI v3) is sent whatever is asked for.
        let media_agrees = matches!(media, "*/*" | "application/*")
            || media == stored_media
            || stored_media == "text/plain";
        media_agrees && variant == stored_variant
    })
}

fn accept_text(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ACCEPT)?.to_str().ok()
}

/// Each of the three makes the API server convert the object, or refuse the clause.
fn is_variant_parameter(parameter: &[u8]) -> bool {
    let starts: [&[u8]; 3] = [b"as=", b"g=", b"v="];
    starts.iter().any(|start| parameter.starts_with(start))
}

/// A clause's media type, and the sorted parameters that choose a variant of the object.
fn split_clause(clause: &str) -> (&str, Vec<&str>) {
    let mut parts = clause.split(';').map(str::trim);
    let media = parts.next().unwrap_or_default();
    let mut variant: Vec<&str> = parts
        .filter(|parameter| is_variant_parameter(parameter.as_bytes()))
        .collect();
    variant.sort_unstable();
    (media, variant)
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
            let got = Accepts::from_headers(&headers(accept));
            assert_eq!(
                got.plain.iter().flatten().copied().collect::<Vec<_>>(),
                plain,
                "{accept}"
            );
            assert!(
                plain.iter().all(|encoding| got.takes(*encoding)),
                "{accept}"
            );
            assert_eq!(got.errors, errors, "{accept}");
        }
        let cbor = Accepts::from_headers(&headers("application/cbor"));
        assert!(!cbor.takes(Json) && !cbor.takes(Protobuf));
    }

    #[test]
    fn a_table_is_distinguished_from_plain_objects() {
        let table = headers("application/json;as=Table;v=v1;g=meta.k8s.io,application/json");
        assert_eq!(
            requested_variants(&table),
            ["application/json;as=Table;g=meta.k8s.io;v=v1"]
        );
        let both = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(requested_variants(&headers(both)).len(), 2);
        assert!(requested_variants(&headers("application/json")).is_empty());
        assert!(requested_variants(&headers("")).is_empty());
    }

    /// Found by fuzzing: the API server refuses these clauses.
    #[test]
    fn a_group_or_version_alone_does_not_accept_plain_objects() {
        for parameter in ["g=meta.k8s.io", "v=v1"] {
            let accept = headers(&format!("application/json;{parameter}"));
            let accepts = Accepts::from_headers(&accept);
            assert!(!accepts.takes(Encoding::Json), "{parameter}");
            assert!(accepts.asks_for_variant, "{parameter}");
            assert_eq!(clause_rank(&accept, "application/json"), None);
        }
    }

    #[test]
    fn aggregated_and_plain_discovery_are_told_apart() {
        let aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let both = headers(&format!("{aggregated},application/json"));
        assert_eq!(clause_rank(&both, aggregated), Some(0));
        assert_eq!(clause_rank(&both, "application/json"), Some(1));
        assert_eq!(clause_rank(&headers("application/json"), aggregated), None);
        assert_eq!(clause_rank(&headers(""), "application/json"), Some(0));
        assert_eq!(clause_rank(&headers("*/*"), "application/json"), Some(0));
        assert_eq!(
            clause_rank(
                &headers("application/vnd.kubernetes.protobuf"),
                "application/json"
            ),
            None
        );
    }

    #[test]
    fn content_types_name_their_encoding() {
        use Encoding::{Json, Protobuf};
        for encoding in [Json, Protobuf] {
            for text in [encoding.content_type(), encoding.watch_content_type()] {
                assert_eq!(Encoding::from_content_type(text), Some(encoding), "{text}");
            }
        }
        assert_eq!(
            Encoding::from_content_type("application/json ; charset=utf-8"),
            Some(Json)
        );
        assert_eq!(Encoding::from_content_type("text/plain"), None);
        assert_eq!(
            Protobuf.watch_content_type(),
            "application/vnd.kubernetes.protobuf;stream=watch"
        );
    }

    #[test]
    fn the_preferred_encoding_is_the_first_that_is_available() {
        let text =
            "application/yaml,application/vnd.kubernetes.protobuf,application/*,application/json";
        let accepts = Accepts::from_headers(&headers(text));
        assert_eq!(accepts.preferred(|_| true), Some(Encoding::Protobuf));
        let json = accepts.preferred(|encoding| encoding == Encoding::Json);
        assert_eq!(json, Some(Encoding::Json));
        assert_eq!(accepts.preferred(|_| false), None);
        assert!(!accepts.asks_for_variant);
    }

    #[test]
    fn plain_text_satisfies_any_clause_and_other_types_their_own() {
        let json = headers("application/json");
        assert_eq!(clause_rank(&json, "text/plain; charset=utf-8"), Some(0));
        assert_eq!(clause_rank(&json, "application/yaml"), None);
        let any = headers("application/cbor,application/*");
        assert_eq!(clause_rank(&any, "application/json"), Some(1));
        let table = headers("application/json;as=Table");
        assert_eq!(clause_rank(&table, "application/json"), None);
    }

    #[test]
    fn an_accept_header_that_is_no_text_means_json() {
        let mut headers = HeaderMap::new();
        headers.insert(
            header::ACCEPT,
            http::HeaderValue::from_bytes(b"\xff").unwrap(),
        );
        assert_eq!(Accepts::from_headers(&headers), Accepts::JSON);
    }
}
