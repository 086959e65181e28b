//! One request, from its admission to its response.
//!
//! [`Proxy::handle`] is the list of the phases:
//!
//! | phase | module | result |
//! |---|---|---|
//! | admit | `admission` | the request's share of all limits, and its record; or 429 |
//! | identify | [`call`] | its target, its caller, the protocol it asks for |
//! | route | `route` | its [`Route`]: a pure function of those, the cloud's state and the policy |
//! | dispatch | `dispatch`, `fetch`, `upgrade` | an answer of the cloud or of the store, or a [`ProxyError`] |
//! | respond | `answer` | the response; the record follows when its body has ended |

mod admission;
mod answer;
pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod connection;
mod dispatch;
pub(crate) mod error;
mod fetch;
mod protocol;
mod request_body;
mod route;
pub(crate) mod stages;
#[cfg(test)]
mod tests;
mod upgrade;

use std::sync::Arc;

use http::{Request, Response};
use hyper::body::Incoming;

use crate::telemetry::RequestRecord;
use answer::{reject, respond};
use body::Body;
use call::Call;
use connection::Connection;
#[cfg(doc)]
use error::ProxyError;
pub(crate) use route::Policy;
use route::{Route, route};
use stages::Stages;

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
        reason = "an async fn holds its arguments twice, in each request that waits"
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
                Ok(admission) => admission,
                Err(record) => return reject(&request, flow, record),
            };
            let (authorizer, record) = (&self.stages.authorizer, admission.record());
            let (call, inbound) = Call::identify(request, &connection, authorizer, record);
            let (call, mut admission) = (Arc::new(call), Some(admission));
            let route = self.route(&call);
            let answer = self.dispatch(route, &call, inbound, &mut admission).await;
            respond(&call, answer, admission)
        }
    }

    fn route(&self, call: &Call) -> Route {
        let state = self.stages.cloud.health.state();
        route(
            &call.request,
            &call.caller,
            call.protocol,
            state,
            &self.policy,
        )
    }
}
