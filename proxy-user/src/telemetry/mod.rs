//! Telemetry: the metrics of the process, the record of each request, and the last callers.

mod callers;
mod counted;
mod histogram;
mod metrics;
pub(crate) mod registry;
mod request;
mod requests;
mod stream;
mod warnings;

#[cfg(test)]
use crate::caller::Port;
#[cfg(test)]
pub(crate) use callers::CallerCounts;
pub(crate) use callers::{Caller, CallerStatus};
pub(crate) use counted::CountedBody;
pub(crate) use metrics::Metrics;
pub(crate) use request::{Description, RequestRecord};
pub(crate) use requests::Source;
pub(crate) use stream::{ObservedStream, StreamBytes, StreamObserver};
pub(crate) use warnings::WarningKind;
