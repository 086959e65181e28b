//! One request, from its admission to its response.
//!
//! [`Proxy::handle`] is the list of phases. Each is a function of this module or one below it.

pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod connection;
mod dispatch;
pub(crate) mod error;
mod request_body;
mod route;
pub(crate) mod stages;
mod upgrade;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request, Response};
use hublet_wire::media::Accepts;
use hublet_wire::request::Verb;
use hyper::body::Incoming;
use tokio::time::timeout;

use crate::authz::identity::Credential;
use crate::budget::Flow;
use crate::local::SOURCE;
use crate::telemetry::Source;
use crate::text::with_causes;
use body::{Admission, Body};
use call::{Call, Protocol, Standing};
use connection::Connection;
use error::ProxyError;
pub(crate) use route::Policy;
use route::route;
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
            let Some(admission) = self.admit(flow, request.body()).await else {
                return self.reject(request.headers(), flow);
            };
            let mut admission = Some(admission);
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
            let mut response = self.record(&call, answer);
            response.body_mut().hold(admission, flow);
            response
        }
    }

    /// Admits a request when its client has room for its bytes, and a place among those in flight is free.
    async fn admit(&self, flow: &Arc<Flow>, body: &Incoming) -> Option<Admission> {
        let bytes = request_body::max_held_bytes(body);
        let mut charge = flow.request(bytes);
        if charge.is_none()
            && Box::pin(timeout(ADMISSION_TIMEOUT, flow.room_to_begin())).await == Ok(true)
        {
            charge = flow.request(bytes);
        }
        let charge = charge?;
        // Only now: a client that waits takes no place from others.
        let permit = Arc::clone(&self.stages.limits.in_flight)
            .try_acquire_owned()
            .ok()?;
        Some(Admission::new(permit, charge))
    }

    /// The response to a request that is not admitted.
    fn reject(&self, headers: &HeaderMap, flow: &Flow) -> Response<Body> {
        self.stages.metrics.answered(Verb::Other, Source::Hublet);
        let error = ProxyError::too_many_requests();
        let mut response = error.to_response(Accepts::of(headers).errors);
        response.body_mut().count_as_refusal(flow);
        response
    }

    fn standing(&self, credential: &Credential) -> Standing {
        let cache = &self.stages.cache;
        if cache.grants.knows(credential, cache.clock.now(), u64::MAX) {
            Standing::Proven
        } else {
            Standing::Unproven
        }
    }

    /// Counts the answer, and makes a response of an error.
    fn record(&self, call: &Call, answer: Result<Response<Body>, ProxyError>) -> Response<Body> {
        let verb = match call.protocol {
            Protocol::Http => call.verb(),
            Protocol::Upgrade => Verb::Other,
        };
        match answer {
            Ok(response) => {
                let is_stored = response.headers().get(SOURCE).is_some_and(|v| v == "store");
                let source = if is_stored {
                    Source::Store
                } else {
                    Source::Cloud
                };
                self.stages.metrics.answered(verb, source);
                response
            }
            Err(error) => {
                self.stages.metrics.answered(verb, Source::Hublet);
                tracing::debug!(
                    kind = error.kind().as_str(),
                    side = ?error.side(),
                    sent = ?error.sent(),
                    "{}: {}",
                    call.request.describe(),
                    with_causes(&error)
                );
                error.to_response(call.accepts.errors)
            }
        }
    }
}
