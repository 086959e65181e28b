//! The protobuf envelope, and the messages within it: a body that is read reads the same when it is written anew.
#![no_main]

use hublet_wire::protobuf::{
    Fields, Unknown, Value, encode_envelope, find_bytes, parse_list_meta, parse_object_meta,
    parse_status, parse_type_meta, parse_watch_event, put_bytes, put_varint, read_varint,
    varint_len,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    check_varint(input);
    check_fields(input);
    check_message(input);
    if let Ok((kind, object)) = parse_watch_event(input) {
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, object);
        let mut frame = Vec::new();
        put_bytes(&mut frame, 1, kind.as_bytes());
        put_bytes(&mut frame, 2, &raw);
        assert_eq!(parse_watch_event(&frame), Ok((kind, object)));
    }
    if let Ok(unknown) = Unknown::parse(input) {
        let body = encode_envelope(unknown.type_meta, unknown.raw);
        assert_eq!(Unknown::parse(&body).as_ref(), Ok(&unknown));
        check_message(unknown.raw);
    }
});

fn check_varint(input: &[u8]) {
    let Some((value, rest)) = read_varint(input) else {
        return;
    };
    let mut written = Vec::new();
    put_varint(&mut written, value);
    assert_eq!(written.len(), varint_len(value));
    // A sender may write more bytes than it needs.
    assert!(written.len() <= input.len() - rest.len());
    assert_eq!(read_varint(&written), Some((value, &[][..])));
}

/// An error ends the fields, and the last value of a field is found.
fn check_fields(input: &[u8]) {
    let fields: Vec<_> = Fields::new(input).collect();
    let (last, before) = match fields.split_last() {
        Some(parts) => parts,
        None => return,
    };
    assert!(before.iter().all(Result::is_ok));
    if let Ok((number, Value::Bytes(bytes))) = last {
        assert_eq!(find_bytes(input, *number), Some(*bytes));
    }
}

fn check_message(message: &[u8]) {
    let is_whole = Fields::new(message).all(|field| field.is_ok());
    for is_read in [
        parse_type_meta(message).is_ok(),
        parse_object_meta(message).is_ok(),
        parse_list_meta(message).is_ok(),
        parse_status(message).is_ok(),
    ] {
        assert!(is_whole || !is_read, "a cut message was read");
    }
}
