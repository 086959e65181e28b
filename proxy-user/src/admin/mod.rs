//! Health, readiness, metrics and status, on a listener, a thread and a runtime of their own: they answer while the
//! traffic runtime hangs.
//!
//! In: a bound socket and [`State`], which `app` fills as stages come up. Out: YurtHub's `/v1/healthz` and
//! `/v1/readyz` (bodies exactly `OK`), `/metrics`, and `/v1/status` for `hublet status`.

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
use tokio::sync::{Semaphore, oneshot};

pub(crate) use state::{Condition, Handles, State};

/// Most open connections: probes, a scraper, an operator.
const MAX_CONNECTIONS: usize = 64;

/// Longest wait for a request's head, and for a next request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

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
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
            continue;
        };
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| {
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
            drop(permit);
        });
    }
}
