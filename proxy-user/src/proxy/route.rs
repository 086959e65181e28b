//! Where a request goes: a pure function of the request, its caller, the cloud's state and the policy. Nothing else decides
//! this.

use hublet_wire::request::{RequestInfo, Verb};

use super::call::{Caller, Protocol, Standing};
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
    /// A read with a path or a parameter that hublet does not understand, or in a mode without a store.
    NotUnderstood,
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
    let has_store = policy.working_mode == WorkingMode::Edge;
    let is_stored = has_store && is_storable(request);
    match state {
        CloudState::Connected | CloudState::Suspect if is_stored => Route::CloudThenStore(class),
        CloudState::Silent if is_stored => Route::StoreThenCloud(class),
        CloudState::Connected | CloudState::Suspect | CloudState::Silent => Route::Cloud(class),
        // Also what is never stored: rights are judged first, so that a refusal tells nothing of the store.
        CloudState::Disconnected | CloudState::Recovering
            if has_store && request.understood().is_some() =>
        {
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
