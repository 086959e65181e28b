//! The record of one request: a guard that lives from its head to the end of its response, and then
//! records it once: in the metrics, in its caller's counters, and in the log.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use http_body::Body;
use hublet_wire::request::Verb;
use tracing::{Level, debug, enabled, warn};

use super::counted::{CountedBody, ReceivedBytes};
use super::requests::{FinishedRequest, Lifetime, RequestMetrics, Source, verb_label};
use super::stream::StreamBytes;
use super::warnings::{Suppressed, WarningKind};
use super::{Caller, Metrics};

/// Written when it is dropped: with the response's body, or with the request if its caller
/// disconnects before there is a response.
#[derive(Debug)]
pub(crate) struct RequestRecord {
    metrics: Arc<RequestMetrics>,
    caller: Option<Arc<Caller>>,
    started: Instant,
    verb: Verb,
    source: Source,
    /// 0 before there is a response.
    status: u16,
    lifetime: Lifetime,
    /// The reason of a refusal, or of an answer from the store instead of the cloud.
    reason: Option<&'static str>,
    warning: Option<Suppressed>,
    /// Present only where a line will be logged.
    description: Option<Box<Description>>,
    /// Bytes of the request's body so far; `None` where it has none.
    body: Option<ReceivedBytes>,
    /// Bytes from the client after the connection left HTTP.
    streamed: u64,
    /// Bytes of the response's body, or of the upgraded connection, to the client.
    sent: u64,
}

/// The part of a log line that costs an allocation. Contains no secrets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// The resource, or the path where it is none.
    pub(crate) resource: String,
    /// The account of the credential, as a digest.
    pub(crate) account: String,
}

impl RequestRecord {
    pub(crate) fn begin(metrics: &Metrics, caller: Option<&Arc<Caller>>) -> Self {
        Self {
            metrics: Arc::clone(metrics.requests()),
            caller: caller.cloned(),
            started: Instant::now(),
            verb: Verb::Other,
            source: Source::Hublet,
            status: 0,
            lifetime: Lifetime::Response,
            reason: None,
            warning: None,
            description: None,
            body: None,
            streamed: 0,
            sent: 0,
        }
    }

    pub(crate) fn set_verb(&mut self, verb: Verb) {
        self.verb = verb;
        if verb == Verb::Watch {
            self.lifetime = Lifetime::Stream;
        }
    }

    /// Marks the request as a stream: its connection leaves HTTP, and the request lasts as long.
    pub(crate) fn mark_upgraded(&mut self) {
        self.lifetime = Lifetime::Stream;
    }

    /// The reason of a refusal or a fallback, one of a fixed set.
    pub(crate) fn set_reason(&mut self, reason: &'static str) {
        self.reason = Some(reason);
    }

    /// Records the response. `describe` is called only if the request will be logged.
    pub(crate) fn respond(
        &mut self,
        source: Source,
        status: u16,
        describe: impl FnOnce() -> Description,
    ) {
        self.source = source;
        self.status = status;
        // A refused watch has no stream.
        if status >= 300 {
            self.lifetime = Lifetime::Response;
        }
        self.warning = self.admit_warning();
        if self.warning.is_some() || enabled!(Level::DEBUG) {
            self.description = Some(Box::new(describe()));
        }
    }

    fn admit_warning(&self) -> Option<Suppressed> {
        let kind = WarningKind::of_status(self.status)?;
        self.caller.as_ref()?.admit_warning(kind)
    }

    /// Counts the bytes of the request's body as they arrive.
    pub(crate) fn count_body<B: Body>(&mut self, body: B) -> CountedBody<B> {
        if !body.is_end_stream() {
            self.body = Some(ReceivedBytes::default());
        }
        CountedBody::new(body, self.body.clone())
    }

    /// Counts the bytes of an upgraded connection, when it has ended.
    pub(crate) fn add_stream(&mut self, client: StreamBytes) {
        self.streamed += client.received;
        self.sent += client.sent;
    }

    fn received(&self) -> u64 {
        let body = self.body.as_ref().map_or(0, |bytes| bytes.load(Relaxed));
        body + self.streamed
    }

    /// Counts bytes of the response's body.
    pub(crate) fn add_sent(&mut self, bytes: usize) {
        self.sent += bytes as u64;
    }

    fn log(&self, duration: Duration) {
        let line = LogLine {
            record: self,
            duration,
        };
        match self.warning {
            Some(suppressed) => warn!("request {line}{suppressed}"),
            None => debug!("request {line}"),
        }
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        self.metrics.observe(&FinishedRequest {
            verb: self.verb,
            source: self.source,
            code: self.status,
            lifetime: self.lifetime,
            duration,
        });
        if let Some(caller) = &self.caller {
            caller.add_request(self.status);
        }
        if self.description.is_some() {
            self.log(duration);
        }
    }
}

struct LogLine<'a> {
    record: &'a RequestRecord,
    duration: Duration,
}

impl fmt::Display for LogLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.record;
        let default = Description::default();
        let description = record.description.as_deref().unwrap_or(&default);
        match &record.caller {
            Some(caller) => write!(f, "caller={caller}")?,
            None => f.write_str("caller=unknown")?,
        }
        write!(
            f,
            " account={} verb={} resource={} source={} code={}",
            description.account,
            verb_label(record.verb),
            description.resource,
            record.source.as_str(),
            record.status,
        )?;
        if let Some(reason) = record.reason {
            write!(f, " reason={reason}")?;
        }
        write!(
            f,
            " duration={:?} received={} sent={}",
            self.duration,
            record.received(),
            record.sent
        )
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body::Frame;
    use http_body_util::{BodyExt, StreamBody};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::super::Port;
    use super::super::registry::encode_metrics;
    use super::*;
    use crate::telemetry::ObservedStream;
    use hublet_wire::meta::Timestamp;

    fn description() -> Description {
        Description {
            resource: "/api/v1/pods".to_owned(),
            account: "sha256:0011".to_owned(),
        }
    }

    fn caller(metrics: &Metrics) -> Arc<Caller> {
        let address = ([10, 0, 0, 1], 40_000).into();
        metrics
            .callers
            .accepted(None, address, Port::Secure, Timestamp::EPOCH)
    }

    #[test]
    fn a_request_is_counted_once_when_its_record_is_dropped() {
        let metrics = Metrics::default();
        let caller = caller(&metrics);
        let mut record = RequestRecord::begin(&metrics, Some(&caller));
        record.set_verb(Verb::List);
        record.respond(Source::Cloud, 200, description);
        assert!(!encode_metrics(&[&metrics]).contains("code="));
        drop(record);
        let line = "hublet_requests_total{verb=\"list\",source=\"cloud\",code=\"200\"} 1\n";
        assert!(encode_metrics(&[&metrics]).contains(line));
        assert_eq!(caller.counts().requests, 1);
    }

    #[test]
    fn a_caller_that_goes_before_the_response_is_counted_without_a_code() {
        let metrics = Metrics::default();
        drop(RequestRecord::begin(&metrics, None));
        let text = encode_metrics(&[&metrics]);
        assert!(
            text.contains("{verb=\"other\",source=\"hublet\",code=\"none\"} 1\n"),
            "{text}"
        );
    }

    #[test]
    fn a_refused_watch_is_no_stream() {
        let metrics = Metrics::default();
        for (status, is_stream) in [(200, true), (403, false)] {
            let mut record = RequestRecord::begin(&metrics, None);
            record.set_verb(Verb::Watch);
            record.respond(Source::Store, status, description);
            assert_eq!(record.lifetime == Lifetime::Stream, is_stream);
        }
    }

    #[test]
    fn only_requests_that_are_logged_are_described() {
        let metrics = Metrics::default();
        let caller = caller(&metrics);
        for (status, is_described) in [(200, false), (403, true), (403, false), (500, true)] {
            let mut record = RequestRecord::begin(&metrics, Some(&caller));
            record.respond(Source::Hublet, status, description);
            assert_eq!(record.description.is_some(), is_described, "{status}");
        }
    }

    #[test]
    fn a_log_line_has_all_fields() {
        let metrics = Metrics::default();
        let caller = caller(&metrics);
        let mut record = RequestRecord::begin(&metrics, Some(&caller));
        record.set_verb(Verb::Create);
        record.add_sent(34);
        record.set_reason("WriteUnavailable");
        record.respond(Source::Hublet, 503, description);
        let duration = Duration::from_millis(5);
        let line = LogLine {
            record: &record,
            duration,
        };
        assert_eq!(
            line.to_string(),
            "caller=10.0.0.1 account=sha256:0011 verb=create resource=/api/v1/pods source=hublet \
             code=503 reason=WriteUnavailable duration=5ms received=0 sent=34"
        );
    }

    /// A chunked upload has no announced length, and a client may announce more than it sends.
    #[tokio::test]
    async fn the_bytes_that_arrive_are_counted_whatever_was_announced() {
        let metrics = Metrics::default();
        let mut record = RequestRecord::begin(&metrics, None);
        let frames = ["four", "seven!!"]
            .map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from_static(text.as_bytes()))));
        let chunked = StreamBody::new(futures_util::stream::iter(frames));
        let mut body = record.count_body(chunked);
        assert_eq!(record.received(), 0);
        body.frame().await.unwrap().unwrap();
        assert_eq!(record.received(), 4);
        body.collect().await.unwrap();
        assert_eq!(record.received(), 11);
    }

    #[tokio::test]
    async fn an_upgraded_connection_adds_its_bytes() {
        let metrics = Metrics::default();
        let mut record = RequestRecord::begin(&metrics, None);
        record.count_body(http_body_util::Empty::<Bytes>::new());
        let (near, mut far) = tokio::io::duplex(64);
        let mut client = ObservedStream::new(near, StreamBytes::default());
        far.write_all(b"stdin").await.unwrap();
        client.read_exact(&mut [0; 5]).await.unwrap();
        client.write_all(b"out").await.unwrap();
        record.add_stream(*client.observer());
        assert_eq!((record.received(), record.sent), (5, 3));
        assert!(record.body.is_none(), "nothing is allocated for no body");
    }
}
