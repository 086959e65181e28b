//! Watch streams: splitters that hand out whole frames as the bytes arrive, and writers of frames
//! and bookmarks.
//!
//! Newlines don't count: JSON values may follow one another in any way.

use crate::media::Encoding;
use crate::meta::{INITIAL_EVENTS_END, ResourceVersion, TypeMeta};
use crate::protobuf::{encode_envelope, put_bytes};
use crate::scan::{Scanner, is_whitespace};
use crate::{CodecError, MAX_OBJECT};

/// Receives each whole frame; of protobuf without its length.
pub type OnFrame<'a> = dyn FnMut(&[u8]) -> Result<(), CodecError> + 'a;

/// Splits concatenated JSON objects.
#[derive(Debug, Default)]
pub struct JsonWatchSplitter {
    /// A frame that began in an earlier chunk.
    buffer: Vec<u8>,
    scanner: Scanner,
}

impl JsonWatchSplitter {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// Malformed, or over a limit. The splitter is of no further use then.
    pub fn push(&mut self, chunk: &[u8], on_frame: &mut OnFrame<'_>) -> Result<(), CodecError> {
        let mut rest = chunk;
        loop {
            if self.buffer.is_empty() {
                rest = skip_to_object(rest)?;
            }
            if rest.is_empty() {
                return Ok(());
            }
            let end = self.scanner.find_close(rest, 0)?;
            let (part, behind) = rest.split_at(end.unwrap_or(rest.len()));
            if self.buffer.len() + part.len() > MAX_OBJECT {
                return Err(CodecError::Limit("a watch event is too long"));
            }
            match end {
                None => self.buffer.extend_from_slice(part),
                Some(_) if self.buffer.is_empty() => on_frame(part)?,
                Some(_) => {
                    self.buffer.extend_from_slice(part);
                    on_frame(&self.buffer)?;
                    self.buffer = Vec::new();
                }
            }
            rest = behind;
        }
    }

    /// Bytes of memory that it keeps until the next chunk: none between two frames.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}

/// Skips the white space before a frame; empty where nothing follows it.
fn skip_to_object(bytes: &[u8]) -> Result<&[u8], CodecError> {
    let space = bytes
        .iter()
        .take_while(|byte| is_whitespace(**byte))
        .count();
    match &bytes[space..] {
        rest @ ([] | [b'{', ..]) => Ok(rest),
        _ => Err(CodecError::Json(
            "no object where a watch event begins".into(),
        )),
    }
}

/// Splits protobuf frames: four bytes of big-endian length, then the event.
#[derive(Debug, Default)]
pub struct ProtobufWatchSplitter {
    buffer: Vec<u8>,
}

impl ProtobufWatchSplitter {
    /// Takes the next chunk.
    ///
    /// # Errors
    /// A frame is over the limit. The splitter is of no further use then.
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
        // A frame that is still cut keeps its room to grow.
        if at > 0 {
            self.buffer.drain(..at);
            self.buffer.shrink_to_fit();
        }
        Ok(())
    }

    /// Bytes of memory that it keeps until the next chunk: none between two frames.
    pub fn buffered_bytes(&self) -> usize {
        self.buffer.capacity()
    }
}

/// The `type` of a watch event that is written here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// An object was made, or entered the selection.
    Added,
    /// An object has changed.
    Modified,
    /// An object was deleted, or left the selection.
    Deleted,
    /// The stream has come as far as a resourceVersion.
    Bookmark,
    /// The stream ends with a `Status`.
    Error,
}

impl EventType {
    /// The event type as it stands in the stream.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }
}

/// Appends a frame; `object` is a whole body of the same encoding.
pub fn push_frame(out: &mut Vec<u8>, event: EventType, encoding: Encoding, object: &[u8]) {
    match encoding {
        Encoding::Json => {
            out.extend_from_slice(br#"{"type":""#);
            out.extend_from_slice(event.as_str().as_bytes());
            out.extend_from_slice(br#"","object":"#);
            out.extend_from_slice(object);
            out.extend_from_slice(b"}\n");
        }
        Encoding::Protobuf => {
            let mut raw = Vec::with_capacity(object.len() + 8);
            put_bytes(&mut raw, 1, object);
            let mut frame = Vec::with_capacity(raw.len() + 24);
            put_bytes(&mut frame, 1, event.as_str().as_bytes());
            put_bytes(&mut frame, 2, &raw);
            out.extend_from_slice(&u32::try_from(frame.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&frame);
        }
    }
}

/// The place of a bookmark in a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BookmarkPlace {
    /// Behind the initial events of a WatchList (KEP-3157), whose end it marks.
    InitialEventsEnd,
    /// Anywhere else in the stream.
    Later,
}

/// The object of a bookmark: nothing but its type and a resourceVersion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bookmark<'a> {
    /// The type of the objects that are watched.
    pub type_meta: TypeMeta<'a>,
    /// The resourceVersion that the stream has come to.
    pub resource_version: ResourceVersion,
    /// Decides whether the bookmark has the annotation that ends the initial events.
    pub place: BookmarkPlace,
}

impl Bookmark<'_> {
    /// Appends the frame of the bookmark.
    pub fn push_frame(&self, out: &mut Vec<u8>, encoding: Encoding) {
        let object = match encoding {
            Encoding::Json => self.encode_json(),
            Encoding::Protobuf => self.encode_protobuf(),
        };
        push_frame(out, EventType::Bookmark, encoding, &object);
    }

    fn encode_json(&self) -> Vec<u8> {
        let kind = serde_json::Value::from(self.type_meta.kind);
        let api_version = serde_json::Value::from(self.type_meta.api_version);
        let annotations = if self.place == BookmarkPlace::InitialEventsEnd {
            format!(r#","annotations":{{"{INITIAL_EVENTS_END}":"true"}}"#)
        } else {
            String::new()
        };
        let version = self.resource_version;
        let meta = format!(r#"{{"resourceVersion":"{version}"{annotations}}}"#);
        format!(r#"{{"kind":{kind},"apiVersion":{api_version},"metadata":{meta}}}"#).into_bytes()
    }

    fn encode_protobuf(&self) -> Vec<u8> {
        let mut meta = Vec::new();
        put_bytes(&mut meta, 6, self.resource_version.to_string().as_bytes());
        if self.place == BookmarkPlace::InitialEventsEnd {
            let mut annotation = Vec::new();
            put_bytes(&mut annotation, 1, INITIAL_EVENTS_END.as_bytes());
            put_bytes(&mut annotation, 2, b"true");
            put_bytes(&mut meta, 12, &annotation);
        }
        let mut raw = Vec::new();
        put_bytes(&mut raw, 1, &meta);
        encode_envelope(self.type_meta, &raw)
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
            let (mut frames, mut seen) = (JsonWatchSplitter::default(), Vec::new());
            for part in body.chunks(chunk) {
                frames
                    .push(part, &mut |f| {
                        seen.push(crate::json::parse_watch_event(f)?.0.into_owned());
                        Ok(())
                    })
                    .unwrap();
            }
            assert_eq!(seen, ["ADDED", "BOOKMARK", "DELETED"], "chunks of {chunk}");
        }
        assert!(
            JsonWatchSplitter::default()
                .push(b"404 page", &mut |_| Ok(()))
                .is_err()
        );
        assert!(
            JsonWatchSplitter::default()
                .push(b"}", &mut |_| Ok(()))
                .is_err()
        );
    }

    #[test]
    fn protobuf_frames_split_alike_at_every_chunk_size() {
        let mut body = Vec::new();
        for len in [0usize, 1, 300] {
            body.extend_from_slice(&u32::try_from(len).unwrap().to_be_bytes());
            body.extend(std::iter::repeat_n(7, len));
        }
        for chunk in 1..body.len() + 1 {
            let (mut frames, mut seen) = (ProtobufWatchSplitter::default(), Vec::new());
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
            ProtobufWatchSplitter::default()
                .push(&[0xff; 8], &mut |_| Ok(()))
                .is_err()
        );
    }

    #[test]
    fn frames_that_are_written_split_again() {
        use EventType::{Added, Bookmark, Deleted, Error, Modified};
        let types = [Added, Modified, Deleted, Bookmark, Error];
        assert_eq!(
            types.map(EventType::as_str),
            ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
        );
        let (mut json, mut protobuf) = (Vec::new(), Vec::new());
        push_frame(&mut json, Added, Encoding::Json, br#"{"kind":"Pod"}"#);
        assert_eq!(
            json,
            b"{\"type\":\"ADDED\",\"object\":{\"kind\":\"Pod\"}}\n"
        );
        push_frame(&mut protobuf, Deleted, Encoding::Protobuf, b"body");
        let mut frames = Vec::new();
        let pushed = ProtobufWatchSplitter::default().push(&protobuf, &mut |frame| {
            let (kind, body) = crate::protobuf::parse_watch_event(frame)?;
            frames.push((kind.to_owned(), body.to_vec()));
            Ok(())
        });
        assert_eq!(pushed, Ok(()));
        assert_eq!(frames, [("DELETED".to_owned(), b"body".to_vec())]);
    }

    /// Recorded: WatchLists of ConfigMaps at kube-apiserver 1.34.4; its own bookmarks have more empty fields.
    #[test]
    fn bookmarks_carry_type_version_and_the_end_of_the_initial_events() {
        let bookmark = |place| Bookmark {
            type_meta: TypeMeta {
                api_version: "v1",
                kind: "ConfigMap",
            },
            resource_version: ResourceVersion::new(10_681),
            place,
        };
        let end = bookmark(BookmarkPlace::InitialEventsEnd);
        let mut json = Vec::new();
        end.push_frame(&mut json, Encoding::Json);
        bookmark(BookmarkPlace::Later).push_frame(&mut json, Encoding::Json);
        let lines = String::from_utf8(json).unwrap();
        let expected = concat!(
            r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"10681","#,
            r#""annotations":{"k8s.io/initial-events-end":"true"}}}}"#,
            "\n",
            r#"{"type":"BOOKMARK","object":{"kind":"ConfigMap","apiVersion":"v1","metadata":{"resourceVersion":"10681"}}}"#,
            "\n",
        );
        assert_eq!(lines, expected);
        for (place, is_end) in [
            (BookmarkPlace::InitialEventsEnd, true),
            (BookmarkPlace::Later, false),
        ] {
            let body = bookmark(place).encode_protobuf();
            let unknown = crate::protobuf::Unknown::parse(&body).unwrap();
            let meta = crate::protobuf::parse_object_meta(unknown.raw).unwrap();
            assert_eq!(
                (meta.version(), meta.initial_events_end),
                (Some(ResourceVersion::new(10_681)), is_end)
            );
            assert_eq!(unknown.type_meta, end.type_meta);
        }
    }

    #[test]
    fn a_frame_of_exactly_the_limit_is_taken_however_it_is_cut() {
        let padding = MAX_OBJECT - r#"{"a":""}"#.len();
        let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(padding));
        for chunk in [json.len(), 64 << 10] {
            let (mut splitter, mut len) = (JsonWatchSplitter::default(), 0);
            for part in json.as_bytes().chunks(chunk) {
                let pushed = splitter.push(part, &mut |frame| {
                    len = frame.len();
                    Ok(())
                });
                assert_eq!(pushed, Ok(()));
            }
            assert_eq!(len, MAX_OBJECT);
        }
    }

    #[test]
    fn a_frame_over_the_limit_is_refused_however_it_is_cut() {
        let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(MAX_OBJECT));
        for chunk in [json.len(), 64 << 10] {
            let mut splitter = JsonWatchSplitter::default();
            let mut parts = json.as_bytes().chunks(chunk);
            let pushed = parts.try_for_each(|part| splitter.push(part, &mut |_| Ok(())));
            assert_eq!(pushed, Err(CodecError::Limit("a watch event is too long")));
        }
        let len = u32::try_from(MAX_OBJECT).unwrap();
        let mut splitter = ProtobufWatchSplitter::default();
        assert_eq!(splitter.push(&len.to_be_bytes(), &mut |_| Ok(())), Ok(()));
        let mut splitter = ProtobufWatchSplitter::default();
        assert!(
            splitter
                .push(&(len + 1).to_be_bytes(), &mut |_| Ok(()))
                .is_err()
        );
    }
}
