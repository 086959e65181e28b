//! Network namespaces as nodes and pods, with `lo` up, veth links between them, and closures, workers and child processes
//! that run in them.
//!
//! A namespace has no name in the file system: it lives as long as a [`Netns`] or a process in it does, so that a
//! killed test leaves nothing behind. [`Netns::path`] is for `nsenter --net=…`.
use std::fs::File;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns, unshare};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A network namespace; clones share it.
#[derive(Clone, Debug)]
pub struct Netns {
    file: Arc<File>,
    name: Arc<str>,
}

impl Netns {
    /// Makes a namespace with `lo` up; `role` and the test's thread name give its name in messages. Needs root.
    pub fn new(role: &str) -> anyhow::Result<Netns> {
        let test = std::thread::current()
            .name()
            .unwrap_or("test")
            .rsplit("::")
            .next()
            .unwrap_or("test")
            .to_owned();
        let file = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET)
                .context("no new network namespace: this needs root (CAP_SYS_ADMIN)")?;
            File::open("/proc/thread-self/ns/net").context("open the new network namespace")
        })
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that makes a network namespace panicked"))??;
        let netns = Netns {
            file: Arc::new(file),
            name: format!("{test}/{role}").into(),
        };
        netns.run_ip("link set lo up")?;
        crate::keep::add_hint(format!(
            "nsenter --net={}   # {}",
            netns.path().display(),
            netns.name
        ));
        Ok(netns)
    }

    /// The role and test it was made for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A path to it that `nsenter --net=` and `ip link set … netns` take while this process lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.file.as_raw_fd()
        ))
    }

    /// Moves the calling thread into it, for good.
    pub fn enter(&self) -> anyhow::Result<()> {
        setns(&*self.file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("enter network namespace {}", self.name))
    }

    /// Runs a closure on a thread in it; sockets made and processes started there belong to it. Panics pass through.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let done = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    self.enter()
                        .expect("a namespace that was made can be entered by the same user");
                    work()
                })
                .join()
        });
        done.unwrap_or_else(|cause| std::panic::resume_unwind(cause))
    }

    /// Runs a closure in it on the calling thread, which then comes back: for what can't change threads.
    pub fn run_on_this_thread<T>(&self, work: impl FnOnce() -> T) -> anyhow::Result<T> {
        let here = File::open("/proc/thread-self/ns/net")
            .context("open this thread's network namespace")?;
        self.enter()?;
        let done = work();
        setns(&here, CloneFlags::CLONE_NEWNET).context("come back from a network namespace")?;
        Ok(done)
    }

    /// Runs `ip` with these words in it.
    pub fn run_ip(&self, words: &str) -> anyhow::Result<()> {
        let output = self
            .run(|| Command::new("ip").args(words.split_whitespace()).output())
            .context("run ip (package iproute2)")?;
        if !output.status.success() {
            bail!(
                "ip {words} in {}: {}",
                self.name,
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Joins it with `peer` by a veth pair, with an address at each end, both up.
    pub fn link_to(
        &self,
        address: IpAddr,
        peer: &Netns,
        peer_address: IpAddr,
    ) -> anyhow::Result<Veth> {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let (here, there) = (format!("ve{number}a"), format!("ve{number}b"));
        let bits = if address.is_ipv4() { 24 } else { 64 };
        let path = peer.path();
        self.run_ip(&format!(
            "link add {here} type veth peer name {there} netns {}",
            path.display()
        ))?;
        self.run_ip(&format!("addr add {address}/{bits} dev {here} nodad"))
            .or_else(|_| self.run_ip(&format!("addr add {address}/{bits} dev {here}")))?;
        self.run_ip(&format!("link set {here} up"))?;
        peer.run_ip(&format!("addr add {peer_address}/{bits} dev {there}"))?;
        peer.run_ip(&format!("link set {there} up"))?;
        Ok(Veth {
            netns: self.clone(),
            name: here,
            peer_name: there,
        })
    }
}

/// A veth pair; dropping it removes both ends.
#[derive(Debug)]
pub struct Veth {
    netns: Netns,
    name: String,
    peer_name: String,
}

impl Veth {
    /// The link's name on the side that [`Netns::link_to`] was called on.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The link's name on the peer's side.
    #[must_use]
    pub fn peer_name(&self) -> &str {
        &self.peer_name
    }

    /// Takes the link down (`false`) or up (`true`): a pulled cable.
    pub fn set_up(&self, up: bool) -> anyhow::Result<()> {
        self.netns.run_ip(&format!(
            "link set {} {}",
            self.name,
            if up { "up" } else { "down" }
        ))
    }
}

impl Drop for Veth {
    fn drop(&mut self) {
        let _ = self.netns.run_ip(&format!("link del {}", self.name));
    }
}
