//! HTTP/1.1 connections between two requests.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::connection::Http1Sender;
use crate::cloud::health::activity::ConnectionActivity;

/// Idle connections that are kept; beyond it the oldest is closed.
const MAX_IDLE: usize = 16;
/// Time for which an idle connection is kept; servers close them after a minute or more.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

#[derive(Debug, Default)]
pub(super) struct IdleConnections(Mutex<VecDeque<IdleConnection>>);

#[derive(Debug)]
pub(super) struct IdleConnection {
    pub(super) sender: Http1Sender,
    pub(super) activity: Arc<ConnectionActivity>,
    since: Instant,
}

impl IdleConnection {
    fn is_usable(&self) -> bool {
        !self.sender.is_closed()
            && !self.activity.is_quarantined()
            && self.since.elapsed() < IDLE_TIMEOUT
    }
}

impl IdleConnections {
    pub(super) fn put(&self, sender: Http1Sender, activity: Arc<ConnectionActivity>) {
        let mut idle = self.0.lock();
        idle.retain(IdleConnection::is_usable);
        if idle.len() >= MAX_IDLE {
            idle.pop_front();
        }
        idle.push_back(IdleConnection {
            sender,
            activity,
            since: Instant::now(),
        });
    }

    /// Takes the connection that was used last. One whose response was not read to its end isn't ready:
    /// it is closing.
    pub(super) fn take(&self) -> Option<IdleConnection> {
        let mut idle = self.0.lock();
        idle.retain(IdleConnection::is_usable);
        let index = idle.iter().rposition(|one| one.sender.is_ready())?;
        idle.remove(index)
    }

    pub(super) fn clear(&self) {
        self.0.lock().clear();
    }
}
