//! Who is calling. In: an accepted socket's addresses and what eBPF attests of it. Out: [`Connection`], shared by
//! all requests on it; per request the credential (`Authorization: Bearer`) is added by `handle`.

use std::net::SocketAddr;

use http::HeaderValue;
use parking_lot::Mutex;
use serde::Serialize;

use crate::cache::grants::Credential;

/// Which of our sockets accepted the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Port {
    /// 127.0.0.1:10261 or 169.254.2.1:10261.
    Plain,
    /// 169.254.2.1:10268.
    Secure,
}

/// One accepted connection.
#[derive(Debug)]
pub struct Connection {
    /// Which socket accepted it.
    pub port: Port,
    /// Our address, as the client dialled it (after steering).
    pub local: SocketAddr,
    /// The client's address.
    pub remote: SocketAddr,
    /// TLS, as opposed to plain HTTP.
    pub tls: bool,
    /// What eBPF attests; `None` is "unknown", never a privilege.
    pub process: Option<Process>,
    /// The `Authorization` header last seen here and what it stands for: clients send the same one each time.
    last: Mutex<Option<(HeaderValue, Credential)>>,
}

impl Connection {
    /// A connection just accepted.
    pub fn new(
        port: Port,
        local: SocketAddr,
        remote: SocketAddr,
        tls: bool,
        process: Option<Process>,
    ) -> Self {
        Self { port, local, remote, tls, process, last: Mutex::new(None) }
    }

    /// What a request's `Authorization` header stands for.
    pub fn credential(&self, authorization: Option<&HeaderValue>) -> Credential {
        let Some(value) = authorization else { return Credential::Anonymous };
        let mut last = self.last.lock();
        if let Some((seen, credential)) = last.as_ref().filter(|(seen, _)| seen == value) {
            let _ = seen;
            return credential.clone();
        }
        let credential = Credential::of(Some(value.as_bytes()));
        *last = Some((value.clone(), credential.clone()));
        credential
    }
}

/// The process that called connect(), as the kernel saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Thread group id, in the initial pid namespace.
    pub pid: u32,
    /// User id, in the initial user namespace.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// cgroup v2 id (the inode of the cgroup's directory).
    pub cgroup_id: u64,
    /// Path of that cgroup below the v2 root, when it could be resolved at accept.
    pub cgroup: Option<String>,
    /// UID of the pod whose cgroup that is.
    pub pod_uid: Option<String>,
    /// Id of the container whose cgroup that is.
    pub container_id: Option<String>,
    /// Network namespace cookie (`SO_NETNS_COOKIE`).
    pub netns: u64,
    /// `comm`: settable by the process; a convenience, never a security attribute.
    pub command: String,
    /// Its executable, as its mount namespace names it; `None` when it had ended by the time of accept().
    pub executable: Option<String>,
    /// The address that the client dialled before steering.
    pub original: Option<SocketAddr>,
    /// Steered here, as opposed to dialled directly.
    pub steered: bool,
}
