//! HTTP/2, only as much as measuring needs, so that the generator's own cost stays small. One stream at a time, except for
//! watches, which stay open side by side.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::message::{Request, Response, Sink, protocol_error};
use crate::target::Stream;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The default, which we do not raise.
const FRAME_LIMIT: usize = 16_384;
const WINDOW: u32 = (1 << 31) - 1;
const DEFAULT_WINDOW: u32 = 65_535;
const BUFFER: usize = 64 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// A connection over any byte stream.
#[derive(Debug)]
pub(crate) struct H2<S = Stream> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    next: u32,
    /// Bytes that the peer may still send on the connection.
    window: u32,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    /// Range of the payload in the buffer.
    at: usize,
    length: usize,
}

impl<S: Read + Write> H2<S> {
    /// Sends the preface; the windows are as large as they can be, so that no update falls into a sample.
    pub(crate) fn handshake(stream: S) -> io::Result<Self> {
        let mut connection = Self {
            stream,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
            next: 1,
            window: WINDOW,
        };
        let mut hello = PREFACE.to_vec();
        // ENABLE_PUSH = 0, INITIAL_WINDOW_SIZE
        let mut settings = vec![0, 2, 0, 0, 0, 0, 0, 4];
        settings.extend_from_slice(&WINDOW.to_be_bytes());
        write_frame(&mut hello, SETTINGS, 0, 0, &settings);
        write_frame(
            &mut hello,
            WINDOW_UPDATE,
            0,
            0,
            &(WINDOW - DEFAULT_WINDOW).to_be_bytes(),
        );
        connection.stream.write_all(&hello)?;
        Ok(connection)
    }

    pub(crate) fn send_request(
        &mut self,
        request: &Request,
        sink: &mut Sink,
    ) -> io::Result<Response> {
        let asked = Instant::now();
        let id = self.write_request(request)?;
        let mut status = None;
        let mut first = None;
        loop {
            let frame = self.read_frame()?;
            if frame.stream == id && (frame.kind == HEADERS || frame.kind == DATA) {
                first.get_or_insert_with(Instant::now);
                let payload = self.payload(frame)?;
                if frame.kind == DATA {
                    sink.push(payload);
                } else if status.is_none() {
                    status = Some(status_of(payload, frame.flags)?);
                }
                self.consume_frame(frame)?;
                if frame.flags & END_STREAM != 0 {
                    return Ok(sink.finish_response(status.unwrap_or(0), asked, first));
                }
            } else {
                self.handle_frame(frame, id)?;
            }
        }
    }

    pub(crate) fn read_status(&mut self, request: &Request) -> io::Result<u16> {
        let id = self.write_request(request)?;
        loop {
            let frame = self.read_frame()?;
            if frame.stream == id && frame.kind == HEADERS {
                return status_of(self.payload(frame)?, frame.flags);
            }
            self.handle_frame(frame, id)?;
        }
    }

    fn write_request(&mut self, request: &Request) -> io::Result<u32> {
        let id = self.next;
        self.next += 2;
        let mut bytes = Vec::with_capacity(request.h2.len() + 9);
        write_frame(
            &mut bytes,
            HEADERS,
            END_STREAM | END_HEADERS,
            id,
            &request.h2,
        );
        self.stream.write_all(&bytes)?;
        self.stream.flush()?;
        Ok(id)
    }

    /// The next frame, whole in the buffer.
    fn read_frame(&mut self) -> io::Result<Frame> {
        self.fill_to(9)?;
        let head = &self.buffer[self.start..self.start + 9];
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        if length > FRAME_LIMIT {
            return Err(protocol_error(format!(
                "a frame of {length} bytes: more than we allow"
            )));
        }
        self.fill_to(9 + length)?;
        let at = self.start + 9;
        self.start = at + length;
        Ok(Frame {
            kind,
            flags,
            stream,
            at,
            length,
        })
    }

    fn fill_to(&mut self, count: usize) -> io::Result<()> {
        while self.end - self.start < count {
            if self.start + count > self.buffer.len() || self.start == self.end {
                self.buffer.copy_within(self.start..self.end, 0);
                (self.start, self.end) = (0, self.end - self.start);
            }
            let read = self.stream.read(&mut self.buffer[self.end..])?;
            if read == 0 {
                return Err(protocol_error("the connection ended within a response"));
            }
            self.end += read;
        }
        Ok(())
    }

    /// The frame's payload without padding and priority.
    fn payload(&self, frame: Frame) -> io::Result<&[u8]> {
        let mut bytes = &self.buffer[frame.at..frame.at + frame.length];
        if frame.flags & PADDED != 0 {
            let (padding, rest) = bytes
                .split_first()
                .ok_or_else(|| protocol_error("an empty padded frame"))?;
            let kept = rest
                .len()
                .checked_sub(usize::from(*padding))
                .ok_or_else(|| protocol_error("padding too long"))?;
            bytes = &rest[..kept];
        }
        if frame.kind == HEADERS && frame.flags & PRIORITY != 0 {
            bytes = bytes
                .get(5..)
                .ok_or_else(|| protocol_error("a HEADERS frame without its priority"))?;
        }
        Ok(bytes)
    }

    /// Opens the connection's window again long before it closes.
    fn consume_frame(&mut self, taken: Frame) -> io::Result<()> {
        if taken.kind != DATA {
            return Ok(());
        }
        self.window = self
            .window
            .saturating_sub(u32::try_from(taken.length).unwrap_or(u32::MAX));
        if self.window < WINDOW / 2 {
            let mut bytes = Vec::new();
            write_frame(
                &mut bytes,
                WINDOW_UPDATE,
                0,
                0,
                &(WINDOW - self.window).to_be_bytes(),
            );
            self.window = WINDOW;
            self.stream.write_all(&bytes)?;
        }
        Ok(())
    }

    /// A frame that is not our response.
    fn handle_frame(&mut self, taken: Frame, waiting: u32) -> io::Result<()> {
        let mut reply = Vec::new();
        match taken.kind {
            SETTINGS if taken.flags & ACK == 0 => write_frame(&mut reply, SETTINGS, ACK, 0, &[]),
            PING if taken.flags & ACK == 0 => {
                write_frame(&mut reply, PING, ACK, 0, self.payload(taken)?)
            }
            RST_STREAM if taken.stream == waiting => {
                return Err(protocol_error("the server reset the stream"));
            }
            GOAWAY => return Err(protocol_error("the server said GOAWAY")),
            _ => return self.consume_frame(taken),
        }
        self.stream.write_all(&reply)?;
        self.stream.flush()
    }
}

fn write_frame(to: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len())
        .unwrap_or(u32::MAX)
        .to_be_bytes();
    to.extend_from_slice(&length[1..]);
    to.extend_from_slice(&[kind, flags]);
    to.extend_from_slice(&stream.to_be_bytes());
    to.extend_from_slice(payload);
}

/// The status, where the server names it by HPACK's static table (as servers do for 200, 204, 206, 304, 400, 404, 500);
/// any other is 0.
fn status_of(block: &[u8], flags: u8) -> io::Result<u16> {
    if flags & END_HEADERS == 0 {
        return Err(protocol_error("the response's head does not fit one frame"));
    }
    // Updates of the table's size may come first.
    let mut rest = block;
    while let [first, more @ ..] = rest
        && first & 0xe0 == 0x20
    {
        let long = first & 0x1f == 0x1f;
        let skip = if long {
            more.iter()
                .position(|byte| byte & 0x80 == 0)
                .map_or(more.len(), |at| at + 1)
        } else {
            0
        };
        rest = &more[skip..];
    }
    let statuses = [200, 204, 206, 304, 400, 404, 500];
    let indexed = rest.first().and_then(|first| first.checked_sub(0x88));
    Ok(indexed
        .and_then(|at| statuses.get(usize::from(at)))
        .copied()
        .unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Peer {
        says: Vec<u8>,
        heard: Vec<u8>,
    }

    impl Read for Peer {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let here = 11.min(self.says.len()).min(buffer.len());
            buffer[..here].copy_from_slice(&self.says[..here]);
            self.says.drain(..here);
            Ok(here)
        }
    }

    impl Write for Peer {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            self.heard.extend_from_slice(buffer);
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn peer(frames: &[(u8, u8, u32, &[u8])]) -> Peer {
        let mut says = Vec::new();
        frames.iter().for_each(|(kind, flags, stream, payload)| {
            write_frame(&mut says, *kind, *flags, *stream, payload)
        });
        Peer {
            says,
            heard: Vec::new(),
        }
    }

    #[test]
    fn an_answer_is_read_between_settings_pings_and_padding() {
        let says = peer(&[
            (SETTINGS, 0, 0, &[]),
            (HEADERS, END_HEADERS, 1, &[0x3f, 0xe1, 0x1f, 0x88, 0x5f]),
            (DATA, 0, 1, b"hello "),
            (PING, 0, 0, b"12345678"),
            (DATA, PADDED | END_STREAM, 1, b"\x03worldxxx"),
        ]);
        let mut connection = H2::handshake(says).unwrap();
        let mut sink = Sink::with_body();
        let response = connection
            .send_request(&Request::get("/x", Some("t")), &mut sink)
            .unwrap();
        assert_eq!((response.status, response.length), (200, 11));
        assert_eq!(sink.body.unwrap(), b"hello world");
        let mut pong = Vec::new();
        write_frame(&mut pong, PING, ACK, 0, b"12345678");
        assert!(connection.stream.heard.ends_with(&pong));
    }

    #[test]
    fn another_status_than_200_is_seen() {
        let says = peer(&[(HEADERS, END_HEADERS | END_STREAM, 1, &[0x8d])]);
        let mut connection = H2::handshake(says).unwrap();
        assert_eq!(
            connection
                .send_request(&Request::get("/", None), &mut Sink::default())
                .unwrap()
                .status,
            404
        );
        let says = peer(&[(
            HEADERS,
            END_HEADERS | END_STREAM,
            1,
            &[0x48, 3, b'5', b'0', b'3'],
        )]);
        let mut connection = H2::handshake(says).unwrap();
        assert_eq!(
            connection
                .send_request(&Request::get("/", None), &mut Sink::default())
                .unwrap()
                .status,
            0
        );
    }

    #[test]
    fn a_reset_stream_is_an_error() {
        let says = peer(&[(RST_STREAM, 0, 1, &[0, 0, 0, 2])]);
        let mut connection = H2::handshake(says).unwrap();
        assert!(
            connection
                .send_request(&Request::get("/", None), &mut Sink::default())
                .is_err()
        );
    }
}
