//! The attributes of a request that decide whether it is allowed, and the rights that they amount to.

use super::grants::{Action, Right};
use super::identity::Credential;
use crate::cache::grant_rows::GrantKey;
use crate::cache::keys;
use hublet_wire::request::{ApiRequest, Verb};

/// First segments of the paths that anonymous callers may read by Kubernetes' own defaults: health, version and the token
/// issuer's keys (`system:public-info-viewer`, `system:service-account-issuer-discovery`).
const PUBLIC_PATHS: [&str; 6] = [
    "healthz",
    "livez",
    "readyz",
    "version",
    "openid",
    ".well-known",
];

/// The namespace that everybody may read, by convention.
const PUBLIC_NAMESPACE: &str = "kube-public";

/// The caller, verb and target of a request (`authorizer.Attributes` of the API server).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a> {
    pub credential: &'a Credential,
    pub request: &'a ApiRequest,
    /// The store's key of the target ([`keys::push_scope`]); a subresource has its object's.
    pub key: &'a [u8],
}

impl Attributes<'_> {
    /// The right to read the target. `None` for a write or a subresource: its response proves no right, and it is never
    /// answered from the store.
    pub(super) fn right(&self) -> Option<Right> {
        let is_stored_read = self.request.verb().is_read() && self.request.subresource().is_empty();
        is_stored_read.then(|| self.right_within(self.key))
    }

    /// The right to get a 404 for the object, if it does not exist.
    pub(super) fn absence_right(&self) -> Option<Right> {
        let is_get = self.request.verb() == Verb::Get && self.request.subresource().is_empty();
        is_get.then(|| Right::of(self.credential, Action::AbsenceOnly, self.key))
    }

    /// The rights that include this one: to the same verb without selectors, and in all namespaces.
    pub(super) fn covering_rights(&self) -> Vec<Right> {
        let scopes = self.covering_scopes();
        scopes.iter().map(|key| self.right_within(key)).collect()
    }

    /// The rights that a 403 revokes: those to the target and to every scope that includes it. A caller who may not list may
    /// not watch the same objects either.
    pub(super) fn revoked_rights(&self) -> Vec<Right> {
        let verb = self.request.verb();
        let verbs = match verb {
            Verb::List | Verb::Watch => &[Verb::List, Verb::Watch],
            _ => std::slice::from_ref(&verb),
        };
        let covering = self.covering_scopes();
        let mut rights = Vec::from_iter(self.absence_right());
        for key in covering.iter().map(Vec::as_slice).chain([self.key]) {
            for verb in verbs {
                rights.push(Right::of(self.credential, Action::Read(*verb), key));
            }
        }
        rights
    }

    /// Caller and collection: the same key for its list as for its watch.
    pub(crate) fn list_key(&self) -> GrantKey {
        let right = Right::of(self.credential, Action::Read(Verb::List), self.key);
        right.key_for(self.credential)
    }

    /// The right of anonymous callers to the target.
    pub(super) fn anonymous_right(&self) -> Right {
        let action = Action::Read(self.request.verb());
        Right::of(&Credential::Anonymous, action, self.key)
    }

    /// True for a target that an API server shows to anonymous callers unless it is configured otherwise.
    pub(super) fn is_public_by_default(&self) -> bool {
        let request = self.request;
        let path = request.path().trim_start_matches('/');
        let first_segment = path.split('/').next().unwrap_or_default();
        PUBLIC_PATHS.contains(&first_segment)
            || request.namespace() == PUBLIC_NAMESPACE
            || (request.resource() == "namespaces" && request.name() == PUBLIC_NAMESPACE)
    }

    fn right_within(&self, key: &[u8]) -> Right {
        Right::of(self.credential, Action::Read(self.request.verb()), key)
    }

    /// The keys of the collections that include the target collection.
    fn covering_scopes(&self) -> Vec<Vec<u8>> {
        let request = self.request;
        if !matches!(request.verb(), Verb::List | Verb::Watch) {
            return Vec::new();
        }
        let mut scopes = Vec::new();
        if request.has_selectors() {
            scopes.push(keys::without_selectors(self.key).to_vec());
        }
        if !request.namespace().is_empty() {
            let mut all_namespaces = Vec::new();
            keys::push_resource(&mut all_namespaces, request.group(), request.resource());
            scopes.push(all_namespaces);
        }
        scopes
    }
}
