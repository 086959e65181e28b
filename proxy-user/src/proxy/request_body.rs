//! Request bodies: streamed to the cloud, buffered where hublet must read them (a DELETE's options), drained where the
//! request is refused or needs none.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Either, Full, Limited};
use hublet_wire::protobuf;
use hyper::body::{Body, Incoming};

use super::error::ProxyError;
use crate::cloud::upload::{TrackedBody, Upload};
use crate::telemetry::CountedBody;

/// Longest body of a DELETE in bytes. `DeleteOptions` have a few hundred at most.
const MAX_DELETE_OPTIONS: usize = 64 << 10;
/// `DeleteOptions.dryRun` in protobuf.
const DRY_RUN_FIELD: u64 = 5;
const DELETE_OPTIONS_TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a body that are drained.
const MAX_DRAINED: usize = 4 << 20;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// The possibility that a DELETE is a dry run, whose response reads like a real one's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DryRun {
    No,
    Perhaps,
}

/// The body to send, if there is one. It streams, except for a DELETE's options.
///
/// # Errors
/// The options are too long, too slow, or break off.
pub(crate) async fn for_cloud(
    method: &Method,
    body: CountedBody<Incoming>,
) -> Result<(Option<Upload>, DryRun), ProxyError> {
    if body.is_end_stream() {
        return Ok((None, DryRun::No));
    }
    if method != Method::DELETE {
        return Ok((Some(Either::Left(TrackedBody::new(body))), DryRun::No));
    }
    let options = read_delete_options(body).await?;
    let dry_run = DryRun::of(&options);
    Ok((Some(Either::Right(Full::new(options))), dry_run))
}

async fn read_delete_options<B>(body: B) -> Result<Bytes, ProxyError>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let read = Limited::new(body, MAX_DELETE_OPTIONS).collect();
    match tokio::time::timeout(DELETE_OPTIONS_TIMEOUT, read).await {
        Ok(Ok(options)) => Ok(options.to_bytes()),
        Ok(Err(error)) => Err(bad_delete_options(&error.to_string())),
        Err(_) => Err(bad_delete_options(&format!(
            "they did not arrive within {} s",
            DELETE_OPTIONS_TIMEOUT.as_secs()
        ))),
    }
}

fn bad_delete_options(problem: &str) -> ProxyError {
    ProxyError::bad_request(format!(
        "hublet: the options of this DELETE can't be read: {problem}"
    ))
}

impl DryRun {
    fn of(options: &[u8]) -> Self {
        if is_json_dry_run(options) || is_protobuf_dry_run(options) {
            Self::Perhaps
        } else {
            Self::No
        }
    }
}

/// An escape may hide the name (`dry\u0052un`), so any escape counts as a dry run.
fn is_json_dry_run(options: &[u8]) -> bool {
    memchr::memchr(b'\\', options).is_some() || memchr::memmem::find(options, b"dryRun").is_some()
}

fn is_protobuf_dry_run(options: &[u8]) -> bool {
    protobuf::Unknown::parse(options).is_ok_and(|unknown| {
        protobuf::Fields::new(unknown.raw)
            .flatten()
            .any(|(field, _)| field == DRY_RUN_FIELD)
    })
}

/// Drains the body of a read, which normally has none. Until a body has ended, hyper reads nothing else, and so does not
/// notice that its client has left.
///
/// # Errors
/// The body is too long, too slow, or breaks off.
pub(crate) async fn drain_read<B>(body: &mut B) -> Result<(), ProxyError>
where
    B: Body<Data = Bytes> + Unpin,
{
    if body.is_end_stream() || Box::pin(drain(body)).await == Drained::Whole {
        return Ok(());
    }
    Err(ProxyError::bad_request(format!(
        "hublet: the body of this read is too long, or did not arrive within {} s",
        DRAIN_TIMEOUT.as_secs()
    )))
}

/// The part of a body that was drained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    Whole,
    Part,
}

/// Drains a body that is not needed. Responding before its end would reset the HTTP/2 stream, and curl reports that as a
/// failure of the connection.
pub(crate) async fn drain<B>(body: &mut B) -> Drained
where
    B: Body<Data = Bytes> + Unpin,
{
    tokio::time::timeout(DRAIN_TIMEOUT, drain_frames(body))
        .await
        .unwrap_or(Drained::Part)
}

async fn drain_frames<B>(body: &mut B) -> Drained
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else {
            return Drained::Part;
        };
        bytes += frame.data_ref().map_or(0, Bytes::len);
        if bytes > MAX_DRAINED {
            return Drained::Part;
        }
    }
    Drained::Whole
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt, stream};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use tokio::time::Instant;

    use super::*;

    type Chunk = Result<Frame<Bytes>, std::io::Error>;

    fn chunk(bytes: impl Into<Bytes>) -> Chunk {
        Ok(Frame::data(bytes.into()))
    }

    /// A body of these chunks, which never ends.
    fn endless(chunks: Vec<Chunk>) -> impl Body<Data = Bytes, Error = std::io::Error> + Unpin {
        StreamBody::new(stream::iter(chunks).chain(stream::pending()))
    }

    /// A DELETE whose options never came waited for ever, and held its place among the requests.
    #[tokio::test(start_paused = true)]
    async fn options_that_do_not_come_are_not_waited_for() {
        let began = Instant::now();
        let refused = read_delete_options(endless(vec![chunk("{")])).await;
        assert_eq!(began.elapsed(), DELETE_OPTIONS_TIMEOUT);
        assert!(refused.unwrap_err().to_string().contains("within 5 s"));
    }

    #[tokio::test]
    async fn options_are_read_whole_up_to_a_length() {
        let options = Full::new(Bytes::from(vec![b' '; MAX_DELETE_OPTIONS]));
        let read = read_delete_options(options).await.unwrap();
        assert_eq!(read.len(), MAX_DELETE_OPTIONS);
        let too_long = Full::new(Bytes::from(vec![b' '; MAX_DELETE_OPTIONS + 1]));
        assert!(read_delete_options(too_long).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_drained_for_a_second_and_to_a_length() {
        let megabyte = || chunk(vec![0; 1 << 20]);
        let mut ends = StreamBody::new(stream::iter([megabyte(), megabyte()]));
        assert_eq!(drain(&mut ends).await, Drained::Whole);
        let failure = Err(std::io::Error::other("gone"));
        let mut breaks = StreamBody::new(stream::iter([megabyte(), failure]));
        assert_eq!(drain(&mut breaks).await, Drained::Part);
        let began = Instant::now();
        let mut too_long = endless((0..5).map(|_| megabyte()).collect());
        assert_eq!(drain(&mut too_long).await, Drained::Part);
        assert_eq!(began.elapsed(), Duration::ZERO);
        let mut silent = endless(vec![megabyte()]);
        assert_eq!(drain(&mut silent).await, Drained::Part);
        assert_eq!(began.elapsed(), DRAIN_TIMEOUT);
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_whose_body_does_not_end_is_refused() {
        let mut body = Full::new(Bytes::from_static(b"{}"));
        assert!(drain_read(&mut body).await.is_ok());
        let refused = drain_read(&mut endless(vec![chunk("{}")])).await;
        assert!(refused.unwrap_err().to_string().contains("within 1 s"));
    }

    /// An escaped `dryRun` was taken for a real DELETE, and the object was "not found" offline.
    #[test]
    fn an_escape_in_the_options_of_a_delete_may_hide_a_dry_run() {
        for (options, expected) in [
            (
                r#"{"kind":"DeleteOptions","dryRun":["All"]}"#,
                DryRun::Perhaps,
            ),
            (
                r#"{"kind":"DeleteOptions","dry\u0052un":["All"]}"#,
                DryRun::Perhaps,
            ),
            (
                r#"{"kind":"DeleteOptions","gracePeriodSeconds":0}"#,
                DryRun::No,
            ),
        ] {
            assert_eq!(DryRun::of(options.as_bytes()), expected, "{options}");
        }
    }
}
