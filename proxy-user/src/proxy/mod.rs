//! One request, from its admission to its response.
//!
//! [`Proxy::handle`] is the list of phases. Each is a function of this module or one below it.

pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod connection;
mod dispatch;
pub(crate) mod error;
mod protocol;
mod request_body;
mod route;
pub(crate) mod stages;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hublet_wire::media::Accepts;
use hyper::body::{Body as _, Incoming};
use tokio::time::timeout;

use crate::authz::identity::Credential;
use crate::budget::Flow;
use crate::local::SOURCE;
use crate::telemetry::{Description, RequestRecord, Source};
use crate::text::with_causes;
use body::{Admission, Body};
use call::{Call, Standing};
use connection::Connection;
use error::ProxyError;
use protocol::Protocol;
pub(crate) use route::Policy;
use route::{Route, route};
use stages::Stages;

/// Longest wait of a request whose client has too many bytes in flight.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers requests. One for the whole process, shared by all connections.
#[derive(Debug)]
pub(crate) struct Proxy {
    stages: Stages,
    policy: Policy,
}

impl Proxy {
    pub(crate) fn new(stages: Stages, policy: Policy) -> Self {
        Self { stages, policy }
    }

    pub(crate) fn stages(&self) -> &Stages {
        &self.stages
    }

    /// Answers one request. Never fails: an error is a response with a `Status`.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn holds its arguments twice, and hyper copies the future of each request into its connection"
    )]
    pub(crate) fn handle(
        self: Arc<Self>,
        connection: Arc<Connection>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + Send + use<> {
        async move {
            let flow = &connection.flow;
            let record = RequestRecord::begin(&self.stages.metrics, connection.caller.as_ref());
            let mut admission = match self.admit(flow, request.body(), record).await {
                Ok(admission) => Some(admission),
                Err(record) => return reject(&request, flow, record),
            };
            let (call, inbound) = Call::receive(request, &connection, |c| self.standing(c));
            let call = Arc::new(call);
            let state = self.stages.cloud.health.state();
            let route = route(
                &call.request,
                &call.caller,
                call.protocol,
                state,
                &self.policy,
            );
            let answer = self.dispatch(route, &call, inbound, &mut admission).await;
            let mut response = finish(&call, route, answer, admission.as_mut());
            response.body_mut().hold(admission, flow);
            response
        }
    }

    /// Admits a request when its client has room for its bytes, and a place among those in flight is free.
    ///
    /// # Errors
    /// It is not admitted; its record is given back.
    async fn admit(
        &self,
        flow: &Arc<Flow>,
        body: &Incoming,
        mut record: RequestRecord,
    ) -> Result<Admission, RequestRecord> {
        record.set_received(body.size_hint().exact());
        let bytes = request_body::max_held_bytes(body);
        let mut charge = flow.request(bytes);
        if charge.is_none()
            && Box::pin(timeout(ADMISSION_TIMEOUT, flow.room_to_begin())).await == Ok(true)
        {
            charge = flow.request(bytes);
        }
        let Some(charge) = charge else {
            return Err(record);
        };
        // Only now: a client that waits takes no place from others.
        match Arc::clone(&self.stages.limits.in_flight).try_acquire_owned() {
            Ok(permit) => Ok(Admission::new(permit, charge, record)),
            Err(_) => Err(record),
        }
    }

    fn standing(&self, credential: &Credential) -> Standing {
        let cache = &self.stages.cache;
        if cache.grants.knows(credential, cache.clock.now(), u64::MAX) {
            Standing::Proven
        } else {
            Standing::Unproven
        }
    }
}

/// The response to a request that is not admitted.
fn reject(request: &Request<Incoming>, flow: &Flow, mut record: RequestRecord) -> Response<Body> {
    let error = ProxyError::too_many_requests();
    let mut response = error.to_response(Accepts::from_headers(request.headers()).errors);
    response.body_mut().count_as_refusal(flow);
    record.set_reason(error.kind().as_str());
    let status = response.status().as_u16();
    record.respond(Source::Hublet, status, || Description {
        resource: request.uri().path().to_owned(),
        account: Credential::of(request.headers()).account().to_string(),
    });
    response
}

/// Makes a response of an error, and notes the response in the request's record.
fn finish(
    call: &Call,
    route: Route,
    answer: Result<Response<Body>, ProxyError>,
    admission: Option<&mut Admission>,
) -> Response<Body> {
    let is_stored =
        |response: &Response<Body>| response.headers().get(SOURCE).is_some_and(|v| v == "store");
    let (response, source, reason) = match answer {
        Ok(response) if is_stored(&response) => (response, Source::Store, fallback_reason(route)),
        Ok(response) => (response, Source::Cloud, None),
        Err(error) => {
            log_error(call, &error);
            let response = error.to_response(call.accepts.errors);
            (response, Source::Hublet, Some(error.kind().as_str()))
        }
    };
    // An upgraded connection has taken the admission along, and noted its response.
    if let Some(admission) = admission {
        let record = admission.record();
        if call.protocol == Protocol::Http {
            record.set_verb(call.verb());
        }
        if let Some(reason) = reason {
            record.set_reason(reason);
        }
        let status = response.status().as_u16();
        record.respond(source, status, || call.description());
    }
    response
}

fn log_error(call: &Call, error: &ProxyError) {
    tracing::debug!(
        kind = error.kind().as_str(),
        side = ?error.side(),
        sent = ?error.sent(),
        "{}: {}",
        call.request.describe(),
        with_causes(error)
    );
}

/// The reason of an answer that the store gave in the cloud's place.
fn fallback_reason(route: Route) -> Option<&'static str> {
    match route {
        Route::CloudThenStore(_) => Some("cloud-unanswered"),
        Route::StoreThenCloud(_) => Some("cloud-silent"),
        _ => Some("cloud-away"),
    }
}
