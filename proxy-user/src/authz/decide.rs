//! The cloud's status codes, read as what they say of the caller (I7). In: who asked what, and the code. Out: grants
//! learnt or taken back. And the other way round: what a caller may have from the store.
//!
//! A token counts as accepted only by an answer that nobody gets without one: 2xx to anything but what is open to all. By
//! Kubernetes' own defaults that is health, version and the token issuer's keys (`system:public-info-viewer`,
//! `system:service-account-issuer-discovery`), and the namespace `kube-public`; and whatever anonymous callers have been
//! seen to get. A 404 is remembered as this very absence, and as nothing else.

use crate::authz::grants::{Action, Credential, CredentialStatus, Grants, Right};
use crate::cache::Cache;
use crate::cache::keys;
use hublet_wire::request::{ApiRequest, Verb};

/// First segments of paths that anonymous callers may read.
const OPEN: [&str; 6] = [
    "healthz",
    "livez",
    "readyz",
    "version",
    "openid",
    ".well-known",
];

/// The namespace that everybody may read, by convention.
const PUBLIC: &str = "kube-public";

/// One question, as far as rights go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// The caller.
    pub credential: &'a Credential,
    /// The request.
    pub request: &'a ApiRequest,
    /// The key of what is asked for ([`keys::push_scope`]).
    pub scope: &'a [u8],
}

/// The cloud's answer, as far as rights go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answered {
    /// HTTP's status code.
    pub status: u16,
    /// When the question went out, milliseconds since the epoch.
    pub asked_at: u64,
}

/// The part of the store that is open to a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// The object, list or document.
    Read,
    /// The news that it does not exist, if that was the last that the cloud said to this caller.
    AbsenceOnly,
    /// Nothing: the cloud has refused this, or never allowed it to anonymous callers.
    Forbidden,
    /// Nothing: the cloud has refused the credential.
    Unauthorized,
    /// Nothing: the cloud has never accepted the credential.
    UnknownCaller,
    /// Nothing: the cloud has not been seen to allow this.
    Unknown,
}

impl Asked<'_> {
    /// The right to have what is asked for. `None`: the question is such that neither an answer to it tells of a right,
    /// nor is it answered from the store (a write, a subresource).
    fn right(&self) -> Option<Right> {
        let tells = self.request.verb().is_read() && self.request.subresource().is_empty();
        tells.then(|| self.to(self.scope))
    }

    /// The keys whose right holds this one as well: the same in all namespaces, without selectors.
    fn covering_scopes(&self) -> Vec<Vec<u8>> {
        let r = self.request;
        if !matches!(r.verb(), Verb::List | Verb::Watch) {
            return Vec::new();
        }
        let mut covering_rights = Vec::new();
        if r.has_selectors() {
            covering_rights.push(keys::without_selectors(self.scope).to_vec());
        }
        if !r.namespace().is_empty() {
            let mut all = Vec::new();
            keys::push_resource(&mut all, r.group(), r.resource());
            covering_rights.push(all);
        }
        covering_rights
    }

    fn covering_rights(&self) -> Vec<Right> {
        self.covering_scopes()
            .iter()
            .map(|scope| self.to(scope))
            .collect()
    }

    /// The rights that a refusal takes back: who may not list gets the same objects by no watch either.
    fn revoked_rights(&self) -> Vec<Right> {
        let verb = self.request.verb();
        let verbs = if matches!(verb, Verb::List | Verb::Watch) {
            vec![Verb::List, Verb::Watch]
        } else {
            vec![verb]
        };
        let scopes = self.covering_scopes();
        let scopes = scopes.iter().map(Vec::as_slice).chain([self.scope]);
        let of = |scope| {
            verbs
                .iter()
                .map(move |verb| Right::of(self.credential, Action::Read(*verb), scope))
        };
        scopes.flat_map(of).chain(self.absence()).collect()
    }

    /// Caller and collection: the same for its list as for its watch.
    pub(crate) fn listing(&self) -> Vec<u8> {
        crate::authz::grants::row_of(
            self.credential,
            Right::of(self.credential, Action::Read(Verb::List), self.scope),
        )
    }

    fn to(&self, scope: &[u8]) -> Right {
        Right::of(self.credential, Action::Read(self.request.verb()), scope)
    }

    /// The right to be told that the object does not exist.
    fn absence(&self) -> Option<Right> {
        let tells = self.request.verb() == Verb::Get && self.request.subresource().is_empty();
        tells.then(|| Right::of(self.credential, Action::AbsenceOnly, self.scope))
    }

    /// Anonymous callers may have this, as far as is known.
    fn is_open(&self, grants: &Grants, now: u64) -> bool {
        let r = self.request;
        let first = r
            .path()
            .trim_start_matches('/')
            .split('/')
            .next()
            .unwrap_or_default();
        let nobodys = Right::of(&Credential::Anonymous, Action::Read(r.verb()), self.scope);
        OPEN.contains(&first)
            || r.namespace() == PUBLIC
            || (r.resource() == "namespaces" && r.name() == PUBLIC)
            || grants.verdict(&Credential::Anonymous, &nobodys, now, u64::MAX) == Some(true)
    }
}

impl Cache {
    /// Remembers what the cloud's status code says of the caller. A 304 is given to none who may not have the document.
    /// `max_age`: how long it counts, in milliseconds.
    pub(crate) fn judge(&self, asked: &Asked<'_>, answered: Answered, max_age: u64) {
        let Answered { status, asked_at } = answered;
        let (grants, now) = (&self.grants, self.clock.now());
        let credential = asked.credential;
        let _changing = self.changing.lock();
        // Apart: a refusal is told however full the queue is, these are not.
        self.ingest().submit(grants.follow(now));
        let mut changes = Vec::new();
        if let (Credential::Token { token, .. }, 200..=299 | 304) = (credential, status)
            && !grants.has_just_accepted(token, now)
            && !asked.is_open(grants, now)
        {
            changes.append(&mut grants.accepted(token, asked_at, now));
        }
        // An unproven token's claims are nobody's.
        let is_somebody =
            *credential == Credential::Anonymous || grants.knows(credential, now, max_age);
        changes.append(&mut match (status, asked.right(), asked.absence()) {
            (401, ..) => grants.rejected(credential, now),
            (403, Some(_), _) if is_somebody => {
                grants.forbidden(credential, &asked.revoked_rights(), now)
            }
            // A slow answer to an earlier question doesn't take a later refusal back.
            (200..=299 | 304, Some(right), _)
                if is_somebody && !grants.refused_since(credential, &right, asked_at) =>
            {
                grants.allowed(credential, right, now)
            }
            (404, _, Some(absence))
                if grants.knows(credential, now, max_age)
                    && !grants.refused_since(credential, &absence, asked_at) =>
            {
                grants.allowed(credential, absence, now)
            }
            _ => Vec::new(),
        });
        self.ingest().submit(changes);
    }

    /// As [`Cache::judge`], of a request that isn't understood: it tells only that a credential is refused.
    pub(crate) fn observe_credential(&self, credential: &Credential, status: u16) {
        if status == 401 {
            let _changing = self.changing.lock();
            self.ingest()
                .submit(self.grants.rejected(credential, self.clock.now()));
        }
    }

    /// Decides from rights alone, without a look at what the store holds.
    pub(crate) fn decide(&self, asked: &Asked<'_>, max_age: u64) -> Decision {
        let (grants, now) = (&self.grants, self.clock.now());
        self.ingest().submit(grants.follow(now));
        let credential_status = grants.credential_status(asked.credential, now, max_age);
        match credential_status {
            CredentialStatus::Refused => return Decision::Unauthorized,
            CredentialStatus::Unknown => return Decision::UnknownCaller,
            CredentialStatus::Anonymous | CredentialStatus::Accepted => {}
        }
        let Some(right) = asked.right() else {
            return Decision::Unknown;
        };
        let verdict = |right: &Right| grants.verdict(asked.credential, right, now, max_age);
        let exact = verdict(&right);
        if exact == Some(true)
            || asked
                .covering_rights()
                .iter()
                .any(|right| verdict(right) == Some(true))
        {
            return Decision::Read;
        }
        if asked
            .absence()
            .is_some_and(|absence| verdict(&absence) == Some(true))
        {
            return Decision::AbsenceOnly;
        }
        match (credential_status, exact) {
            (CredentialStatus::Anonymous, _) if asked.request.is_resource() => Decision::Forbidden,
            (_, Some(false)) => Decision::Forbidden,
            _ => Decision::Unknown,
        }
    }
}

#[cfg(test)]
#[path = "decide_tests.rs"]
mod tests;
