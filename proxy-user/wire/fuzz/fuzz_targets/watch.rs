//! A watch stream splits alike however it is cut; protobuf where the first byte is 0, as in a frame's length.
#![no_main]

use hublet_wire::watch::{JsonWatchSplitter, ProtobufWatchSplitter};
use hublet_wire::{CodecError, json, protobuf};
use hublet_wire_fuzz::{Outcome, read_in_pieces};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

fuzz_target!(|input: &[u8]| {
    if input.first() == Some(&0) {
        check_protobuf(input);
    } else {
        check_json(input);
    }
});

fn check_json(input: &[u8]) {
    let (frames, end) = read_in_pieces(input, |pieces| {
        let mut splitter = JsonWatchSplitter::default();
        read(pieces, |piece, frames| {
            splitter.push(piece, &mut |frame| {
                json::parse_watch_event(frame)?;
                frames.push(frame.to_vec());
                Ok(())
            })
        })
    });
    if end.is_err() {
        return;
    }
    // The stream may end within a frame.
    let values = serde_json::Deserializer::from_slice(input).into_iter::<&RawValue>();
    let found: Vec<&[u8]> = values
        .map_while(Result::ok)
        .map(|value| value.get().as_bytes())
        .collect();
    assert_eq!(frames, found);
}

fn check_protobuf(input: &[u8]) {
    let (frames, end) = read_in_pieces(input, |pieces| {
        let mut splitter = ProtobufWatchSplitter::default();
        read(pieces, |piece, frames| {
            splitter.push(piece, &mut |frame| {
                protobuf::parse_watch_event(frame)?;
                frames.push(frame.to_vec());
                Ok(())
            })
        })
    });
    if end.is_err() {
        return;
    }
    let mut written = Vec::new();
    for frame in &frames {
        let len = u32::try_from(frame.len()).expect("shorter than the input");
        written.extend_from_slice(&len.to_be_bytes());
        written.extend_from_slice(frame);
    }
    assert!(input.starts_with(&written));
}

/// Pushes the pieces up to the first error.
fn read(
    mut pieces: &mut dyn Iterator<Item = &[u8]>,
    mut push: impl FnMut(&[u8], &mut Vec<Vec<u8>>) -> Result<(), CodecError>,
) -> Outcome<Vec<u8>, ()> {
    let mut frames = Vec::new();
    let end = (&mut pieces).try_for_each(|piece| push(piece, &mut frames));
    (frames, end)
}
