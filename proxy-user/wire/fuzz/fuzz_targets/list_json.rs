//! A list in JSON splits alike however it is cut, into the items that `serde_json` finds.
#![no_main]

use std::collections::HashMap;

use hublet_wire::json::parse_head;
use hublet_wire::list::{JsonListSplitter, ListHead};
use hublet_wire_fuzz::{Outcome, read_in_pieces};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|input: &[u8]| {
    let (items, end) = read_in_pieces(input, |pieces| read(pieces));
    let Ok(head) = end else { return };
    let list: HashMap<String, &RawValue> = serde_json::from_slice(input).expect("a whole object");
    let found: Option<Vec<&RawValue>> = list.get("items").map_or(Some(Vec::new()), |items| {
        serde_json::from_str::<Option<_>>(items.get())
            .expect("null or an array")
            .or(Some(Vec::new()))
    });
    let found: Vec<&[u8]> = found
        .unwrap_or_default()
        .into_iter()
        .map(|item| item.get().as_bytes())
        .collect();
    assert_eq!(items, found);
    check_envelope(&head);
});

fn read(pieces: &mut dyn Iterator<Item = &[u8]>) -> Outcome<Vec<u8>, ListHead> {
    let (mut list, mut items) = (JsonListSplitter::default(), Vec::new());
    for piece in pieces {
        let pushed = list.push(piece, &mut |_, item| {
            parse_head(item)?;
            items.push(item.to_vec());
            Ok(())
        });
        if let Err(error) = pushed {
            return (items, Err(error));
        }
    }
    (items, list.finish())
}

/// The list that is written reads as the one that was read.
fn check_envelope(head: &ListHead) {
    let envelope = head.encode_json();
    let item = br#"{"metadata":{"name":"a"}}"#;
    let body = [&envelope.head[..], item, &envelope.tail].concat();
    let (items, end) = read(&mut std::iter::once(&body[..]));
    assert_eq!((items, end.as_ref()), (vec![item.to_vec()], Ok(head)));
}
