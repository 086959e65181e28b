//! The admission of a request: its share of what is limited.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::Proxy;
use crate::budget::{Charge, Flow, MAX_UPLOAD_BUFFER};
use crate::telemetry::RequestRecord;

/// Longest wait of a request whose client has too many bytes in flight.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(2);

/// A request's share of all limits, and its record. Held until its response has ended, or its upgraded connection.
#[derive(Debug)]
pub(crate) struct Admission {
    _in_flight: OwnedSemaphorePermit,
    charge: Charge,
    upgrade: Option<OwnedSemaphorePermit>,
    record: RequestRecord,
}

impl Admission {
    pub(super) fn new(
        in_flight: OwnedSemaphorePermit,
        charge: Charge,
        record: RequestRecord,
    ) -> Self {
        Self {
            _in_flight: in_flight,
            charge,
            upgrade: None,
            record,
        }
    }

    /// The request's record, which is written when the admission is dropped.
    pub(super) fn record(&mut self) -> &mut RequestRecord {
        &mut self.record
    }

    /// Charges further bytes, if the client has room for them.
    pub(super) fn charge_more(&mut self, bytes: usize) -> bool {
        self.charge.try_grow(bytes)
    }

    /// Holds a permit for an upgraded connection as well.
    pub(super) fn hold_upgrade(&mut self, permit: OwnedSemaphorePermit) {
        self.upgrade = Some(permit);
    }
}

impl Proxy {
    /// Admits a request when its client has room for its bytes, and a place among those in flight is free.
    ///
    /// # Errors
    /// The request is not admitted; its record is returned.
    pub(super) async fn admit(
        &self,
        flow: &Arc<Flow>,
        body: &Incoming,
        record: RequestRecord,
    ) -> Result<Admission, RequestRecord> {
        let Some(charge) = charge(flow, max_held_bytes(body)).await else {
            return Err(record);
        };
        // Only now, so that a waiting client takes no place from others.
        match Arc::clone(&self.stages.limits.in_flight).try_acquire_owned() {
            Ok(permit) => Ok(Admission::new(permit, charge, record)),
            Err(_) => Err(record),
        }
    }
}

/// Charges a request, once its client has room.
async fn charge(flow: &Arc<Flow>, bytes: usize) -> Option<Charge> {
    if let Some(charge) = flow.charge_request(bytes) {
        return Some(charge);
    }
    match Box::pin(timeout(ADMISSION_TIMEOUT, flow.wait_for_admission())).await {
        Ok(true) => flow.charge_request(bytes),
        _ => None,
    }
}

/// Most bytes of a request's body that hublet may hold at once.
fn max_held_bytes(body: &Incoming) -> usize {
    let announced = body.size_hint().upper().unwrap_or(u64::MAX);
    announced.min(MAX_UPLOAD_BUFFER.into()) as usize
}
