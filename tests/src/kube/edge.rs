//! An edge node with its cloud: the real control plane, the fault proxy and the real daemon in a network namespace of
//! their own.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use parking_lot::{Mutex, MutexGuard};

use super::{Binaries, KubeCloud, Options};
use crate::client::{Answer, Client};
use crate::daemon::{self, Daemon};
use crate::eventually::eventually;
use crate::fault::{Fault, FaultProxy};
use crate::netns::Netns;
use crate::require;

/// One at a time in a test program: a control plane takes half a gigabyte and most of a small machine's CPU.
static TURN: Mutex<()> = Mutex::new(());

/// Limit for the cloud to answer again after the link is restored.
pub const RESTORE_LIMIT: Duration = Duration::from_secs(5);

/// The node, in the order in which it ends.
#[derive(Debug)]
pub struct Edge {
    /// The daemon, in front of the fault proxy.
    pub daemon: Daemon,
    /// The link between the daemon and the cloud.
    pub fault: FaultProxy,
    /// The API server, its data and its administrator.
    pub cloud: KubeCloud,
    pub netns: Netns,
    _turn: MutexGuard<'static, ()>,
}

impl Edge {
    /// Starts all of it. `None`: this machine can't run it, and the reason was printed (in CI this fails).
    ///
    /// # Errors
    /// A part doesn't start; the message holds the end of its log.
    pub fn start() -> Result<Option<Self>> {
        if !require::root() {
            return Ok(None);
        }
        let Some(binaries) = find_or_skip()? else {
            return Ok(None);
        };
        let turn = TURN.lock();
        let netns = Netns::new("edge")?;
        let options = Options {
            netns: Some(netns.clone()),
            ..Options::default()
        };
        let cloud = KubeCloud::start_with(&binaries, options)?;
        let fault = FaultProxy::start(([127, 0, 0, 1], 0).into(), cloud.address(), Some(&netns))?;
        let mut options = daemon::Options::new(&fault.url(), cloud.ca_pem(), Some(&netns));
        options.bpffs = true;
        let daemon = Daemon::start(options)?;
        Ok(Some(Self {
            daemon,
            fault,
            cloud,
            netns,
            _turn: turn,
        }))
    }

    /// Runs a test on a node of its own; shows hublet's log when it fails.
    ///
    /// # Errors
    /// The test's, or as [`Edge::start`].
    pub fn run(test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let Some(edge) = Self::start()? else {
            return Ok(());
        };
        test(&edge).inspect_err(|_| eprintln!("hublet's log:\n{}", edge.daemon.read_log()))
    }

    /// Mends the link, and waits until this read is answered by the cloud again.
    ///
    /// # Errors
    /// Not within 5 s.
    pub fn restore_link(&self, client: &Client, path: &str) -> Result<Answer> {
        self.fault.set(Fault::None)?;
        let mut last = String::new();
        eventually(RESTORE_LIMIT, "the cloud answers again", || {
            let answer = client.get(path);
            last = format!("{answer:?}");
            answer
                .ok()
                .filter(|answer| answer.header("x-hublet-source") == "cloud")
        })
        .with_context(|| format!("GET {path} after the mend: {last}"))
    }
}

/// The control plane's programs, if this machine can have them; otherwise one line says what to install.
///
/// # Errors
/// The build failed.
pub fn find_or_skip() -> Result<Option<Binaries>> {
    Ok(match Binaries::find()? {
        Ok(binaries) => Some(binaries),
        Err(why) => {
            require::skip_unless(false, &why.to_string());
            None
        }
    })
}

/// An answer from the store says so, and how old it is.
///
/// # Errors
/// It doesn't.
pub fn check_stored(answer: &Answer) -> Result<()> {
    let (source, age) = (answer.header("x-hublet-source"), answer.header("age"));
    if source != "store" {
        bail!("X-Hublet-Source is {source:?}, not \"store\"");
    }
    match age.parse::<u64>() {
        Ok(seconds) if seconds < 600 => Ok(()),
        _ => bail!("Age is {age:?}, not the seconds since the cloud said it"),
    }
}
