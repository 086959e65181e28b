//! Answers reads from the store while the cloud is away: the bytes that the cloud sent, with
//! their age, or a [`LocalError`] for what is not known (I2) or not allowed (I7).

pub(crate) mod body;
mod collection;
pub(crate) mod error;
mod get;
mod held_watch;
mod list;
mod nonresource;
mod resume;
mod stored_list;
#[cfg(test)]
mod tests;
mod variant;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::authz::attributes::Attributes;
use crate::authz::authorizer::{Allowed, Authorizer, Permission};
use crate::authz::reader::StoreReader;
use crate::budget::Flow;
use crate::cache::keys;
use crate::cache::store::Snapshot;
use crate::config::LocalConfig;
use body::LocalBody;
use error::LocalError;
use hublet_wire::media::{Accepts, Encoding};
use hublet_wire::meta::Timestamp;
use hublet_wire::request::{ApiRequest, Verb};

/// The header with an answer's origin: `cloud`, `store`, or `hublet` for its own errors.
pub(crate) const SOURCE: http::HeaderName = http::HeaderName::from_static("x-hublet-source");

/// Longest wait of a read whose client leaves too much of other responses unread.
const ROOM_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Local {
    authorizer: Arc<Authorizer>,
    store: StoreReader,
    min_request_timeout: Duration,
    /// True while the cloud is connected.
    connected: tokio::sync::watch::Receiver<bool>,
    draining: CancellationToken,
    listed: resume::ListTimes,
}

/// A request for an answer from the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalRequest<'a> {
    pub attributes: Attributes<'a>,
    pub headers: &'a HeaderMap,
    /// The parsed `Accept` header.
    pub accepts: Accepts,
    /// The client's bytes in flight.
    pub flow: &'a Arc<Flow>,
}

/// The store's key of the objects that a request names.
pub(crate) fn encode_scope(request: &ApiRequest) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    keys::push_scope(&mut out, request);
    out
}

impl<'a> LocalRequest<'a> {
    fn request(&self) -> &'a ApiRequest {
        self.attributes.request
    }

    /// The store's key of the requested objects.
    fn scope(&self) -> &'a [u8] {
        self.attributes.key
    }

    fn describe(&self) -> String {
        self.request().describe()
    }

    /// The encoding of an answer without stored objects.
    fn preferred_encoding(&self) -> Encoding {
        self.accepts.preferred(|_| true).unwrap_or(Encoding::Json)
    }

    fn not_cached(&self) -> LocalError {
        LocalError::NotCached(self.describe())
    }
}

impl<'a> AsRef<Attributes<'a>> for LocalRequest<'a> {
    fn as_ref(&self) -> &Attributes<'a> {
        &self.attributes
    }
}

impl Local {
    /// `connected` ends held watches when it becomes true.
    pub(crate) fn new(
        authorizer: Arc<Authorizer>,
        store: StoreReader,
        config: &LocalConfig,
        connected: tokio::sync::watch::Receiver<bool>,
    ) -> Self {
        Self {
            authorizer,
            store,
            min_request_timeout: config.min_request_timeout,
            connected,
            draining: CancellationToken::new(),
            listed: resume::ListTimes::default(),
        }
    }

    /// Answers a read.
    pub(crate) async fn answer(
        &self,
        request: LocalRequest<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let permission = self.authorizer.authorize(request)?;
        let generation = self.store.generation();
        let mut answer = self.read(&permission).await;
        if matches!(answer, Err(LocalError::NoRoom)) {
            answer = Box::pin(self.read_once_there_is_room(&permission, request.flow)).await;
        }
        // After an error of the disk the store is reopened: one more attempt.
        if matches!(answer, Err(LocalError::Store(_)))
            && Box::pin(self.store.wait_until_reopened(generation)).await
        {
            answer = Box::pin(self.read(&permission)).await;
        }
        if answer.is_ok() {
            self.store.note_use(request.scope());
        }
        answer
    }

    async fn read(
        &self,
        permission: &Permission<LocalRequest<'_>>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let allowed = match permission {
            Permission::Read(allowed) => *allowed,
            Permission::AbsenceOnly(absence) => {
                return Box::pin(self.get_absence(absence)).await;
            }
        };
        match allowed.request().verb() {
            Verb::Get => self.get(allowed).await,
            Verb::List => Box::pin(self.list(allowed)).await,
            Verb::Watch => Box::pin(self.watch(allowed)).await,
            Verb::NonResource => Box::pin(self.nonresource(allowed)).await,
            // Writes are never routed to the store.
            _ => Err(allowed.not_cached()),
        }
    }

    /// Reads whenever the client has room for an answer, until one is made.
    async fn read_once_there_is_room(
        &self,
        permission: &Permission<LocalRequest<'_>>,
        flow: &Arc<Flow>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let read = async {
            loop {
                flow.wait_for_capacity().await;
                match self.read(permission).await {
                    Err(LocalError::NoRoom) => {}
                    answer => return answer,
                }
            }
        };
        timeout(ROOM_TIMEOUT, read)
            .await
            .unwrap_or(Err(LocalError::NoRoom))
    }

    /// A snapshot to copy an answer from at once, a whole object or document. Only here is it known
    /// whether the client has room: answers that waited together for the writer would each find the
    /// room that is there for one.
    ///
    /// # Errors
    /// The client has no room; or redb's.
    async fn snapshot(&self, allowed: &Allowed<LocalRequest<'_>>) -> Result<Snapshot, LocalError> {
        let snapshot = self.store.snapshot(allowed).await?;
        if allowed.flow.has_capacity() {
            Ok(snapshot)
        } else {
            Err(LocalError::NoRoom)
        }
    }

    /// Ends all held watches, so that a drain can finish.
    pub(crate) fn end_streams(&self) {
        self.draining.cancel();
    }

    /// Completes when watches must end.
    pub(crate) fn draining(&self) -> WaitForCancellationFutureOwned {
        self.draining.clone().cancelled_owned()
    }

    /// A response with the API server's headers and an age; `at` is the time when the cloud sent it.
    fn response(
        &self,
        content_type: &'static str,
        at: Timestamp,
        body: LocalBody,
    ) -> Response<LocalBody> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        self.insert_origin(headers, at);
        response
    }

    fn insert_origin(&self, headers: &mut HeaderMap, at: Timestamp) {
        let age = at.age_at(self.store.now());
        headers.insert(SOURCE, HeaderValue::from_static("store"));
        headers.insert(header::AGE, HeaderValue::from(age.as_secs()));
    }
}
