//! HTTP/1.1 with keep-alive, only as much as measuring needs: bodies by Content-Length or in chunks.

use std::io::{self, Read, Write};
use std::time::Instant;

use crate::message::{Request, Response, Sink, protocol_error};
use crate::target::Stream;

/// A longer head is a broken server.
const HEAD_LIMIT: usize = 64 << 10;
const BUFFER: usize = 64 << 10;

/// A kept connection over any byte stream.
#[derive(Debug)]
pub(crate) struct H1<S = Stream> {
    stream: S,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    length: Option<u64>,
    chunked: bool,
    stored: bool,
}

impl<S: Read + Write> H1<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: vec![0; BUFFER],
            start: 0,
            end: 0,
        }
    }

    pub(crate) fn send_request(
        &mut self,
        request: &Request,
        sink: &mut Sink,
    ) -> io::Result<Response> {
        let asked = Instant::now();
        self.write_request(request)?;
        if self.start == self.end {
            self.fill_buffer()?;
        }
        let first = Instant::now();
        let head = self.read_head()?;
        if head.chunked {
            self.read_chunks(sink)?;
        } else {
            let length = head
                .length
                .ok_or_else(|| protocol_error("neither Content-Length nor chunks"))?;
            self.read_exactly(length, sink)?;
        }
        Ok(Response {
            stored: head.stored,
            ..sink.finish_response(head.status, asked, Some(first))
        })
    }

    pub(crate) fn read_status(&mut self, request: &Request) -> io::Result<u16> {
        self.write_request(request)?;
        let head = self.read_head()?;
        if head.length.is_some() {
            return Err(protocol_error(
                "a whole response, where a watch has no length",
            ));
        }
        Ok(head.status)
    }

    fn write_request(&mut self, request: &Request) -> io::Result<()> {
        self.stream.write_all(&request.h1)?;
        self.stream.flush()
    }

    /// Reads more into the buffer.
    fn fill_buffer(&mut self) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        let read = self.stream.read(&mut self.buffer[self.end..])?;
        if read == 0 {
            return Err(protocol_error("the connection ended within a response"));
        }
        self.end += read;
        Ok(())
    }

    fn read_head(&mut self) -> io::Result<Head> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                let head = parse_head(&bytes[..at])?;
                self.start += at + 4;
                return Ok(head);
            }
            if bytes.len() >= HEAD_LIMIT {
                return Err(protocol_error("the response's head is longer than 64 KiB"));
            }
            self.fill_buffer()?;
        }
    }

    fn read_exactly(&mut self, mut length: u64, sink: &mut Sink) -> io::Result<()> {
        while length > 0 {
            if self.start == self.end {
                self.fill_buffer()?;
            }
            let here = (self.end - self.start).min(usize::try_from(length).unwrap_or(usize::MAX));
            sink.push(&self.buffer[self.start..self.start + here]);
            self.start += here;
            length -= here as u64;
        }
        Ok(())
    }

    fn read_chunks(&mut self, sink: &mut Sink) -> io::Result<()> {
        loop {
            let line = self.read_line()?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16)
                .map_err(|_| protocol_error(format!("chunk size {line:?}")))?;
            if size == 0 {
                while !self.read_line()?.is_empty() {}
                return Ok(());
            }
            self.read_exactly(size, sink)?;
            if !self.read_line()?.is_empty() {
                return Err(protocol_error("a chunk is longer than it says"));
            }
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        loop {
            let bytes = &self.buffer[self.start..self.end];
            if let Some(at) = bytes.windows(2).position(|two| two == b"\r\n") {
                let line = String::from_utf8_lossy(&bytes[..at]).into_owned();
                self.start += at + 2;
                return Ok(line);
            }
            if bytes.len() >= HEAD_LIMIT {
                return Err(protocol_error("a line is longer than 64 KiB"));
            }
            self.fill_buffer()?;
        }
    }
}

fn parse_head(head: &[u8]) -> io::Result<Head> {
    let text =
        std::str::from_utf8(head).map_err(|_| protocol_error("the response's head is no text"))?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let status = first
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3))
        .and_then(|code| code.parse().ok());
    let status =
        status.ok_or_else(|| protocol_error(format!("no HTTP/1.1 response: {first:?}")))?;
    let mut parsed = Head {
        status,
        length: None,
        chunked: false,
        stored: false,
    };
    for line in lines {
        let Some((name, value)) = line.split_once(':') else {
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            parsed.length = value.trim().parse().ok();
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            parsed.chunked = value.trim().eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("x-hublet-source") {
            parsed.stored = value.trim() == "store";
        }
    }
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives its bytes a few at a time.
    #[derive(Debug)]
    struct Trickle(Vec<u8>, usize);

    impl Read for Trickle {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let here = self.1.min(self.0.len()).min(buffer.len());
            buffer[..here].copy_from_slice(&self.0[..here]);
            self.0.drain(..here);
            Ok(here)
        }
    }

    impl Write for Trickle {
        fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
            Ok(buffer.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn responses(text: &str, step: usize, count: usize) -> Vec<(u16, Vec<u8>)> {
        let mut connection = H1::new(Trickle(text.as_bytes().to_vec(), step));
        let request = Request::get("/", None);
        (0..count)
            .map(|_| {
                let mut sink = Sink::with_body();
                let response = connection.send_request(&request, &mut sink).unwrap();
                (response.status, sink.body.unwrap())
            })
            .collect()
    }

    #[test]
    fn answers_are_told_apart_however_their_bytes_arrive() {
        let text = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello\
                    HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\n\r\n\
                    HTTP/1.1 503 no\r\nContent-Length: 0\r\n\r\n";
        for step in [1, 2, 3, 7, 64, 4096] {
            let seen = responses(text, step, 3);
            assert_eq!(seen[0], (200, b"hello".to_vec()), "step {step}");
            assert_eq!(seen[1], (200, b"abc0123456789".to_vec()), "step {step}");
            assert_eq!(seen[2], (503, Vec::new()), "step {step}");
        }
    }

    #[test]
    fn a_cut_answer_is_an_error() {
        let text = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello".to_vec();
        let mut connection = H1::new(Trickle(text, 100));
        assert!(
            connection
                .send_request(&Request::get("/", None), &mut Sink::default())
                .is_err()
        );
    }
}
