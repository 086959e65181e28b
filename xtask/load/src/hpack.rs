//! HPACK (RFC 7541), only the form that every server takes.

/// Literals without indexing and without Huffman coding: the same bytes for every request.
pub(crate) fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        write_string(&mut block, name);
        write_string(&mut block, value);
    }
    block
}

fn write_string(to: &mut Vec<u8>, text: &str) {
    let mut length = text.len();
    if length < 127 {
        to.push(length as u8);
    } else {
        to.push(127);
        length -= 127;
        while length >= 128 {
            to.push((length % 128) as u8 | 128);
            length /= 128;
        }
        to.push(length as u8);
    }
    to.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_strings_have_hpack_lengths() {
        let mut block = Vec::new();
        write_string(&mut block, &"x".repeat(1337));
        assert_eq!(&block[..4], &[127, 0xba, 0x09, b'x']);
    }
}
