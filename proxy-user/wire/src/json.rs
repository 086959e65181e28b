//! The JSON head of an object: type and metadata.
//!
//! Visitors that accept maps only: a derived struct would take `"metadata":["ns","name"]`, too.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::CodecError;
use crate::meta::{INITIAL_EVENTS_END, Meta};

/// Type and metadata of one object, list, or bookmark.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Head<'a> {
    /// `apiVersion`, empty in an item of a built-in list.
    pub api_version: Cow<'a, str>,
    /// `kind`, empty in an item of a built-in list.
    pub kind: Cow<'a, str>,
    /// `metadata`, as far as it is read.
    pub meta: Meta<'a>,
    /// The fields of a `Status`, empty in any other object.
    pub status: StatusHead<'a>,
}

/// The fields of a `metav1.Status` that decide how it is remembered.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct StatusHead<'a> {
    /// `status`: `Success` or `Failure`. An object's own `status` is a map and is skipped.
    pub status: Cow<'a, str>,
    /// `reason`, a word for programs.
    pub reason: Cow<'a, str>,
    /// `details.name`: the object's name.
    pub name: Cow<'a, str>,
    /// `details.kind`: the resource (plural).
    pub resource: Cow<'a, str>,
}

/// Reads the head of one whole JSON object.
///
/// # Errors
/// Not UTF-8, not JSON, not an object, or `metadata` is no map.
pub fn parse_head(bytes: &[u8]) -> Result<Head<'_>, CodecError> {
    from_bytes(bytes)
}

/// As `serde_json::from_slice`, but refuses text that isn't UTF-8 in skipped strings, too.
fn from_bytes<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, CodecError> {
    let text = std::str::from_utf8(bytes).map_err(|_| CodecError::Json("not UTF-8".into()))?;
    serde_json::from_str(text).map_err(|e| CodecError::Json(e.to_string()))
}

/// Reads a watch event: its type, and the object's own bytes.
///
/// # Errors
/// Not UTF-8, not JSON, or a field is missing.
pub fn parse_watch_event(bytes: &[u8]) -> Result<(Cow<'_, str>, &[u8]), CodecError> {
    let event: Event<'_> = from_bytes(bytes)?;
    let object = event
        .object
        .ok_or_else(|| CodecError::Json("a watch event without an object".into()))?;
    Ok((event.kind, object.get().as_bytes()))
}

/// A string that is borrowed from the input where it holds no escapes; anything that is no string reads as empty.
struct Lenient<'a>(Cow<'a, str>);

impl Lenient<'_> {
    const EMPTY: Self = Self(Cow::Borrowed(""));
}

impl<'de> Deserialize<'de> for Lenient<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(LenientVisitor)
    }
}

struct LenientVisitor;

impl<'de> Visitor<'de> for LenientVisitor {
    type Value = Lenient<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
        Ok(Lenient(Cow::Borrowed(v)))
    }
    fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
        Ok(Lenient(Cow::Owned(v.to_owned())))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Lenient::EMPTY)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Lenient::EMPTY)
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Lenient::EMPTY)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Lenient::EMPTY)
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Lenient::EMPTY)
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Lenient::EMPTY)
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Lenient::EMPTY)
    }
}

/// Implements `Deserialize` from a map's keys. Other keys are skipped, an array is refused.
macro_rules! from_map {
    ($type:ident, $what:literal, |$out:ident, $map:ident| { $($key:literal $(if $guard:expr)? => $read:expr,)* }) => {
        impl<'de> Deserialize<'de> for $type<'de> {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Keys;
                impl<'de> Visitor<'de> for Keys {
                    type Value = $type<'de>;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_map<A: MapAccess<'de>>(self, mut $map: A) -> Result<Self::Value, A::Error> {
                        let mut $out = $type::default();
                        while let Some(key) = $map.next_key::<Lenient<'de>>()? {
                            match key.0.as_ref() {
                                $($key $(if $guard)? => $read,)*
                                _ => {
                                    $map.next_value::<IgnoredAny>()?;
                                }
                            }
                        }
                        Ok($out)
                    }
                }
                from.deserialize_map(Keys)
            }
        }
    };
}

fn twice<E: serde::de::Error>(key: &str) -> E {
    E::custom(format_args!("{key} twice"))
}

#[derive(Default)]
struct Event<'a> {
    kind: Cow<'a, str>,
    object: Option<&'a RawValue>,
}

#[derive(Default)]
struct Details<'a> {
    name: Cow<'a, str>,
    kind: Cow<'a, str>,
}

struct Annotations(bool);

from_map!(Event, "a watch event", |out, map| {
    "type" => out.kind = map.next_value::<Lenient<'de>>()?.0,
    "object" => out.object = Some(map.next_value()?),
});

from_map!(Details, "details", |out, map| {
    "name" => out.name = map.next_value::<Lenient<'de>>()?.0,
    "kind" => out.kind = map.next_value::<Lenient<'de>>()?.0,
});

from_map!(Head, "an object", |out, map| {
    "apiVersion" => out.api_version = map.next_value::<Lenient<'de>>()?.0,
    "kind" => out.kind = map.next_value::<Lenient<'de>>()?.0,
    // The second one would hide the token of the first, and a part of a list would pass for the whole.
    "metadata" if out.meta != Meta::default() => return Err(twice("metadata")),
    "metadata" => out.meta = map.next_value()?,
    "status" => out.status.status = map.next_value::<Lenient<'de>>()?.0,
    "reason" => out.status.reason = map.next_value::<Lenient<'de>>()?.0,
    "details" => {
        // Only a Status has `details` with these two; an Event or a CR may have anything by that name.
        let raw: &RawValue = map.next_value()?;
        let details: Details<'de> = serde_json::from_str(raw.get()).unwrap_or_default();
        (out.status.name, out.status.resource) = (details.name, details.kind);
    },
});

from_map!(Meta, "metadata", |out, map| {
    "name" => out.name = map.next_value::<Lenient<'de>>()?.0,
    "namespace" => out.namespace = map.next_value::<Lenient<'de>>()?.0,
    "uid" => out.uid = map.next_value::<Lenient<'de>>()?.0,
    "resourceVersion" => out.resource_version = map.next_value::<Lenient<'de>>()?.0,
    "continue" if !out.continue_token.is_empty() => return Err(twice("continue")),
    "continue" => out.continue_token = map.next_value::<Option<Cow<'de, str>>>()?.unwrap_or_default(),
    "remainingItemCount" => out.has_remaining_items = map.next_value::<Option<i64>>()?.is_some_and(|count| count != 0),
    "deletionTimestamp" => out.deleting = !map.next_value::<Lenient<'de>>()?.0.is_empty(),
    "deletionGracePeriodSeconds" => out.grace_seconds = map.next_value::<Option<u64>>()?.unwrap_or(0),
    "finalizers" => out.finalizers = map.next_value::<Option<Vec<IgnoredAny>>>()?.is_some_and(|f| !f.is_empty()),
    "annotations" => out.initial_events_end = map.next_value::<Annotations>()?.0,
});

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(AnnotationsVisitor)
    }
}

struct AnnotationsVisitor;

impl<'de> Visitor<'de> for AnnotationsVisitor {
    type Value = Annotations;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Annotations(false))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut end = false;
        while let Some(key) = map.next_key::<Lenient<'de>>()? {
            if key.0 == INITIAL_EVENTS_END {
                end = map.next_value::<Lenient<'de>>()?.0 == "true";
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(Annotations(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::ResourceVersion;

    #[test]
    fn heads_are_read_and_arrays_are_refused() {
        let pod = br#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","namespace":"d","uid":"u",
            "resourceVersion":"7","labels":{"x":"y"},"finalizers":["f"]},"status":{"phase":"Running"}}"#;
        let head = parse_head(pod).unwrap();
        assert_eq!(
            (&*head.kind, &*head.api_version, &*head.meta.name),
            ("Pod", "v1", "a")
        );
        assert_eq!(
            (
                head.meta.version(),
                head.meta.finalizers,
                head.meta.deleting
            ),
            (Some(ResourceVersion::new(7)), true, false)
        );
        assert_eq!(head.status.status, "");
        for bad in [
            &br#"{"kind":"Pod","metadata":["d","a","1","u",{}]}"#[..],
            br#"["Pod","v1"]"#,
            br#"{"kind":"Pod","metadata":{"name":"a"}"#,
            br#"{"kind":"Pod","metadata":{"name":"a"}} x"#,
            b"{\"kind\":\"\xff\"}",
            b"",
        ] {
            assert!(parse_head(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn a_status_and_an_event_with_details_are_told_apart() {
        let status =
            br#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"m",
            "reason":"NotFound","details":{"name":"x","kind":"pods"},"code":404}"#;
        let head = parse_head(status).unwrap();
        assert_eq!(
            (
                &*head.status.reason,
                &*head.status.name,
                &*head.status.resource
            ),
            ("NotFound", "x", "pods")
        );
        let event = br#"{"kind":"X","details":{"name":"x","kind":"y"},"details":[1],"status":7,"reason":null}"#;
        let head = parse_head(event).unwrap();
        assert_eq!(head.status, StatusHead::default(), "the last value counts");
    }

    #[test]
    fn one_annotation_alone_ends_the_initial_events() {
        let ends = |annotations: &str| {
            let object = format!(r#"{{"metadata":{{"annotations":{annotations}}}}}"#);
            parse_head(object.as_bytes()).map(|head| head.meta.initial_events_end)
        };
        assert_eq!(ends(r#"{"k8s.io/initial-events-end":"true"}"#), Ok(true));
        let among = r#"{"a":"true","k8s.io/initial-events-end":"true","b":"false"}"#;
        assert_eq!(ends(among), Ok(true));
        assert_eq!(ends(r#"{"k8s.io/initial-events-end":"false"}"#), Ok(false));
        assert_eq!(ends(r#"{"a":"true"}"#), Ok(false));
        assert_eq!(ends("null"), Ok(false));
        let error = ends(r#""text""#).unwrap_err().to_string();
        assert!(error.contains("expected annotations"), "{error}");
    }

    #[test]
    fn fields_of_other_types_read_as_absent() {
        for value in [
            "7",
            "-7",
            "1.5",
            "true",
            "null",
            "[]",
            "[1]",
            "{}",
            r#"{"a":1}"#,
        ] {
            let object = format!(r#"{{"kind":{value},"metadata":{{"name":{value}}}}}"#);
            assert_eq!(
                parse_head(object.as_bytes()),
                Ok(Head::default()),
                "{value}"
            );
        }
        let escaped = parse_head(br#"{"kind":"P\u006fd"}"#).unwrap();
        assert_eq!(escaped.kind, "Pod");
    }

    #[test]
    fn an_object_that_is_deleted_says_so() {
        let pod = br#"{"metadata":{"deletionTimestamp":"2026-11-22T16:51:54Z",
            "deletionGracePeriodSeconds":30,"finalizers":[],"continue":"c"}}"#;
        let meta = parse_head(pod).unwrap().meta;
        assert_eq!((meta.deleting, meta.grace_seconds), (true, 30));
        assert_eq!((meta.finalizers, &*meta.continue_token), (false, "c"));
        let null = br#"{"metadata":{"deletionTimestamp":null,"deletionGracePeriodSeconds":null}}"#;
        assert_eq!(parse_head(null).unwrap().meta, Meta::default());
    }

    #[test]
    fn a_watch_event_needs_an_object() {
        let event = br#"{"type":"ADDED","object":{"kind":"Pod"}}"#;
        let (kind, object) = parse_watch_event(event).unwrap();
        assert_eq!((&*kind, object), ("ADDED", &br#"{"kind":"Pod"}"#[..]));
        for bad in [&br#"{"type":"ADDED"}"#[..], b"[]", b"\xff", b"{"] {
            assert!(parse_watch_event(bad).is_err());
        }
    }
}
