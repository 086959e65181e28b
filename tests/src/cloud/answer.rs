//! Responses with whole or streamed bodies, and the headers that the real API server sends.
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, Stream};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;

use super::status::Failure;

/// The reason for which a body broke off.
pub(crate) type BodyError = std::io::Error;
/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;
pub(crate) type Answer = http::Response<Body>;

/// From here on the real server does not know the length in advance.
const LENGTH_KNOWN: usize = 2048;

pub(crate) const JSON: &str = "application/json";
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";

/// A body of pieces.
pub(crate) fn stream_body(
    pieces: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
) -> Body {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data))).boxed_unsync()
}

/// A body at once; without a Content-Length where the real server would have none.
pub(crate) fn full_body(bytes: Vec<u8>) -> Body {
    let bytes = Bytes::from(bytes);
    if bytes.len() > LENGTH_KNOWN {
        return stream_body(stream::once(async move { Ok(bytes) }));
    }
    Full::new(bytes)
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// An answer of one content type.
pub(crate) fn build_answer(code: u16, content_type: &'static str, body: Body) -> Answer {
    let mut answer = http::Response::new(body);
    *answer.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    if content_type == TEXT {
        set_nosniff(&mut answer);
    }
    answer
}

pub(crate) fn json_answer(code: u16, bytes: Vec<u8>) -> Answer {
    build_answer(code, JSON, full_body(bytes))
}

pub(crate) fn text_answer(code: u16, text: &str) -> Answer {
    build_answer(code, TEXT, full_body(text.as_bytes().to_vec()))
}

pub(crate) fn set_header(answer: &mut Answer, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer
            .headers_mut()
            .insert(HeaderName::from_static(name), value);
    }
}

fn set_nosniff(answer: &mut Answer) {
    set_header(answer, "x-content-type-options", "nosniff");
}

impl From<Failure> for Answer {
    fn from(failure: Failure) -> Answer {
        let mut answer = json_answer(failure.code, failure.to_body());
        match failure.details {
            Some(details) if details.retry_after > 0 => {
                set_header(&mut answer, "retry-after", &details.retry_after.to_string());
            }
            _ if failure.code == 403 => set_nosniff(&mut answer),
            _ => {}
        }
        answer
    }
}
