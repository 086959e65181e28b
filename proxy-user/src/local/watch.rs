//! WATCH while the cloud is unreachable: the initial events or the changes since the client's
//! resourceVersion; then a [`HeldWatch`].

use std::time::Duration;

use http::{Response, header};

use super::body::LocalBody;
use super::collection::CompleteCollection;
use super::error::LocalError;
use super::held_watch::{Bookmarks, HeldWatch, InitialEvents, Schedule};
use super::resume::{Resume, expired_event};
use super::{Local, LocalRequest};
use crate::authz::authorizer::Allowed;
use hublet_wire::media::Encoding;
use hublet_wire::meta::{ResourceVersion, parse_version};

/// When the cloud has returned, all watches end within this time.
const RETURN_SPREAD: Duration = Duration::from_secs(1);

/// Maximum of `timeoutSeconds`.
const MAX_TIMEOUT: Duration = Duration::from_secs(86_400);

/// The beginning of a watch.
struct Beginning {
    encoding: Encoding,
    events: InitialEvents,
}

impl Local {
    pub(super) async fn watch(
        &self,
        allowed: Allowed<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let options = allowed.request().options();
        let snapshot = self.store.snapshot(&allowed).await?;
        let found = match self.find_collection(snapshot, &allowed) {
            Ok(found) => Some(found),
            Err(LocalError::NotCached(_)) => None,
            Err(error) => return Err(error),
        };
        let listed_at = found.as_ref().map(|found| found.collection.at);
        // `sendInitialEvents` asks for the whole collection, whatever the resourceVersion.
        let from = parse_version(allowed.request().resource_version())
            .filter(|_| !options.send_initial_events);
        let beginning = match (from, &found) {
            (Some(from), found) => match self.resume(&allowed, found.as_ref(), from)? {
                Resume::Events { encoding, events } => Beginning {
                    encoding,
                    events: InitialEvents::Changes(events),
                },
                Resume::Expired(message) => {
                    let encoding = allowed.preferred_encoding();
                    let body = LocalBody::whole(expired_event(&message, encoding));
                    return Ok(self.watch_response(encoding, listed_at, body));
                }
            },
            (None, Some(found)) => self.begin_with_all(&allowed, found)?,
            (None, None) => return Err(allowed.not_cached()),
        };

        let bookmarks = found
            .filter(|_| options.bookmarks || options.send_initial_events)
            .map(|found| bookmarks_of(&found, beginning.encoding, from));
        let Schedule { next_bookmark, end } =
            Schedule::starting_now(self.watch_timeout(options.timeout_seconds));
        let watch = HeldWatch {
            initial: beginning.events,
            marks_initial_end: options.send_initial_events,
            bookmarks,
            next_bookmark,
            end,
            connected: self.connected.clone(),
            return_delay: RETURN_SPREAD.mul_f64(random_fraction()),
            draining: self.draining.clone(),
        };
        let body = LocalBody::watch(watch.into_stream());
        Ok(self.watch_response(beginning.encoding, listed_at, body))
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
        Ok(Beginning {
            encoding,
            events: InitialEvents::Collection(Box::new(cursor)),
        })
    }

    /// The age is that of the list which the watch is based on; there may be none.
    fn watch_response(
        &self,
        encoding: Encoding,
        listed_at: Option<u64>,
        body: LocalBody,
    ) -> Response<LocalBody> {
        let content_type = encoding.watch_content_type();
        let mut response = self.response(content_type, listed_at.unwrap_or(0), body);
        if listed_at.is_none() {
            response.headers_mut().remove(header::AGE);
        }
        response
    }

    fn watch_timeout(&self, requested: Option<u64>) -> Duration {
        match requested {
            Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(MAX_TIMEOUT),
            _ => self.min_request_timeout.mul_f64(1.0 + random_fraction()),
        }
    }
}

/// `from` is the version that the client resumes at, which may be newer than the collection's.
fn bookmarks_of(found: &CompleteCollection, encoding: Encoding, from: Option<u64>) -> Bookmarks {
    let collection = &found.collection;
    let kind = &collection.kind;
    Bookmarks {
        encoding,
        kind: kind.strip_suffix("List").unwrap_or(kind).to_owned(),
        api_version: collection.api_version.clone(),
        version: ResourceVersion(from.unwrap_or(0).max(collection.version)),
    }
}

/// A random number in 0..=1, to spread reconnects.
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness all watches get the same number.
    let _ = aws_lc_rs::rand::fill(&mut bytes);
    f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX)
}
