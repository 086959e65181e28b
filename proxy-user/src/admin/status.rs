//! The document at `/v1/status`, which `hublet status` prints.
//!
//! Each stage declares its own part. A field may be added within a version; renaming or removing one
//! needs another version.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::state::{Handles, State};
use crate::VERSION;
pub(crate) use crate::cache::status::StoreStatus;
pub(crate) use crate::certs::CertificateStatus;
pub(crate) use crate::cloud::status::CloudStatus;
pub(crate) use crate::ebpf::flows::FlowStatus;
pub(crate) use crate::ebpf::status::{EbpfStatus, ProgramStatus};
pub(crate) use crate::listen::{ConnectionsStatus, ListenerStatus};
pub(crate) use crate::node::component::Component;
pub(crate) use crate::proxy::stages::RequestsStatus;
pub(crate) use crate::telemetry::CallerStatus;
use crate::text::printable_json;

pub(crate) const API_VERSION: &str = "hublet/v1";
pub(crate) const KIND: &str = "HubletStatus";

/// The type of a document, which says whether the rest of it can be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TypeMeta {
    pub(crate) api_version: Cow<'static, str>,
    pub(crate) kind: Cow<'static, str>,
}

impl Default for TypeMeta {
    fn default() -> Self {
        Self {
            api_version: Cow::Borrowed(API_VERSION),
            kind: Cow::Borrowed(KIND),
        }
    }
}

impl TypeMeta {
    pub(crate) fn is_current(&self) -> bool {
        *self == Self::default()
    }
}

/// A part that is not known yet, or no longer during shutdown, is `None` or empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    #[serde(flatten)]
    pub(crate) type_meta: TypeMeta,
    /// Version of the daemon.
    pub(crate) version: String,
    pub(crate) node: String,
    pub(crate) uptime_seconds: u64,
    /// Reasons why no clients should be sent here; empty = ready.
    pub(crate) unready: Vec<String>,
    /// Warnings about the configuration.
    pub(crate) warnings: Vec<String>,
    pub(crate) listeners: Vec<ListenerStatus>,
    pub(crate) certificate: Option<CertificateStatus>,
    /// Components of the node's setup.
    pub(crate) components: Vec<Component>,
    pub(crate) ebpf: Option<EbpfStatus>,
    pub(crate) connections: Option<ConnectionsStatus>,
    pub(crate) requests: Option<RequestsStatus>,
    pub(crate) cloud: Option<CloudStatus>,
    pub(crate) store: Option<StoreStatus>,
    /// The last callers, latest first.
    pub(crate) callers: Vec<CallerStatus>,
}

impl Status {
    pub(super) fn read(state: &State) -> Self {
        let mut status = Self::without_stages(state);
        if let Some(handles) = state.handles() {
            status.add_stages(&handles);
        }
        for listener in &mut status.listeners {
            listener.state = state.listener_state(listener.purpose);
        }
        status
    }

    fn without_stages(state: &State) -> Self {
        Self {
            version: VERSION.to_owned(),
            node: state.node().to_owned(),
            uptime_seconds: state.uptime().as_secs(),
            unready: state.unready_reasons(),
            ..Self::default()
        }
    }

    fn add_stages(&mut self, handles: &Handles) {
        let stages = handles.proxy.stages();
        self.warnings.clone_from(&handles.warnings);
        self.listeners.clone_from(&handles.listeners);
        self.certificate = Some(handles.certificates.status());
        self.components = handles.setup.components();
        self.ebpf = Some(handles.setup.ebpf());
        let (open, limit) = (handles.table.open(), handles.table.limit());
        self.connections = Some(handles.counters.status(open, limit));
        self.requests = Some(stages.status());
        self.cloud = Some(stages.cloud.status());
        self.store = Some(stages.cache.status(stages.authorizer.row_counts()));
        self.callers = stages.metrics.callers.status();
    }

    /// Indented JSON without invisible characters.
    pub(super) fn to_json(&self) -> serde_json::Result<String> {
        let json = serde_json::to_string_pretty(self)?;
        Ok(printable_json(&json) + "\n")
    }
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub(crate) mod tests;
