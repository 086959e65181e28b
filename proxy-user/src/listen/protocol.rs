//! Detects a client's protocol by the first bytes of its connection. They stay in the socket while
//! one peek is enough; otherwise they are read, and [replayed](FirstBytes::replay).

use std::io::{self, ErrorKind};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

/// Content type of a TLS handshake record (RFC 8446, 5.1).
const TLS_HANDSHAKE: u8 = 0x16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Tls,
    Http1,
    Http2,
    /// The peer closed before it sent anything.
    Closed,
}

/// Bytes that were read to detect the protocol.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct FirstBytes {
    bytes: [u8; 3],
    len: u8,
}

impl FirstBytes {
    /// Waits for the first bytes, which decide on the protocol. Cancel safe: may be dropped and called again.
    pub(super) async fn peek_protocol(&mut self, stream: &TcpStream) -> io::Result<Protocol> {
        if self.len == 0 {
            let mut peeked = [0; 3];
            let count = stream.peek(&mut peeked).await?;
            if let Some(protocol) = detect_protocol(&peeked[..count]) {
                return Ok(protocol);
            }
        }
        // Another peek would return the same bytes at once: read them, so that only new ones wake us.
        loop {
            let len = usize::from(self.len);
            match stream.try_read(&mut self.bytes[len..]) {
                Ok(0) => return Ok(Protocol::Closed),
                Ok(more) => self.len += u8::try_from(more).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => stream.readable().await?,
                Err(error) => return Err(error),
            }
            if let Some(protocol) = detect_protocol(&self.bytes[..usize::from(self.len)]) {
                return Ok(protocol);
            }
        }
    }

    /// Moves bytes that were read into `buf`. Returns false when none are left.
    pub(super) fn replay(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let len = usize::from(std::mem::take(&mut self.len));
        if len == 0 {
            return false;
        }
        let moved = len.min(buf.remaining());
        buf.put_slice(&self.bytes[..moved]);
        self.bytes.copy_within(moved..len, 0);
        self.len = u8::try_from(len - moved).unwrap_or_default();
        true
    }
}

/// `None` when more bytes are needed: no HTTP/1 method begins with `PRI`, which begins HTTP/2's
/// preface (RFC 9113, 3.4).
fn detect_protocol(first: &[u8]) -> Option<Protocol> {
    match first {
        [] => Some(Protocol::Closed),
        [TLS_HANDSHAKE, ..] => Some(Protocol::Tls),
        b"PRI" => Some(Protocol::Http2),
        b"P" | b"PR" => None,
        _ => Some(Protocol::Http1),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol() {
        for (bytes, expected) in [
            (&b""[..], Some(Protocol::Closed)),
            (b"\x16\x03\x01", Some(Protocol::Tls)),
            (b"\x16", Some(Protocol::Tls)),
            (b"GET", Some(Protocol::Http1)),
            (b"POS", Some(Protocol::Http1)),
            (b"PUT", Some(Protocol::Http1)),
            (b"PAT", Some(Protocol::Http1)),
            (b"PRO", Some(Protocol::Http1)),
            (b"PRI", Some(Protocol::Http2)),
            (b"P", None),
            (b"PR", None),
            (b"\x80\x2e\x01", Some(Protocol::Http1)),
        ] {
            assert_eq!(detect_protocol(bytes), expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn bytes_that_were_read_are_replayed_into_small_buffers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = TcpStream::connect(listener.local_addr().expect("address"))
            .await
            .expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut first = FirstBytes::default();
        client.write_all(b"P").await.expect("written");
        tokio::select! {
            biased;
            protocol = first.peek_protocol(&stream) => panic!("{protocol:?} after one byte"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        client.write_all(b"UT /").await.expect("written");
        let protocol = first.peek_protocol(&stream).await.expect("protocol");
        assert_eq!(protocol, Protocol::Http1);
        let (mut replayed, mut small) = (Vec::new(), [0; 2]);
        loop {
            let mut buffer = ReadBuf::new(&mut small);
            if !first.replay(&mut buffer) {
                break;
            }
            replayed.extend_from_slice(buffer.filled());
        }
        assert_eq!(replayed, b"PUT");
    }
}
