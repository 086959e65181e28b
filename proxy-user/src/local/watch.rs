//! A WATCH while the cloud is away: stays open, begins with what is stored where the client asks for initial events,
//! sends bookmarks where it asks for them, and ends at its time, when the cloud is back, or at a drain (I5).

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Response, header};
use tokio::time::{Instant, sleep_until};

use super::Local;
use super::authorize::Allowed;
use super::body::LocalBody;
use super::error::LocalError;
use super::list::CompleteCollection;
use super::resume::{Resume, expired};
use crate::cache::record::Record;
use crate::cache::store::ListCursor;
use crate::cloud::health::CloudState;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{INITIAL_EVENTS_END, parse_version};
use hublet_wire::protobuf;

/// How often a client that asked for bookmarks gets one, as the API server does.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// When the cloud is back, watches end within this time, each at its own moment.
const RETURN_SPREAD: Duration = Duration::from_secs(1);
/// Bytes of initial events in one chunk, but for the event that goes over it.
const CHUNK: usize = 16 << 10;

struct Bookmarks {
    encoding: Encoding,
    kind: String,
    api_version: String,
    version: u64,
}

/// The beginning of a watch.
enum Initial {
    /// All that is there.
    All(Box<ListCursor>),
    /// The changes since the client's resourceVersion, as events.
    Changes(Vec<u8>),
}

struct HeldWatch {
    initial: Option<Initial>,
    /// The client waits for the bookmark that ends the initial events.
    marks_initial_end: bool,
    bookmarks: Option<Bookmarks>,
    next_bookmark: Instant,
    end: Instant,
    state: tokio::sync::watch::Receiver<CloudState>,
    draining: tokio_util::sync::CancellationToken,
    spread: Duration,
}

impl Local {
    pub(super) async fn watch(
        &self,
        allowed: Allowed<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let question = *allowed;
        let options = question.request.options();
        let accepts = question.accepts;
        let found = self
            .stored_collection(self.cache.snapshot(&allowed).await?, &question)
            .ok();
        let from = parse_version(question.request.resource_version())
            .filter(|_| !options.send_initial_events);
        let at = found.as_ref().map(|found| found.collection.at);
        // Without a version to resume from, the client expects what is there as events first.
        let (encoding, initial) = match (from, &found) {
            (Some(from), found) => match self.resume(&allowed, found.as_ref(), from)? {
                Resume::Events(encoding, events) => (encoding, Initial::Changes(events)),
                Resume::Expired(what) => {
                    let encoding = accepts.first_of(|_| true).unwrap_or(Encoding::Json);
                    let event = Bytes::from(expired(&what, encoding));
                    return Ok(self.watch_response(encoding, at, LocalBody::whole(event)));
                }
            },
            (None, Some(found)) if found.may_have_lost(question.request)? => {
                return Err(question.not_cached());
            }
            (None, Some(found)) => {
                let encoding = found.encoding(question.request, &accepts)?;
                self.listed.remember(&question, self.cache.now());
                (
                    encoding,
                    Initial::All(Box::new(found.list_cursor(question.request, encoding))),
                )
            }
            (None, None) => return Err(question.not_cached()),
        };
        let bookmarks = found.filter(|_| options.bookmarks || options.send_initial_events);
        let bookmarks = bookmarks.map(|found| Bookmarks::of(&found, encoding, from));
        let open = HeldWatch {
            initial: Some(initial),
            marks_initial_end: options.send_initial_events,
            bookmarks,
            next_bookmark: Instant::now() + BOOKMARK_EVERY,
            end: Instant::now() + self.length(options.timeout_seconds),
            state: self.state.clone(),
            draining: self.draining.clone(),
            spread: RETURN_SPREAD.mul_f64(random()),
        };
        let body = LocalBody::watch(stream::unfold(Some(open), next_chunk));
        Ok(self.watch_response(encoding, at, body))
    }

    /// The head of a watch; `at`: when the cloud last spoke of the collection, where that is known.
    fn watch_response(
        &self,
        encoding: Encoding,
        at: Option<u64>,
        body: LocalBody,
    ) -> Response<LocalBody> {
        let mut response = self.response(encoding.watch_content_type(), at.unwrap_or(0), body);
        if at.is_none() {
            response.headers_mut().remove(header::AGE);
        }
        response
    }

    fn length(&self, asked: Option<u64>) -> Duration {
        match asked {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds.min(86_400)),
            _ => self.min_request_timeout.mul_f64(1.0 + random()),
        }
    }
}

/// A number in 0..1; the spread of reconnects needs no more than the system's own randomness gives.
fn random() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all end at once, which is what there is then.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}

/// The next chunk of a watch held open, or its end.
async fn next_chunk(open: Option<HeldWatch>) -> Option<(Bytes, Option<HeldWatch>)> {
    let mut open = open?;
    let initial = open.initial.take();
    if let Some(Initial::Changes(events)) = initial {
        return if events.is_empty() {
            wait(open).await
        } else {
            Some((events.into(), Some(open)))
        };
    }
    if let Some(Initial::All(mut walk)) = initial {
        let mut out = Vec::with_capacity(CHUNK + (CHUNK >> 2));
        while out.len() < CHUNK {
            match walk.next(|record| push_event(&mut out, "ADDED", record)) {
                Ok(Some(())) => {}
                Ok(None) => {
                    if let (true, Some(bookmarks)) = (open.marks_initial_end, &open.bookmarks) {
                        out.extend_from_slice(&bookmarks.event(true));
                    }
                    return if out.is_empty() {
                        wait(open).await
                    } else {
                        Some((out.into(), Some(open)))
                    };
                }
                // What can't be read can't be sent: the client lists again.
                Err(_) => return None,
            }
        }
        open.initial = Some(Initial::All(walk));
        return Some((out.into(), Some(open)));
    }
    wait(open).await
}

async fn wait(mut open: HeldWatch) -> Option<(Bytes, Option<HeldWatch>)> {
    let back = async {
        let _ = open
            .state
            .wait_for(|state| *state == CloudState::Connected)
            .await;
        tokio::time::sleep(open.spread).await;
    };
    let bookmark = async {
        match &open.bookmarks {
            Some(_) => sleep_until(open.next_bookmark).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = sleep_until(open.end) => None,
        () = open.draining.cancelled() => None,
        () = back => None,
        () = bookmark => {
            let event = open.bookmarks.as_ref().map(|b| b.event(false)).unwrap_or_default();
            open.next_bookmark += BOOKMARK_EVERY;
            Some((event.into(), Some(open)))
        }
    }
}

fn push_event(out: &mut Vec<u8>, kind: &str, record: Record<'_>) {
    push_frame(out, kind, record.encoding, record.object());
}

pub(super) fn push_frame(out: &mut Vec<u8>, kind: &str, encoding: Encoding, object: &[u8]) {
    match encoding {
        Encoding::Json => {
            out.extend_from_slice(format!(r#"{{"type":"{kind}","object":"#).as_bytes());
            out.extend_from_slice(object);
            out.extend_from_slice(b"}\n");
        }
        Encoding::Protobuf => {
            let mut raw = Vec::with_capacity(object.len() + 8);
            protobuf::put_bytes(&mut raw, 1, object);
            let mut event = Vec::with_capacity(raw.len() + 24);
            protobuf::put_bytes(&mut event, 1, kind.as_bytes());
            protobuf::put_bytes(&mut event, 2, &raw);
            out.extend_from_slice(&u32::try_from(event.len()).unwrap_or(u32::MAX).to_be_bytes());
            out.extend_from_slice(&event);
        }
    }
}

impl Bookmarks {
    /// `from`: the version that the client resumed at, which may be beyond what is known here.
    fn of(found: &CompleteCollection, encoding: Encoding, from: Option<u64>) -> Self {
        let collection = &found.collection;
        Self {
            encoding,
            kind: collection
                .kind
                .strip_suffix("List")
                .unwrap_or(&collection.kind)
                .to_owned(),
            api_version: collection.api_version.clone(),
            version: from.unwrap_or(0).max(collection.version),
        }
    }

    fn event(&self, initial_end: bool) -> Vec<u8> {
        let Self {
            encoding,
            kind,
            api_version,
            version,
        } = self;
        let object = match encoding {
            Encoding::Json => {
                let end = if initial_end {
                    format!(r#","annotations":{{"{INITIAL_EVENTS_END}":"true"}}"#)
                } else {
                    String::new()
                };
                let meta = format!(r#""metadata":{{"resourceVersion":"{version}"{end}}}"#);
                format!(r#"{{"kind":"{kind}","apiVersion":"{api_version}",{meta}}}"#).into_bytes()
            }
            Encoding::Protobuf => {
                let mut meta = Vec::new();
                protobuf::put_bytes(&mut meta, 6, version.to_string().as_bytes());
                if initial_end {
                    let mut entry = Vec::new();
                    protobuf::put_bytes(&mut entry, 1, INITIAL_EVENTS_END.as_bytes());
                    protobuf::put_bytes(&mut entry, 2, b"true");
                    protobuf::put_bytes(&mut meta, 12, &entry);
                }
                let mut raw = Vec::new();
                protobuf::put_bytes(&mut raw, 1, &meta);
                protobuf::envelope(api_version, kind, &raw)
            }
        };
        let mut out = Vec::new();
        push_frame(&mut out, "BOOKMARK", *encoding, &object);
        out
    }
}
