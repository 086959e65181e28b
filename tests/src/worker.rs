//! A thread with a tokio runtime of its own, in a network namespace of its choice: clouds, proxies and clients of the suites
//! run on one. A panic in a task reaches the test when the worker is dropped.
use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::netns::Netns;

/// Starts tasks on a [`Worker`], from anywhere; remembers the first panic among them.
#[derive(Clone, Debug)]
pub struct Spawner {
    handle: Handle,
    panic: Arc<Mutex<Option<String>>>,
}

impl Spawner {
    /// Starts a task; when it panics, the worker's end does too.
    pub fn spawn<F>(&self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let panic = Arc::clone(&self.panic);
        self.handle.spawn(async move {
            if let Err(cause) = AssertUnwindSafe(future).catch_unwind().await {
                remember_panic(&panic, cause.as_ref());
            }
        });
    }

    /// Awaits a future; a panic within it is remembered and gives `None`.
    pub async fn catch_panic<F: Future>(&self, future: F) -> Option<F::Output> {
        match AssertUnwindSafe(future).catch_unwind().await {
            Ok(output) => Some(output),
            Err(cause) => {
                remember_panic(&self.panic, cause.as_ref());
                None
            }
        }
    }

    /// Runs a future on the worker and blocks the calling thread (not the worker's) until it is done.
    pub fn block_on<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let guarded = self.clone();
        self.handle.spawn(async move {
            if let Some(output) = guarded.catch_panic(future).await {
                let _ = sender.send(output);
            }
        });
        receiver.recv().unwrap_or_else(|_| {
            panic!(
                "{}",
                self.take_panic().unwrap_or("the worker has ended".into())
            )
        })
    }

    /// Runs a future on the worker and awaits it from any other runtime.
    pub async fn run_async<F>(&self, future: F) -> F::Output
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        match self.handle.spawn(future).await {
            Ok(output) => output,
            Err(cause) => panic!("the worker's task ended early: {cause}"),
        }
    }

    fn take_panic(&self) -> Option<String> {
        self.panic.lock().take()
    }
}

fn remember_panic(panic: &Mutex<Option<String>>, cause: &(dyn Any + Send)) {
    let text = cause
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| cause.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without a text".to_owned());
    panic.lock().get_or_insert(text);
}

/// The thread. Dropping it ends its tasks, waits for it, and passes on the first panic of a task.
#[derive(Debug)]
pub struct Worker {
    name: String,
    spawner: Spawner,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// A runtime for the calling thread, which enters the namespace for good.
fn build_runtime(netns: Option<&Netns>) -> anyhow::Result<tokio::runtime::Runtime> {
    if let Some(netns) = netns {
        netns.enter()?;
    }
    let mut builder = tokio::runtime::Builder::new_current_thread();
    Ok(builder.enable_all().build()?)
}

impl Worker {
    /// Starts the thread in `netns` (or where the caller is). Its sockets belong to that namespace.
    pub fn start(name: &str, netns: Option<&Netns>) -> anyhow::Result<Worker> {
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let netns = netns.cloned();
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .spawn(move || match build_runtime(netns.as_ref()) {
                Ok(runtime) => {
                    let _ = ready.send(Ok(runtime.handle().clone()));
                    let _ = runtime.block_on(stopped);
                    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
                }
                Err(cause) => {
                    let _ = ready.send(Err(cause));
                }
            })?;
        let handle = started
            .recv()
            .context("the worker thread ended at once")??;
        let spawner = Spawner {
            handle,
            panic: Arc::default(),
        };
        Ok(Worker {
            name: name.to_owned(),
            spawner,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    #[must_use]
    pub fn spawner(&self) -> &Spawner {
        &self.spawner
    }

    /// Ends the worker now; panics with the panic of a task, if there was one.
    pub fn join(self) {
        drop(self);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if let Some(text) = self.spawner.take_panic() {
            assert!(std::thread::panicking(), "{} panicked: {text}", self.name);
        }
    }
}
