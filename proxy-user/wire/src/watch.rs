//! Splits a watch stream into its events as the bytes arrive. In: chunks of a JSON or protobuf watch body. Out: each
//! whole frame, in order. Relies on no newlines: JSON values may follow one another in any way.

use crate::{CodecError, MAX_DEPTH, MAX_OBJECT};

/// Receives each whole frame.
pub type OnFrame<'a> = dyn FnMut(&[u8]) -> Result<(), CodecError> + 'a;

/// Splits concatenated JSON objects.
#[derive(Debug, Default)]
pub struct JsonFrames {
    buffer: Vec<u8>,
    depth: u32,
    in_string: bool,
    escaped: bool,
}

impl JsonFrames {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Malformed, or over a limit; the splitter is of no more use then.
    pub fn push(&mut self, chunk: &[u8], on_frame: &mut OnFrame<'_>) -> Result<(), CodecError> {
        let mut start = 0;
        for (i, &byte) in chunk.iter().enumerate() {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' if self.depth > 0 => self.in_string = true,
                b'{' | b'[' => {
                    if self.depth == 0 {
                        start = i;
                    }
                    self.depth += 1;
                    if self.depth > MAX_DEPTH {
                        return Err(CodecError::Limit("nested too deep"));
                    }
                }
                b'}' | b']' => {
                    self.depth = self
                        .depth
                        .checked_sub(1)
                        .ok_or_else(|| CodecError::Json("unbalanced".into()))?;
                    if self.depth == 0 {
                        self.frame(&chunk[start..=i], on_frame)?;
                        start = i + 1;
                    }
                }
                _ if self.depth == 0 && !byte.is_ascii_whitespace() => {
                    return Err(CodecError::Json("bytes between watch events".into()));
                }
                _ => {}
            }
        }
        if self.depth > 0 {
            self.keep(&chunk[start..])?;
        }
        Ok(())
    }

    fn frame(&mut self, last: &[u8], on_frame: &mut OnFrame<'_>) -> Result<(), CodecError> {
        if self.buffer.is_empty() {
            return on_frame(last);
        }
        self.keep(last)?;
        let done = on_frame(&self.buffer);
        self.buffer.clear();
        self.buffer.shrink_to(16 << 10);
        done
    }

    fn keep(&mut self, bytes: &[u8]) -> Result<(), CodecError> {
        if self.buffer.len() + bytes.len() > MAX_OBJECT {
            return Err(CodecError::Limit("a watch event is too long"));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }
}

/// Splits protobuf frames: four bytes of big-endian length, then the event.
#[derive(Debug, Default)]
pub struct ProtobufFrames {
    buffer: Vec<u8>,
}

impl ProtobufFrames {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// A frame over the limit.
    pub fn push(&mut self, chunk: &[u8], on_frame: &mut OnFrame<'_>) -> Result<(), CodecError> {
        self.buffer.extend_from_slice(chunk);
        let mut at = 0;
        while let Some((len, rest)) = self.buffer[at..].split_first_chunk::<4>() {
            let len = u32::from_be_bytes(*len) as usize;
            if len > MAX_OBJECT {
                return Err(CodecError::Limit("a watch event is too long"));
            }
            let Some(frame) = rest.get(..len) else { break };
            on_frame(frame)?;
            at += 4 + len;
        }
        self.buffer.drain(..at);
        self.buffer.shrink_to(16 << 10);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_frames_split_alike_at_every_chunk_size() {
        let body = br#"{"type":"ADDED","object":{"a":"}\"{"}}
            {"type":"BOOKMARK","object":{}}{"type":"DELETED","object":{"b":[{}]}}"#;
        for chunk in 1..body.len() + 1 {
            let (mut frames, mut seen) = (JsonFrames::default(), Vec::new());
            for part in body.chunks(chunk) {
                frames
                    .push(part, &mut |f| {
                        seen.push(crate::json::watch_event(f)?.0.into_owned());
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, ["ADDED", "BOOKMARK", "DELETED"], "chunks of {chunk}");
        }
        assert!(
            JsonFrames::default()
                .push(b"404 page", &mut |_| Ok(()))
                .is_err()
        );
        assert!(JsonFrames::default().push(b"}", &mut |_| Ok(())).is_err());
    }

    #[test]
    fn protobuf_frames_split_alike_at_every_chunk_size() {
        let mut body = Vec::new();
        for len in [0usize, 1, 300] {
            body.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
            body.extend(std::iter::repeat_n(7, len));
        }
        for chunk in 1..body.len() + 1 {
            let (mut frames, mut seen) = (ProtobufFrames::default(), Vec::new());
            for part in body.chunks(chunk) {
                frames
                    .push(part, &mut |f| {
                        seen.push(f.len());
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, [0, 1, 300]);
        }
        assert!(
            ProtobufFrames::default()
                .push(&[0xff; 8], &mut |_| Ok(()))
                .is_err()
        );
    }
}
