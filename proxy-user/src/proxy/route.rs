//! Where a request goes. In: its verb, the cloud's state, whether it asks to leave HTTP. Out: [`Route`]; pure.
//! Next stage: `cloud` or `local`.

use crate::cloud::health::CloudState;
use hublet_wire::request::Verb;

/// Where a request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    /// To the cloud alone.
    Cloud,
    /// To the cloud, and from the store where that fails, or nothing is heard from the cloud within patience.
    CloudThenLocal,
    /// From the store at once where it knows; else to the cloud.
    LocalThenCloud,
    /// To the cloud once it is known whether it is there: a write that was never sent has a known outcome.
    CloudOnceJudged,
    /// From the store alone.
    Local,
    Refuse,
}

pub(crate) fn route(verb: Verb, state: CloudState, upgrade: bool) -> Route {
    use CloudState::{Connected, Disconnected, Recovering, Silent, Suspect};
    match (state, verb.is_read() && !upgrade) {
        (Connected | Suspect, true) => Route::CloudThenLocal,
        (Silent, true) => Route::LocalThenCloud,
        (Disconnected | Recovering, true) => Route::Local,
        (Connected, false) => Route::Cloud,
        (Suspect | Silent, false) => Route::CloudOnceJudged,
        (Disconnected | Recovering, false) => Route::Refuse,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn i11_nothing_goes_to_a_cloud_that_is_known_to_be_away() {
        use CloudState::{Connected, Disconnected, Recovering, Silent, Suspect};
        let table = [
            (Verb::Get, Connected, false, Route::CloudThenLocal),
            (Verb::Get, Connected, true, Route::Cloud),
            (Verb::List, Suspect, false, Route::CloudThenLocal),
            (Verb::List, Silent, false, Route::LocalThenCloud),
            (Verb::Watch, Disconnected, false, Route::Local),
            (Verb::NonResource, Recovering, false, Route::Local),
            (Verb::Create, Connected, false, Route::Cloud),
            (Verb::Patch, Suspect, false, Route::CloudOnceJudged),
            (Verb::Patch, Silent, false, Route::CloudOnceJudged),
            (Verb::Get, Silent, true, Route::CloudOnceJudged),
            (Verb::Delete, Disconnected, false, Route::Refuse),
            (Verb::Get, Disconnected, true, Route::Refuse),
            (Verb::Other, Disconnected, false, Route::Refuse),
        ];
        for (verb, state, upgrade, expected) in table {
            assert_eq!(
                route(verb, state, upgrade),
                expected,
                "{verb:?} {state:?} upgrade={upgrade}"
            );
        }
    }
}
