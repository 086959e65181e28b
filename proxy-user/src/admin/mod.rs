//! Health, readiness, metrics and status, on a listener, a thread and a runtime of their own: they answer while the
//! traffic runtime hangs.
//!
//! In: a bound socket and [`State`], which `app` fills as stages come up. Out: YurtHub's `/v1/healthz` and
//! `/v1/readyz` (bodies exactly `OK`), `/metrics`, and `/v1/status` for `hublet status`.

mod connections;
mod ebpf_metrics;
mod respond;
mod state;
pub(crate) mod status;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use connections::{Connections, LastUse};
pub(crate) use state::{Condition, Handles, State};

/// Longest wait for a request's head, and for a next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The running admin thread.
#[derive(Debug)]
pub(crate) struct Admin {
    address: SocketAddr,
    runtime: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Starts answering on this socket.
    ///
    /// # Errors
    /// No thread or runtime can be had.
    pub(crate) fn start(listener: TcpListener, state: Arc<State>) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        let listener = {
            let _entered = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let thread = std::thread::Builder::new()
            .name("hublet-admin".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept_connections(listener, state) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            address,
            runtime: handle,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// For slow, rare work that must not meet traffic, such as renewing certificates.
    pub(crate) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(crate) fn stop(mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            tracing::warn!("the admin thread had panicked");
        }
    }
}

async fn accept_connections(listener: tokio::net::TcpListener, state: Arc<State>) {
    let mut connections = Connections::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                if connections.make_room() {
                    state.count_closed_connection();
                }
                connections.spawn(|last_use| serve(stream, last_use, Arc::clone(&state)));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: tokio::net::TcpStream, last_use: LastUse, state: Arc<State>) {
    let service = service_fn(|request| {
        last_use.note();
        let response = respond::respond(&request, &state);
        async move { Ok::<_, std::convert::Infallible>(response) }
    });
    let mut http1 = http1::Builder::new();
    http1
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(16 * 1024);
    // Errors here are clients that went away.
    let _ = http1.serve_connection(TokioIo::new(stream), service).await;
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::time::timeout;

    use super::*;
    use crate::telemetry::registry::encode_metrics;

    async fn listen() -> (SocketAddr, Arc<State>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a socket");
        let address = listener.local_addr().expect("its address");
        let state = State::new("edge-1".into());
        tokio::spawn(accept_connections(listener, Arc::clone(&state)));
        (address, state)
    }

    async fn connect(address: SocketAddr, bytes: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.expect("connected");
        stream.write_all(bytes.as_bytes()).await.expect("sent");
        stream
    }

    async fn is_healthy(stream: &mut TcpStream) -> bool {
        let mut head = [0; 15];
        let read = stream.read_exact(&mut head);
        let read = timeout(Duration::from_secs(5), read).await;
        matches!(read, Ok(Ok(_))) && head == *b"HTTP/1.1 200 OK"
    }

    const HEALTH: &str = "GET /v1/healthz HTTP/1.1\r\nHost: x\r\n\r\n";

    /// 64 such connections shut out the probe of whoever restarts a hublet that isn't healthy.
    #[tokio::test]
    async fn connections_without_requests_shut_no_probe_out() {
        let (address, state) = listen().await;
        let mut idle = Vec::new();
        for number in 0..3 * connections::MAX_CONNECTIONS {
            let begun = ["", "GET /v1/healthz HTTP/1.1\r\nHost: x\r\n"][number % 2];
            idle.push(connect(address, begun).await);
        }
        for _ in 0..3 {
            let mut probe = connect(address, HEALTH).await;
            assert!(is_healthy(&mut probe).await);
        }
        // A probe that has left needs no room.
        let most = 2 * connections::MAX_CONNECTIONS + 3;
        assert!((most - 2..=most).contains(&closed_for_room(&state)));
    }

    fn closed_for_room(state: &State) -> usize {
        let metrics = encode_metrics(&[state]);
        let mut lines = metrics.lines();
        let value = lines.find_map(|l| l.strip_prefix("hublet_admin_connections_closed_total "));
        value.expect("the metric").parse().expect("a number")
    }

    #[tokio::test]
    async fn the_connection_that_makes_room_is_the_least_recently_used() {
        let (address, _) = listen().await;
        let mut used = connect(address, HEALTH).await;
        assert!(is_healthy(&mut used).await);
        let mut idle = Vec::new();
        for _ in 0..2 * connections::MAX_CONNECTIONS {
            idle.push(connect(address, "").await);
            let mut rest = [0; 4096];
            let _ = used.read(&mut rest).await.expect("the answer's rest");
            used.write_all(HEALTH.as_bytes()).await.expect("sent");
            assert!(is_healthy(&mut used).await, "after {}", idle.len());
        }
    }
}
