//! The attacks, each in a process of its own, which is no root and dials from an address of its own. In: a [`Target`]
//! in the environment. Out: the line `on` when all of it is under way; it goes on until its standard input ends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hublet_tests::netns::Netns;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize};

/// The attackers' address, and user: nobody.
pub(crate) const ADDRESS: &str = "10.9.0.9";
const USER: u32 = 65534;
const TARGET: &str = "HUBLET_TEST_ATTACK";
const SECURE: &str = "169.254.2.1:10268";
const PLAIN: &str = "169.254.2.1:10261";

/// `:method` in HPACK's static table.
const GET: u8 = 0x82;
const POST: u8 = 0x83;
/// Bytes of an upload, fewer than 65,535, and of each of its frames.
const UPLOAD: usize = 60_000;
const FRAME: usize = 12_000;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Attack {
    /// So many HTTP/2 connections with so many streams of a path each, of which nothing is read.
    UnreadStreams(usize, usize, String),
    /// The same of a client that lets nothing but heads be sent.
    ShutStreams(usize, usize, String),
    /// The same by one HTTP/1.1 connection each.
    Unread(usize, String),
    /// So many answers, read up to so many bytes.
    Unfinished(usize, String, usize),
    /// So many plain connections that say this and no more.
    Connections(usize, String),
    /// So many loops of requests of a path, with this token.
    Loops(usize, String, String),
    /// So many requests that ask for an upgrade to a protocol that nobody knows.
    Upgrades(usize, String),
    /// So many HTTP/2 connections with so many uploads each that don't end.
    Uploads(usize, usize, String),
}

/// An attack, with what it needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) attack: Attack,
    pub(crate) ca_pem: String,
    pub(crate) token: String,
}

/// A running attack; dropping it ends it.
pub(crate) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Target {
    /// Starts it in a namespace, as a copy of this program in a folder that everybody may enter; returns when it is under
    /// way.
    pub(crate) fn start(&self, netns: &Netns, program: &Path) -> Result<Running> {
        let mut command = Command::new(program);
        command
            .args(["--exact", "attacker", "--ignored", "--nocapture"])
            .env(TARGET, serde_json::to_string(self)?)
            .uid(USER)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut running = Running(netns.run(|| command.spawn())?);
        let mut out = running.0.stdout.take().context("its output")?;
        let (mut output, mut buffer) = (String::new(), [0; 256]);
        while !output.contains("\non\n") {
            let read = out.read(&mut buffer)?;
            output.push_str(&String::from_utf8_lossy(&buffer[..read]));
            if read == 0 {
                bail!("the attack ended: {output}");
            }
        }
        Ok(running)
    }
}

/// The whole of the process that [`Target::start`] starts.
pub(crate) fn attack() -> Result<()> {
    let Ok(target) = std::env::var(TARGET) else {
        return Ok(());
    };
    let target: Target = serde_json::from_str(&target)?;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    let _held = target.begin()?;
    println!("\non");
    let _ = std::io::stdin().read(&mut [0; 1]);
    Ok(())
}

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

impl Target {
    fn begin(&self) -> Result<Vec<Box<dyn Stream>>> {
        let mut held = Vec::new();
        match &self.attack {
            Attack::UnreadStreams(connections, streams, path) => {
                for _ in 0..*connections {
                    held.push(self.streams(*streams, path, &preface())?);
                }
            }
            Attack::ShutStreams(connections, streams, path) => {
                for _ in 0..*connections {
                    held.push(self.streams(*streams, path, &shut())?);
                }
            }
            Attack::Unread(count, path) => {
                for _ in 0..*count {
                    held.push(self.ask(path, "")?);
                }
            }
            Attack::Unfinished(count, path, bytes) => {
                for number in 0..*count {
                    held.push(self.unfinished(&format!("{path}?n={number}"), *bytes)?);
                }
            }
            Attack::Connections(count, say) => {
                for _ in 0..*count {
                    // Where the place is taken at once it can't be written to.
                    let mut stream = dial(PLAIN)?;
                    let _ = stream.write_all(say.as_bytes());
                    held.push(Box::new(stream));
                }
            }
            Attack::Loops(count, path, token) => {
                for _ in 0..*count {
                    let (target, path, token) = (self.clone(), path.clone(), token.clone());
                    std::thread::spawn(move || target.repeat(&path, &token));
                }
            }
            Attack::Upgrades(count, path) => {
                for _ in 0..*count {
                    held.push(self.ask(path, "Connection: Upgrade\r\nUpgrade: x\r\n")?);
                }
            }
            Attack::Uploads(connections, streams, path) => {
                for _ in 0..*connections {
                    held.push(self.uploads(*streams, path)?);
                }
            }
        }
        Ok(held)
    }

    fn tls(&self, alpn: &str) -> Result<StreamOwned<ClientConnection, TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        for cert in CertificateDer::pem_slice_iter(self.ca_pem.as_bytes()) {
            roots.add(cert?)?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
        let session = ClientConnection::new(Arc::new(config), "169.254.2.1".try_into()?)?;
        let mut stream = StreamOwned::new(session, dial(SECURE)?);
        stream.conn.complete_io(&mut stream.sock)?;
        Ok(stream)
    }

    /// Asks by HTTP/1.1, with further headers, and reads nothing.
    fn ask(&self, path: &str, headers: &str) -> Result<Box<dyn Stream>> {
        let mut stream = self.tls("http/1.1")?;
        let token = &self.token;
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: a\r\nAccept: application/json\r\nAuthorization: Bearer {token}\r\n{headers}\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.flush()?;
        Ok(Box::new(stream))
    }

    fn unfinished(&self, path: &str, bytes: usize) -> Result<Box<dyn Stream>> {
        let mut stream = self.ask(path, "")?;
        let (mut left, mut buffer) = (bytes, vec![0; 64 << 10]);
        while left > 0 {
            let room = left.min(buffer.len());
            let read = stream.read(&mut buffer[..room])?;
            if read == 0 {
                break;
            }
            left -= read;
        }
        Ok(stream)
    }

    /// A connection's preface, and the streams' heads.
    fn streams(&self, count: usize, path: &str, preface: &[u8]) -> Result<Box<dyn Stream>> {
        let mut stream = self.tls("h2")?;
        let mut out = preface.to_vec();
        let head = self.head(GET, path);
        for number in 0..count {
            // END_STREAM and END_HEADERS.
            frame(&mut out, (1, 5), u32::try_from(2 * number + 1)?, &head);
        }
        stream.write_all(&out)?;
        stream.flush()?;
        Ok(Box::new(stream))
    }

    /// Uploads that fill the smallest windows a stream may begin with, and don't end.
    fn uploads(&self, count: usize, path: &str) -> Result<Box<dyn Stream>> {
        let mut stream = self.tls("h2")?;
        stream.write_all(&preface())?;
        stream.flush()?;
        read_to_window(&mut stream)?;
        let (mut out, head) = (Vec::new(), self.head(POST, path));
        for number in 0..count {
            let id = u32::try_from(2 * number + 1)?;
            // END_HEADERS.
            frame(&mut out, (1, 4), id, &head);
            for _ in 0..UPLOAD / FRAME {
                frame(&mut out, (0, 0), id, &[b'x'; FRAME]);
            }
        }
        stream.write_all(&out)?;
        stream.flush()?;
        Ok(Box::new(stream))
    }

    /// A request's fields: literals without indexing, with names of the static table (RFC 7541, 6.2.2).
    fn head(&self, method: u8, path: &str) -> Vec<u8> {
        let mut head = vec![method, 0x87];
        for (name, value) in [
            (&[0x04][..], path),
            (&[0x01], "a"),
            (&[0x0f, 4], "application/json"),
        ] {
            literal(&mut head, name, value);
        }
        literal(&mut head, &[0x0f, 8], &format!("Bearer {}", self.token));
        head
    }

    /// Asks again and again; on a new connection where the old one has ended.
    fn repeat(&self, path: &str, token: &str) -> Result<()> {
        let credential = if token.is_empty() {
            String::new()
        } else {
            format!("Authorization: {token}\r\n")
        };
        let head = format!("GET {path} HTTP/1.1\r\nHost: a\r\n{credential}\r\n");
        loop {
            let mut stream = self.tls("http/1.1")?;
            stream.sock.set_read_timeout(Some(Duration::from_secs(5)))?;
            while stream.write_all(head.as_bytes()).is_ok() && whole(&mut stream) {}
        }
    }
}

/// Reads an answer whose end is told by its length; false where the connection is of no more use.
fn whole(stream: &mut impl Read) -> bool {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => return false,
            Ok(read) => seen.extend_from_slice(&buffer[..read]),
        }
        let text = String::from_utf8_lossy(&seen).to_ascii_lowercase();
        let Some((head, _)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let Some(length) = length else { return false };
        if seen.len() >= head.len() + 4 + length {
            return true;
        }
    }
}

fn dial(address: &str) -> Result<TcpStream> {
    let address: SocketAddr = address.parse()?;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    // A small buffer, so that unread bytes stay with hublet and not in the kernel.
    socket.set_recv_buffer_size(32 << 10)?;
    socket.bind(&SocketAddr::new(ADDRESS.parse()?, 0).into())?;
    socket.connect_timeout(&address.into(), Duration::from_secs(10))?;
    Ok(socket.into())
}

/// The connection's preface with windows as large as can be.
fn preface() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    // SETTINGS_INITIAL_WINDOW_SIZE, and as much for the connection (RFC 9113, 6.5.2, 6.9).
    frame(&mut out, (4, 0), 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frame(
        &mut out,
        (8, 0),
        0,
        &(0x7fff_ffff_u32 - 65_535).to_be_bytes(),
    );
    out
}

/// The connection's preface with streams that have no windows.
fn shut() -> Vec<u8> {
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, (4, 0), 0, &[0, 4, 0, 0, 0, 0]);
    out
}

/// Reads frames up to the one that opens the connection's window.
fn read_to_window(stream: &mut impl Read) -> Result<()> {
    loop {
        let mut head = [0; 9];
        stream.read_exact(&mut head)?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        std::io::copy(&mut stream.take(length.into()), &mut std::io::sink())?;
        if head[3] == 8 {
            return Ok(());
        }
    }
}

fn frame(out: &mut Vec<u8>, (kind, flags): (u8, u8), stream: u32, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap_or_default();
    out.extend_from_slice(&length.to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

/// HPACK: a name of the static table, and a value as it stands.
fn literal(out: &mut Vec<u8>, name: &[u8], value: &str) {
    out.extend_from_slice(name);
    let length = value.len();
    if length < 127 {
        out.extend(u8::try_from(length));
    } else {
        out.push(127);
        let mut rest = length - 127;
        while rest >= 128 {
            out.extend(u8::try_from(rest % 128 + 128));
            rest /= 128;
        }
        out.extend(u8::try_from(rest));
    }
    out.extend_from_slice(value.as_bytes());
}
