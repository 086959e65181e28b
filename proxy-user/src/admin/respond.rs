//! Answers one admin request.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;

use super::ebpf_metrics::EbpfMetrics;
use super::state::State;
use super::status::Status;
use crate::telemetry::registry::encode_metrics;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type TextResponse = Response<Full<Bytes>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Endpoint {
    Health,
    Readiness,
    Status,
    Metrics,
}

impl Endpoint {
    fn from_path(path: &str) -> Option<Self> {
        match path {
            "/v1/healthz" => Some(Self::Health),
            "/v1/readyz" => Some(Self::Readiness),
            "/v1/status" => Some(Self::Status),
            "/metrics" => Some(Self::Metrics),
            _ => None,
        }
    }

    fn respond(self, state: &State) -> TextResponse {
        match self {
            Self::Health => respond_ok(TEXT, "OK".to_owned()),
            Self::Readiness => respond_readiness(&state.unready_reasons()),
            Self::Status => respond_status(state),
            Self::Metrics => respond_ok(OPENMETRICS, encode_all_metrics(state)),
        }
    }
}

pub(super) fn respond<B>(request: &Request<B>, state: &State) -> TextResponse {
    let path = request.uri().path();
    if let Some(reason) = unsupported(path) {
        return respond_error(StatusCode::NOT_IMPLEMENTED, reason);
    }
    let Some(endpoint) = Endpoint::from_path(path) else {
        let message = "not found; there are /v1/healthz, /v1/readyz, /v1/status and /metrics";
        return respond_error(StatusCode::NOT_FOUND, message);
    };
    match *request.method() {
        Method::GET | Method::HEAD => endpoint.respond(state),
        _ => refuse_method(),
    }
}

/// The reason why hublet lacks an endpoint that YurtHub has on this port.
fn unsupported(path: &str) -> Option<&'static str> {
    match path {
        "/v1/token" => Some(
            "hublet takes no join token here yet: certificates from the cluster are not implemented",
        ),
        "/pods" => Some(
            "hublet keeps no list of pods here: ask the API, as in /api/v1/pods?fieldSelector=spec.nodeName=NODE",
        ),
        path if path.starts_with("/openyurt.io/") => Some("hublet does no OpenYurt OTA upgrades"),
        path if path.starts_with("/debug/pprof") => {
            Some("hublet has no pprof: it isn't written in Go")
        }
        _ => None,
    }
}

fn refuse_method() -> TextResponse {
    let mut response = respond_error(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD only");
    let allowed = HeaderValue::from_static("GET, HEAD");
    response.headers_mut().insert(ALLOW, allowed);
    response
}

fn respond_readiness(unready: &[String]) -> TextResponse {
    if unready.is_empty() {
        respond_ok(TEXT, "OK".to_owned())
    } else {
        respond_error(StatusCode::INTERNAL_SERVER_ERROR, &unready.join("\n"))
    }
}

fn respond_status(state: &State) -> TextResponse {
    match Status::read(state).to_json() {
        Ok(json) => respond_ok(JSON, json),
        Err(error) => respond_error(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn encode_all_metrics(state: &State) -> String {
    let Some(handles) = state.handles() else {
        return encode_metrics(&[state]);
    };
    encode_metrics(&[
        state,
        handles.proxy.stages(),
        &*handles.counters,
        &*handles.table,
        &EbpfMetrics(&handles.setup),
    ])
}

fn respond_ok(content_type: &'static str, body: String) -> TextResponse {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    let content_type = HeaderValue::from_static(content_type);
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    response
}

fn respond_error(status: StatusCode, message: &str) -> TextResponse {
    let mut response = respond_ok(TEXT, format!("{message}\n"));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn send(method: Method, path: &str, state: &State) -> (u16, String, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(())
            .expect("request");
        let response = respond(&request, state);
        let kind = response.headers()[CONTENT_TYPE]
            .to_str()
            .expect("ASCII")
            .to_owned();
        let status = response.status().as_u16();
        let body = futures_util::FutureExt::now_or_never(response.into_body().collect())
            .expect("whole")
            .expect("body");
        (
            status,
            kind,
            String::from_utf8(body.to_bytes().to_vec()).expect("UTF-8"),
        )
    }

    #[test]
    fn health_is_ok_and_readiness_says_why_not() {
        let state = State::new("edge-1".into());
        let (status, _, body) = send(Method::GET, "/v1/healthz", &state);
        assert_eq!((status, body.as_str()), (200, "OK"));
        let (status, _, body) = send(Method::GET, "/v1/readyz", &state);
        assert_eq!(status, 500);
        assert!(body.contains("the store isn't open yet"), "{body}");
        state.set_met(super::super::Condition::Store);
        state.set_met(super::super::Condition::Listeners);
        state.record_probe();
        let (status, _, body) = send(Method::GET, "/v1/readyz", &state);
        assert_eq!((status, body.as_str()), (200, "OK"));
    }

    #[test]
    fn metrics_and_status_are_there_before_the_stages_are_up() {
        let state = State::new("edge-1".into());
        let (status, kind, body) = send(Method::GET, "/metrics", &state);
        assert_eq!(status, 200);
        assert!(kind.starts_with("application/openmetrics-text"));
        assert!(
            body.contains("hublet_ready 0\n") && body.ends_with("# EOF\n"),
            "{body}"
        );
        let (_, kind, body) = send(Method::GET, "/v1/status", &state);
        assert_eq!(kind, "application/json");
        let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!(status["node"], "edge-1");
        assert_eq!(status["unready"].as_array().map(Vec::len), Some(3));
    }

    #[test]
    fn other_paths_and_methods_are_refused() {
        let state = State::new("edge-1".into());
        for (method, path, expected) in [
            (Method::GET, "/", 404),
            (Method::GET, "/healthz", 404),
            (Method::POST, "/v1/healthz", 405),
            (Method::DELETE, "/metrics", 405),
            (Method::POST, "/v1/token", 501),
            (Method::GET, "/pods", 501),
            (
                Method::POST,
                "/openyurt.io/v1/namespaces/a/pods/b/upgrade",
                501,
            ),
            (
                Method::POST,
                "/openyurt.io/v1/namespaces/a/pods/b/imagepull",
                501,
            ),
            (Method::GET, "/debug/pprof/heap", 501),
        ] {
            let (status, _, body) = send(method, path, &state);
            assert_eq!(status, expected, "{path}");
            assert!(body.len() > 5, "a sentence: {body}");
        }
    }
}
