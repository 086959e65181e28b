//! Where a request goes: a pure function of the request, its caller, the cloud's state and the policy. Nothing else decides
//! this.

use hublet_wire::request::{RequestInfo, Verb};

use super::call::{Caller, Standing};
use super::protocol::Protocol;
use crate::cache::exchange::may_be_stored;
use crate::cloud::health::CloudState;
use crate::cloud::pool::ConnectionClass;
use crate::config::WorkingMode;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the cloud alone.
    Cloud(ConnectionClass),
    /// To the cloud, once a probe has found it: a write that was never sent has a known outcome.
    CloudAfterProbe(ConnectionClass),
    /// To the cloud, and to the store where that fails or stays silent for longer than the fallback timeout.
    CloudThenStore(ConnectionClass),
    /// To the store, and to the cloud where the store does not know.
    StoreThenCloud(ConnectionClass),
    Store,
    Refuse(Refusal),
}

/// The reason for which a request goes nowhere while the cloud is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Only the cloud can do it.
    WriteUnavailable,
    /// A read with a path or a parameter that hublet does not understand.
    NotUnderstood,
    /// A read in a working mode without a store.
    NoStore,
    UpgradeUnavailable,
}

/// The part of the configuration that decides where requests go.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    pub working_mode: WorkingMode,
}

pub(crate) fn route(
    request: &RequestInfo,
    caller: &Caller,
    protocol: Protocol,
    state: CloudState,
    policy: &Policy,
) -> Route {
    let class = connection_class(request, caller);
    if protocol == Protocol::Upgrade {
        return when_connected(state, class, Refusal::UpgradeUnavailable);
    }
    if !request.verb().is_read() {
        return when_connected(state, class, Refusal::WriteUnavailable);
    }
    route_read(request, class, state, policy)
}

/// A request that only the cloud can answer, and that must not be sent while its outcome might stay unknown.
fn when_connected(state: CloudState, class: ConnectionClass, refusal: Refusal) -> Route {
    match state {
        CloudState::Connected => Route::Cloud(class),
        CloudState::Suspect | CloudState::Silent => Route::CloudAfterProbe(class),
        CloudState::Disconnected | CloudState::Recovering => Route::Refuse(refusal),
    }
}

fn route_read(
    request: &RequestInfo,
    class: ConnectionClass,
    state: CloudState,
    policy: &Policy,
) -> Route {
    if policy.working_mode == WorkingMode::Cloud {
        return match state {
            CloudState::Disconnected | CloudState::Recovering => Route::Refuse(Refusal::NoStore),
            CloudState::Connected | CloudState::Suspect | CloudState::Silent => Route::Cloud(class),
        };
    }
    let is_stored = is_storable(request);
    match state {
        CloudState::Connected | CloudState::Suspect if is_stored => Route::CloudThenStore(class),
        CloudState::Silent if is_stored => Route::StoreThenCloud(class),
        CloudState::Connected | CloudState::Suspect | CloudState::Silent => Route::Cloud(class),
        // Also what is never stored: rights are judged first, so that a refusal tells nothing of the store.
        CloudState::Disconnected | CloudState::Recovering if request.understood().is_some() => {
            Route::Store
        }
        CloudState::Disconnected | CloudState::Recovering => Route::Refuse(Refusal::NotUnderstood),
    }
}

/// Whether the store may hold the answer. It never holds subresources.
fn is_storable(request: &RequestInfo) -> bool {
    request
        .understood()
        .is_some_and(|request| request.subresource().is_empty() && may_be_stored(request))
}

/// The API server answers a rejected credential with GOAWAY, so one that it has not accepted yet stays off the connections
/// that others share.
fn connection_class(request: &RequestInfo, caller: &Caller) -> ConnectionClass {
    match request.verb() {
        _ if caller.standing == Standing::Unproven => ConnectionClass::Dedicated,
        Verb::Watch => ConnectionClass::Watch,
        _ => ConnectionClass::Unary,
    }
}

#[cfg(test)]
mod tests {
    use CloudState::{Connected, Disconnected, Recovering, Silent, Suspect};
    use ConnectionClass::{Dedicated, Unary, Watch};
    use http::Method;

    use super::*;
    use crate::authz::identity::Credential;

    const POD: &str = "/api/v1/namespaces/a/pods/p";
    const LOG: &str = "/api/v1/namespaces/a/pods/p/log";
    const PROXIED: &str = "/api/v1/namespaces/a/services/s/proxy/a%2fb";
    const STATES: [CloudState; 5] = [Connected, Suspect, Silent, Disconnected, Recovering];

    struct Case {
        method: &'static str,
        path: &'static str,
        standing: Standing,
        protocol: Protocol,
        mode: WorkingMode,
    }

    fn case(method: &'static str, path: &'static str) -> Case {
        Case {
            method,
            path,
            standing: Standing::Proven,
            protocol: Protocol::Http,
            mode: WorkingMode::Edge,
        }
    }

    /// The routes in the five states, in their order.
    fn routes(case: &Case) -> [Route; 5] {
        let method: Method = case.method.parse().unwrap();
        let request = RequestInfo::parse(&method, &case.path.parse().unwrap());
        let caller = Caller {
            credential: Credential::Anonymous,
            standing: case.standing,
        };
        let policy = Policy {
            working_mode: case.mode,
        };
        STATES.map(|state| route(&request, &caller, case.protocol, state, &policy))
    }

    #[test]
    fn i11_a_stored_read_never_goes_to_a_cloud_that_is_away() {
        for (path, class) in [
            (POD, Unary),
            ("/api/v1/pods", Unary),
            ("/api/v1/pods?watch=true", Watch),
            ("/apis", Unary),
        ] {
            let expected = [
                Route::CloudThenStore(class),
                Route::CloudThenStore(class),
                Route::StoreThenCloud(class),
                Route::Store,
                Route::Store,
            ];
            assert_eq!(routes(&case("GET", path)), expected, "{path}");
        }
    }

    #[test]
    fn a_subresource_is_the_clouds_until_rights_are_to_be_judged() {
        let cloud = Route::Cloud(Unary);
        let expected = [cloud, cloud, cloud, Route::Store, Route::Store];
        assert_eq!(routes(&case("GET", LOG)), expected);
    }

    #[test]
    fn a_read_that_is_not_understood_has_no_answer_in_the_store() {
        let refuse = Route::Refuse(Refusal::NotUnderstood);
        let cloud = Route::Cloud(Unary);
        let expected = [cloud, cloud, cloud, refuse, refuse];
        assert_eq!(routes(&case("GET", PROXIED)), expected);
        assert_eq!(routes(&case("GET", "/api/v1/pods?unheard=1")), expected);
    }

    #[test]
    fn i1_a_write_waits_for_the_probe_while_the_state_is_in_doubt() {
        for (method, path) in [
            ("POST", "/api/v1/namespaces/a/pods"),
            ("PUT", POD),
            ("PATCH", POD),
            ("DELETE", POD),
            ("OPTIONS", "/api"),
        ] {
            let probe = Route::CloudAfterProbe(Unary);
            let refuse = Route::Refuse(Refusal::WriteUnavailable);
            let expected = [Route::Cloud(Unary), probe, probe, refuse, refuse];
            assert_eq!(routes(&case(method, path)), expected, "{method} {path}");
        }
    }

    #[test]
    fn an_upgrade_is_never_answered_from_the_store() {
        let upgrade = Case {
            protocol: Protocol::Upgrade,
            ..case("GET", "/api/v1/pods?watch=true")
        };
        let probe = Route::CloudAfterProbe(Watch);
        let refuse = Route::Refuse(Refusal::UpgradeUnavailable);
        let expected = [Route::Cloud(Watch), probe, probe, refuse, refuse];
        assert_eq!(routes(&upgrade), expected);
    }

    #[test]
    fn a_credential_that_the_cloud_has_not_accepted_shares_no_connection() {
        let unproven = Case {
            standing: Standing::Unproven,
            ..case("GET", POD)
        };
        assert_eq!(routes(&unproven)[0], Route::CloudThenStore(Dedicated));
    }

    #[test]
    fn the_working_mode_cloud_has_no_store() {
        let no_store = Case {
            mode: WorkingMode::Cloud,
            ..case("GET", POD)
        };
        let (cloud, refuse) = (Route::Cloud(Unary), Route::Refuse(Refusal::NoStore));
        assert_eq!(routes(&no_store), [cloud, cloud, cloud, refuse, refuse]);
    }
}
