//! The options that a query gives (`metav1.ListOptions`, `metav1.GetOptions` and their like).

use super::text::Part;

/// The numbers and switches of a query that change a response.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Options {
    /// `resourceVersionMatch=Exact` instead of `NotOlderThan`.
    pub exact: bool,
    /// `limit`, 0 when none.
    pub limit: u64,
    /// `timeoutSeconds` of a watch.
    pub timeout_seconds: Option<u64>,
    /// `sendInitialEvents` is true (WatchList, KEP-3157).
    pub send_initial_events: bool,
    /// `allowWatchBookmarks` is true.
    pub bookmarks: bool,
    /// `dryRun` is there, whatever its value.
    pub dry_run: bool,
    /// `pretty` is there: the response is indented.
    pub pretty: bool,
    /// `includeObject` is there: a Table of other content than without it.
    pub include_object: bool,
}

/// The texts of a query that change a response.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Values {
    pub label_selector: Part,
    pub field_selector: Part,
    pub resource_version: Part,
    pub continue_token: Part,
    pub hash: Part,
}
