//! Faults of the API server on command: rules from a test or the control port choose the requests, and how their answers
//! fail. Faults of the link are in [`crate::fault`].
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::answer::{Answer, Body, BodyError, full_body, stream_body};
use super::status::Failure;

/// Requests, how many of them, and the fault that they meet.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Prefix of the path.
    #[serde(default)]
    pub path: String,
    /// HTTP method or Kubernetes verb (`GET`, `list`, `watch` …); empty: all.
    #[serde(default)]
    pub method: String,
    /// Number of requests; absent: every one until the rules are cleared.
    #[serde(default)]
    pub count: Option<u32>,
    pub fault: ServerFault,
}

impl Rule {
    /// For every request of this method or verb under this path.
    #[must_use]
    pub fn new(method: &str, path: &str, fault: ServerFault) -> Rule {
        Rule {
            path: path.to_owned(),
            method: method.to_owned(),
            count: None,
            fault,
        }
    }

    /// Limits the rule to this number of requests.
    #[must_use]
    pub fn times(self, count: u32) -> Rule {
        Rule {
            count: Some(count),
            ..self
        }
    }
}

/// A failure of the API server, in place of its regular answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ServerFault {
    /// This code with a `Status` body, and a `Retry-After`.
    Status {
        code: u16,
        /// `Retry-After`, in seconds.
        #[serde(default)]
        retry_after: u32,
    },
    /// The regular answer, this many milliseconds late.
    Delay(u64),
    /// No answer, ever; the connection stays open.
    Hang,
    /// Nothing is done, and HTTP/2 says so: `REFUSED_STREAM`.
    Refuse,
    /// The request is carried out; then the connection breaks before the answer.
    Break,
    /// The regular answer; then the connection is closed in good order (`GOAWAY`, `Connection: close`).
    Close,
    /// The regular answer's head, then nothing, ever.
    Stall,
    /// A head, then nothing, ever; nor is anything taken of the request's body.
    StallUnread,
    /// The regular answer's first bytes, then a proper end: broken JSON in valid HTTP.
    Truncate(usize),
    /// The regular answer's first bytes, then the stream is reset.
    CutAfter(usize),
    /// This many whole events (of a list: 0), half of the next one, then the stream is reset.
    CutFrame(usize),
    /// Bytes that are not JSON.
    Garbage,
    /// The regular body with another content type.
    ContentType(String),
    /// A body that never ends.
    Endless,
    /// A valid JSON document of this many bytes.
    Long(usize),
    /// A header of this many bytes.
    HugeHeader(usize),
    /// A GET gets the object as it was before its last change.
    Stale,
    /// A LIST gets no items.
    EmptyList,
    /// Exactly this answer.
    Exactly {
        code: u16,
        /// `Content-Type`.
        content_type: String,
        body: Vec<u8>,
    },
}

/// The rules in force.
#[derive(Debug, Default)]
pub struct ServerFaults(Mutex<Vec<Rule>>);

impl ServerFaults {
    /// Adds a rule; older ones go first.
    pub fn add_rule(&self, rule: Rule) {
        self.0.lock().push(rule);
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    /// The rules that are left.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        self.0.lock().clone()
    }

    pub(super) fn take_match(&self, path: &str, method: &str, verb: &str) -> Option<ServerFault> {
        let mut rules = self.0.lock();
        let index = rules.iter().position(|rule| {
            let named = [method, verb]
                .iter()
                .any(|name| rule.method.eq_ignore_ascii_case(name));
            path.starts_with(&rule.path) && (rule.method.is_empty() || named)
        })?;
        let fault = rules[index].fault.clone();
        if let Some(count) = &mut rules[index].count {
            *count = count.saturating_sub(1);
            if *count == 0 {
                rules.remove(index);
            }
        }
        Some(fault)
    }
}

impl ServerFault {
    /// The answer that replaces the regular one, after the fault's delay.
    pub(super) async fn replacement_answer(&self) -> Option<Answer> {
        match *self {
            ServerFault::Status { code, retry_after } => {
                Some(status_failure(code).retry_after(retry_after).into())
            }
            ServerFault::Exactly {
                code,
                ref content_type,
                ref body,
            } => {
                let mut answer = super::answer::json_answer(code, body.clone());
                if let Ok(value) = HeaderValue::from_str(content_type) {
                    answer.headers_mut().insert(CONTENT_TYPE, value);
                }
                Some(answer)
            }
            ServerFault::Delay(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                None
            }
            ServerFault::Hang => std::future::pending().await,
            _ => None,
        }
    }

    /// The regular answer, with the fault.
    pub(super) fn apply(&self, mut answer: Answer) -> Answer {
        if matches!(
            self,
            ServerFault::Stall
                | ServerFault::Truncate(_)
                | ServerFault::CutAfter(_)
                | ServerFault::CutFrame(_)
                | ServerFault::Garbage
                | ServerFault::Endless
                | ServerFault::Long(_)
        ) {
            answer.headers_mut().remove(CONTENT_LENGTH);
        }
        match self {
            ServerFault::Stall => answer.map(|_| stream_body(stream::pending())),
            ServerFault::Truncate(bytes) => answer.map(|body| limit_body(body, *bytes, false)),
            ServerFault::CutAfter(bytes) => answer.map(|body| limit_body(body, *bytes, true)),
            ServerFault::CutFrame(frames) => answer.map(|body| cut_frame(body, *frames)),
            ServerFault::Garbage => {
                answer.map(|_| full_body(b"\xff\x00<html>not what you asked for".repeat(40)))
            }
            ServerFault::Endless => answer.map(|_| endless_body()),
            ServerFault::Long(bytes) => {
                answer.map(|_| full_body(format!("\"{}\"", "a".repeat(*bytes)).into_bytes()))
            }
            ServerFault::ContentType(name) => {
                if let Ok(value) = HeaderValue::from_str(name) {
                    answer.headers_mut().insert(CONTENT_TYPE, value);
                }
                answer
            }
            ServerFault::HugeHeader(bytes) => {
                if let Ok(value) = HeaderValue::from_str(&"x".repeat(*bytes)) {
                    answer
                        .headers_mut()
                        .insert(HeaderName::from_static("x-huge"), value);
                }
                answer
            }
            _ => answer,
        }
    }
}

fn status_failure(code: u16) -> Failure {
    let (reason, message) = match code {
        401 => ("Unauthorized", "Unauthorized"),
        403 => ("Forbidden", "forbidden: on command"),
        404 => (
            "NotFound",
            "the server could not find the requested resource",
        ),
        410 => (
            "Expired",
            "The resourceVersion for the provided list is too old.",
        ),
        429 => (
            "TooManyRequests",
            "Too many requests, please try again later.",
        ),
        503 => (
            "ServiceUnavailable",
            "the server is currently unable to handle the request",
        ),
        504 => (
            "Timeout",
            "Timeout: request did not complete within the allotted timeout",
        ),
        _ => ("InternalError", "Internal error occurred: on command"),
    };
    Failure::new(code, reason, message)
}

/// Lets what was sent before reach the socket (HTTP/2 drops queued frames at a reset), then breaks off.
async fn break_off() -> BodyError {
    tokio::time::sleep(Duration::from_millis(50)).await;
    BodyError::other("cut on command")
}

/// Pieces until `budget` bytes have gone, then a tear or an end.
fn limit_body(body: Body, budget: usize, tear: bool) -> Body {
    stream_body(stream::unfold(
        (body.into_data_stream(), budget, false),
        move |(mut body, left, over)| async move {
            if over {
                return None;
            }
            if left == 0 {
                return if tear {
                    Some((Err(break_off().await), (body, 0, true)))
                } else {
                    None
                };
            }
            let piece: Bytes = body.next().await?.ok()?;
            let sent = piece.slice(..piece.len().min(left));
            let left = left - sent.len();
            Some((Ok(sent), (body, left, false)))
        },
    ))
}

fn cut_frame(body: Body, frames: usize) -> Body {
    stream_body(stream::unfold(
        (body.into_data_stream(), Some(frames)),
        |(mut body, left)| async move {
            let Some(left) = left else {
                return Some((Err(break_off().await), (body, None)));
            };
            let piece: Bytes = body.next().await?.ok()?;
            match left.checked_sub(1) {
                Some(left) => Some((Ok(piece), (body, Some(left)))),
                None => Some((Ok(piece.slice(..piece.len() / 2)), (body, None))),
            }
        },
    ))
}

fn endless_body() -> Body {
    let item =
        Bytes::from(format!("{{\"metadata\":{{\"name\":\"{}\"}}}},", "a".repeat(200)).repeat(64));
    let head = Bytes::from_static(
        b"{\"kind\":\"List\",\"apiVersion\":\"v1\",\"metadata\":{\"resourceVersion\":\"1\"},\"items\":[",
    );
    stream_body(
        stream::once(async { Ok(head) }).chain(stream::repeat_with(move || Ok(item.clone()))),
    )
}
