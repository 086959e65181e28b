//! The requests that the cloud has received, and a way to wait for one.
use std::collections::VecDeque;
use std::time::Duration;

use anyhow::bail;
use parking_lot::{Condvar, Mutex};
use serde::Serialize;

/// Requests that are remembered; the oldest go first.
const LIMIT: usize = 100_000;

/// A request as it arrived.
#[derive(Clone, Debug, Serialize)]
pub struct Request {
    pub method: String,
    pub path: String,
    /// Query, as sent, without the question mark.
    pub query: String,
    /// User name; empty for a wrong credential.
    pub user: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: String,
    /// `Accept`.
    pub accept: String,
    /// `Content-Length`.
    pub length: String,
    /// The connection's number: equal ones came on one connection.
    pub connection: u64,
}

impl Request {
    /// `GET /api/v1/pods`
    #[must_use]
    pub fn request_line(&self) -> String {
        format!("{} {}", self.method, self.path)
    }
}

/// The log of requests.
#[derive(Debug, Default)]
pub struct Record {
    log: Mutex<VecDeque<Request>>,
    arrived: Condvar,
}

impl Record {
    pub(super) fn add(&self, request: Request) {
        let mut log = self.log.lock();
        if log.len() == LIMIT {
            log.pop_front();
        }
        log.push_back(request);
        self.arrived.notify_all();
    }

    #[must_use]
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().iter().cloned().collect()
    }

    pub fn count_matching(&self, matches: impl Fn(&Request) -> bool) -> usize {
        self.log
            .lock()
            .iter()
            .filter(|request| matches(request))
            .count()
    }

    pub fn clear(&self) {
        self.log.lock().clear();
    }

    /// Blocks until a request matches that has come since the last [`Record::clear`], or fails after `timeout`.
    pub fn wait_for(
        &self,
        timeout: Duration,
        matches: impl Fn(&Request) -> bool,
    ) -> anyhow::Result<Request> {
        let deadline = std::time::Instant::now() + timeout;
        let mut log = self.log.lock();
        loop {
            if let Some(request) = log.iter().find(|request| matches(request)) {
                return Ok(request.clone());
            }
            if self.arrived.wait_until(&mut log, deadline).timed_out() {
                let seen: Vec<String> = log
                    .iter()
                    .rev()
                    .take(10)
                    .map(Request::request_line)
                    .collect();
                bail!("no such request within {timeout:?}; the last ones: {seen:?}");
            }
        }
    }
}
