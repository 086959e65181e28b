//! Stage 5b: answers reads from the store while the cloud is away. In: a request, who is asking, the store. Out: the
//! cloud's own bytes with their age, or a [`Refusal`] that says what isn't known (I2) or not allowed (I7).

pub mod document;
pub mod get;
pub mod list;
pub mod negotiate;
mod resume;
pub mod watch;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::account::Flow;
use crate::body::Body;
use crate::cache::Cache;
use crate::cache::grants::{Credential, Identity};
use crate::cache::key;
use crate::cache::store::StoreError;
use crate::cloud::health::CloudState;
use crate::config::LocalConfig;
use crate::request::{ApiRequest, Verb};
use crate::status::Refusal;

/// Header that tells where an answer came from: `cloud` or `store`.
pub const SOURCE: http::HeaderName = http::HeaderName::from_static("x-hublet-source");

/// Answers from the store.
#[derive(Debug)]
pub struct Local {
    cache: Arc<Cache>,
    /// Milliseconds.
    grant_max_age: u64,
    min_request_timeout: Duration,
    state: tokio::sync::watch::Receiver<CloudState>,
    draining: CancellationToken,
    listed: resume::Listed,
}

/// One question to the store.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// What is asked.
    pub request: &'a ApiRequest<'a>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Who asks.
    pub credential: &'a Credential,
    /// The grant's key of exactly this question ([`grant_key`]).
    pub grant: &'a [u8],
    /// Their bytes under way.
    pub flow: &'a Arc<Flow>,
}

/// Identity, verb and scope: what the cloud allows or not.
pub fn grant_key(request: &ApiRequest<'_>, credential: &Credential) -> Vec<u8> {
    let mut out = Vec::with_capacity(160);
    credential.identity().start_key(&mut out, request.verb);
    key::push_scope(&mut out, request);
    if !request.subresource.is_empty() {
        out.push(b'#');
        out.extend_from_slice(request.subresource.as_bytes());
    }
    out
}

impl Question<'_> {
    /// The store's key of what is asked for, without the subresource.
    fn scope(&self) -> &[u8] {
        let end = match self.request.subresource.len() {
            0 => self.grant.len(),
            n => self.grant.len() - n - 1,
        };
        &self.grant[Identity::PREFIX..end]
    }

    fn describe(&self) -> String {
        self.request.describe()
    }

    fn unknown(&self) -> Refusal {
        let what = self.describe();
        Refusal::Unknown(format!("hublet: the cloud is away and {what} is not in this node's store"))
    }
}

impl From<StoreError> for Refusal {
    fn from(error: StoreError) -> Self {
        Self::Store(format!("hublet: {error}"))
    }
}

impl Local {
    /// Over a store; `state` tells watches when the cloud is back.
    pub fn new(
        cache: Arc<Cache>,
        config: &LocalConfig,
        state: tokio::sync::watch::Receiver<CloudState>,
    ) -> Self {
        Self {
            cache,
            grant_max_age: u64::try_from(config.grant_max_age.as_millis()).unwrap_or(u64::MAX),
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
    pub async fn answer(&self, question: Question<'_>) -> Result<Response<Body>, Refusal> {
        // An answer is a copy out of the store, a whole object or document at once.
        if !question.flow.has_room() {
            Box::pin(question.flow.room()).await;
        }
        if !self.cache.grants.knows(question.credential, self.cache.clock.now(), self.grant_max_age) {
            return Err(Refusal::Unauthorized);
        }
        let generation = self.cache.generation();
        let mut answer = self.read(question).await;
        if matches!(answer, Err(Refusal::Store(_))) && self.cache.opened_anew(generation).await {
            answer = self.read(question).await;
        }
        if answer.is_ok() {
            self.cache.asked(question.scope());
        }
        answer
    }

    async fn read(&self, question: Question<'_>) -> Result<Response<Body>, Refusal> {
        match question.request.verb {
            Verb::Get => self.get(question).await,
            Verb::List => Box::pin(self.list(question)).await,
            Verb::Watch => Box::pin(self.watch(question)).await,
            Verb::Document => Box::pin(self.document(question)).await,
            verb => Err(Refusal::WriteWhileAway(away(verb, &question.describe()))),
        }
    }

    /// Ends all watches held open, so that a drain can finish.
    pub fn end_streams(&self) {
        self.draining.cancel();
    }

    /// Cancelled when watches are to end.
    pub fn draining(&self) -> WaitForCancellationFutureOwned {
        self.draining.clone().cancelled_owned()
    }

    /// The cloud has allowed exactly this, or the same verb in a wider scope: all namespaces, no selectors.
    fn allowed(&self, question: &Question<'_>) -> Result<(), Refusal> {
        let now = self.cache.clock.now();
        let allows = |key: &[u8]| self.cache.grants.allows(key, now, self.grant_max_age);
        if allows(question.grant) || self.wider(question).iter().any(|key| allows(key)) {
            return Ok(());
        }
        let r = question.request;
        let what = question.describe();
        Err(Refusal::Forbidden(format!(
            "{what} is forbidden: the cloud is away, and has not been seen to allow this caller to {} it",
            r.verb.as_str()
        )))
    }

    fn wider(&self, question: &Question<'_>) -> Vec<Vec<u8>> {
        let r = question.request;
        if !matches!(r.verb, Verb::List | Verb::Watch) || !r.subresource.is_empty() {
            return Vec::new();
        }
        let mut wider = Vec::new();
        if r.has_selectors() {
            wider.push(key::without_selectors(question.grant).to_vec());
        }
        if !r.namespace.is_empty() {
            let mut all = question.grant[..Identity::PREFIX].to_vec();
            key::push_resource(&mut all, &r.group, &r.resource);
            wider.push(all);
        }
        wider
    }

    /// The head of an answer from the store: what the API server says, and how old it is in seconds.
    fn response(&self, content_type: &'static str, at: u64, body: Body) -> Response<Body> {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        self.age(headers, at);
        response
    }

    fn age(&self, headers: &mut HeaderMap, at: u64) {
        headers.insert(SOURCE, HeaderValue::from_static("store"));
        headers.insert(header::AGE, HeaderValue::from(self.cache.clock.now().saturating_sub(at) / 1000));
    }
}

/// What a write is told.
pub fn away(verb: Verb, what: &str) -> String {
    format!("hublet: the cloud is away; this node can't {} {what} now", verb.as_str())
}
