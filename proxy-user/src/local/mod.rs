//! Stage 5b: answers reads from the store while the cloud is away. In: a request, who is asking, the store. Out: the
//! cloud's own bytes with their age, or a [`LocalError`] that says what isn't known (I2) or not allowed (I7).

pub(crate) mod authorize;
pub(crate) mod body;
pub(crate) mod error;
pub(crate) mod get;
pub(crate) mod list;
pub(crate) mod nonresource;
mod resume;
pub(crate) mod watch;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::authz::decide::{Answered, Asked};
use crate::authz::grants::Credential;
use crate::budget::Flow;
use crate::cache::Cache;
use crate::cache::keys;
use crate::cloud::health::CloudState;
use crate::config::LocalConfig;
use authorize::{Guarded, Permission};
use body::LocalBody;
use error::LocalError;
use hublet_wire::media::Accepts;
use hublet_wire::request::{ApiRequest, Verb};

/// Header that tells where an answer came from: `cloud`, `store`, or `hublet` for a refusal of its own.
pub(crate) const SOURCE: http::HeaderName = http::HeaderName::from_static("x-hublet-source");

/// Answers from the store.
#[derive(Debug)]
pub(crate) struct Local {
    cache: Guarded,
    min_request_timeout: Duration,
    state: tokio::sync::watch::Receiver<CloudState>,
    draining: CancellationToken,
    listed: resume::Listed,
}

/// One question to the store.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalRequest<'a> {
    /// What is asked.
    pub request: &'a ApiRequest,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its `Accept` header.
    pub accepts: Accepts,
    /// Who asks.
    pub credential: &'a Credential,
    /// The store's key of what is asked for ([`encode_scope`]); a subresource has its object's.
    pub scope: &'a [u8],
    /// Their bytes under way.
    pub flow: &'a Arc<Flow>,
}

/// The store's key of what a request asks for.
pub(crate) fn encode_scope(request: &ApiRequest) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    keys::push_scope(&mut out, request);
    out
}

impl<'a> LocalRequest<'a> {
    fn scope(&self) -> &'a [u8] {
        self.scope
    }

    /// The question, as far as rights go.
    pub(crate) fn asked(&self) -> Asked<'a> {
        Asked {
            credential: self.credential,
            request: self.request,
            scope: self.scope,
        }
    }

    fn describe(&self) -> String {
        self.request.describe()
    }

    fn not_cached(&self) -> LocalError {
        LocalError::NotCached(self.describe())
    }
}

impl Local {
    /// Over a store; `state` tells watches when the cloud is back.
    pub(crate) fn new(
        cache: Arc<Cache>,
        config: &LocalConfig,
        state: tokio::sync::watch::Receiver<CloudState>,
    ) -> Self {
        let grant_max_age = u64::try_from(config.grant_max_age.as_millis()).unwrap_or(u64::MAX);
        Self {
            cache: Guarded::new(cache, grant_max_age),
            min_request_timeout: config.min_request_timeout,
            state,
            draining: CancellationToken::new(),
            listed: resume::Listed::default(),
        }
    }

    /// Answers a read.
    ///
    /// # Errors
    /// What isn't known, not allowed, or not to be had in an encoding that the caller takes.
    pub(crate) async fn answer(
        &self,
        question: LocalRequest<'_>,
    ) -> Result<Response<LocalBody>, LocalError> {
        let permission = self.cache.authorize(question)?;
        // An answer is a copy out of the store, a whole object or document at once.
        if !question.flow.has_room() {
            Box::pin(question.flow.room()).await;
        }
        let generation = self.cache.generation();
        let mut answer = self.read(&permission).await;
        if matches!(answer, Err(LocalError::Store(_))) {
            answer = Box::pin(self.read_again(&permission, generation, answer)).await;
        }
        if answer.is_ok() {
            self.cache.asked(question.scope());
        }
        answer
    }

    /// A read has failed: the same once more where the store has been opened anew since.
    async fn read_again(
        &self,
        permission: &Permission<'_>,
        generation: u64,
        failed: Result<Response<LocalBody>, LocalError>,
    ) -> Result<Response<LocalBody>, LocalError> {
        if self.cache.opened_anew(generation).await {
            self.read(permission).await
        } else {
            failed
        }
    }

    async fn read(&self, permission: &Permission<'_>) -> Result<Response<LocalBody>, LocalError> {
        let allowed = match permission {
            Permission::Read(allowed) => *allowed,
            Permission::AbsenceOnly(absence) => return Box::pin(self.absence(absence)).await,
        };
        match allowed.request.verb() {
            Verb::Get => self.get(allowed).await,
            Verb::List => Box::pin(self.list(allowed)).await,
            Verb::Watch => Box::pin(self.watch(allowed)).await,
            Verb::NonResource => Box::pin(self.nonresource(allowed)).await,
            // The route never sends a write here.
            _ => Err(allowed.not_cached()),
        }
    }

    /// Remembers what the cloud's status code says of the caller.
    pub(crate) fn judge(&self, question: &LocalRequest<'_>, answered: Answered) {
        self.cache.judge(question, answered);
    }

    /// Ends all watches held open, so that a drain can finish.
    pub(crate) fn end_streams(&self) {
        self.draining.cancel();
    }

    /// Cancelled when watches are to end.
    pub(crate) fn draining(&self) -> WaitForCancellationFutureOwned {
        self.draining.clone().cancelled_owned()
    }

    /// The head of an answer from the store: what the API server says, and how old it is in seconds.
    fn response(
        &self,
        content_type: &'static str,
        at: u64,
        body: LocalBody,
    ) -> Response<LocalBody> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("no-cache, private"),
        );
        self.age(headers, at);
        response
    }

    fn age(&self, headers: &mut HeaderMap, at: u64) {
        headers.insert(SOURCE, HeaderValue::from_static("store"));
        headers.insert(
            header::AGE,
            HeaderValue::from(self.cache.now().saturating_sub(at) / 1000),
        );
    }
}
