//! The effects that a write has on stored rows, decided from its request alone: its response may not be storable.

use crate::cache::change::Extent;
use hublet_wire::request::{ApiRequest, Verb};

/// True for resources that are remote procedure calls rather than objects (reviews, bindings): they are never stored.
pub(super) fn is_rpc(group: &str, plural: &str) -> bool {
    match group {
        "authentication.k8s.io" | "authorization.k8s.io" => plural.ends_with("reviews"),
        "" => matches!(plural, "bindings" | "componentstatuses"),
        _ => false,
    }
}

/// The extent of the rows that a successful write with this verb supersedes.
pub(super) fn written_extent(verb: Verb) -> Option<Extent> {
    match verb {
        Verb::Create => Some(Extent::Lists),
        Verb::Update | Verb::Patch | Verb::Delete | Verb::DeleteCollection => Some(Extent::Copies),
        _ => None,
    }
}

/// True for a write whose response has the object's new resourceVersion even if it isn't the object: a `Scale` has its
/// parent's (`autoscaling/v1`).
pub(super) fn shows_version(request: &ApiRequest) -> bool {
    let subresource = request.subresource();
    let shows_parent = matches!(
        subresource,
        "approval" | "ephemeralcontainers" | "finalize" | "resize" | "scale" | "status"
    );
    match request.verb() {
        Verb::Create | Verb::Delete => subresource.is_empty(),
        Verb::Update | Verb::Patch => subresource.is_empty() || shows_parent,
        _ => false,
    }
}

/// The extent of the rows that a successful write supersedes whose response can't be stored. An update of a subresource
/// (`scale`) changes the object itself, and so do the eviction and the binding of a pod; whatever else is created at a
/// subresource (a token) is another object, which is not stored.
pub(crate) fn superseded_by(request: &ApiRequest) -> Option<Extent> {
    let is_stored = request.is_resource()
        && !is_rpc(request.group(), request.resource())
        && !request.options().dry_run;
    match (request.verb(), request.subresource()) {
        _ if !is_stored => None,
        (Verb::Create, "") => Some(Extent::Lists),
        (Verb::Create, "binding" | "eviction") if is_of_pods(request) => Some(Extent::Copies),
        (Verb::Create, _) | (_, "proxy") => None,
        (Verb::Update | Verb::Patch, _) => Some(Extent::Copies),
        (Verb::Delete | Verb::DeleteCollection, "") => Some(Extent::Copies),
        _ => None,
    }
}

pub(super) fn is_of_pods(request: &ApiRequest) -> bool {
    request.group().is_empty() && request.resource() == "pods"
}

/// True for a write that may create an object. Where its response can't be stored, the object is no longer known to be
/// absent.
pub(crate) fn may_create(request: &ApiRequest) -> bool {
    let writes = matches!(request.verb(), Verb::Create | Verb::Update | Verb::Patch);
    let stored = request.is_resource()
        && request.subresource().is_empty()
        && !is_rpc(request.group(), request.resource());
    writes && stored && !request.options().dry_run
}

#[cfg(test)]
mod tests {
    use http::Method;
    use hublet_wire::request::RequestInfo;

    use super::*;

    #[test]
    fn i2_a_write_whose_answer_is_not_stored_supersedes_what_it_changes() {
        let of = |method: Method, target: &str| {
            let info = RequestInfo::parse(&method, &target.parse().unwrap());
            superseded_by(info.understood().unwrap())
        };
        let (pod, copies) = ("/api/v1/namespaces/d/pods/p", Some(Extent::Copies));
        for (method, target, expected) in [
            (Method::POST, "/eviction", copies),
            (Method::POST, "/binding", copies),
            (Method::POST, "/eviction?dryRun=All", None),
            (Method::POST, "/exec", None),
            (Method::POST, "/proxy", None),
            (Method::PUT, "/proxy", None),
            (Method::PUT, "/ephemeralcontainers", copies),
            (Method::PATCH, "/status", copies),
            (Method::DELETE, "", copies),
            (Method::GET, "", None),
        ] {
            assert_eq!(of(method, &format!("{pod}{target}")), expected, "{target}");
        }
        let token = "/api/v1/namespaces/d/serviceaccounts/s/token";
        assert_eq!(of(Method::POST, token), None);
        let pods = "/api/v1/namespaces/d/pods";
        assert_eq!(of(Method::POST, pods), Some(Extent::Lists));
        assert_eq!(of(Method::DELETE, pods), copies);
    }
}
