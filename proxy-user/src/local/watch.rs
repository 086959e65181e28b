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
use hublet_wire::meta::{ResourceVersion, TypeMeta, parse_version};
use hublet_wire::watch::{Bookmark, BookmarkPlace, EventType, push_frame};

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
    version: ResourceVersion,
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
                    let encoding = accepts.preferred(|_| true).unwrap_or(Encoding::Json);
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
            let push = |record: Record<'_>| {
                push_frame(&mut out, EventType::Added, record.encoding, record.object());
            };
            match walk.next(push) {
                Ok(Some(())) => {}
                Ok(None) => {
                    if let (true, Some(bookmarks)) = (open.marks_initial_end, &open.bookmarks) {
                        bookmarks.push_frame(&mut out, BookmarkPlace::InitialEventsEnd);
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
            let mut event = Vec::new();
            if let Some(bookmarks) = &open.bookmarks {
                bookmarks.push_frame(&mut event, BookmarkPlace::Later);
            }
            open.next_bookmark += BOOKMARK_EVERY;
            Some((event.into(), Some(open)))
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
            version: ResourceVersion(from.unwrap_or(0).max(collection.version)),
        }
    }

    fn push_frame(&self, out: &mut Vec<u8>, place: BookmarkPlace) {
        let bookmark = Bookmark {
            type_meta: TypeMeta {
                api_version: &self.api_version,
                kind: &self.kind,
            },
            resource_version: self.version,
            place,
        };
        bookmark.push_frame(out, self.encoding);
    }
}
