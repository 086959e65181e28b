//! What callers send: on its way to the cloud as it comes, or whole where hublet has to read it; taken in and forgotten
//! where nobody wants it. In: the body of a request. Out: [`Upload`] for `cloud`.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::{Body, Incoming};

pub(crate) use crate::cloud::upload::MAX_BUFFERED;
use crate::cloud::upload::{TrackedBody, Upload};
use crate::proxy::error::Refusal;
use hublet_wire::protobuf;

/// Longest body of a DELETE, in bytes: options, a few hundred at the most.
const MAX_OPTIONS: usize = 64 << 10;
/// Longest time for it to come.
const OPTIONS: Duration = Duration::from_secs(5);
/// Most bytes of a refused write that are taken in before it is refused, and how long that may take.
const MAX_UNWANTED: usize = 4 << 20;
const UNWANTED: Duration = Duration::from_secs(1);

/// Bytes of this upload that may have to be held at once.
pub(crate) fn most_held(body: &Incoming) -> usize {
    let most = u64::from(MAX_BUFFERED);
    let left = body.size_hint().upper().map_or(most, |left| left.min(most));
    usize::try_from(left).unwrap_or(usize::MAX)
}

/// The body as it is to be sent, if there is one: as it streams, but a DELETE's options whole, since they may say
/// `dryRun`, which is the second half of the answer.
///
/// # Errors
/// The options are too long, too slow, or break off.
pub(crate) async fn take(
    method: &Method,
    body: Incoming,
) -> Result<(Option<Upload>, bool), Refusal> {
    if body.is_end_stream() {
        return Ok((None, false));
    }
    if method != Method::DELETE {
        return Ok((Some(Either::Left(TrackedBody::new(body))), false));
    }
    let options = options(body).await?;
    let dry_run = may_be_dry_run(&options);
    Ok((Some(Either::Right(Full::new(options))), dry_run))
}

/// A DELETE's options, whole.
async fn options<B>(body: B) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let refused = |why: String| Refusal::BadRequest(format!("hublet: a DELETE's options: {why}"));
    let whole = tokio::time::timeout(OPTIONS, Limited::new(body, MAX_OPTIONS).collect()).await;
    let whole = whole.map_err(|_| {
        refused(format!(
            "not all of them came within {} s",
            OPTIONS.as_secs()
        ))
    })?;
    Ok(whole
        .map_err(|error| refused(error.to_string()))?
        .to_bytes())
}

/// `DeleteOptions` that say `dryRun`, or may say it with an escape (`dry\u0052un` in JSON).
fn may_be_dry_run(options: &[u8]) -> bool {
    let text = memchr::memchr(b'\\', options).is_some()
        || memchr::memmem::find(options, b"dryRun").is_some();
    text || is_dry_run_protobuf(options)
}

/// `DeleteOptions` in protobuf with `dryRun` (field 5).
fn is_dry_run_protobuf(options: &[u8]) -> bool {
    let Ok(unknown) = protobuf::Unknown::parse(options) else {
        return false;
    };
    protobuf::Fields::new(unknown.raw)
        .flatten()
        .any(|(field, _)| field == 5)
}

/// Takes in the body of a read, which has none as a rule, and which nobody looks at. One that doesn't come would hide that
/// the caller has gone: behind it hyper reads no more. False where it is too long, too slow, or breaks off.
pub(crate) async fn of_a_read(body: &mut Incoming) -> bool {
    body.is_end_stream() || Box::pin(swallow(body)).await
}

/// The refusal for a read whose body did not end.
pub(crate) fn no_end_of_a_read() -> Refusal {
    Refusal::BadRequest(format!(
        "hublet: the body of a read did not come within {} s",
        UNWANTED.as_secs()
    ))
}

/// Takes in a body that nobody wants, and says whether it came whole. An answer before its end would reset the HTTP/2
/// stream, which curl and others take for a failure of the connection, and never read the answer.
pub(crate) async fn swallow(body: &mut Incoming) -> bool {
    let mut taken = 0;
    let rest = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            taken += frame.data_ref().map_or(0, Bytes::len);
            if taken > MAX_UNWANTED {
                return false;
            }
        }
        true
    };
    tokio::time::timeout(UNWANTED, rest).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DELETE whose options never came waited for ever, and held its place among the requests.
    #[tokio::test(start_paused = true)]
    async fn options_that_do_not_come_are_not_waited_for() {
        let silent =
            futures_util::stream::pending::<Result<hyper::body::Frame<Bytes>, std::io::Error>>();
        let read = options(http_body_util::StreamBody::new(silent));
        let refused = tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .expect("an end");
        assert!(matches!(refused, Err(Refusal::BadRequest(why)) if why.contains("within")));
    }

    /// An escaped `dryRun` was taken for a real DELETE, and the object was "not found" offline.
    #[test]
    fn an_escape_in_the_options_of_a_delete_may_hide_a_dry_run() {
        assert!(may_be_dry_run(
            br#"{"kind":"DeleteOptions","apiVersion":"v1","dryRun":["All"]}"#
        ));
        assert!(may_be_dry_run(
            br#"{"kind":"DeleteOptions","apiVersion":"v1","dry\u0052un":["All"]}"#
        ));
        assert!(!may_be_dry_run(
            br#"{"kind":"DeleteOptions","apiVersion":"v1","gracePeriodSeconds":0}"#
        ));
    }
}
