//! Listening sockets. What accepted sockets need (TCP_NODELAY, keep-alive against peers that vanished with their
//! network namespace) is set here: Linux hands it down, so that it costs nothing at accept.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};

use super::ListenError;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// The use of a listening socket. It decides which flags move the socket elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Purpose {
    /// Plain HTTP, and TLS as well.
    Plain,
    Secure,
    Admin,
}

impl Purpose {
    /// The protocols of its connections, or their use.
    pub(crate) fn protocols(self) -> &'static str {
        match self {
            Self::Plain => "HTTP and HTTPS",
            Self::Secure => "HTTPS",
            Self::Admin => "health, metrics, status",
        }
    }

    fn flag_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Plain => ("--bind-proxy-address", "--proxy-port"),
            Self::Secure => ("--bind-proxy-address", "--proxy-secure-port"),
            Self::Admin => ("--bind-address", "--serve-port"),
        }
    }
}

/// Binds and listens, non-blocking.
///
/// # Errors
/// The address is taken, isn't on this node, or is not permitted; the message says what to do.
pub(crate) fn bind(address: SocketAddr, purpose: Purpose) -> Result<TcpListener, ListenError> {
    open_listening(address).map_err(|source| ListenError::Bind {
        address,
        reason: explain_failure(&source, address, purpose),
        source,
    })
}

fn open_listening(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_keepalive(&keepalive())?;
    socket.set_tcp_nodelay(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(60))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}

fn explain_failure(error: &io::Error, address: SocketAddr, purpose: Purpose) -> String {
    let (address_flag, port_flag) = purpose.flag_names();
    let port = address.port();
    match error.kind() {
        ErrorKind::AddrInUse => format!(
            "another process listens there, perhaps YurtHub or another hublet (`ss -ltnp 'sport = :{port}'` names it); \
             stop it, or choose another port by {port_flag}"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "no interface of this node has {ip}; run as root with --enable-dummy-if so that hublet makes one, or \
             choose an address of this node by {address_flag}",
            ip = address.ip()
        ),
        ErrorKind::PermissionDenied => {
            format!("not permitted; run as root, or choose a port above 1023 by {port_flag}")
        }
        _ => format!(
            "the kernel refused it; choose another address by {address_flag} or port by {port_flag}"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_with_a_remedy() {
        let first =
            bind("127.0.0.1:0".parse().expect("address"), Purpose::Plain).expect("a free port");
        let taken = first.local_addr().expect("address");
        let error = bind(taken, Purpose::Secure).expect_err("taken").to_string();
        for part in [
            &taken.to_string(),
            "--proxy-secure-port",
            "ss -ltnp",
            "YurtHub",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn an_address_that_no_interface_has_is_named_with_a_remedy() {
        let error = bind("192.0.2.1:10268".parse().expect("address"), Purpose::Plain)
            .expect_err("TEST-NET")
            .to_string();
        for part in [
            "192.0.2.1:10268",
            "--enable-dummy-if",
            "--bind-proxy-address",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn accepted_sockets_inherit_nodelay_and_keepalive() {
        let listener =
            bind("127.0.0.1:0".parse().expect("address"), Purpose::Plain).expect("a free port");
        listener.set_nonblocking(false).expect("blocking");
        let _client = std::net::TcpStream::connect(listener.local_addr().expect("address"))
            .expect("connected");
        let (accepted, _) = listener.accept().expect("accepted");
        let accepted = socket2::SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().expect("option"));
        assert!(accepted.keepalive().expect("option"));
        assert_eq!(
            accepted.tcp_keepalive_time().expect("option"),
            Duration::from_secs(60)
        );
    }
}
