//! Shared by the fuzz targets: ways to cut a stream, whose result must not depend on them.
#![forbid(unsafe_code)]

use hublet_wire::CodecError;

/// A result of a stream: what was handed out, and how it ended.
pub type Outcome<Item, End> = (Vec<Item>, Result<End, CodecError>);

/// Reads the stream whole, byte by byte, and in pieces of uneven length; asserts that what was handed out and whether
/// it ended well is always the same. The outcome of the whole stream.
pub fn read_in_pieces<Item, End>(
    stream: &[u8],
    read: impl Fn(&mut dyn Iterator<Item = &[u8]>) -> Outcome<Item, End>,
) -> Outcome<Item, End>
where
    Item: PartialEq + std::fmt::Debug,
    End: PartialEq + std::fmt::Debug,
{
    let whole = read(&mut std::iter::once(stream));
    assert_alike(&whole, &read(&mut stream.chunks(1)), "bytes");
    assert_alike(&whole, &read(&mut uneven_pieces(stream)), "uneven pieces");
    whole
}

fn assert_alike<Item, End>(whole: &Outcome<Item, End>, cut: &Outcome<Item, End>, how: &str)
where
    Item: PartialEq + std::fmt::Debug,
    End: PartialEq + std::fmt::Debug,
{
    assert_eq!(whole.0, cut.0, "in {how} something else was handed out");
    // Which error is found first may depend on the cut.
    assert_eq!(whole.1.as_ref().ok(), cut.1.as_ref().ok(), "in {how}");
}

/// Cuts a stream into pieces whose lengths its own bytes decide, so that an input always fails in the same way.
fn uneven_pieces(stream: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = stream;
    std::iter::from_fn(move || {
        let (&first, _) = rest.split_first()?;
        let len = (usize::from(first) % 23 + 1).min(rest.len());
        let (piece, behind) = rest.split_at(len);
        rest = behind;
        Some(piece)
    })
}
