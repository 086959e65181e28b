//! Heads of objects and watch events in JSON: what is read is what `serde_json::Value` holds.
#![no_main]

use hublet_wire::json::{Head, parse_head, parse_watch_event};
use hublet_wire::meta::{INITIAL_EVENTS_END, ResourceVersion};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|input: &[u8]| {
    // Deeper nesting and longer numbers than the heads' parser minds are refused by this one.
    let Ok(value) = serde_json::from_slice::<Value>(input) else {
        let _ = (parse_head(input), parse_watch_event(input));
        return;
    };
    if let Ok(head) = parse_head(input) {
        check_head(&head, &value);
    }
    if let Ok((kind, object)) = parse_watch_event(input) {
        assert_eq!(kind, text(&value["type"]));
        let object: Value = serde_json::from_slice(object).expect("it was read before");
        assert_eq!(object, value["object"]);
    }
});

fn check_head(head: &Head<'_>, value: &Value) {
    assert!(value.is_object());
    assert_eq!(head.api_version, text(&value["apiVersion"]));
    assert_eq!(head.kind, text(&value["kind"]));
    assert_eq!(head.status.status, text(&value["status"]));
    assert_eq!(head.status.reason, text(&value["reason"]));
    assert_eq!(head.status.name, text(&value["details"]["name"]));
    assert_eq!(head.status.resource, text(&value["details"]["kind"]));
    check_meta(head, &value["metadata"]);
}

fn check_meta(head: &Head<'_>, value: &Value) {
    let meta = &head.meta;
    assert_eq!(meta.name, text(&value["name"]));
    assert_eq!(meta.namespace, text(&value["namespace"]));
    assert_eq!(meta.uid, text(&value["uid"]));
    assert_eq!(meta.resource_version, text(&value["resourceVersion"]));
    assert_eq!(meta.continue_token, text(&value["continue"]));
    assert_eq!(meta.deleting, !text(&value["deletionTimestamp"]).is_empty());
    let grace = value["deletionGracePeriodSeconds"].as_u64();
    assert_eq!(meta.grace_seconds, grace.unwrap_or(0));
    let finalizers = value["finalizers"].as_array();
    assert_eq!(meta.finalizers, finalizers.is_some_and(|f| !f.is_empty()));
    let end = &value["annotations"][INITIAL_EVENTS_END];
    assert_eq!(meta.initial_events_end, text(end) == "true");
    let version = ResourceVersion::parse(&meta.resource_version);
    assert_eq!(meta.version(), version);
}

/// Of anything that is no string, an empty one.
fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
