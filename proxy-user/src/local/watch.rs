//! WATCH while the cloud is away: the initial events or the changes since the client's
//! resourceVersion; then a [`HeldWatch`].

use std::time::Duration;

use http::{Response, header};

use super::body::LocalBody;
use super::collection::CompleteCollection;
use super::error::LocalError;
use super::held_watch::{Bookmarks, HeldWatch, InitialEvents, Schedule};
use super::resume::{Beginning, expired_event};
use super::{Local, LocalRequest};
use crate::authz::authorizer::Allowed;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, Timestamp};
use hublet_wire::request::{ApiRequest, Options};

/// All watches end within this time after the cloud's return.
const RETURN_SPREAD: Duration = Duration::from_secs(1);

/// Longest watch that a client's `timeoutSeconds` obtains.
pub(super) const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

impl Local {
    pub(super) async fn watch(
        &self,
        allowed: Allowed<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let snapshot = self.snapshot(&allowed).await?;
        let found = match self.find_collection(snapshot, &allowed) {
            Err(LocalError::NotCached(_)) => None,
            found => Some(found?),
        };
        let from = resume_version(allowed.request());
        let beginning = match (from, &found) {
            (Some(from), found) => self.resume(&allowed, found.as_ref(), from).await?,
            (None, Some(found)) => self.begin_with_all(&allowed, found)?,
            (None, None) => return Err(allowed.not_cached()),
        };
        let listed_at = found.as_ref().map(CompleteCollection::listed_at);
        let (encoding, body) = match beginning {
            Beginning::Events { encoding, events } => {
                let options = allowed.request().options();
                let bookmarks = found
                    .filter(|_| wants_bookmarks(options))
                    .map(|found| bookmarks_of(&found, encoding, from));
                let watch = self.held_watch(options, events, bookmarks);
                (encoding, LocalBody::watch(watch.into_stream()))
            }
            Beginning::Expired(message) => {
                let encoding = allowed.preferred_encoding();
                let event = expired_event(&message, encoding);
                (encoding, LocalBody::whole(event))
            }
        };
        Ok(self.watch_response(encoding, listed_at, body))
    }

    fn begin_with_all(
        &self,
        allowed: &Allowed<LocalRequest<'_>>,
        found: &CompleteCollection,
    ) -> Result<Beginning, LocalError> {
        if found.may_have_lost_members(allowed.request())? {
            return Err(allowed.not_cached());
        }
        let encoding = found.encoding(allowed.request(), &allowed.accepts)?;
        self.listed.remember(allowed, self.store.now());
        let cursor = found.list_cursor(allowed.request(), encoding);
        Ok(Beginning::Events {
            encoding,
            events: InitialEvents::Collection(Box::new(cursor)),
        })
    }

    fn held_watch(
        &self,
        options: &Options,
        events: InitialEvents,
        bookmarks: Option<Bookmarks>,
    ) -> HeldWatch {
        let timeout = self.watch_timeout(options.timeout_seconds);
        let Schedule { next_bookmark, end } = Schedule::starting_now(timeout);
        HeldWatch {
            initial: events,
            marks_initial_end: options.send_initial_events,
            bookmarks,
            next_bookmark,
            end,
            connected: self.connected.clone(),
            return_delay: RETURN_SPREAD.mul_f64(random_fraction()),
            draining: self.draining.clone(),
        }
    }

    /// The age is that of the list which the watch is based on; there may be none.
    fn watch_response(
        &self,
        encoding: Encoding,
        listed_at: Option<Timestamp>,
        body: LocalBody,
    ) -> Response<LocalBody> {
        let content_type = encoding.watch_content_type();
        let mut response = self.response(content_type, listed_at.unwrap_or_default(), body);
        if listed_at.is_none() {
            response.headers_mut().remove(header::AGE);
        }
        response
    }

    pub(super) fn watch_timeout(&self, requested: Option<u64>) -> Duration {
        match requested {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(MAX_TIMEOUT),
            _ => self.min_request_timeout.mul_f64(1.0 + random_fraction()),
        }
    }
}

/// The version that a watch resumes at. `sendInitialEvents` asks for the whole collection, whatever the resourceVersion.
fn resume_version(request: &ApiRequest) -> Option<ResourceVersion> {
    ResourceVersion::parse(request.resource_version())
        .filter(|_| !request.options().send_initial_events)
}

/// `sendInitialEvents` needs one at their end.
fn wants_bookmarks(options: &Options) -> bool {
    options.bookmarks || options.send_initial_events
}

/// `from` is the version that the client resumes at, which may be newer than the collection's.
fn bookmarks_of(
    found: &CompleteCollection,
    encoding: Encoding,
    from: Option<ResourceVersion>,
) -> Bookmarks {
    let collection = &found.collection;
    let kind = &collection.kind;
    Bookmarks {
        encoding,
        kind: kind.strip_suffix("List").unwrap_or(kind).to_owned(),
        api_version: collection.api_version.clone(),
        version: from.unwrap_or_default().max(collection.version),
    }
}

/// A random number in 0..=1, to spread reconnects.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all watches get the same number.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
