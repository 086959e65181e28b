//! The self-probe: a connection through the accept loop like a client's, twice a second. The eBPF heartbeat and readiness
//! depend on its result, so it runs on the traffic runtime.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::counters::Counters;

pub(crate) const INTERVAL: Duration = Duration::from_millis(500);

const TIMEOUT: Duration = Duration::from_secs(1);

/// Sends plain HTTP to the secure listener, which answers 400. That costs no TLS, and every stage up to the first byte has
/// to work. Neither connection nor request counts in the figures of clients.
///
/// # Errors
/// No connection, another answer, or none within a second.
pub(crate) async fn probe(secure: SocketAddr, counters: &Counters) -> io::Result<()> {
    timeout(TIMEOUT, send_probe(dialable(secure), counters))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn send_probe(secure: SocketAddr, counters: &Counters) -> io::Result<()> {
    let socket = if secure.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // Bound to the address that the kernel would choose, so that the listener can recognise it at accept.
    socket.bind(SocketAddr::new(secure.ip(), 0))?;
    let _probing = counters.begin_probe(socket.local_addr()?);
    let mut stream = socket.connect(secure).await?;
    // A reset instead of TIME_WAIT: two probes a second would keep 120 of them.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut status_line = [0; 12];
    stream.read_exact(&mut status_line).await?;
    if &status_line == b"HTTP/1.0 400" {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "another server listens on hublet's address (`ss -ltnp` names it)",
    ))
}

/// The address at which a listener can be dialled: loopback if it listens on all addresses.
fn dialable(listening: SocketAddr) -> SocketAddr {
    let ip = match listening.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, listening.port())
}
