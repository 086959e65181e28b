//! A node with a small cloud: the scriptable cloud, the fault proxy and the real daemon in a network namespace of their own.

use anyhow::Result;

use crate::client::Client;
use crate::cloud::{self, Cloud};
use crate::daemon::{self, Daemon};
use crate::fault::{Fault, FaultProxy};
use crate::netns::Netns;
use crate::require;

#[derive(Debug)]
pub struct Site {
    /// The daemon, in front of the fault proxy.
    pub daemon: Daemon,
    /// The link between the daemon and the cloud.
    pub fault: FaultProxy,
    pub cloud: Cloud,
    pub netns: Netns,
}

impl Site {
    /// Starts all of it; `with` changes how the daemon runs. `None`: this machine can't run it, and the reason was printed (in CI
    /// this fails).
    ///
    /// # Errors
    /// A part doesn't start; the message holds the end of its log.
    pub fn start(role: &str, with: impl FnOnce(&mut daemon::Options)) -> Result<Option<Self>> {
        Self::with_cloud(role, cloud::Options::default(), with)
    }

    /// As [`Site::start`], with a cloud of another kind.
    ///
    /// # Errors
    /// As there.
    pub fn with_cloud(
        role: &str,
        cloud: cloud::Options,
        with: impl FnOnce(&mut daemon::Options),
    ) -> Result<Option<Self>> {
        let Some(mut site) = Self::prepare(role, cloud, with)? else {
            return Ok(None);
        };
        site.start_daemon()?;
        Ok(Some(site))
    }

    /// As [`Site::with_cloud`], with a daemon that has its folders and isn't started yet.
    ///
    /// # Errors
    /// As there.
    pub fn prepare(
        role: &str,
        cloud: cloud::Options,
        with: impl FnOnce(&mut daemon::Options),
    ) -> Result<Option<Self>> {
        if !require::root() {
            return Ok(None);
        }
        let netns = Netns::new(role)?;
        let cloud = Cloud::start(cloud::Options {
            netns: Some(netns.clone()),
            ..cloud
        })?;
        let fault = FaultProxy::start(([127, 0, 0, 1], 0).into(), cloud.address, Some(&netns))?;
        let mut options = daemon::Options::new(&fault.url(), cloud.ca.pem(), Some(&netns));
        with(&mut options);
        let daemon = Daemon::prepare(options)?;
        Ok(Some(Self {
            daemon,
            fault,
            cloud,
            netns,
        }))
    }

    /// Starts the daemon of a prepared site and waits until it is ready.
    ///
    /// # Errors
    /// It doesn't become ready; the message holds its log.
    pub fn start_daemon(&mut self) -> Result<()> {
        self.daemon.spawn()?;
        self.daemon.wait_ready()?;
        Ok(())
    }

    /// A client on the node with the administrator's token, on one kept connection.
    ///
    /// # Errors
    /// The daemon's CA can't be read.
    pub fn admin_client(&self) -> Result<Client> {
        let mut options = self.daemon.client_options(Some(&self.cloud.admin_token))?;
        options.keep = true;
        Client::new(options)
    }

    /// Cuts the link.
    ///
    /// # Errors
    /// The proxy is gone.
    pub fn cut_link(&self) -> Result<()> {
        self.fault.set(Fault::Refuse)
    }
}
