//! One admin request, answered.

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde_json::json;

use super::ebpf_metrics::EbpfMetrics;
use super::state::State;
use crate::VERSION;
use crate::telemetry::registry::encode_metrics;
use crate::text::printable_json;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Answer = Response<Full<Bytes>>;

pub(super) fn to<B>(request: &Request<B>, state: &State) -> Answer {
    let path = request.uri().path();
    if let Some(sentence) = not_here(path) {
        return say(StatusCode::NOT_IMPLEMENTED, TEXT, format!("{sentence}\n"));
    }
    if !matches!(
        path,
        "/v1/healthz" | "/v1/readyz" | "/v1/status" | "/metrics"
    ) {
        return say(
            StatusCode::NOT_FOUND,
            TEXT,
            "not found; there are /v1/healthz, /v1/readyz, /v1/status and /metrics\n".into(),
        );
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut answer = say(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "GET or HEAD only\n".into(),
        );
        answer
            .headers_mut()
            .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return answer;
    }
    match path {
        "/v1/healthz" => say(StatusCode::OK, TEXT, "OK".into()),
        "/v1/readyz" => match state.unready() {
            reasons if reasons.is_empty() => say(StatusCode::OK, TEXT, "OK".into()),
            reasons => say(
                StatusCode::INTERNAL_SERVER_ERROR,
                TEXT,
                format!("{}\n", reasons.join("\n")),
            ),
        },
        "/v1/status" => say(
            StatusCode::OK,
            JSON,
            printable_json(&format!("{:#}\n", status(state))),
        ),
        _ => say(StatusCode::OK, OPENMETRICS, metrics(state)),
    }
}

/// What YurtHub has on this port and hublet does not.
fn not_here(path: &str) -> Option<&'static str> {
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

fn say(status: StatusCode, kind: &'static str, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

fn metrics(state: &State) -> String {
    let handles = state.handles();
    let Some(handles) = &handles else {
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

fn status(state: &State) -> serde_json::Value {
    let mut status = json!({
        "version": VERSION,
        "node": state.node(),
        "uptime_seconds": state.uptime().as_secs(),
        "unready": state.unready(),
    });
    if let Some(handles) = state.handles() {
        status["warnings"] = json!(handles.warnings);
        status["listeners"] = json!(handles.listeners);
        status["certificate"] = json!(handles.certificates.describe());
        status["components"] = json!(handles.setup.components());
        let ebpf = handles.setup.ebpf();
        status["ebpf"] = json!({
            "programs": ebpf.programs,
            "flows": ebpf.flows,
            "counters": ebpf.counters.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect::<serde_json::Map<_, _>>(),
        });
        status["connections"] = handles
            .counters
            .status(handles.table.open(), handles.table.limit());
        if let serde_json::Value::Object(more) = handles.proxy.stages().status() {
            for (key, value) in more {
                status[key] = value;
            }
        }
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    fn ask(method: Method, path: &str, state: &State) -> (u16, String, String) {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .body(())
            .expect("request");
        let answer = to(&request, state);
        let kind = answer.headers()[CONTENT_TYPE]
            .to_str()
            .expect("ASCII")
            .to_owned();
        let status = answer.status().as_u16();
        let body = futures_util::FutureExt::now_or_never(answer.into_body().collect())
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
        let (status, _, body) = ask(Method::GET, "/v1/healthz", &state);
        assert_eq!((status, body.as_str()), (200, "OK"));
        let (status, _, body) = ask(Method::GET, "/v1/readyz", &state);
        assert_eq!(status, 500);
        assert!(body.contains("the store isn't open yet"), "{body}");
        state.mark(super::super::Condition::Store);
        state.mark(super::super::Condition::Listeners);
        state.probed();
        let (status, _, body) = ask(Method::GET, "/v1/readyz", &state);
        assert_eq!((status, body.as_str()), (200, "OK"));
    }

    #[test]
    fn metrics_and_status_answer_before_the_stages_are_up() {
        let state = State::new("edge-1".into());
        let (status, kind, body) = ask(Method::GET, "/metrics", &state);
        assert_eq!(status, 200);
        assert!(kind.starts_with("application/openmetrics-text"));
        assert!(
            body.contains("hublet_ready 0\n") && body.ends_with("# EOF\n"),
            "{body}"
        );
        let (_, kind, body) = ask(Method::GET, "/v1/status", &state);
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
            let (status, _, body) = ask(method, path, &state);
            assert_eq!(status, expected, "{path}");
            assert!(body.len() > 5, "a sentence: {body}");
        }
    }
}
