//! Short texts, one a line: `Accept`, `Content-Type`, a selector, a resourceVersion, a duration.
#![no_main]

use std::collections::BTreeSet;

use http::{HeaderMap, HeaderValue, header};
use hublet_wire::media::{Accepts, Encoding, clause_rank, requested_variants};
use hublet_wire::meta::ResourceVersion;
use hublet_wire::{duration, selector};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let mut lines = input.split('\n');
    let mut next = || lines.next().unwrap_or_default();
    check_accept(next(), next());
    check_selector(next());
    check_version(next());
    check_duration(next());
});

fn check_accept(accept: &str, content_type: &str) {
    let Ok(value) = HeaderValue::from_str(accept) else {
        return;
    };
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, value);
    let accepts = Accepts::from_headers(&headers);
    for encoding in [Encoding::Json, Encoding::Protobuf] {
        let preferred = accepts.preferred(|available| available == encoding);
        assert_eq!(preferred.is_some(), accepts.takes(encoding), "{accept}");
        // An accepted type has a clause that a document of that type satisfies.
        let rank = clause_rank(&headers, encoding.content_type());
        assert!(rank.is_some() || !accepts.takes(encoding), "{accept}");
    }
    for variant in requested_variants(&headers) {
        assert!(accepts.asks_for_variant, "{accept}: {variant}");
        assert!(clause_rank(&headers, &variant).is_some(), "{variant}");
    }
    let _ = clause_rank(&headers, content_type);
    let _ = Encoding::from_content_type(content_type);
}

/// The same requirements, and one spelling for all their orders.
fn check_selector(text: &str) {
    let canonical = selector::canonical(text);
    assert_eq!(selector::canonical(&canonical), canonical);
    let requirements: BTreeSet<&str> = text.split(',').collect();
    assert_eq!(canonical.split(',').collect::<BTreeSet<_>>(), requirements);
    if !text.contains(['(', '\\']) {
        let reversed: Vec<&str> = text.split(',').rev().collect();
        assert_eq!(selector::canonical(&reversed.join(",")), canonical);
    }
}

fn check_version(text: &str) {
    if let Some(version) = ResourceVersion::parse(text) {
        assert_eq!(version.to_string(), text);
    }
}

/// Where there is one number alone, its unit decides.
fn check_duration(text: &str) {
    if let Ok(duration) = duration::parse(text) {
        assert!(duration.as_secs() <= 100 * 365 * 24 * 3600, "{text}");
    }
}
