//! The route of a request: a pure function of the request, its caller, the cloud's state and the policy. Nothing else
//! decides which requests are sent to the cloud and which are answered from the store.

use hublet_wire::request::{RequestInfo, Verb};

use super::call::{Acceptance, Caller};
use super::protocol::Protocol;
use crate::cache::exchange::may_be_stored;
use crate::cloud::health::CloudState;
use crate::cloud::pool::ConnectionClass;
use crate::config::WorkingMode;

/// The destination of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the cloud, with or without the store, on a connection of this class.
    Forward(Forward, ConnectionClass),
    /// To the cloud, on a connection that leaves HTTP.
    Upgrade(SendTime),
    /// To the store alone.
    Store,
    Refuse(Refusal),
}

/// The part that the store has in a request that may be sent to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forward {
    /// None: only the cloud can answer.
    CloudOnly(SendTime),
    /// It answers where the cloud fails, or stays silent for longer than the fallback timeout.
    CloudThenStore,
    /// It answers what it can; the rest is sent to the cloud.
    StoreThenCloud,
}

/// The time to send a request that only the cloud can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SendTime {
    Now,
    /// After a probe has found the cloud: a write that was never sent has a known outcome.
    AfterProbe,
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

/// The part of the configuration that decides on routes.
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
    match protocol {
        Protocol::Upgrade => route_upgrade(state),
        Protocol::Http if request.verb().is_read() => route_read(request, class, state, policy),
        Protocol::Http => route_write(class, state),
    }
}

fn route_upgrade(state: CloudState) -> Route {
    match send_time(state) {
        Some(time) => Route::Upgrade(time),
        None => Route::Refuse(Refusal::UpgradeUnavailable),
    }
}

fn route_write(class: ConnectionClass, state: CloudState) -> Route {
    match send_time(state) {
        Some(time) => Route::Forward(Forward::CloudOnly(time), class),
        None => Route::Refuse(Refusal::WriteUnavailable),
    }
}

/// The time to send a request whose outcome must not stay unknown; `None` while the cloud is away.
fn send_time(state: CloudState) -> Option<SendTime> {
    match state {
        CloudState::Connected => Some(SendTime::Now),
        CloudState::Suspect | CloudState::Silent => Some(SendTime::AfterProbe),
        CloudState::Disconnected | CloudState::Recovering => None,
    }
}

fn route_read(
    request: &RequestInfo,
    class: ConnectionClass,
    state: CloudState,
    policy: &Policy,
) -> Route {
    let has_store = policy.working_mode != WorkingMode::Cloud;
    let is_stored = has_store && is_storable(request);
    let forward = match state {
        CloudState::Connected | CloudState::Suspect if is_stored => Forward::CloudThenStore,
        CloudState::Silent if is_stored => Forward::StoreThenCloud,
        CloudState::Connected | CloudState::Suspect | CloudState::Silent => {
            Forward::CloudOnly(SendTime::Now)
        }
        CloudState::Disconnected | CloudState::Recovering if !has_store => {
            return Route::Refuse(Refusal::NoStore);
        }
        // Even if it is never stored: rights are checked first, so that a refusal reveals nothing of the store.
        CloudState::Disconnected | CloudState::Recovering if request.understood().is_some() => {
            return Route::Store;
        }
        CloudState::Disconnected | CloudState::Recovering => {
            return Route::Refuse(Refusal::NotUnderstood);
        }
    };
    Route::Forward(forward, class)
}

/// True if the store may hold the answer. It never holds subresources.
fn is_storable(request: &RequestInfo) -> bool {
    request
        .understood()
        .is_some_and(|request| request.subresource().is_empty() && may_be_stored(request))
}

/// The API server answers a rejected credential with GOAWAY, so one that it has not accepted yet stays off the connections
/// that others share.
fn connection_class(request: &RequestInfo, caller: &Caller) -> ConnectionClass {
    match (caller.acceptance, request.verb()) {
        (Acceptance::Pending, _) => ConnectionClass::Dedicated,
        (Acceptance::Accepted, Verb::Watch) => ConnectionClass::Watch,
        (Acceptance::Accepted, _) => ConnectionClass::Unary,
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
    const STATUS: &str = "/api/v1/namespaces/a/pods/p/status";
    const PROXIED: &str = "/api/v1/namespaces/a/services/s/proxy/a%2fb";
    const CLOUD: Forward = Forward::CloudOnly(SendTime::Now);
    const AFTER_PROBE: Forward = Forward::CloudOnly(SendTime::AfterProbe);
    const STATES: [CloudState; 5] = [Connected, Suspect, Silent, Disconnected, Recovering];

    struct Case {
        method: &'static str,
        path: &'static str,
        acceptance: Acceptance,
        protocol: Protocol,
        mode: WorkingMode,
    }

    fn case(method: &'static str, path: &'static str) -> Case {
        Case {
            method,
            path,
            acceptance: Acceptance::Accepted,
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
            acceptance: case.acceptance,
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
                Route::Forward(Forward::CloudThenStore, class),
                Route::Forward(Forward::CloudThenStore, class),
                Route::Forward(Forward::StoreThenCloud, class),
                Route::Store,
                Route::Store,
            ];
            assert_eq!(routes(&case("GET", path)), expected, "{path}");
        }
    }

    #[test]
    fn a_read_that_is_never_stored_is_sent_to_the_cloud_until_that_is_away() {
        let cloud = Route::Forward(CLOUD, Unary);
        let expected = [cloud, cloud, cloud, Route::Store, Route::Store];
        for path in [LOG, STATUS, "/healthz"] {
            assert_eq!(routes(&case("GET", path)), expected, "{path}");
        }
    }

    #[test]
    fn a_read_that_is_not_understood_has_no_answer_in_the_store() {
        let refuse = Route::Refuse(Refusal::NotUnderstood);
        let cloud = Route::Forward(CLOUD, Unary);
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
            let (cloud, probe) = (
                Route::Forward(CLOUD, Unary),
                Route::Forward(AFTER_PROBE, Unary),
            );
            let refuse = Route::Refuse(Refusal::WriteUnavailable);
            let expected = [cloud, probe, probe, refuse, refuse];
            assert_eq!(routes(&case(method, path)), expected, "{method} {path}");
        }
    }

    #[test]
    fn an_upgrade_is_never_answered_from_the_store() {
        let upgrade = Case {
            protocol: Protocol::Upgrade,
            ..case("GET", "/api/v1/pods?watch=true")
        };
        let (cloud, probe) = (
            Route::Upgrade(SendTime::Now),
            Route::Upgrade(SendTime::AfterProbe),
        );
        let refuse = Route::Refuse(Refusal::UpgradeUnavailable);
        let expected = [cloud, probe, probe, refuse, refuse];
        assert_eq!(routes(&upgrade), expected);
    }

    #[test]
    fn a_credential_that_the_cloud_has_not_accepted_shares_no_connection() {
        let unproven = Case {
            acceptance: Acceptance::Pending,
            ..case("GET", POD)
        };
        assert_eq!(
            routes(&unproven)[0],
            Route::Forward(Forward::CloudThenStore, Dedicated)
        );
    }

    #[test]
    fn the_working_mode_cloud_has_no_store() {
        let no_store = Case {
            mode: WorkingMode::Cloud,
            ..case("GET", POD)
        };
        let (cloud, refuse) = (
            Route::Forward(CLOUD, Unary),
            Route::Refuse(Refusal::NoStore),
        );
        assert_eq!(routes(&no_store), [cloud, cloud, cloud, refuse, refuse]);
    }
}
