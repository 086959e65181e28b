//! A list in protobuf splits alike however it is cut, into the items that its message holds.
#![no_main]

use hublet_wire::list::{ListHead, ProtobufListSplitter, protobuf_item_len, push_protobuf_item};
use hublet_wire::protobuf::{Fields, Unknown, Value, parse_object_meta};
use hublet_wire_fuzz::{Outcome, read_in_pieces};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let (items, end) = read_in_pieces(input, |pieces| read(pieces));
    let Ok(head) = end else { return };
    let list = Unknown::parse(input).expect("a whole body");
    let found: Vec<&[u8]> = Fields::new(list.raw)
        .filter_map(|field| match field.expect("a whole message") {
            (2, Value::Bytes(item)) => Some(item),
            _ => None,
        })
        .collect();
    assert_eq!(items, found);
    assert_eq!(list.type_meta.kind, head.kind);
    check_envelope(&head, &items);
});

fn read(pieces: &mut dyn Iterator<Item = &[u8]>) -> Outcome<Vec<u8>, ListHead> {
    let (mut list, mut items) = (ProtobufListSplitter::default(), Vec::new());
    for piece in pieces {
        let pushed = list.push(piece, &mut |_, item| {
            parse_object_meta(item)?;
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
fn check_envelope(head: &ListHead, items: &[Vec<u8>]) {
    let mut written = Vec::new();
    for item in items {
        push_protobuf_item(&mut written, item);
    }
    let len: usize = items.iter().map(|item| protobuf_item_len(item.len())).sum();
    assert_eq!(written.len(), len);
    let envelope = head.encode_protobuf(len);
    let body = [&envelope.head[..], &written, &envelope.tail].concat();
    let (again, end) = read(&mut std::iter::once(&body[..]));
    assert_eq!((&again[..], end.as_ref()), (items, Ok(head)));
}
