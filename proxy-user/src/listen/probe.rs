//! The self-probe: a real connection through the real accept loop, twice a second. Its answer is what the eBPF
//! heartbeat and readiness stand on, so it runs on the traffic runtime and nowhere else.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;
use tokio::time::timeout;

use super::counters::Counters;

pub(crate) const INTERVAL: Duration = Duration::from_millis(500);

/// An answer that takes longer counts as none.
const PATIENCE: Duration = Duration::from_secs(1);

/// Asks the secure listener for its answer to plain HTTP: no TLS is spent, and every stage up to the first byte works. It
/// counts as nobody's call.
///
/// # Errors
/// No connection, another answer, or none within a second.
pub(crate) async fn probe(secure: SocketAddr, counters: &Counters) -> io::Result<()> {
    timeout(PATIENCE, ask(reachable(secure), counters))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(secure: SocketAddr, counters: &Counters) -> io::Result<()> {
    let socket = if secure.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // From the address that the kernel would choose, so that it is known before the other end can be asked.
    socket.bind(SocketAddr::new(secure.ip(), 0))?;
    let _own = counters.probing(socket.local_addr()?);
    let mut stream = socket.connect(secure).await?;
    // A reset instead of TIME_WAIT: two probes a second would keep 120 of them.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await?;
    if &answer == b"HTTP/1.0 400" {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        "another server answers on our address",
    ))
}

/// Where a listener on every address can be dialled.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
