//! The state of the cloud in `/v1/status`.

use serde::{Deserialize, Serialize};

use super::forward::Cloud;
use super::health::CloudState;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CloudStatus {
    pub(crate) state: CloudState,
    /// URL of the API server.
    pub(crate) server: String,
    /// Open HTTP/2 connections that requests share.
    pub(crate) connections: usize,
    /// Duration of the last probe.
    pub(crate) latency_seconds: f64,
    /// Silence after which the store answers a read.
    pub(crate) fallback_timeout_seconds: f64,
}

impl Cloud {
    pub(crate) fn status(&self) -> CloudStatus {
        let server = self.pool.dialer().server();
        CloudStatus {
            state: self.health.state(),
            server: format!("https://{}:{}", server.host, server.port),
            connections: self.pool.open_connections(),
            latency_seconds: self.health.latency().as_secs_f64(),
            fallback_timeout_seconds: self.health.fallback_timeout().as_secs_f64(),
        }
    }
}
