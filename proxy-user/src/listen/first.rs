//! A connection's first bytes, which tell what the client speaks. In: a fresh TCP connection. Out: [`Speech`]. They are
//! looked at and left where they are, as long as one look is enough; else they are read, and given [`again`](First::again).

use std::io::{self, ErrorKind};

use tokio::io::ReadBuf;
use tokio::net::TcpStream;

/// The first byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// The protocol that a client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Tls,
    Http1,
    Http2,
    /// The peer closed without a word.
    Nothing,
}

/// Bytes that have been read to tell what the client speaks.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct First {
    bytes: [u8; 3],
    read: u8,
}

impl First {
    /// Waits until the first bytes tell. May be dropped and called again.
    pub(super) async fn listen(&mut self, stream: &TcpStream) -> io::Result<Speech> {
        if self.read == 0 {
            let mut seen = [0; 3];
            let count = stream.peek(&mut seen).await?;
            if let Some(speech) = speech(&seen[..count]) {
                return Ok(speech);
            }
        }
        // To look once more would give the same bytes at once: they are taken, so that only further ones wake us.
        loop {
            let read = usize::from(self.read);
            match stream.try_read(&mut self.bytes[read..]) {
                Ok(0) => return Ok(Speech::Nothing),
                Ok(more) => self.read += u8::try_from(more).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => stream.readable().await?,
                Err(error) => return Err(error),
            }
            if let Some(speech) = speech(&self.bytes[..usize::from(self.read)]) {
                return Ok(speech);
            }
        }
    }

    /// Gives what was read, once; false when there is nothing to give.
    pub(super) fn again(&mut self, to: &mut ReadBuf<'_>) -> bool {
        let read = usize::from(std::mem::take(&mut self.read));
        if read == 0 {
            return false;
        }
        let now = read.min(to.remaining());
        to.put_slice(&self.bytes[..now]);
        self.bytes.copy_within(now..read, 0);
        self.read = u8::try_from(read - now).unwrap_or_default();
        true
    }
}

/// No HTTP/1 method begins with `PRI`: that is HTTP/2's preface. `None`: too little to tell.
fn speech(first: &[u8]) -> Option<Speech> {
    match first {
        [] => Some(Speech::Nothing),
        [TLS_HANDSHAKE, ..] => Some(Speech::Tls),
        b"PRI" => Some(Speech::Http2),
        b"P" | b"PR" => None,
        _ => Some(Speech::Http1),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn the_first_bytes_tell_what_the_client_speaks() {
        for (bytes, heard) in [
            (&b""[..], Some(Speech::Nothing)),
            (b"\x16\x03\x01", Some(Speech::Tls)),
            (b"\x16", Some(Speech::Tls)),
            (b"GET", Some(Speech::Http1)),
            (b"POS", Some(Speech::Http1)),
            (b"PUT", Some(Speech::Http1)),
            (b"PAT", Some(Speech::Http1)),
            (b"PRO", Some(Speech::Http1)),
            (b"PRI", Some(Speech::Http2)),
            (b"P", None),
            (b"PR", None),
            (b"\x80\x2e\x01", Some(Speech::Http1)),
        ] {
            assert_eq!(speech(bytes), heard, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn what_was_read_is_given_again_however_small_the_room() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let mut client = TcpStream::connect(listener.local_addr().expect("address"))
            .await
            .expect("connected");
        let (stream, _) = listener.accept().await.expect("accepted");
        let mut first = First::default();
        client.write_all(b"P").await.expect("written");
        tokio::select! {
            biased;
            heard = first.listen(&stream) => panic!("{heard:?} after one byte"),
            () = tokio::time::sleep(std::time::Duration::from_millis(50)) => {}
        }
        client.write_all(b"UT /").await.expect("written");
        assert_eq!(first.listen(&stream).await.expect("heard"), Speech::Http1);
        let (mut given, mut room) = (Vec::new(), [0; 2]);
        loop {
            let mut buffer = ReadBuf::new(&mut room);
            if !first.again(&mut buffer) {
                break;
            }
            given.extend_from_slice(buffer.filled());
        }
        assert_eq!(given, b"PUT");
    }
}
