//! The query of a request. In: its text. Out: [`Query`], read as Go's `net/url.ParseQuery` and the API server's
//! conversions read it (`k8s.io/apimachinery/pkg/runtime/conversion.go`, `metav1.ListOptions` and its like), and only
//! where all of it is known.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use super::Verb;
use super::path::{Target, escapes_are_whole};
use crate::duration;
use crate::meta::parse_version;
use crate::selector::canonical;

/// Most parameters that are read. Go drops a query of more than 10,000 pairs, empty ones included, as a whole.
const MAX_PAIRS: usize = 64;

/// The query parameters that change an answer (`metav1.ListOptions`, `metav1.GetOptions`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query<'a> {
    /// `labelSelector`.
    pub label_selector: Cow<'a, str>,
    /// `fieldSelector`.
    pub field_selector: Cow<'a, str>,
    /// `resourceVersion`.
    pub resource_version: Cow<'a, str>,
    /// `resourceVersionMatch=Exact`.
    pub exact: bool,
    /// `continue`.
    pub continue_token: Cow<'a, str>,
    /// `limit`, 0 when none.
    pub limit: u64,
    /// `timeoutSeconds`.
    pub timeout_seconds: Option<u64>,
    /// `sendInitialEvents` is true.
    pub send_initial_events: bool,
    /// `allowWatchBookmarks` is true.
    pub bookmarks: bool,
    /// `dryRun` is there.
    pub dry_run: bool,
    /// `pretty` is there.
    pub pretty: bool,
    /// `includeObject` is there: a Table of another content than without it.
    pub include_object: bool,
    /// `hash` of an OpenAPI v3 document.
    pub hash: Cow<'a, str>,
}

/// The parameters that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parameter {
    Timeout,
    Pretty,
    Hash,
    ResourceVersion,
    IncludeObject,
    LabelSelector,
    FieldSelector,
    Watch,
    AllowWatchBookmarks,
    ResourceVersionMatch,
    TimeoutSeconds,
    Limit,
    Continue,
    SendInitialEvents,
    DryRun,
    Force,
    /// `fieldManager`, `fieldValidation`: they change no answer that is a success.
    FieldManager,
    FieldValidation,
    GracePeriodSeconds,
    OrphanDependents,
    PropagationPolicy,
    Uid,
    IgnoreStoreReadError,
}

impl Parameter {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "timeout" => Self::Timeout,
            "pretty" => Self::Pretty,
            "hash" => Self::Hash,
            "resourceVersion" => Self::ResourceVersion,
            "includeObject" => Self::IncludeObject,
            "labelSelector" => Self::LabelSelector,
            "fieldSelector" => Self::FieldSelector,
            "watch" => Self::Watch,
            "allowWatchBookmarks" => Self::AllowWatchBookmarks,
            "resourceVersionMatch" => Self::ResourceVersionMatch,
            "timeoutSeconds" => Self::TimeoutSeconds,
            "limit" => Self::Limit,
            "continue" => Self::Continue,
            "sendInitialEvents" => Self::SendInitialEvents,
            "dryRun" => Self::DryRun,
            "force" => Self::Force,
            "fieldManager" => Self::FieldManager,
            "fieldValidation" => Self::FieldValidation,
            "gracePeriodSeconds" => Self::GracePeriodSeconds,
            "orphanDependents" => Self::OrphanDependents,
            "propagationPolicy" => Self::PropagationPolicy,
            "uid" => Self::Uid,
            "ignoreStoreReadErrorWithClusterBreakingPotential" => Self::IgnoreStoreReadError,
            _ => return None,
        })
    }

    /// The API server reads it for this verb.
    fn is_read_for(self, verb: Verb, target: &Target<'_>) -> bool {
        use Verb::{Create, Delete, DeleteCollection, Get, List, Patch, Update, Watch};
        match self {
            Self::Timeout | Self::Pretty => true,
            Self::Hash => target.hashed,
            Self::ResourceVersion => matches!(verb, Get | List | Watch | Delete | DeleteCollection),
            Self::IncludeObject => matches!(verb, Get | List | Watch),
            Self::Watch => matches!(verb, List | Watch),
            Self::LabelSelector
            | Self::FieldSelector
            | Self::AllowWatchBookmarks
            | Self::ResourceVersionMatch
            | Self::TimeoutSeconds
            | Self::Limit
            | Self::Continue
            | Self::SendInitialEvents => matches!(verb, List | Watch | DeleteCollection),
            Self::DryRun => matches!(verb, Create | Update | Patch | Delete | DeleteCollection),
            Self::FieldManager | Self::FieldValidation => matches!(verb, Create | Update | Patch),
            Self::Force => verb == Patch,
            Self::GracePeriodSeconds
            | Self::OrphanDependents
            | Self::PropagationPolicy
            | Self::Uid
            | Self::IgnoreStoreReadError => matches!(verb, Delete | DeleteCollection),
        }
    }
}

/// Which parameters a query has had.
#[derive(Debug, Default)]
struct Seen(u32);

impl Seen {
    fn has(&self, parameter: Parameter) -> bool {
        self.0 & (1 << parameter as u32) != 0
    }

    /// False where it was there before: the API server takes the first of a name, others the last.
    fn adds(&mut self, parameter: Parameter) -> bool {
        let new = !self.has(parameter);
        self.0 |= 1 << parameter as u32;
        new
    }
}

impl<'a> Query<'a> {
    /// Reads a query; `None` where it isn't wholly understood, or the API server always refuses it.
    pub(super) fn of(raw: &'a str, verb: Verb, target: &Target<'_>) -> Option<Self> {
        let mut query = Self::default();
        if raw.is_empty() || target.has_own_parameters() {
            return Some(query);
        }
        let mut seen = Seen::default();
        for (n, pair) in raw.split('&').enumerate() {
            if pair.is_empty() {
                continue;
            }
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let parameter = Parameter::of(&decode(name)?)?;
            if n >= MAX_PAIRS || !parameter.is_read_for(verb, target) || !seen.adds(parameter) {
                return None;
            }
            query.take(parameter, decode(value)?, verb)?;
        }
        query.is_accepted(verb, target, &seen).then_some(query)
    }

    fn take(&mut self, parameter: Parameter, value: Cow<'a, str>, verb: Verb) -> Option<()> {
        match parameter {
            Parameter::Timeout => is_timeout(&value).then_some(())?,
            Parameter::Pretty => self.pretty = true,
            Parameter::Hash => self.hash = value,
            Parameter::ResourceVersion => {
                // Of a DELETE it is a precondition, not a position.
                let known = matches!(value.as_ref(), "" | "0") || parse_version(&value).is_some();
                self.resource_version = (known || !verb.is_read()).then_some(value)?;
            }
            Parameter::IncludeObject => self.include_object = true,
            Parameter::LabelSelector => self.label_selector = canonical(selector(value)?),
            Parameter::FieldSelector => self.field_selector = canonical(selector(value)?),
            Parameter::AllowWatchBookmarks => self.bookmarks = is_true(&value),
            Parameter::SendInitialEvents => self.send_initial_events = is_true(&value),
            Parameter::ResourceVersionMatch => {
                self.exact = value == "Exact";
                matches!(value.as_ref(), "Exact" | "NotOlderThan").then_some(())?;
            }
            Parameter::TimeoutSeconds => self.timeout_seconds = Some(number(&value)?),
            Parameter::Limit => self.limit = number(&value)?,
            Parameter::Continue => self.continue_token = value,
            Parameter::DryRun => self.dry_run = true,
            // The verb tells.
            Parameter::Watch => {}
            Parameter::Force
            | Parameter::FieldManager
            | Parameter::FieldValidation
            | Parameter::GracePeriodSeconds
            | Parameter::OrphanDependents
            | Parameter::PropagationPolicy
            | Parameter::Uid
            | Parameter::IgnoreStoreReadError => {}
        }
        Some(())
    }

    /// `metainternalversion/validation.ValidateListOptions`, and what the storage says of `continue`.
    fn is_accepted(&self, verb: Verb, target: &Target<'_>, seen: &Seen) -> bool {
        let (matched, initial) = (
            seen.has(Parameter::ResourceVersionMatch),
            seen.has(Parameter::SendInitialEvents),
        );
        let continued = !self.continue_token.is_empty();
        match verb {
            Verb::Watch if target.watched_by_path() => !matched && !initial && !continued,
            Verb::Watch => matched == initial && !self.exact && !continued,
            Verb::List | Verb::DeleteCollection => {
                let version = self.resource_version.as_ref();
                let misplaced =
                    matched && (version.is_empty() || continued || self.exact && version == "0");
                !initial && !misplaced && !(continued && !matches!(version, "" | "0"))
            }
            _ => true,
        }
    }
}

/// `Convert_Slice_string_To_bool`: whatever is not "0" or "false" is true, also nothing.
fn is_true(value: &str) -> bool {
    value != "0" && !value.eq_ignore_ascii_case("false")
}

/// The first `watch` of a query is true, whatever else stands in it: as `NewRequestInfo` falls back to.
pub(super) fn asks_to_watch(raw: &str) -> bool {
    let mut pairs = raw
        .split('&')
        .filter(|pair| !pair.contains(';') && escapes_are_whole(pair));
    let value = pairs.find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (percent_decode_str(name).decode_utf8_lossy() == "watch").then_some(value)
    });
    value.is_some_and(|value| is_true(&percent_decode_str(value).decode_utf8_lossy()))
}

/// A name or value; `None` for what Go drops (`;`, broken escapes) and for what is no text.
fn decode(raw: &str) -> Option<Cow<'_, str>> {
    if !raw.bytes().all(|b| b.is_ascii_graphic() && b != b';') || !escapes_are_whole(raw) {
        return None;
    }
    if !raw.contains(['%', '+']) {
        return Some(Cow::Borrowed(raw));
    }
    let spaced = raw.replace('+', " ");
    let decoded = percent_decode_str(&spaced).decode_utf8().ok()?;
    (!decoded.contains(char::is_control)).then(|| Cow::Owned(decoded.into_owned()))
}

fn number(value: &str) -> Option<u64> {
    let digits = (1..=18).contains(&value.len()) && value.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| value.parse().ok()).flatten()
}

/// `timeout`: how long the API server may take, which changes no answer.
fn is_timeout(value: &str) -> bool {
    value.is_empty() || duration::parse(value).is_ok()
}

/// A selector that can stand in a key.
fn selector(value: Cow<'_, str>) -> Option<Cow<'_, str>> {
    (!value.contains(['&', '?', '#'])).then_some(value)
}
