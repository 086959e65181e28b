//! The answer to a request, and its response: the last phase, and the only place where an error becomes a response.

use http::{Request, Response};
use hublet_wire::media::Accepts;
use hyper::body::Incoming;

use super::admission::Admission;
use super::body::Body;
use super::call::Call;
use super::error::ProxyError;
use super::protocol::Protocol;
use crate::authz::identity::Credential;
use crate::budget::Flow;
use crate::telemetry::{Description, RequestRecord, Source};

/// A response, and the stage that gave it.
#[derive(Debug)]
pub(super) enum Answer {
    Cloud(Response<Body>),
    Store(Response<Body>, FallbackReason),
}

/// The reason for which the store answers instead of the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FallbackReason {
    Away,
    Silent,
    Unanswered,
}

impl FallbackReason {
    /// The name in logs and metrics.
    fn as_str(self) -> &'static str {
        match self {
            Self::Away => "cloud-away",
            Self::Silent => "cloud-silent",
            Self::Unanswered => "cloud-unanswered",
        }
    }
}

/// The response to a call. Its record is written when the body has ended.
pub(super) fn respond(
    call: &Call,
    answer: Result<Answer, ProxyError>,
    mut admission: Option<Admission>,
) -> Response<Body> {
    let Outcome {
        mut response,
        source,
        reason,
    } = Outcome::of(call, answer);
    // The streams of an upgraded connection have taken the admission, and recorded the response.
    if let Some(admission) = &mut admission {
        let record = admission.record();
        if call.protocol == Protocol::Http {
            record.set_verb(call.verb());
        }
        if let Some(reason) = reason {
            record.set_reason(reason);
        }
        record.respond(source, response.status().as_u16(), || call.description());
    }
    response.body_mut().hold(admission, &call.flow);
    response
}

/// A response, and the fields of its record.
struct Outcome {
    response: Response<Body>,
    source: Source,
    reason: Option<&'static str>,
}

impl Outcome {
    fn of(call: &Call, answer: Result<Answer, ProxyError>) -> Self {
        match answer {
            Ok(Answer::Cloud(response)) => Self::new(response, Source::Cloud, None),
            Ok(Answer::Store(response, reason)) => {
                Self::new(response, Source::Store, Some(reason.as_str()))
            }
            Err(error) => {
                error.log(|| call.request.describe());
                let response = error.to_response(call.accepts.errors);
                Self::new(response, Source::Hublet, Some(error.kind().as_str()))
            }
        }
    }

    fn new(response: Response<Body>, source: Source, reason: Option<&'static str>) -> Self {
        Self {
            response,
            source,
            reason,
        }
    }
}

/// The response to a request that is not admitted.
pub(super) fn reject(
    request: &Request<Incoming>,
    flow: &Flow,
    mut record: RequestRecord,
) -> Response<Body> {
    let error = ProxyError::too_many_requests();
    error.log(|| format!("{} {}", request.method(), request.uri().path()));
    let mut response = error.to_response(Accepts::from_headers(request.headers()).errors);
    response.body_mut().count_as_refusal(flow);
    record.set_reason(error.kind().as_str());
    let status = response.status().as_u16();
    record.respond(Source::Hublet, status, || describe(request));
    response
}

fn describe(request: &Request<Incoming>) -> Description {
    Description {
        resource: request.uri().path().to_owned(),
        account: Credential::from_headers(request.headers())
            .account()
            .to_string(),
    }
}
